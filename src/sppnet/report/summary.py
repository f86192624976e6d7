"""A table with its statistics and with its cells as text, for Markdown, LaTeX, HTML and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sppnet.errors import UserError
from sppnet.report import row_names
from sppnet.report.table import CUT_MARK, Column, Result, Row, Table
from sppnet.statistics import MIN_PAIRS, Difference, Spread, best, differences, leader, spread


@dataclass(frozen=True)
class ColumnStatistics:
    """The statistics of one column.

    Attributes:
        spreads: the mean and variation of each row; None for a row without results.
        best: the row that is significantly better than every other; None if there is none.
        base: the row that others are compared with: `report.compare` or, by default, the row with the best mean.
        differences: for each row, its paired differences from `base` (the row minus `base`).
    """

    spreads: Mapping[str, Spread | None]
    best: str | None
    base: str | None
    differences: Mapping[str, Difference | None]


@dataclass(frozen=True)
class Summary:
    """A table as text. In every list of rows, the first row is the header."""

    table: Table

    @cached_property
    def columns(self) -> list[tuple[Column, ColumnStatistics]]:
        """Every column with its statistics."""
        return [(column, self._compute(column)) for column in self.table.columns]

    @property
    def unlike(self) -> list[Column]:
        """The columns whose metric some rows compute in another way than others, for example with another loss."""
        return [column for column in self.table.columns if not self.table.computes_alike(column)]

    def main(self) -> list[list[str]]:
        """The main table: n, the mean ± standard deviation [interval] of each metric, and any published values."""
        paper = list(dict.fromkeys(name for row in self.table.rows for name in row.paper))
        rows = [["", "n", *(c.label for c, _ in self.columns), *(f"paper: {name}" for name in paper)]]
        for row in self.table.rows:
            done = len(row.results)
            count = f"{done} of {done + len(row.missing)}" if row.missing else str(done)
            cells = [format_spread(column, stats.spreads[row.name], row) for column, stats in self.columns]
            rows.append([row.label, count, *cells, *(format_cell(row.paper.get(name)) for name in paper)])
        return rows

    def marked(self, row: int, column: int) -> bool:
        """Whether a cell of `main` is significantly better than all others in its column."""
        index = column - 2
        return 0 <= index < len(self.columns) and self.columns[index][1].best == self.table.rows[row - 1].name

    def difference_table(self) -> list[list[str]]:
        """The differences between each row and the row it is compared with; empty if there are none."""
        rows, columns = [], [(column, stats) for column, stats in self.columns if stats.base is not None]
        for row in self.table.rows:
            gaps = [(column, stats.differences.get(row.name)) for column, stats in columns]
            if any(gap for _, gap in gaps):
                rows.append([row.label, *(_format_difference(column, gap) if gap else "" for column, gap in gaps)])
        return [["", *(f"{c.label}, minus {stats.base}" for c, stats in columns)], *rows] if rows else []

    def provenance(self) -> list[list[str]]:
        """The hash, cost, commit and machine of each setting's runs, without empty columns."""
        heads = ("setting", "parameters", "seconds", "commit", "machine", "last run", "note")
        rows = [
            [row.label, *(format_cell(merge_provenance(row)[key]) for key in heads)]
            for row in self.table.rows
            if row.results
        ]
        filled = [i for i in range(len(heads) + 1) if i == 0 or any(row[i] for row in rows)]
        return [[row[i] for i in filled] for row in [["", *heads], *rows]]

    def missing(self) -> list[str]:
        """A line for each seed without a result, with the run's state and any known reason for it."""
        return [
            f"{row.name}, {self.table.over} {seed}: {status.state}{f' ({status.reason})' if status.reason else ''}"
            for row in self.table.rows
            for seed, status in row.missing.items()
        ]

    def legend(self) -> str:
        """An explanation of how to read the table."""
        over = f"{self.table.over}s"
        notes = " The paper's values are as printed in the paper." if any(row.paper for row in self.table.rows) else ""
        if self.table.over == "split":
            notes += " Splits share images, so these tests are overconfident."
        if any(row.limited for row in self.table.rows):
            notes += f" {CUT_MARK} With a limit on the batches of an epoch: may not be the result of a full run."
        if unknown := {column.name: None for column in self.table.columns if column.better is None}:
            notes += f" {', '.join(unknown)}: whether higher values are better is not known, so nothing is marked."
        if unlike := {column.name: None for column in self.unlike}:
            notes += f" {', '.join(unlike)}: not computed alike in all rows, so they are not compared by it."
        plain = {column.name: None for column in self.table.columns if not column.percent and column.name != "loss"}
        others = "".join(f" and {name}" for name in plain)
        mean = (
            f"Mean ± standard deviation over {over} [95 % interval of the mean], in percent except for losses{others}."
        )
        if self.table.mixed:
            return f"{mean} {self.table.mixed}, so they are not compared.{notes}"
        return (
            f"{mean} Marked: better than every other row, by a paired t-test over {over} with Holm's correction at 5 %;"
            f" with fewer than {MIN_PAIRS} {over}, nothing is marked and the figure has no interval. Differences are"
            f" paired, with their 95 % interval and Holm's p.{notes}"
        )

    def header(self) -> list[tuple[str, str]]:
        """The question, expected result and cost, from the study's file."""
        names = ("question", "expected", "cost")
        return [(name.capitalize(), self.table.header[name]) for name in names if name in self.table.header]

    def _compute(self, column: Column) -> ColumnStatistics:
        row_by_name = {row.name: row for row in self.table.rows}
        values = {name: row.values(column.metric) for name, row in row_by_name.items()}
        compare = self.table.report.compare
        if compare is not None and compare not in values:
            compare = row_names.format_option(compare)  # a pyramid may be given by the name of its file
        if compare is not None and compare not in values:
            raise UserError(f"report.compare={compare} is not allowed: must be one of {', '.join(values)}")
        spreads = {name: spread(list(by_seed.values())) for name, by_seed in values.items()}
        if self.table.mixed or not self.table.computes_alike(column):
            return ColumnStatistics(spreads, None, None, {})
        lower = column.better == "min"
        base = compare if values.get(str(compare)) else leader(values, lower) if column.better else None
        gaps = differences(values, base) if base is not None else {}
        # skip rows whose runs lack this metric, for example because only other rows were tested at this size
        compared = {name: by_seed for name, by_seed in values.items() if by_seed or not row_by_name[name].results}
        return ColumnStatistics(spreads, best(compared, lower) if column.better else None, base, gaps)


