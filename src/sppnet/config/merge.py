"""Apply what a command line sets to the stored configuration of a run, as far as a command may change it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sppnet.config import option_files
from sppnet.config.command_schemas import COMMANDS
from sppnet.config.keys import Key, exists, key_named, keys, nearest, value_of
from sppnet.config.load import unknown_key
from sppnet.config.marks import Changes, Passed, changed_by
from sppnet.config.overlay import Overlay, Path, dotted, leaves
from sppnet.config.schema import Config, OpenSection
from sppnet.errors import UserError, format_value

ABSENT = object()


def merge(command: str, stored: Mapping[str, Any], overlay: Overlay) -> dict[str, Any]:
    """Return `stored` with what `overlay` sets, with interpolations that refer to values of the run.

    An option of several alternatives (`views=full`) replaces its section. An option that names a class (`data=folder`)
    replaces the class and its arguments, and the keys that all classes have stay as the run had them. What only an
    option file sets, and `command` may not change, stays too: `data=folder` has a `data.mean`, but the normalisation
    belongs to the network. What was typed is set even if `check_changes` will refuse it.

    Raises:
        UserError: a typed key does not exist.
    """
    merged: dict[str, Any] = _escape(stored)
    bins = value_of(stored, "pooling.bins") if key_named(Config, "pooling.bins", stored) else None
    if bins is not None and bins == value_of(stored, "pyramid.bins"):
        merged["pooling"]["bins"] = "${pyramid.bins}"  # as in conf/pooling, so that pyramid=NAME sets both
    sections = [key for key in keys(Config) if key.name in overlay.groups | overlay.implied]
    # an implied group inside another one, such as data.crop, is one of the keys that all classes have
    outer = [key.name for key in sections if key.may_change(command)]
    inner = {name for name in overlay.implied if name.rpartition(".")[0] in outer}
    sections = [key for key in sections if key.name not in inner]
    for key in sections:
        section, option = value_of(merged, key.name), value_of(overlay.options, key.name)
        typed = any(f"{key.name}.".startswith(f"{group}.") for group in overlay.groups)
        if isinstance(section, dict) and (key.may_change(command) or typed):
            _clear(key, section, option if isinstance(option, dict) else {})
    for name in overlay.groups - {key.name for key in keys(Config)}:  # a group inside the user's options
        if isinstance(section := value_of(merged, name), dict):
            section.clear()
    for path, value in leaves(overlay.options):
        applies = may_change(dotted(path), command, merged) or _is_typed(dotted(path), overlay, merged)
        if applies and not _stays(path, value, sections, merged):
            _set(merged, path, value)
    for path, value in leaves(overlay.values):
        name = dotted(path)
        if f"{name}.".startswith(overlay.expected) and not _is_known(command, path, merged):
            raise UserError(unknown_key(COMMANDS[command], name, merged, groups=option_files.group_names()))
        _set(merged, path, value)
    return merged


def check_changes(command: str, stored: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Check that `merged` differs from `stored` only where `command` may change it.

    Raises:
        UserError: it does not; the message names the key and what may be changed.
    """
    for name, old, new in differences(stored, {name: merged[name] for name in stored if name in merged}, data=merged):
        if not may_change(name, command, merged):
            typed = f"{name}={format_value(new)} is not allowed" if new is not ABSENT else f"{name} must stay"
            trained = "without it" if old is ABSENT else f"with {format_value(old)}"
            raise UserError(
                f"{typed}: the checkpoint was trained {trained}, and {command} can only change {_changeable(command)}"
            )


def may_change(name: str, command: str, data: Mapping[str, Any] | None = None) -> bool:
    """Whether `command` may change the key `name` of a run's configuration, of which `data` are the values."""
    key = nearest(Config, name, data)
    return key is not None and key.may_change(command)


