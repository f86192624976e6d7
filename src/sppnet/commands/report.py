"""`sppnet report [experiments=NAME | study=NAME]`: table and figure of a study, or of all, from run directories."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from sppnet import __version__, compose, settings
from sppnet.asked import chosen
from sppnet.compose import Job
from sppnet.errors import UserError
from sppnet.provenance import code
from sppnet.rules import FLAG, LABEL, TEXT, or_null
from sppnet.runs import write_text
from sppnet.study import Study

OWN = {"output": TEXT, "latex": FLAG, "html": FLAG}


def main() -> None:
    """Compose `conf/report.yaml` and write what it asks for."""
    compose.run("report", report)


def report(job: Job) -> None:
    """Print each study's table; write it, its figure and, where that is asked for, LaTeX and the page.

    Raises:
        UserError: there is nothing to report of, or the folder cannot be written to.
    """
    own = settings.take(job.cfg, OWN)
    settings.take({"study": job.cfg["study"]}, {"study": or_null(LABEL)})
    settings.check({**job.cfg, "study": "all"})
    studies = chosen(job)
    from sppnet.report.figure import svg  # imports matplotlib
    from sppnet.report.page import page
    from sppnet.report.rows import tables
    from sppnet.report.sheet import Sheet

    made = [(study, table) for study in studies for table in tables(study)]
    names = Counter(table.name for _, table in made)
    found = [  # a study of one file may have been started in several folders
        (study, Sheet(replace(one, name=f"{study.folder.name}_{one.name}") if names[one.name] > 1 else one))
        for study, one in made
    ]
    if not any(row.results for _, sheet in found for row in sheet.table.rows):
        raise UserError(f"paths.runs={job.cfg['paths']['runs']}: {_nothing(studies)}")
    where, shown = Path(own["output"]).expanduser(), []
    for study, sheet in found:  # all of it, before anything is written
        picture = svg(sheet.table)
        shown.append((sheet, picture, study.folder, _files(sheet, picture, own["latex"])))
    try:
        where.mkdir(parents=True, exist_ok=True)
        for sheet, _, _, files in shown:
            for file, content in files.items():
                write_text(where / file, content)
            _show(sheet)
            print(f"written: {', '.join(str(where / file) for file in files)}\n", flush=True)
        if own["html"]:
            by = f"{time.strftime('%Y-%m-%d %H:%M %Z')}, sppnet {__version__}, commit {code()['commit']}"
            write_text(where / "index.html", page([one[:3] for one in shown], where / "index.html", by))
            print(f"page: {where / 'index.html'}")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"output={where} cannot be written to: {error.strerror}") from None


def _files(sheet: Any, picture: str | None, tex: bool) -> dict[str, str]:
    """What is written of a table, by the name of the file."""
    from sppnet.report.text import latex, markdown, runs_csv, settings_csv

    name = sheet.table.name
    files = {f"{name}.csv": settings_csv(sheet), f"{name}_runs.csv": runs_csv(sheet)}
    if picture:
        files[f"{name}.svg"] = picture
    if tex:
        files[f"{name}.tex"] = latex(sheet)
    return files | {f"{name}.md": markdown(sheet, f"{name}.svg" if picture else None)}


def _show(sheet: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=sheet.table.name, title_justify="left", title_style="bold", box=box.SIMPLE)
    head, *rows = sheet.main()
    for text in head:
        drawn.add_column(text, no_wrap=True)
    for i, row in enumerate(rows, start=1):
        drawn.add_row(*(f"[bold]{cell}[/]" if sheet.marked(i, j) else cell for j, cell in enumerate(row)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 500
    Console(width=width, highlight=False).print(drawn)
    for line in sheet.missing():
        print(f"missing: {line}")


def _nothing(studies: list[Study]) -> str:
    names = ", ".join(study.name for study in studies)
    others = sum(bool(study.cells) and any(study.folder.glob("*/summary.json")) for study in studies)
    beside = "; its folder has runs that it does not ask for" if others else ""
    return f"nothing of {names} is done yet{beside}"
