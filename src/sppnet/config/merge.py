"""Apply overrides to the stored configuration of a run, as far as a command may change it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sppnet.config.keys import keys, nearest, value_of
from sppnet.config.marks import Changes, changed_by
from sppnet.config.schema import Config
from sppnet.errors import UserError, format_value

ABSENT = object()


def merge(
    command: str,
    stored: Mapping[str, Any],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    typed_keys: Collection[str],
) -> dict[str, Any]:
    """Apply to `stored` every difference between `before` and `after`, and the value of every typed key.

    `before` is composed from the run's overrides, and `after` from the run's overrides followed by the typed ones.

    A key that `command` may not change keeps its stored value if it differs only because an option file sets it too:
    `data=folder` also has a `data.mean`, but the normalisation belongs to the network.

    Raises:
        UserError: a typed override changes a key that `command` may not change.
    """
    merged: dict[str, Any] = copy.deepcopy(_merge({**after, **stored}, before, after))
    for name in typed_keys:
        _copy(after, merged, name)
    for name, old, new in list(differences(stored, merged)):
        if may_change(name, command, merged):
            continue
        if _is_typed(name, typed_keys):
            raise UserError(
                f"{name}={format_value(new)} is not allowed: the checkpoint was trained with {format_value(old)}, and"
                f" {command} can only change {_changeable(command)}"
            )
        _copy(stored, merged, name)
    return merged


def may_change(name: str, command: str, data: Mapping[str, Any] | None = None) -> bool:
    """Whether `command` may change the key `name` of a run's configuration, of which `data` are the values."""
    key = nearest(Config, name, data)
    return key is not None and key.may_change(command)


def _is_typed(name: str, typed_keys: Collection[str]) -> bool:
    key = nearest(Config, name)
    if key is not None and key.mark(Changes) == changed_by():
        return name in typed_keys
    dotted = (f"{typed.replace('/', '.')}." for typed in typed_keys)
    return any(f"{name}.".startswith(t) or t.startswith(f"{name}.") for t in dotted)


def _changeable(command: str) -> str:
    """List the keys that `command` may change: a section stands for its keys, apart from the exceptions."""
    allowed: list[str] = []
    exceptions: list[str] = []
    for key in keys(Config):
        if key.may_change(command) != may_change(key.name.rpartition(".")[0], command):
            (allowed if key.may_change(command) else exceptions).append(key.name)
    text = ", ".join(dict.fromkeys(allowed))
    return f"{text} (but not {' or '.join(dict.fromkeys(exceptions))})" if exceptions else text


def _copy(source: Mapping[str, Any], target: dict[str, Any], name: str) -> None:
    """Copy the key `name`, or its absence, from `source` to `target`; nothing if a section on the way is absent."""
    section, _, key = name.rpartition(".")
    given, changed = value_of(source, section), value_of(target, section)
    if isinstance(given, Mapping) and isinstance(changed, dict):
        changed.pop(key, None)
        if key in given:
            changed[key] = copy.deepcopy(given[key])


def _merge(stored: Any, before: Any, after: Any) -> Any:
    if before == after:
        return stored
    if not (isinstance(stored, dict) and isinstance(before, dict) and isinstance(after, dict)):
        return after
    parts = {name: [node.get(name, ABSENT) for node in (stored, before, after)] for name in {**stored, **after}}
    merged = {name: _merge(*nodes) for name, nodes in parts.items()}
    return {name: value for name, value in merged.items() if value is not ABSENT}


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, old value, new value) for every leaf that differs between the two configurations."""
    if old == new:
        return
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        yield name, old, new
        return
    for part in {**old, **new}:
        yield from differences(old.get(part), new.get(part), f"{name}.{part}".lstrip("."))