def differences(
    old: Any, new: Any, name: str = "", *, data: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for every leaf that differs. The value of an absent key is `ABSENT`.

    `data` are the whole configuration, which tells which alternative of a section a key belongs to. 1, 1.0 and True
    differ as arguments of the user's classes, which may treat them differently.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for part in {**old, **new}:
            inner = f"{name}.{part}".lstrip(".")
            yield from differences(old.get(part, ABSENT), new.get(part, ABSENT), inner, data=data)
        return
    key = key_named(Config, name, data)
    is_argument = key is None or key.mark(Passed) is not None
    if old != new or (is_argument and repr(old) != repr(new)):
        yield name, old, new


def _clear(key: Key, section: dict[str, Any], option: Mapping[str, Any]) -> None:
    """Remove what the option of a group replaces in the section of the run."""
    if len(key.alternatives) > 1:
        section.clear()
    elif _is_open(key):
        same = section.get("_target_") == option.get("_target_")
        for name in [name for name in section if _is_argument(key, name)]:
            if not (same and name in option and option[name] is None):  # null: the user is to give the argument
                del section[name]


def _stays(path: Path, value: Any, sections: Sequence[Key], merged: Mapping[str, Any]) -> bool:
    """Whether the run's value of a key stays, although a chosen option sets it, because all classes have the key."""
    inside = [key for key in sections if f"{dotted(path)}.".startswith(f"{key.name}.")]
    key = max(inside, key=lambda key: len(key.name), default=None)
    if key is None or len(key.alternatives) > 1 or not _is_open(key):
        return False
    if _is_argument(key, path[len(key.name.split("."))]):
        return value is None and _has(merged, path)
    return True


def _is_open(key: Key) -> bool:
    return any(issubclass(kind, OpenSection) for kind in key.alternatives)


def _is_argument(section: Key, name: str) -> bool:
    """Whether a key of a section names its class, or is an argument of the class."""
    key = key_named(Config, f"{section.name}.{name}")
    return key is None or name in ("_target_", "name") or key.mark(Passed) is not None


def _is_known(command: str, path: Path, merged: Mapping[str, Any]) -> bool:
    """Whether a typed key exists. `load` checks the command's own keys and the Trainer's arguments."""
    own = path[0] in COMMANDS[command].model_fields.keys() - Config.model_fields.keys()
    if own or path[0] == "trainer" or _has(merged, path):
        return True
    key = key_named(Config, dotted(path), merged)
    return key is not None and exists(key, merged) and key.mark(Passed) is None


def _is_typed(name: str, overlay: Overlay, data: Mapping[str, Any]) -> bool:
    key = nearest(Config, name, data)
    if key is not None and key.mark(Changes) == changed_by():
        return name in overlay.names
    return any(f"{name}.".startswith(f"{each}.") or each.startswith(f"{name}.") for each in overlay.names)


def _changeable(command: str) -> str:
    """List the keys that `command` may change: a section stands for its keys, apart from the exceptions."""
    allowed: list[str] = []
    exceptions: list[str] = []
    for key in keys(Config):
        if key.may_change(command) != may_change(key.name.rpartition(".")[0], command):
            (allowed if key.may_change(command) else exceptions).append(key.name)
    text = ", ".join(dict.fromkeys(allowed))
    return f"{text} (but not {' or '.join(dict.fromkeys(exceptions))})" if exceptions else text


def _escape(node: Any) -> Any:
    """Copy stored data. Text that looks like an interpolation was typed as text, and must not be resolved."""
    if isinstance(node, Mapping):
        return {name: _escape(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_escape(item) for item in node]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", node) if isinstance(node, str) else node


def _has(data: Any, path: Path) -> bool:
    for name in path:
        if not isinstance(data, Mapping) or name not in data:
            return False
        data = data[name]
    return True


def _set(data: dict[Any, Any], path: Path, value: Any) -> None:
    """Set a value. An empty mapping changes nothing where there is a mapping already, as in Hydra."""
    *sections, last = path
    for name in sections:
        if not isinstance(data.get(name), dict):
            data[name] = {}
        data = data[name]
    if value != {} or not isinstance(data.get(last), dict):
        data[last] = copy.deepcopy(value)
