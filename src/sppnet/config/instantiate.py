"""Check the class names in a configuration (`_target_`), and build objects of these classes.

People share config files, so a name in a config file must not be able to run arbitrary code. A name is accepted if it
starts with an allowed prefix and refers either to a class of the type that its config key requires, or to a function
whose return annotation is such a class. Functions that load or download files are refused. Users allow their own
package on the command line (`allow=mypackage`) or in the environment (`SPPNET_ALLOW=mypackage`); a config file cannot
allow a package.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from sppnet.errors import UserError

ALLOWED = ("sppnet.", "torch.nn.", "torch.optim.", "torchvision.", "lightning.", "torchmetrics.")
# Configurations must name sppnet's own classes as members of these packages (sppnet.data.NAME), not of the modules
# inside them. Stored configurations then stay valid when a class moves to a different module.
PUBLIC_PACKAGES = ("sppnet.data", "sppnet.models")
REFUSED = ("torch.hub", "torch.jit", "torch.load", "torchvision.datasets.utils", "lightning.fabric.utilities.cloud_io")
# how to allow a package; `sppnet.from_pretrained` says it in another way
ADVICE = "put allow=PACKAGE on the command line or set SPPNET_ALLOW=PACKAGE"
T = TypeVar("T")
_allowed_here: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())  # in this thread, by `allowing`


@contextlib.contextmanager
def allowing(packages: Iterable[str]) -> Iterator[None]:
    """Allow the classes of some packages inside the block, in this thread."""
    token = _allowed_here.set((*_allowed_here.get(), *packages))
    try:
        yield
    finally:
        _allowed_here.reset(token)


def allowed_prefixes() -> tuple[str, ...]:
    """The prefixes that a `_target_` may have: `ALLOWED`, and the packages of `SPPNET_ALLOW` and of `allowing`."""
    extra = [name.strip().rstrip(".") for name in os.environ.get("SPPNET_ALLOW", "").split(",")]
    extra += _allowed_here.get()
    return ALLOWED + tuple(f"{name}." for name in extra if name)


def check_target(name: object, slot: str) -> str:
    """Return `name` if it is allowed as the `_target_` of the config key `slot`.

    Only the text is checked; nothing is imported.

    Raises:
        UserError: `name` is not a dotted public name with an allowed prefix, or it starts with a prefix in `REFUSED`.
    """
    allowed = allowed_prefixes()
    if not isinstance(name, str) or not all(p.isidentifier() and not p.startswith("_") for p in name.split(".")):
        raise UserError(f"{slot}._target_={name!r} is not the dotted name of a public class")
    if name.startswith(REFUSED):
        raise UserError(f"{slot}._target_={name} is not allowed: it loads, downloads or runs what a file names")
    if not name.startswith(allowed):
        raise UserError(
            f"{slot}._target_={name} is not allowed; the name must match one of {', '.join(p + '*' for p in allowed)}"
            f" (to allow your own package, {ADVICE})"
        )
    if name.startswith("sppnet.") and name.rpartition(".")[0] not in PUBLIC_PACKAGES:
        public = " and ".join(f"{package}.NAME" for package in PUBLIC_PACKAGES)
        raise UserError(f"{slot}._target_={name} is not a public name; sppnet's public names are {public}")
    return name


def instantiate(
    node: Mapping[str, Any], kind: type[T], slot: str, *args: Any, offered: Mapping[str, Any] | None = None
) -> T:
    """Build the object that `node` describes.

    `_target_` names a class or an annotated function, and the other keys are its arguments.

    Args:
        node: a plain mapping with `_target_`. Nested mappings are passed on unchanged, not built.
        kind: the required type of the result.
        slot: the config key of `node`, used in messages.
        *args: positional arguments.
        offered: keyword arguments for those parameters of the class that `node` does not set.

    Raises:
        UserError: the name is not allowed, does not exist or is not of `kind`, or the class refuses the arguments.
    """
    name = check_target(node.get("_target_"), slot)
    target = _import_target(name, slot)
    if not _returns(target, kind):
        raise UserError(
            f"{slot}._target_={name} is neither a subclass of {kind.__name__} nor a function annotated to return one"
        )
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    try:
        # Before an object exists: the __del__ of one that was built by half may fail, which Python prints.
        signature = inspect.signature(target)
        arguments = {key: value for key, value in (offered or {}).items() if key in signature.parameters} | arguments
        signature.bind(*args, **arguments)
        instance = target(*args, **arguments)
    except UserError:
        raise
    except Exception as error:  # a user's class may raise any exception
        out_of_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        problem = "they need more memory than is available" if out_of_memory else str(error) or type(error).__name__
        raise UserError(f"{slot}: {name} refuses its arguments: {problem}") from error
    if isinstance(instance, _torch_module()) and "_modules" not in vars(instance):
        raise UserError(f"{slot}: {name} does not call super().__init__() in its constructor")
    if not isinstance(instance, kind):
        raise UserError(f"{slot}._target_={name} returned {type(instance).__name__} instead of {kind.__name__}")
    return instance


def is_own(instance: object) -> bool:
    """Whether an object is of a class of the user's own, and not of one of sppnet's."""
    return type(instance).__module__.split(".")[0] != "sppnet"


def _torch_module() -> type:
    """`torch.nn.Module`, without importing torch: no instance of it can exist before that."""
    torch = sys.modules.get("torch")
    return type(None) if torch is None else torch.nn.Module


def user_source_files(node: Any, slot: str = "") -> dict[str, Path]:
    """Map the name of each user class that is a `_target_` in `node` to the path of its source file.

    Raises:
        UserError: a name is not allowed, or its module does not exist.
    """
    if not isinstance(node, Mapping | list):
        return {}
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    files: dict[str, Path] = {}
    for key, value in items:
        inner = f"{slot}.{key}".lstrip(".")
        if key == "_target_" and isinstance(value, str) and not value.startswith(ALLOWED):
            check_target(value, slot)  # because looking for the file imports the packages that contain it
            files[value] = _source_file(value)
        files |= user_source_files(value, inner)
    return files


def _source_file(name: str) -> Path:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        except Exception as error:  # of a package that contains it
            raise UserError(_import_problem(name, "", error).removeprefix(".")) from error
        if spec is not None and spec.origin is not None and spec.has_location:
            return Path(spec.origin)
    raise UserError(
        f"_target_={name} does not exist: there is no module {parts[0]} (the working directory is also searched)"
    )


def _import_target(name: str, slot: str) -> Any:
    """Import `name`, and check that the object it refers to is defined under an allowed prefix.

    For example, `sppnet.x.os.system` is refused, because the object is defined outside sppnet.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            target: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                continue
            raise UserError(_import_problem(name, slot, error)) from error
        except Exception as error:  # a user's module may raise any exception
            raise UserError(_import_problem(name, slot, error)) from error
        for part in parts[end:]:
            target = getattr(target, part, None)
        if target is None:
            break
        home = f"{getattr(target, '__module__', '')}."
        if not home.startswith(allowed_prefixes()) or home.startswith(REFUSED):
            raise UserError(f"{slot}._target_={name} is defined in {home[:-1] or 'no module'}, which is not allowed")
        if not name.startswith(ALLOWED) and not home.startswith(f"{module}."):
            public = f"{home}{getattr(target, '__qualname__', parts[-1])}"
            hidden = any(part.startswith("_") for part in public.split("."))
            advice = f"let a package export it, and use {parts[0]}.{parts[-1]}" if hidden else f"use {public}"
            raise UserError(
                f"{slot}._target_={name} is not allowed: it is defined in {home[:-1]}, whose file would not count into"
                f" the run's identity; {advice}"
            )
        return target
    raise UserError(f"{slot}._target_={name} does not exist")


def _import_problem(name: str, slot: str, error: Exception) -> str:
    return f"{slot}._target_={name} cannot be imported: {type(error).__name__}: {error}"


def _returns(target: Any, kind: type) -> bool:
    """Whether `target` is a subclass of `kind`, or a function whose return annotation is such a class."""
    if inspect.isclass(target):
        return issubclass(target, kind)
    if not inspect.isfunction(target):
        return False
    try:
        returned = typing.get_type_hints(target).get("return")
    except (NameError, TypeError):
        return False
    return inspect.isclass(returned) and issubclass(returned, kind)
