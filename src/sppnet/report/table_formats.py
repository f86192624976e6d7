"""Renders a table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sppnet.report.summary import Summary, format_cell, format_metric, merge_provenance
from sppnet.report.table import CUT_MARK

RUN_COLUMNS = ("hash", "commit", "machine", "time", "seconds", "parameters", "note")


def markdown(summary: Summary, figure_file: str | None) -> str:
    """Render the complete report on a study; `figure_file` is the name of the figure's file in the same folder."""
    table = summary.table
    parts = [f"# {table.name}", "\n".join(f"- {name}: {content}" for name, content in summary.header())]
    if figure_file:
        parts.append(f"![{table.name}: {', '.join(column.label for column in table.columns)}]({figure_file})")
    main = [
        [f"**{cell}**" if i and summary.marked(i, j) else cell for j, cell in enumerate(row)]
        for i, row in enumerate(summary.main())
    ]
    parts += [_markdown_table(main), summary.legend()]
    if differences := summary.difference_table():
        parts.append(_markdown_table(differences))
    if missing := summary.missing():
        parts.append("Missing:\n\n" + "\n".join(f"- {line}" for line in missing))
    parts.append(_markdown_table(summary.provenance()))
    if table.unplanned:
        parts.append(f"{table.unplanned} further run(s) in this folder are not part of the table.")
    return "\n\n".join(filter(None, parts)) + "\n"


def settings_csv(summary: Summary) -> str:
    """Render a line per setting, with the statistics of each metric followed by the provenance."""
    lines = []
    for row in summary.table.rows:
        line: dict[str, Any] = {"setting": row.name}
        for column, stats in summary.columns:
            row_spread, gap, name = stats.spreads[row.name], stats.differences.get(row.name), column.metric
            half = row_spread.half if row_spread else None
            line |= {
                f"{name} mean": row_spread.mean if row_spread else None,
                f"{name} std": row_spread.deviation if row_spread else None,
                f"{name} n": row_spread.n if row_spread else 0,
                f"{name} low": row_spread.mean - half if row_spread and half is not None else None,
                f"{name} high": row_spread.mean + half if row_spread and half is not None else None,
                f"{name} compared with": stats.base,
                f"{name} difference": gap.spread.mean if gap else None,
                f"{name} p": gap.p if gap else None,
                f"{name} best": int(stats.best == row.name),
            }
        line |= {f"paper {name} (%)": value for name, value in row.paper.items()} | {"missing": len(row.missing)}
        provenance = merge_provenance(row)
        lines.append(line | {f"config {key}" if key == "setting" else key: value for key, value in provenance.items()})
    return _csv(lines)


def runs_csv(summary: Summary) -> str:
    """Render a line per run, with its row and seed, its provenance and all its metrics."""
    return _csv(
        {"setting": row.name, summary.table.over: seed, "run": result.run}
        | {key: result.provenance.get(key) for key in RUN_COLUMNS}
        | dict(result.metrics)
        for row in summary.table.rows
        for seed, result in row.results.items()
    )


def latex(summary: Summary) -> str:
    """Render means and standard deviations as a table for a paper, with the best cells in bold; requires booktabs."""
    head = ["", "$n$", *(_escape(column.label) for column, _ in summary.columns)]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for row in summary.table.rows:
        cells = []
        for column, stats in summary.columns:
            row_spread = stats.spreads[row.name]
            cell = "--" if row_spread is None else format_metric(column, row_spread.mean)
            if row_spread and row_spread.deviation is not None:
                cell += rf" $\pm$ {format_metric(column, row_spread.deviation)}"
            cells.append(rf"\textbf{{{cell}}}" if stats.best == row.name else cell)
        lines.append(" & ".join([_escape(row.label), str(len(row.results)), *cells]) + r" \\")
    return "\n".join([f"% {summary.table.name}. {summary.legend()}", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def _csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """Format `lines` as CSV, with a column for every key that any line has."""
    records = list(lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for record in records for key in record)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: format_cell(value) for key, value in record.items()} for record in records)
    return out.getvalue()


def _escape(text: str) -> str:
    special = {
        CUT_MARK: r"\dag{}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",
    }
    return "".join(special.get(char) or (f"\\{char}" if char in "&%$#_{}" else char) for char in text)