def merge_provenance(row: Row) -> dict[str, Any]:
    """Merge the provenance of a row's runs: the mean of the seconds, the latest time and all distinct other values."""
    results: list[Result] = list(row.results.values())

    def distinct(key: str) -> str:
        return "; ".join(dict.fromkeys(str(result.provenance[key]) for result in results if result.provenance.get(key)))

    seconds = [result.provenance["seconds"] for result in results if result.provenance.get("seconds") is not None]
    return {
        "setting": distinct("setting"),
        "runs": " ".join(dict.fromkeys(str(result.provenance["hash"]) for result in results)),
        "parameters": distinct("parameters"),
        "seconds": round(sum(seconds) / len(seconds), 1) if seconds else None,
        "commit": distinct("commit"),
        "machine": distinct("machine"),
        "last run": max((str(result.provenance["time"]) for result in results), default=None),
        "note": distinct("note"),
    }


def format_metric(column: Column, value: float) -> str:
    """Format a value in percent with two decimals, and any other value, such as a loss, with four."""
    return f"{100 * value:.2f}" if column.percent else f"{value:.4f}"


def format_cell(value: Any) -> str:
    """Format a cell; None becomes an empty string."""
    return "" if value is None else str(value)


def format_spread(column: Column, row_spread: Spread | None, row: Row) -> str:
    if row_spread is None:
        # "-" means that no value was planned, because only other rows have this metric or test size.
        return "-" if row.results else "missing"
    mean = format_metric(column, row_spread.mean)
    some = f" (n {row_spread.n})" if row_spread.n < len(row.results) else ""  # the others were tested without it
    if row_spread.deviation is None or row_spread.half is None:
        return f"{mean}{some}"
    low, high = (
        format_metric(column, row_spread.mean - row_spread.half),
        format_metric(column, row_spread.mean + row_spread.half),
    )
    return f"{mean} ± {format_metric(column, row_spread.deviation)} [{low}, {high}]{some}"


def _format_difference(column: Column, gap: Difference) -> str:
    paired = gap.spread
    half = f" ± {format_metric(column, paired.half)}" if paired.half is not None else ""
    test = f"p {gap.p:.2g}" if gap.p is not None else "no test"
    return f"{'+' if paired.mean >= 0 else ''}{format_metric(column, paired.mean)}{half} ({test}, n {paired.n})"
