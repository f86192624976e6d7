"""Apply what a command line sets to the stored configuration of a run, as far as a command may change it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sppnet.config import option_files
from sppnet.config.command_schemas import COMMANDS
from sppnet.config.keys import Key, exists, key_named, keys, nearest, value_of
from sppnet.config.load import unknown_key
from sppnet.config.marks import Changes, Passed, changed_by
from sppnet.config.overlay import Overlay, leaves
from sppnet.config.schema import Config, OpenSection
from sppnet.errors import UserError, format_value


def merge(command: str, stored: Mapping[str, Any], overlay: Overlay) -> dict[str, Any]:
    """Return `stored` with everything that `overlay` sets, whether or not `command` may change it.

    An option of several alternatives (`views=full`) replaces its section. An option that names a class (`data=folder`)
    replaces the class and its arguments, and the keys that all classes have stay as the run had them. Interpolations
    are not resolved, so that they refer to values of the run.

    Raises:
        UserError: a typed key does not exist.
    """
    merged = copy.deepcopy(dict(stored))
    bins = value_of(stored, "pooling.bins")
    if bins is not None and bins == value_of(stored, "pyramid.bins"):
        merged["pooling"]["bins"] = "${pyramid.bins}"  # as in conf/pooling, so that pyramid=NAME sets both
    # a group inside another one, such as data.crop in data=folder, is one of the keys that all classes have
    names = overlay.groups | {name for name in overlay.implied if "." not in name}
    chosen = [key for key in keys(Config) if key.name in names]
    for key in chosen:
        _clear(key, value_of(merged, key.name), value_of(overlay.options, key.name))
    for name in leaves(overlay.options):
        if not _stays(name, command, chosen, overlay.options, merged):
            _set(merged, name, value_of(overlay.options, name))
    for name in leaves(overlay.values):
        if name in overlay.expected and not _is_known(command, name, merged):
            raise UserError(unknown_key(COMMANDS[command], name, merged, groups=option_files.group_names()))
        _set(merged, name, value_of(overlay.values, name))
    return merged


def restore(command: str, stored: Mapping[str, Any], merged: dict[str, Any], overlay: Overlay) -> None:
    """Restore the values in `merged` that `command` may not change and that only an option file has changed.

    For example, `data=folder` also has a `data.mean`, but the normalisation belongs to the network.

    Raises:
        UserError: a key that was typed, or is set by the typed study's file, may not change.
    """
    for name, old, new in list(differences(stored, {name: merged[name] for name in stored})):
        if may_change(name, command, merged):
            continue
        if _is_typed(name, overlay):
            raise UserError(
                f"{name}={format_value(new)} is not allowed: the checkpoint was trained with {format_value(old)}, and"
                f" {command} can only change {_changeable(command)}"
            )
        if _has(stored, name):
            _set(merged, name, old)
        else:
            section, _, last = name.rpartition(".")
            del value_of(merged, section)[last]


def may_change(name: str, command: str, data: Mapping[str, Any] | None = None) -> bool:
    """Whether `command` may change the key `name` of a run's configuration, of which `data` are the values."""
    key = nearest(Config, name, data)
    return key is not None and key.may_change(command)


def _clear(key: Key, section: dict[str, Any], option: Mapping[str, Any]) -> None:
    """Remove what the option of a group replaces in the section of the run."""
    if len(key.alternatives) > 1:
        section.clear()
    elif _is_open(key):
        same = section.get("_target_") == option.get("_target_")
        for name in [name for name in section if _is_argument(key, name)]:
            if not (same and option.get(name) is None):  # null: the option leaves the argument to the user
                del section[name]


def _stays(
    name: str, command: str, chosen: Sequence[Key], options: Mapping[str, Any], merged: Mapping[str, Any]
) -> bool:
    """Whether the run's value of a key stays, although a chosen option sets it, because all classes have the key."""
    inside = [key for key in chosen if f"{name}.".startswith(f"{key.name}.")]
    key = max(inside, key=lambda key: len(key.name), default=None)
    if key is None or len(key.alternatives) > 1 or not _is_open(key):
        return False
    if _is_argument(key, name.removeprefix(f"{key.name}.").partition(".")[0]):
        return value_of(options, name) is None and _has(merged, name)
    return may_change(name, command)


def _is_open(key: Key) -> bool:
    return any(issubclass(kind, OpenSection) for kind in key.alternatives)


def _is_argument(section: Key, name: str) -> bool:
    """Whether a key of a section names its class, or is an argument of the class."""
    key = key_named(Config, f"{section.name}.{name}")
    return key is None or name in ("_target_", "name") or key.mark(Passed) is not None


def _is_known(command: str, name: str, merged: Mapping[str, Any]) -> bool:
    """Whether a typed key exists. `load` checks the command's own keys and the Trainer's arguments."""
    section = name.partition(".")[0]
    own = section in COMMANDS[command].model_fields.keys() - Config.model_fields.keys()
    if own or section == "trainer" or _has(merged, name):
        return True
    key = key_named(Config, name, merged)
    return key is not None and exists(key, merged) and key.mark(Passed) is None


def _is_typed(name: str, overlay: Overlay) -> bool:
    key = nearest(Config, name)
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


def _has(data: Mapping[str, Any], name: str) -> bool:
    section, _, last = name.rpartition(".")
    node = value_of(data, section)
    return isinstance(node, Mapping) and last in node


def _set(data: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[last] = copy.deepcopy(value)


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for every leaf that differs between the two configurations."""
    if old == new:
        return
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        yield name, old, new
        return
    for part in {**old, **new}:
        yield from differences(old.get(part), new.get(part), f"{name}.{part}".lstrip("."))
