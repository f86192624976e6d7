"""Renders all studies as one self-contained, printable HTML page with a light and a dark mode and no scripts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from sppnet.report.output_paths import PAGE_MARK, run_keys
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


def render_page(studies: Sequence[tuple[Summary, str | None, Path]], file: Path, footer: str) -> str:
    """Render the page of all studies.

    Args:
        studies: for each table, its summary, its figure as SVG, and the folder of its runs.
        file: the path of the page; links to run directories are relative to its folder.
        footer: a note that says when and by which version of sppnet the page was written.
    """
    index = "".join(
        f'<li><a href="#{escape(summary.table.name)}">{escape(summary.table.name)}</a></li>'
        for summary, _, _ in studies
    )
    runs = escape(" ".join(sorted(run_keys(summary.table for summary, _, _ in studies))))
    sections = [_section(summary, svg, folder, file.parent) for summary, svg, folder in studies]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content='
        f'"width=device-width"><title>Studies</title><style>{STYLE}</style></head>\n<body><h1>Studies</h1>'
        f'<ul>{index}</ul>\n{"".join(sections)}<p class="note">{escape(footer)}</p>\n'
        f"{PAGE_MARK}{runs} --></body></html>\n"
    )


def _section(summary: Summary, svg: str | None, folder: Path, page_folder: Path) -> str:
    name = escape(summary.table.name)
    header = "".join(f"<dt>{escape(term)}</dt><dd>{escape(content)}</dd>" for term, content in summary.header())
    parts = [f'<section><h2 id="{name}">{name}</h2>', f"<dl>{header}</dl>" if header else ""]
    if svg:
        inline = svg[svg.index("<svg") :]  # without the XML declaration
        parts.append(f'<figure role="img" aria-label="{name}">{inline}</figure>')
    parts += [_table(summary.main(), summary), f'<p class="note">{escape(summary.legend())}</p>']
    if differences := summary.difference_table():
        parts.append(_table(differences))
    if missing := summary.missing():
        parts.append(f"<p>Missing:</p><ul>{''.join(f'<li>{escape(line)}</li>' for line in missing)}</ul>")
    parts += [_table(summary.provenance()), _run_links(summary, folder, page_folder)]
    return "\n".join(filter(None, parts)) + "</section>\n"


def _table(rows: Sequence[Sequence[str]], summary: Summary | None = None) -> str:
    """Render `rows` as an HTML table, with the first row as its header; `summary` tells which cells to mark."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    lines = []
    for i, row in enumerate(rows[1:], start=1):
        marks = [' class="best"' if summary and summary.marked(i, j) else "" for j in range(len(row))]
        lines.append("".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, row, strict=True)))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _run_links(summary: Summary, folder: Path, page_folder: Path) -> str:
    lines = []
    for row in summary.table.rows:
        runs = dict.fromkeys((result.run, number) for number, result in row.results.items())
        if summary.table.over == "seed":
            links = ", ".join(f'<a href="{_href(folder / run, page_folder)}">{number}</a>' for run, number in runs)
            lines.append(f"<li>{escape(row.label)}: {links or 'none'}</li>")
        else:
            file = folder / "transfer" / f"{next(iter(row.results.values())).run}.json"
            lines.append(f'<li><a href="{_href(file, page_folder)}">{escape(row.label)}</a></li>')
    return f'<details class="runs"><summary>Run directories</summary><ul>{"".join(lines)}</ul></details>'


def _href(path: Path, page_folder: Path) -> str:
    return escape(quote(Path(os.path.relpath(path.absolute(), page_folder.absolute())).as_posix()))
