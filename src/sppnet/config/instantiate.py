"""Build the classes that a config file names (`_target_`), after checking the name.

People pass config files around, so a name in one must not be able to run arbitrary code. A name is accepted if it lies
below an allowed prefix, is a class of the type that the slot takes (or a function annotated to return one), and does
not load or download anything. Users allow their own package on the command line (`allow=mypackage`) or in the
environment (`SPPNET_ALLOW=mypackage`); a config file cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from sppnet.errors import UserError

ALLOWED = ("sppnet.", "torch.nn.", "torch.optim.", "torchvision.", "lightning.", "torchmetrics.")
# sppnet's own classes are named from these packages: the modules behind them may move, a stored configuration may not.
PUBLIC_PACKAGES = ("sppnet.data", "sppnet.models")
REFUSED = ("torch.hub", "torch.jit", "torch.load", "torchvision.datasets.utils", "lightning.fabric.utilities.cloud_io")
T = TypeVar("T")


def allowed_prefixes() -> tuple[str, ...]:
    """The prefixes that a `_target_` may have: `ALLOWED` and the packages in `SPPNET_ALLOW` (comma-separated)."""
    extra = [name.strip().rstrip(".") for name in os.environ.get("SPPNET_ALLOW", "").split(",")]
    return ALLOWED + tuple(f"{name}." for name in extra if name)


def check_target(name: object, slot: str) -> str:
    """Return `name` if a config may name it in `slot`. Judges the text alone and imports nothing.

    Raises:
        UserError: it is not a dotted public name below an allowed prefix, or it is a known loader.
    """
    allowed = allowed_prefixes()
    if not isinstance(name, str) or not all(p.isidentifier() and not p.startswith("_") for p in name.split(".")):
        raise UserError(f"{slot}._target_={name!r} is not the dotted name of a public class")
    if not name.startswith(allowed) or name.startswith(REFUSED):
        raise UserError(
            f"{slot}._target_={name} is not allowed; allowed are names below {', '.join(p + '*' for p in allowed)}"
            " (allow your own package with allow=PACKAGE on the command line or SPPNET_ALLOW=PACKAGE)"
        )
    if name.startswith("sppnet.") and name.rpartition(".")[0] not in PUBLIC_PACKAGES:
        public = " and ".join(f"{package}.NAME" for package in PUBLIC_PACKAGES)
        raise UserError(f"{slot}._target_={name} is not a public name; those of sppnet are {public}")
    return name


def instantiate(node: Mapping[str, Any], kind: type[T], slot: str, *args: Any, **kwargs: Any) -> T:
    """Build what `node` describes: `_target_` names a class or an annotated function, the other keys are its arguments.

    Args:
        node: plain mapping with `_target_`; nested mappings are passed on as they are, not built.
        kind: the type of the result.
        slot: the config key, for messages.
        *args: positional arguments.
        **kwargs: further arguments; they replace those of `node`.

    Raises:
        UserError: the name is not allowed, does not exist or is not of `kind`, or the class refuses the arguments.
    """
    name = check_target(node.get("_target_"), slot)
    target = _import_target(name, slot)
    if not _returns(target, kind):
        raise UserError(f"{slot}._target_={name} is no {kind.__name__} (nor a function annotated to return one)")
    arguments = {key: value for key, value in node.items() if key != "_target_"} | kwargs
    try:
        inspect.signature(target).bind(*args, **arguments)
    except TypeError as error:
        raise UserError(f"{slot}: {name}: {error}") from None
    try:
        instance = target(*args, **arguments)
    except UserError:
        raise
    except Exception as error:  # a user's class may raise anything
        out_of_memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        problem = "they ask for more memory than there is" if out_of_memory else str(error) or type(error).__name__
        raise UserError(f"{slot}: {name} refuses its arguments: {problem}") from error
    if not isinstance(instance, kind):
        raise UserError(f"{slot}._target_={name} returned a {type(instance).__name__}, not a {kind.__name__}")
    return instance


def user_source_files(node: Any) -> dict[str, Path]:
    """The source file of each user class that a `_target_` in `node` names.

    Raises:
        UserError: a module does not exist.
    """
    if not isinstance(node, Mapping):
        return {}
    files = {target: path for value in node.values() for target, path in user_source_files(value).items()}
    name = node.get("_target_")
    if isinstance(name, str) and not name.startswith(ALLOWED):
        files[name] = _source_file(name)
    return files


def _source_file(name: str) -> Path:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    raise UserError(
        f"_target_={name} does not exist: there is no module {parts[0]} (the working directory is searched, too)"
    )


def _import_target(name: str, slot: str) -> Any:
    """Import `name`. The object must also be defined under an allowed prefix (`sppnet.x.os.system` is not)."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            target: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):
                continue
            raise
        for part in parts[end:]:
            target = getattr(target, part, None)
        if target is None:
            break
        home = f"{getattr(target, '__module__', '')}."
        if not home.startswith(allowed_prefixes()) or home.startswith(REFUSED):
            raise UserError(f"{slot}._target_={name} is defined in {home[:-1] or 'no module'}, which is not allowed")
        return target
    raise UserError(f"{slot}._target_={name} does not exist")


def _returns(target: Any, kind: type) -> bool:
    """Whether `target` is a subclass of `kind` or a function annotated to return one."""
    if inspect.isclass(target):
        return issubclass(target, kind)
    if not inspect.isfunction(target):
        return False
    try:
        returned = typing.get_type_hints(target).get("return")
    except (NameError, TypeError):
        return False
    return inspect.isclass(returned) and issubclass(returned, kind)
