"""A table with its judgements, cell by cell as text: what Markdown, LaTeX and the page have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sppnet.errors import UserError
from sppnet.report import row_names
from sppnet.report.table import MARK, Column, Result, Row, Table
from sppnet.statistics import FEWEST, Difference, Spread, best, differences, leader, spread


@dataclass(frozen=True)
class Judged:
    """One column of a table.

    Attributes:
        spreads: by row; None for a row without results.
        best: the row that is better than every other beyond chance, if there is one.
        base: the row that others are compared with: the one that the study names, or the one in the lead.
        apart: by row, its difference to `base`.
    """

    spreads: Mapping[str, Spread | None]
    best: str | None
    base: str | None
    apart: Mapping[str, Difference | None]


@dataclass(frozen=True)
class Summary:
    """What is shown of a table; the first row of every list of rows holds the heads."""

    table: Table

    @cached_property
    def columns(self) -> list[tuple[Column, Judged]]:
        """Every column with its judgement."""
        return [(column, self._judge(column)) for column in self.table.columns]

    def main(self) -> list[list[str]]:
        """A row per setting: n, mean ± deviation [interval] of each figure, what is published."""
        paper = list(dict.fromkeys(name for row in self.table.rows for name in row.paper))
        rows = [["", "n", *(c.label for c, _ in self.columns), *(f"paper: {name}" for name in paper)]]
        for row in self.table.rows:
            there = len(row.results)
            count = f"{there} of {there + len(row.missing)}" if row.missing else str(there)
            cells = [_spread(column, judged.spreads[row.name], row) for column, judged in self.columns]
            rows.append([row.label, count, *cells, *(text(row.paper.get(name)) for name in paper)])
        return rows

    def marked(self, row: int, column: int) -> bool:
        """Whether a cell of `main` is the best of its column beyond chance."""
        place = column - 2
        return 0 <= place < len(self.columns) and self.columns[place][1].best == self.table.rows[row - 1].name

    def apart(self) -> list[list[str]]:
        """A row per setting: its differences to the row that it is compared with; no rows if there is nothing."""
        rows = []
        for row in self.table.rows:
            gaps = [(column, judged.apart.get(row.name)) for column, judged in self.columns]
            if any(gap for _, gap in gaps):
                rows.append([row.label, *(_gap(column, gap) if gap else "" for column, gap in gaps)])
        return [["", *(f"{c.label}, minus {one.base}" for c, one in self.columns)], *rows] if rows else []

    def made(self) -> list[list[str]]:
        """What made each row."""
        heads = ("setting", "parameters", "seconds", "commit", "machine", "last run", "note")
        rows = [[row.label, *(text(made_of(row)[key]) for key in heads)] for row in self.table.rows if row.results]
        kept = [i for i in range(len(heads) + 1) if i == 0 or any(row[i] for row in rows)]
        return [[row[i] for i in kept] for row in [["", *heads], *rows]]

    def missing(self) -> list[str]:
        """Which cells have no result, and why."""
        return [
            f"{row.name}, {self.table.over} {seed}: {one.state}{f' ({one.reason})' if one.reason else ''}"
            for row in self.table.rows
            for seed, one in row.missing.items()
        ]

    def legend(self) -> str:
        """How the table is read."""
        over = f"{self.table.over}s"
        paper = " Figures of the paper are as printed there." if any(row.paper for row in self.table.rows) else ""
        if self.table.over == "split":
            paper += " Splits share images, so these tests are surer of themselves than they should be."
        if any(row.limited for row in self.table.rows):
            paper += f" {MARK} Cut short by trainer.limit_batches: no figure of a whole run."
        mean = f"Mean ± standard deviation over {over} [95 % interval of the mean], in percent but for losses."
        if self.table.mixed:
            return f"{mean} {self.table.mixed}, so none is compared with another.{paper}"
        return (
            f"{mean} Marked: better than every other row, by a paired t-test over {over} with Holm's correction at 5 %;"
            f" below {FEWEST} {over} nothing is marked, and the figure has no interval. Differences are paired, with"
            f" their 95 % interval and Holm's p.{paper}"
        )

    def header(self) -> list[tuple[str, str]]:
        """Question, expected result and cost, as the study's file has them."""
        names = ("question", "expected", "cost")
        return [(name.capitalize(), self.table.header[name]) for name in names if name in self.table.header]

    def _judge(self, column: Column) -> Judged:
        rows = {row.name: row for row in self.table.rows}
        values = {name: row.values(column.metric) for name, row in rows.items()}
        wanted = self.table.report["compare"]
        if wanted is not None and wanted not in values:
            wanted = row_names.shown(wanted)  # a pyramid by the name of its file
        if wanted is not None and wanted not in values:
            raise UserError(f"report.compare={wanted} is not allowed; rows are {', '.join(values)}")
        spreads = {name: spread(list(mine.values())) for name, mine in values.items()}
        if self.table.mixed:
            return Judged(spreads, None, None, {})
        base = wanted if values.get(str(wanted)) else leader(values, column.lower)
        apart = differences(values, base) if base is not None else {}
        asked = {name: mine for name, mine in values.items() if mine or not rows[name].results}
        return Judged(spreads, best(asked, column.lower), base, apart)


def made_of(row: Row) -> dict[str, Any]:
    """What made a row: of what differs between its runs, everything."""
    results: list[Result] = list(row.results.values())

    def every(key: str) -> str:
        return "; ".join(dict.fromkeys(str(one.made[key]) for one in results if one.made.get(key)))

    seconds = [one.made["seconds"] for one in results if one.made.get("seconds") is not None]
    return {
        "setting": every("setting"),
        "runs": " ".join(dict.fromkeys(str(one.made["hash"]) for one in results)),
        "parameters": every("parameters"),
        "seconds": round(sum(seconds) / len(seconds), 1) if seconds else None,
        "commit": every("commit"),
        "machine": every("machine"),
        "last run": max((str(one.made["time"]) for one in results), default=None),
        "note": every("note"),
    }


def figure(column: Column, value: float) -> str:
    """A figure as it is printed: percent, or a loss as it is."""
    return f"{value:.4f}" if column.metric.endswith("loss") else f"{100 * value:.2f}"


def text(value: Any) -> str:
    """A cell; None is empty."""
    return "" if value is None else str(value)


def _spread(column: Column, one: Spread | None, row: Row) -> str:
    if one is None:
        return "-" if row.results else "missing"  # not asked for, as a size that only other rows are tested at
    if one.deviation is None or one.half is None:
        return figure(column, one.mean)
    low, high = figure(column, one.mean - one.half), figure(column, one.mean + one.half)
    return f"{figure(column, one.mean)} ± {figure(column, one.deviation)} [{low}, {high}]"


def _gap(column: Column, gap: Difference) -> str:
    one = gap.spread
    half = f" ± {figure(column, one.half)}" if one.half is not None else ""
    sure = f"p {gap.p:.2g}" if gap.p is not None else "no test"
    return f"{'+' if one.mean >= 0 else ''}{figure(column, one.mean)}{half} ({sure}, n {one.n})"
