"""All studies on one self-contained HTML page: no script, no other file, light and dark, fit to be printed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from sppnet.report.output_paths import MARK, runs_of
from sppnet.report.summary import Summary

STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --soft: #666; --mark: #e4f1e6; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #aaa; --mark: #1d3a24; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; }
.wide { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.best { background: var(--mark); font-weight: 600; } p.note, .runs { color: var(--soft); font-size: .87rem; }
figure { margin: 1rem 0; background: #fff; padding: .5rem; width: fit-content; max-width: 100%; }
figure svg { max-width: 100%; height: auto; } li { margin: .1rem 0; }
"""


def page(sheets: Sequence[tuple[Summary, str | None, Path]], where: Path, made: str) -> str:
    """The page.

    Args:
        sheets: each with its figure as SVG and the folder of its runs.
        where: the file that the page becomes; links to runs are relative to it.
        made: when and by what it was made.
    """
    index = "".join(
        f'<li><a href="#{escape(one.table.name)}">{escape(one.table.name)}</a></li>' for one, _, _ in sheets
    )
    runs = escape(" ".join(sorted(runs_of(sheet.table for sheet, _, _ in sheets))))
    parts = [_study(sheet, svg, folder, where.parent) for sheet, svg, folder in sheets]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content='
        f'"width=device-width"><title>Studies</title><style>{STYLE}</style></head>\n<body><h1>Studies</h1>'
        f'<ul>{index}</ul>\n{"".join(parts)}<p class="note">{escape(made)}</p>\n{MARK}{runs} --></body></html>\n'
    )


def _study(sheet: Summary, svg: str | None, folder: Path, home: Path) -> str:
    table = sheet.table
    says = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in sheet.header())
    parts = [f'<section><h2 id="{escape(table.name)}">{escape(table.name)}</h2>', f"<dl>{says}</dl>" if says else ""]
    if svg:
        inline = svg[svg.index("<svg") :]  # without its XML declaration
        parts.append(f'<figure role="img" aria-label="{escape(table.name)}">{inline}</figure>')
    parts += [_html(sheet.main(), sheet), f'<p class="note">{escape(sheet.legend())}</p>']
    if apart := sheet.apart():
        parts.append(_html(apart))
    if missing := sheet.missing():
        parts.append(f"<p>Missing:</p><ul>{''.join(f'<li>{escape(line)}</li>' for line in missing)}</ul>")
    parts += [_html(sheet.made()), _runs(sheet, folder, home)]
    return "\n".join(filter(None, parts)) + "</section>\n"


def _html(rows: Sequence[Sequence[str]], sheet: Summary | None = None) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = []
    for i, row in enumerate(rows[1:], start=1):
        marks = [' class="best"' if sheet and sheet.marked(i, j) else "" for j in range(len(row))]
        lines.append("".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True)))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _runs(sheet: Summary, folder: Path, home: Path) -> str:
    lines = []
    for row in sheet.table.rows:
        links = dict.fromkeys((one.run, number) for number, one in row.results.items())
        if sheet.table.over == "seed":
            found = ", ".join(f'<a href="{_link(folder / run, home)}">{number}</a>' for run, number in links)
            lines.append(f"<li>{escape(row.label)}: {found or 'none'}</li>")
        else:
            file = folder / "transfer" / f"{next(iter(row.results.values())).run}.json"
            lines.append(f'<li><a href="{_link(file, home)}">{escape(row.label)}</a></li>')
    return f'<details class="runs"><summary>Run directories</summary><ul>{"".join(lines)}</ul></details>'


def _link(path: Path, home: Path) -> str:
    return escape(quote(Path(os.path.relpath(path.absolute(), home.absolute())).as_posix()))
