"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sppnet.report.summary import Summary, figure, made_of, text
from sppnet.report.table import MARK

OF_A_RUN = ("hash", "commit", "machine", "time", "seconds", "parameters", "note")


def markdown(sheet: Summary, picture: str | None) -> str:
    """The whole report of a study; `picture` is the name of the figure beside it."""
    table = sheet.table
    parts = [f"# {table.name}", "\n".join(f"- {name}: {said}" for name, said in sheet.header())]
    if picture:
        parts.append(f"![{table.name}: {', '.join(column.label for column in table.columns)}]({picture})")
    main = [
        [f"**{cell}**" if i and sheet.marked(i, j) else cell for j, cell in enumerate(row)]
        for i, row in enumerate(sheet.main())
    ]
    parts += [_lines(main), sheet.legend()]
    if apart := sheet.apart():
        parts.append(_lines(apart))
    if missing := sheet.missing():
        parts.append("Missing:\n\n" + "\n".join(f"- {line}" for line in missing))
    parts.append(_lines(sheet.made()))
    if table.others:
        parts.append(f"{table.others} other runs of this folder are not part of it.")
    return "\n\n".join(filter(None, parts)) + "\n"


def settings_csv(sheet: Summary) -> str:
    """A line per setting: for each figure mean, deviation, n, interval and difference; then what made it."""
    lines = []
    for row in sheet.table.rows:
        line: dict[str, Any] = {"setting": row.name}
        for column, judged in sheet.columns:
            one, gap, name = judged.spreads[row.name], judged.apart.get(row.name), column.metric
            half = one.half if one else None
            line |= {
                f"{name} mean": one.mean if one else None,
                f"{name} std": one.deviation if one else None,
                f"{name} n": one.n if one else 0,
                f"{name} low": one.mean - half if one and half is not None else None,
                f"{name} high": one.mean + half if one and half is not None else None,
                f"{name} compared with": judged.base,
                f"{name} difference": gap.spread.mean if gap else None,
                f"{name} p": gap.p if gap else None,
                f"{name} best": int(judged.best == row.name),
            }
        line |= {f"paper {name} (%)": value for name, value in row.paper.items()} | {"missing": len(row.missing)}
        made = made_of(row)
        lines.append(line | {f"config {key}" if key == "setting" else key: value for key, value in made.items()})
    return _csv(lines)


def runs_csv(sheet: Summary) -> str:
    """A line per run: what it is, what made it, all of its figures."""
    return _csv(
        {"setting": row.name, sheet.table.over: seed, "run": one.run}
        | {key: one.made.get(key) for key in OF_A_RUN}
        | dict(one.metrics)
        for row in sheet.table.rows
        for seed, one in row.results.items()
    )


def latex(sheet: Summary) -> str:
    """The main table for a paper (package booktabs): mean and deviation, bold as in Markdown."""
    head = ["", "$n$", *(_escape(column.label) for column, _ in sheet.columns)]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    for row in sheet.table.rows:
        cells = []
        for column, judged in sheet.columns:
            one = judged.spreads[row.name]
            cell = "--" if one is None else figure(column, one.mean)
            cell += rf" $\pm$ {figure(column, one.deviation)}" if one and one.deviation is not None else ""
            cells.append(rf"\textbf{{{cell}}}" if judged.best == row.name else cell)
        lines.append(" & ".join([_escape(row.label), str(len(row.results)), *cells]) + r" \\")
    return "\n".join([f"% {sheet.table.name}. {sheet.legend()}", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _lines(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])


def _csv(lines: Iterable[Mapping[str, Any]]) -> str:
    every = list(lines)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for one in every for key in one)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: text(value) for key, value in one.items()} for one in every)
    return out.getvalue()


def _escape(words: str) -> str:
    special = {
        MARK: r"\dag{}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",
    }
    return "".join(special.get(char) or (f"\\{char}" if char in "&%$#_{}" else char) for char in words)
