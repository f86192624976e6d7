"""Expand a sweep into its jobs: the rows of a study's file, the axes, and what is typed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from sppnet.config.overrides import force_keys, is_choice, is_misread, key_of, parse_value, quote_names


class ExpandedJob(NamedTuple):
    """A job of a sweep: its overrides, and the name of its row ("" in a plain grid)."""

    row: str
    overrides: list[str]


def expand(
    command: str,
    rows: Mapping[str, Any],
    only: Sequence[str] | str,
    params: Mapping[str, str] | None,
    typed: Sequence[str],
    loader: ConfigLoader,
) -> list[ExpandedJob]:
    """Expand a sweep into one job for each pair of a row and a combination of the axes' values.

    Jobs with equal overrides become one job, which has the name of the first of their rows.

    Args:
        command: the command that the sweep runs.
        rows: a mapping from the name of each row to its settings, with its overrides in the list `set`; empty for a
            plain grid.
        only: the name or names of the rows to expand; empty for all rows.
        params: the axes, as a mapping from each key to its values (the form of `hydra.sweeper.params`).
        typed: overrides that take precedence over the overrides of rows and axes.
        loader: Hydra's config loader, which knows the groups.

    Raises:
        HydraException: a row is unknown, or an override cannot be parsed.
    """
    for name, row in rows.items():
        words = row.get("set") if isinstance(row, Mapping) else None
        listed = list(words) if isinstance(words, Sequence) and not isinstance(words, str) else [None]
        if not all(isinstance(word, str) for word in listed):
            raise HydraException(f"hydra.sweeper.rows.{name} must be a mapping with overrides, as in {{set: [seed=1]}}")
    selected = [only] if isinstance(only, str) else list(only) if isinstance(only, Sequence) else [str(only)]
    for name in selected:
        if name not in rows:
            raise HydraException(f"hydra.sweeper.only={name} is not allowed: must be one of {', '.join(rows)}")
    parser = OverridesParser.create(config_loader=loader)
    # YAML has changed a bare 2024_05 to 202405 here, which the launcher refuses for a key that takes strings.
    axes = [
        f"{key}={value}" if is_misread(str(value), key.lstrip("+")) else quote_names(f"{key}={value}")
        for key, value in (params or {}).items()
    ]
    typed_keys = {key for word in typed for key in _set_by(word)}
    jobs: dict[tuple[str, ...], ExpandedJob] = {}
    for name in selected or list(rows) or [""]:
        row = [quote_names(word) for word in rows[name]["set"]] if name else []
        # Hydra's own sweeper replaces only words that are spelt the same, and takes pooling={...} for an option.
        filed = [word for word in (*axes, *row) if (key_of(word), is_choice(word)) not in typed_keys]
        words = [*force_keys(command, filed), *typed]
        parsed = zip(words, parser.parse_overrides(words), strict=True)
        last = {(override.get_key_element(), is_choice(word)): override for word, override in parsed}
        for overrides in map(list, itertools.product(*map(_values, last.values()))):
            jobs.setdefault(tuple(sorted(overrides)), ExpandedJob(name, overrides))
    return list(jobs.values())


def _values(override: Override) -> list[str]:
    """Return one override for each value of an axis; for any other override, itself."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line} is not allowed: the values of a sweep must be listed")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _set_by(word: str) -> Iterator[tuple[str, bool]]:
    """Yield what an override sets: (key or group, whether it chooses an option), and the keys inside a mapping."""
    yield key_of(word), is_choice(word)
    if not is_choice(word) and not word.startswith("~"):
        yield from ((f"{key_of(word)}.{path}", False) for path in _paths(parse_value(word)))


def _paths(value: object) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield str(name)
        yield from (f"{name}.{path}" for path in _paths(inner))
