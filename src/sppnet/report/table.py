"""The data of a table: its rows, its columns and the results per seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sppnet.config.schema import Report
from sppnet.studies.status import RunStatus

CUT_MARK = "†"  # follows the names of rows whose runs had a limit on their batches


@dataclass(frozen=True)
class Result:
    """The result of one seed or, for a linear SVM on features, of one split.

    Attributes:
        run: the name of the run.
        metrics: values by metric name.
        provenance: `hash`, `setting` (a hash that does not depend on the seed), `protocol` (one that does not
            depend on the user's metrics either), `commit`, `machine`, `time`, `seconds`,
            `parameters`, `bins` (number of bins in the pyramid), `note`, `limited` (whether a limit on the batches,
            such as `trainer.limit_train_batches`, may have cut the run short), `format` (the version number of the
            training code, `FORMAT`), `data` (the fingerprint of the test data), `own_metrics` (of the user's metrics,
            by name: which values are `better`, and whether they are shown in `percent`) and `measures` (of the loss and
            of the user's metrics, by name: a digest of how it is computed).
    """

    run: str
    metrics: Mapping[str, float]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a table: a setting with its results.

    Attributes:
        name: a name that is unique in the table.
        results: the results by seed or split.
        missing: the status of each seed without a result.
        paper: published values by metric; None where the paper prints none.
    """

    name: str
    results: Mapping[int, Result]
    missing: Mapping[str, RunStatus]
    paper: Mapping[str, float | None]

    @property
    def limited(self) -> bool:
        """Whether a limit on the batches cut a run of this row short, in training or in the test."""
        return any(result.provenance.get("limited") for result in self.results.values())

    @property
    def label(self) -> str:
        """The name, with a mark if a run had a limit on its batches."""
        return f"{self.name} {CUT_MARK}" if self.limited else self.name

    def values(self, metric: str) -> dict[int, float]:
        """The values of a metric by seed, for the seeds that have it; `x_error` is 1 - `x`, unless it is a metric."""
        if any(metric in result.metrics for result in self.results.values()) or not metric.endswith("_error"):
            return {seed: result.metrics[metric] for seed, result in self.results.items() if metric in result.metrics}
        return {seed: 1 - value for seed, value in self.values(metric.removesuffix("_error")).items()}


@dataclass(frozen=True)
class Column:
    """A metric of the table.

    Attributes:
        metric: its key in `Result.metrics`.
        label: its heading.
        better: whether higher (`max`) or lower (`min`) values are better; None if it is not known.
        percent: whether values are shown in percent.
    """

    metric: str
    label: str
    better: Literal["max", "min"] | None = "max"
    percent: bool = True

    @property
    def name(self) -> str:
        """The name of the metric, at any test size."""
        return self.metric.rpartition("/")[2]

    @property
    def unit(self) -> str:
        """` (%)`, for the label of an axis, if values are shown in percent."""
        return " (%)" if self.percent else ""


@dataclass(frozen=True)
class Table:
    """A table of a study.

    Attributes:
        name: the name of the table; the names of its files start with it.
        over: what the means are taken over, `seed` or `split`.
        header: question, command, expected result and cost, from the study's file.
        columns: the metrics.
        rows: the rows, in the order of the sweep.
        report: the section `report` of the configuration.
        unplanned: the number of runs (or transfer records) in the study's folder that are not in the table.
    """

    name: str
    over: str
    header: Mapping[str, str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    report: Report
    unplanned: int

    @property
    def mixed(self) -> str:
        """The reason why rows cannot be compared (different test data or `FORMAT`); "" if they can be compared."""
        provenances = [result.provenance for row in self.rows for result in row.results.values()]
        formats = sorted({str(provenance.get("format")) for provenance in provenances})
        if len(formats) > 1:
            return f"Rows were trained by versions of sppnet that train differently (format {' and '.join(formats)})"
        data_sets = {str(provenance.get("data")) for provenance in provenances}
        return "Rows were tested on different data" if len(data_sets) > 1 else ""

    def computes_alike(self, column: Column) -> bool:
        """Whether all rows compute the metric of a column in the same way, as runs with different losses do not."""
        results = [result for row in self.rows for result in row.results.values()]
        names = {column.name, column.name.removesuffix("_error")}
        measures = [result.provenance.get("measures", {}) for result in results]
        return all(len({each[name] for each in measures if name in each}) < 2 for name in names)
