"""Classes named in a config file (`_target_`), checked before anything of theirs runs.

A config file is data that people pass around, so a name in it must not be able to run arbitrary code: only names
below allowed prefixes count, only classes (or functions annotated to return them) of the type the slot takes, and
nothing that loads or downloads. A user's own package is admitted on the command line (`allow=mypackage`) or by the
environment (`SPPNET_ALLOW=mypackage`), never by a config file.
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
FACES = ("sppnet.data", "sppnet.models")
"""Where our own classes are named from: the files behind these packages may move, a stored configuration may not."""
REFUSED = ("torch.hub", "torch.jit", "torch.load", "torchvision.datasets.utils", "lightning.fabric.utilities.cloud_io")
T = TypeVar("T")


def allowed_prefixes() -> tuple[str, ...]:
    """Prefixes a `_target_` may start with: ours and those in `SPPNET_ALLOW` (separated by commas)."""
    extra = [name.strip().rstrip(".") for name in os.environ.get("SPPNET_ALLOW", "").split(",")]
    return ALLOWED + tuple(f"{name}." for name in extra if name)


def check_target(name: object, slot: str) -> str:
    """Return `name` if a config may name it in `slot`, judged by its text alone (imports nothing).

    Raises:
        UserError: it is not a dotted public name below an allowed prefix, or it is a known loader.
    """
    allowed = allowed_prefixes()
    if not isinstance(name, str) or not all(p.isidentifier() and not p.startswith("_") for p in name.split(".")):
        raise UserError(f"{slot}._target_={name!r} is not the dotted name of a public class")
    if not name.startswith(allowed) or name.startswith(REFUSED):
        raise UserError(
            f"{slot}._target_={name} is not allowed; allowed are names below {', '.join(p + '*' for p in allowed)}"
            " (admit your own package with allow=PACKAGE on the command line or SPPNET_ALLOW=PACKAGE)"
        )
    if name.startswith("sppnet.") and name.rpartition(".")[0] not in FACES:
        public = " and ".join(f"{face}.NAME" for face in FACES)
        raise UserError(f"{slot}._target_={name} is not a public name; those of sppnet are {public}")
    return name


def instantiate(node: Mapping[str, Any], kind: type[T], slot: str, *args: Any, **kwargs: Any) -> T:
    """Build what `node` describes: `_target_` names a class (or an annotated function), other keys are its arguments.

    Args:
        node: plain mapping with `_target_`; its other values are passed on as they are, nothing nested is built.
        kind: the type the slot takes; the result is an instance of it.
        slot: the config key, for messages.
        *args: positional arguments from the caller, before the node's.
        **kwargs: further arguments from the caller; they win over the node's.

    Raises:
        UserError: the name is not allowed, does not exist, is not of `kind`, or refuses the arguments.
    """
    name = check_target(node.get("_target_"), slot)
    target = _find(name, slot)
    if not _makes(target, kind):
        raise UserError(f"{slot}._target_={name} is no {kind.__name__} (nor a function annotated to return one)")
    keys = {key: value for key, value in node.items() if key != "_target_"} | kwargs
    try:
        inspect.signature(target).bind(*args, **keys)
    except TypeError as error:
        raise UserError(f"{slot}: {name}: {error}") from None
    try:
        made = target(*args, **keys)
    except UserError:
        raise
    except Exception as error:  # whatever a plugged-in class raises at its arguments
        greedy = isinstance(error, MemoryError) or "allocate memory" in str(error)
        said = "they ask for more memory than there is" if greedy else str(error) or type(error).__name__
        raise UserError(f"{slot}: {name} refuses its arguments: {said}") from error
    if not isinstance(made, kind):
        raise UserError(f"{slot}._target_={name} made a {type(made).__name__}, not a {kind.__name__}")
    return made


def own_sources(node: Any) -> dict[str, Path]:
    """The files in which classes of the user's own lie, by each `_target_` in `node` that names one.

    Raises:
        UserError: there is no such module.
    """
    if isinstance(node, Mapping):
        found = [own_sources(value) for value in node.values()]
        name = node.get("_target_")
        if isinstance(name, str) and not name.startswith(ALLOWED):
            found.append({name: _source(name)})
        return {key: path for part in found for key, path in part.items()}
    return {}


def _source(name: str) -> Path:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    raise UserError(f"_target_={name} does not exist: there is no module {parts[0]} (modules are looked for here, too)")


def _find(name: str, slot: str) -> Any:
    """The object called `name`; it must also be *defined* below an allowed prefix (`sppnet.x.os.system` is not)."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:cut]).startswith(error.name):
                continue
            raise
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if found is None:
            break
        home = f"{getattr(found, '__module__', '')}."
        if not home.startswith(allowed_prefixes()) or home.startswith(REFUSED):
            raise UserError(f"{slot}._target_={name} is defined in {home[:-1] or 'no module'}, which is not allowed")
        return found
    raise UserError(f"{slot}._target_={name} does not exist")


def _makes(target: Any, kind: type) -> bool:
    if inspect.isclass(target):
        return issubclass(target, kind)
    if not inspect.isfunction(target):
        return False
    try:
        returned = typing.get_type_hints(target).get("return")
    except (NameError, TypeError):
        return False
    return inspect.isclass(returned) and issubclass(returned, kind)
