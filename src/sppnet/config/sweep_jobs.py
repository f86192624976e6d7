"""Expand a sweep into its jobs: the rows of a study's file, the axes, and what is typed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sppnet.config.overrides import force_keys, is_choice, is_misread, key_of, parse_value, quote_names, text_keys


class ExpandedJob(NamedTuple):
    """A job of a sweep: its overrides, and the name of its row ("" in a plain grid)."""

    row: str
    overrides: list[str]


def expand(command: str, sweeper: DictConfig, typed: Sequence[str], loader: ConfigLoader) -> list[ExpandedJob]:
    """Expand a sweep into one job for each pair of a row and a combination of the axes' values.

    Jobs with equal overrides become one job, which has the name of the first of their rows.

    Args:
        command: the command that the sweep runs.
        sweeper: the section `hydra.sweeper`: `rows`, `only` and `params` (see `hydra_plugins.sppnet.row_sweeper`).
        typed: overrides that take precedence over the overrides of rows and axes.
        loader: Hydra's config loader, which knows the groups.

    Raises:
        HydraException: a row is unknown, or an override cannot be parsed.
    """
    rows = {name: _row(name, row) for name, row in _unresolved(sweeper.get("rows")).items()}
    only = sweeper.get("only") or []
    selected = [only] if isinstance(only, str) else list(only) if isinstance(only, Sequence) else [str(only)]
    for name in selected:
        if name not in rows:
            allowed = f"must be one of {', '.join(rows)}" if rows else "no rows are listed here"
            raise HydraException(f"hydra.sweeper.only={name} is not allowed: {allowed}")
    parser = OverridesParser.create(config_loader=loader)
    axes = [_axis(key, sweeper.params, value) for key, value in _unresolved(sweeper.get("params")).items()]
    typed_keys = {key for word in typed for key in _set_by(word)}
    jobs: dict[tuple[str, ...], ExpandedJob] = {}
    for name in selected or list(rows) or [""]:
        # Hydra's own sweeper replaces only words that are spelt the same, and takes pooling={...} for an option.
        words = [
            word for word in (*axes, *rows.get(name, ())) if typed_keys.isdisjoint([(key_of(word), is_choice(word))])
        ]
        if command != "transfer" or any(key_of(word) == "checkpoint" for word in (*words, *typed)):
            words = force_keys(command, words)
        last: dict[object, Override] = {}
        for word, override in zip([*words, *typed], parser.parse_overrides([*words, *typed]), strict=True):
            key = word if _is_mapping(word) else (override.get_key_element(), is_choice(word))
            last.pop(key, None)  # the last one counts, and comes after the words before it
            last[key] = override
        for overrides in map(list, itertools.product(*map(_values, last.values()))):
            jobs.setdefault(tuple(sorted(overrides)), ExpandedJob(name, overrides))
    return list(jobs.values())


def _row(name: str, row: object) -> list[str]:
    """Return the overrides of a listed row."""
    words = row.get("set") if isinstance(row, Mapping) else None
    if not isinstance(words, list) or not all(isinstance(word, str) and re.match("~|.*=", word) for word in words):
        raise HydraException(f"hydra.sweeper.rows.{name} must be a mapping with overrides, as in {{set: [seed=1]}}")
    return [quote_names(word) for word in words]


def _axis(key: str, params: DictConfig, value: object) -> str:
    """Return the override of an axis.

    An interpolation that stands for the list of values is resolved; one in a value refers to the values of the job.
    """
    word = f"{key}={value}"
    if "${" in word:
        resolved = f"{key}={params[key]}"
        return next((text for text in (word, resolved) if _is_sweep(text)), word)
    # YAML has changed a bare 2024_05 to 202405 here, which the launcher refuses.
    return word if key.lstrip("+") in text_keys() and is_misread(str(value), key.lstrip("+")) else quote_names(word)


def _is_sweep(word: str) -> bool:
    return bool(OverridesParser.create().parse_override(word).is_sweep_override())


def _unresolved(node: DictConfig | None) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=False) if node is not None else {}
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _values(override: Override) -> list[str]:
    """Return one override for each value of an axis; for any other override, itself."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line} is not allowed: the values of a sweep must be listed")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _set_by(word: str) -> Iterator[tuple[str, bool]]:
    """Yield what an override sets: (key or group, whether it chooses an option), or the keys inside a mapping."""
    if _is_mapping(word):
        yield from ((f"{key_of(word)}.{path}", False) for path in _paths(parse_value(word)))
    else:
        yield key_of(word), is_choice(word)


def _is_mapping(word: str) -> bool:
    return word.partition("=")[2].startswith("{")


def _paths(value: object) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        yield str(name)
        yield from (f"{name}.{path}" for path in _paths(inner))
