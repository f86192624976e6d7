"""Apply overrides to the stored configuration of a run, and list the differences between two configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def merge(
    stored: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], typed_keys: Sequence[str]
) -> dict[str, Any]:
    """Apply to `stored` every difference between `before` and `after`, and the value of every typed key.

    `before` is composed from the run's overrides, and `after` from the run's overrides followed by the typed ones.

    The normalisation (`data.mean`, `data.std`) belongs to the network. Unless the user typed it, the stored one is
    kept, even for a different data set.
    """
    merged = {
        key: _merge(stored[key], before.get(key), after.get(key)) if key in stored else after[key]
        for key in {**stored, **after}
    }
    for key in typed_keys:
        _copy_node(merged, after, key.split("."))
    for key in ("mean", "std"):
        if f"data.{key}" not in typed_keys:
            merged["data"] = {**merged["data"], key: stored["data"][key]}
    return merged


def _copy_node(target: dict[str, Any], source: Any, path: list[str]) -> None:
    """Copy the node at `path` from `source` to `target`.

    Nothing is copied for a group such as `pyramid`, which is not itself a key and so has no node.
    """
    node: Any = target
    for part in path[:-1]:
        if not isinstance(source, dict) or part not in source or not isinstance(node.get(part), dict):
            return
        node[part] = dict(node[part])
        node, source = node[part], source[part]
    if isinstance(source, dict) and path[-1] in source:
        node[path[-1]] = source[path[-1]]


def _merge(stored: Any, before: Any, after: Any) -> Any:
    if before == after:
        return stored
    if not (isinstance(stored, dict) and isinstance(before, dict) and isinstance(after, dict)):
        return after
    keys = [key for key in {**stored, **after} if key in after or before.get(key) == after.get(key)]
    return {key: _merge(stored.get(key), before.get(key), after.get(key)) for key in keys}


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return (key, old value, new value) for every leaf that differs between the two configurations."""
    if old == new:
        return []
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [(key, old, new)]
    return [
        difference
        for name in {**old, **new}
        for difference in differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    ]
