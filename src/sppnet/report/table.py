"""A table of a study: its rows, what their runs came to, its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppnet.studies.status import RunStatus

LOWER_IS_BETTER = ("loss", "error")
MARK = "†"  # of rows that were cut short


@dataclass(frozen=True)
class Result:
    """What one seed (or, of features under an SVM, one split) came to.

    Attributes:
        run: the name of its run.
        metrics: figures by name.
        made: `hash`, `setting` (the hash but for the seed), `commit`, `machine`, `time`, `seconds`, `parameters`,
            `bins` of the pyramid, `note`, whether it was `limited` by `trainer.limit_batches`, `format` (of the code
            that trained it), `data` (the fingerprint of what was tested).
    """

    run: str
    metrics: Mapping[str, float]
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One setting: its results by seed, where the seeds stand that have none, and what is published of it."""

    name: str
    results: Mapping[int, Result]
    missing: Mapping[str, RunStatus]
    paper: Mapping[str, float | None]

    @property
    def limited(self) -> bool:
        """Whether a run of it was cut short by `trainer.limit_batches`, in training or in the test."""
        return any(one.made.get("limited") for one in self.results.values())

    @property
    def label(self) -> str:
        """The name as it is shown: a row that was cut short is marked."""
        return f"{self.name} {MARK}" if self.limited else self.name

    def values(self, metric: str) -> dict[int, float]:
        """A figure for each seed that has it; `x_error` is 1 - `x`."""
        name = metric.removesuffix("_error")
        found = {seed: one.metrics[name] for seed, one in self.results.items() if name in one.metrics}
        return {seed: 1 - value for seed, value in found.items()} if name != metric else found


@dataclass(frozen=True)
class Column:
    """A figure of the table: its name in `metrics`, how it is headed, and whether less of it is better."""

    metric: str
    label: str

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.metric.endswith(LOWER_IS_BETTER)


@dataclass(frozen=True)
class Table:
    """Everything that is shown of a study.

    Attributes:
        name: of its files.
        over: what the spread is over: seeds or splits.
        header: of the study's file.
        columns: the figures.
        rows: in the order of the sweep.
        report: the node `report` of the configuration.
        others: runs of the folder that the study did not ask for.
    """

    name: str
    over: str
    header: Mapping[str, str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    report: Mapping[str, Any]
    others: int

    @property
    def mixed(self) -> str:
        """Why no row can be called better than another: different data, or code that trains differently; "" if none."""
        made = [one.made for row in self.rows for one in row.results.values()]
        formats = sorted({str(one.get("format")) for one in made})
        if len(formats) > 1:
            return f"Rows were made by versions of sppnet that train differently (format {' and '.join(formats)})"
        return "Rows were tested on different data" if len({str(one.get("data")) for one in made}) > 1 else ""

    @property
    def missing(self) -> int:
        """How many cells have no result."""
        return sum(len(row.missing) for row in self.rows)
