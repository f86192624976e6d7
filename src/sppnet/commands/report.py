"""`sppnet report [experiments=NAME | study=NAME]`: table and figure of a study, or of all, from run directories."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet import __version__
from sppnet.commands import hydra_app
from sppnet.config import schema
from sppnet.config.compose import Job
from sppnet.config.validators import FLAG, LABEL, TEXT, or_null
from sppnet.errors import UserError, notice
from sppnet.report.output_paths import RESULTS, check_writable, of_other_runs, page_of_other_runs, place
from sppnet.runs.identity import other_format
from sppnet.runs.plan import validate
from sppnet.runs.provenance import code
from sppnet.storage.files import write_text
from sppnet.studies.lookup import chosen
from sppnet.studies.study import Study

if TYPE_CHECKING:
    from sppnet.report.summary import Summary

OWN = {"output": or_null(TEXT), "latex": FLAG, "html": FLAG, "force": FLAG}


@dataclass(frozen=True)
class Report:
    """What is written of a study: the sheet, its figure, where the runs are, where it goes, and what, by file name."""

    sheet: Summary
    picture: str | None
    runs: Path
    folder: Path
    files: Mapping[str, str]


def main(words: Sequence[str]) -> None:
    """Compose `conf/report.yaml` and write what it asks for."""
    hydra_app.run("report", words, report)


def report(job: Job) -> None:
    """Print each study's table; write it, its figure and, where that is asked for, LaTeX and the page.

    Raises:
        UserError: there is nothing to report of, files of other runs are in the way, or a folder cannot be written to.
    """
    own = schema.take(job.cfg, OWN)
    schema.take({"study": job.cfg["study"]}, {"study": or_null(LABEL)})
    validate({**job.cfg, "study": "all", "force": False})
    studies = chosen(job, OWN)
    from sppnet.report.html import page

    runs = Path(job.cfg["paths"]["runs"]).expanduser()
    reports = _reports(studies, own, f"paths.runs={runs}")
    index = _page_place(reports, own["output"], runs) if own["html"] else None
    _check(reports, index, own)
    try:
        for one in reports:
            one.folder.mkdir(parents=True, exist_ok=True)
            for file, content in one.files.items():
                write_text(one.folder / file, content)
            _show(one.sheet)
            print(f"written: {', '.join(str(one.folder / file) for file in one.files)}\n", flush=True)
        if index is not None:
            by = f"{time.strftime('%Y-%m-%d %H:%M %Z')}, sppnet {__version__}, commit {code()['commit']}"
            index.parent.mkdir(parents=True, exist_ok=True)
            write_text(index, page([(one.sheet, one.picture, one.runs) for one in reports], index, by))
            print(f"page: {index}")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be written to: {error.strerror}; output=FOLDER goes elsewhere"
        ) from None


def _reports(studies: list[Study], own: Mapping[str, Any], where: str) -> list[Report]:
    """All of what is to be written, before anything is."""
    from sppnet.report.collect import tables
    from sppnet.report.figures import svg  # imports matplotlib
    from sppnet.report.summary import Summary

    made = [(study, table) for study in studies for table in tables(study)]
    if not any(row.results for _, table in made for row in table.rows):
        raise UserError(f"{where}: {_nothing(studies)}")
    names, reports = Counter(table.name for _, table in made), []
    for study, table in made:  # a study of one file may have been started in several folders
        called = f"{study.folder.name}_{table.name}" if names[table.name] > 1 else table.name
        sheet = Summary(replace(table, name=called))
        folder = Path(own["output"]).expanduser() if own["output"] else place(study)
        if not own["output"] and folder == RESULTS and not own["force"] and of_other_runs(folder, sheet.table):
            folder = study.folder / "report"
            notice(f"{RESULTS} keeps what it has of {called}, which is of other runs; force=true replaces it")
        picture = svg(sheet.table)
        reports.append(Report(sheet, picture, study.folder, folder, _files(sheet, picture, own["latex"])))
    return reports


def _page_place(reports: Sequence[Report], output: str | None, runs: Path) -> Path:
    """Where the page of all studies goes: `output`, or beside the report of the only one."""
    if output:
        return Path(output).expanduser() / "index.html"
    folders = {one.runs for one in reports}
    return (folders.pop() if len(folders) == 1 else runs) / "report" / "index.html"


def _check(reports: Sequence[Report], index: Path | None, own: Mapping[str, Any]) -> None:
    """Check that no file in the way is of other runs, before any is written.

    Raises:
        UserError: one is, or a folder cannot be written to.
    """
    for folder in dict.fromkeys([*(one.folder for one in reports), *([index.parent] if index else [])]):
        check_writable(folder)
    if own["force"]:
        return
    default = not own["output"]
    others = [path for one in reports if (path := of_other_runs(one.folder, one.sheet.table, _is_own(one, default)))]
    if index and page_of_other_runs(index, [one.sheet.table for one in reports], default):
        others.append(index)
    if others:
        are = "are" if len(others) > 1 else "is"
        raise UserError(
            f"{', '.join(map(str, others[:5]))} {are} of other runs, so nothing was written; force=true replaces,"
            " output=FOLDER names another place"
        )


def _is_own(one: Report, default: bool) -> bool:
    """Whether a report goes to the folder that its study has for that."""
    return default and one.folder == one.runs / "report"


def _files(sheet: Summary, picture: str | None, tex: bool) -> dict[str, str]:
    """What is written of a table, by the name of the file."""
    from sppnet.report.table_formats import latex, markdown, runs_csv, settings_csv

    name = sheet.table.name
    # the runs first: they say of what runs the others are, if this is interrupted
    files = {f"{name}_runs.csv": runs_csv(sheet), f"{name}.csv": settings_csv(sheet)}
    if picture:
        files[f"{name}.svg"] = picture
    if tex:
        files[f"{name}.tex"] = latex(sheet)
    return files | {f"{name}.md": markdown(sheet, f"{name}.svg" if picture else None)}


def _show(sheet: Summary) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(sheet.table.name), title_justify="left", title_style="bold", box=box.SIMPLE)
    head, *rows = sheet.main()
    for text in head:
        drawn.add_column(Text(text), overflow="fold")  # a narrow terminal cuts nothing off
    for i, row in enumerate(rows, start=1):
        # Text, or a name such as `spp [eb2d09e622]` would be read as markup
        drawn.add_row(*(Text(cell, "bold" if sheet.marked(i, j) else "") for j, cell in enumerate(row)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 500
    Console(width=width, highlight=False).print(drawn)
    if sheet.table.mixed:
        notice(f"{sheet.table.name}: {sheet.table.mixed}, so none is marked as better than another")
    elif others := {
        other_format(one.made.get("format")) for row in sheet.table.rows for one in row.results.values()
    } - {""}:
        notice(f"{sheet.table.name}: its rows are {', '.join(others)}")
    for line in sheet.missing():
        print(f"missing: {line}")


def _nothing(studies: list[Study]) -> str:
    names = ", ".join(study.name for study in studies)
    others = sum(bool(study.cells) and any(study.folder.glob("*/summary.json")) for study in studies)
    beside = "; its folder has runs that it does not ask for" if others else ""
    return f"nothing of {names} is done yet{beside}"
