"""Expand a sweep into its jobs: the rows of a study's file, the axes, and what is typed."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.config.command_line import force_keys
from sppnet.config.overrides import (
    fill_environment,
    is_mapping,
    is_misread,
    key_of,
    keys_set_by,
    quote_names,
    text_keys,
)


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
    rows = {str(name): _row(str(name), row) for name, row in (sweeper.get("rows") or {}).items()}
    only = sweeper.get("only") or []
    selected = list(map(str, only)) if isinstance(only, Sequence) and not isinstance(only, str) else [str(only)]
    for name in selected:
        if name not in rows:
            allowed = (
                f"must be one of {', '.join(rows)}" if rows else "there are no rows; experiments=NAME chooses a study"
            )
            raise HydraException(f"hydra.sweeper.only={name} is not allowed: {allowed}")
    parser = OverridesParser.create(config_loader=loader)
    params = sweeper.get("params") or OmegaConf.create({})
    axes = [_axis(str(key), params) for key in params]
    # Hydra's own sweeper replaces only words that are spelt the same, and takes pooling={...} for an option.
    replaced = {key for word in typed for key in set.intersection(*keys_set_by(word))}
    jobs: dict[tuple[str, ...], ExpandedJob] = {}
    for name in selected or list(rows) or [""]:
        words = [word for word in (*axes, *rows.get(name, ())) if not set.union(*keys_set_by(word)) <= replaced]
        if command != "transfer" or any(key_of(word) == "checkpoint" for word in (*words, *typed)):
            words = force_keys(command, words)
        last: dict[str, Override] = {}
        for word, override in zip([*words, *typed], parser.parse_overrides([*words, *typed]), strict=True):
            key = word if is_mapping(word) else override.get_key_element()
            last.pop(key, None)  # the last one counts, and comes after the words before it
            last[key] = override
        for overrides in map(list, itertools.product(*map(_values, last.values()))):
            jobs.setdefault(tuple(sorted(overrides)), ExpandedJob(name, overrides))
    return list(jobs.values())


def _row(name: str, row: object) -> list[str]:
    """Return the overrides of a listed row, whose interpolations refer to the values of the job."""
    node = row.get("set") if isinstance(row, DictConfig) else None
    words = OmegaConf.to_container(node, resolve=False) if isinstance(node, ListConfig) else None
    if not isinstance(words, list) or not all(isinstance(word, str) and re.match("~|.*=", word) for word in words):
        raise HydraException(f"hydra.sweeper.rows.{name} must be a mapping with overrides, as in {{set: [seed=1]}}")
    return [quote_names(fill_environment(word)) for word in words]


def _axis(key: str, params: DictConfig) -> str:
    """Return the override of an axis.

    An interpolation that resolves to several values stands for these; any other refers to the values of the job.
    """
    plain = OmegaConf.to_container(params, resolve=False)
    assert isinstance(plain, dict)
    name, word = key.lstrip("+"), f"{key}={plain[key]}"
    if name in text_keys() and is_misread(str(plain[key]), name):
        return word  # which the launcher refuses, because YAML has changed a bare 2024_05 to 202405
    word = fill_environment(word)
    if "${" in word and not _is_sweep(word):
        with contextlib.suppress(OmegaConfBaseException):
            resolved = quote_names(f"{key}={params[key]}")
            word = resolved if _is_sweep(resolved) else word
    return quote_names(word)


def _is_sweep(word: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(word).is_sweep_override())
    except HydraException:
        return False


def _values(override: Override) -> list[str]:
    """Return one override for each value of an axis; for any other override, itself."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line} is not allowed: the values of a sweep must be listed")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
