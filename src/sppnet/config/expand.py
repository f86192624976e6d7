"""What a sweep comes to: the overrides of each of its jobs, from rows, axes and what was typed.

Hydra's own sweeper and `hydra_plugins.sppnet.row_sweeper` both mean this; the latter and `sppnet report` call it.
Nothing heavy is imported, since Hydra imports its plugins at every start.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sppnet.config.overrides import as_typed


class Expanded(NamedTuple):
    """A job of a sweep: its overrides, and the name of the row that it comes from ("" in a plain grid)."""

    row: str
    words: list[str]


def expand(
    rows: Mapping[str, Any],
    only: Sequence[str] | str,
    params: Mapping[str, str] | None,
    typed: Sequence[str],
    loader: ConfigLoader,
) -> list[Expanded]:
    """Every row at every point of the axes; jobs that are the same are one, called by the first row that they are of.

    Args:
        rows: by name: `set`, a list of overrides; none for a plain grid.
        only: the row or rows that are wanted; all, if none is named.
        params: the axes: by key, what it takes.
        typed: overrides that replace what a row or an axis says.
        loader: of Hydra, for values that stand for groups.

    Raises:
        HydraException: a row that is not there, or an override that cannot be parsed.
    """
    wanted = [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in rows:
            raise HydraException(f"hydra.sweeper.only={name} is not allowed; rows are {', '.join(rows)}")
    parser = OverridesParser.create(config_loader=loader)
    axes = [
        as_typed(f"{key}={value}") if isinstance(value, str) else f"{key}={value}"
        for key, value in (params or {}).items()
    ]
    jobs: dict[tuple[str, ...], Expanded] = {}
    for name in wanted or list(rows) or [""]:
        row = [as_typed(word) for word in rows[name]["set"]] if name else []
        [made] = BasicSweeper.split_arguments(parser.parse_overrides([*axes, *row, *typed]), None)
        for job in made:
            jobs.setdefault(tuple(sorted(job)), Expanded(name, job))
    return list(jobs.values())
