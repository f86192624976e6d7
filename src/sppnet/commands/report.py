"""`sppnet report [experiments=NAME | study=NAME]`: write the table and figure of one study or of all studies."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sppnet import __version__
from sppnet.commands import hydra_app
from sppnet.config.command_schemas import ReportConfig
from sppnet.config.compose import Job
from sppnet.errors import UserError, notice
from sppnet.report.output_paths import RESULTS, check_writable, default_folder, find_foreign_file, is_foreign_page
from sppnet.runs.identity import format_mismatch
from sppnet.runs.provenance import code_state
from sppnet.storage.files import write_text
from sppnet.studies.lookup import find_studies
from sppnet.studies.study import Study

if TYPE_CHECKING:
    from sppnet.report.summary import Summary


@dataclass(frozen=True)
class Report:
    """The report of one study, before it is written.

    Attributes:
        summary: the table as text.
        figure: the figure as SVG; None if there is nothing to draw.
        runs: the folder of the study's runs.
        folder: the folder that the report is written to.
        files: the content of each file, by file name.
    """

    summary: Summary
    figure: str | None
    runs: Path
    folder: Path
    files: Mapping[str, str]


def main(words: Sequence[str]) -> None:
    hydra_app.run("report", words, report)


def report(job: Job[ReportConfig]) -> None:
    """Print each study's table, and save the table and its figure; `latex=true` and `html=true` save further files.

    Raises:
        UserError: a point of the study is not a valid run, no run is done, a report on different runs would be
            replaced, or a folder cannot be written to.
    """
    cfg = job.cfg
    studies = find_studies(job)
    from sppnet.report.html import render_page

    runs = Path(cfg.paths.runs).expanduser()
    reports = _build_reports(studies, cfg, f"paths.runs={runs}")
    index = _page_path(reports, cfg.output, runs) if cfg.html else None
    _check_targets(reports, index, cfg)
    try:
        for study_report in reports:
            folder = study_report.folder
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in study_report.files.items():
                write_text(folder / file, content)
            _show(study_report.summary)
            print(f"written: {', '.join(str(folder / file) for file in study_report.files)}\n", flush=True)
        if index is not None:
            by = f"{time.strftime('%Y-%m-%d %H:%M %Z')}, sppnet {__version__}, commit {code_state()['commit']}"
            index.parent.mkdir(parents=True, exist_ok=True)
            write_text(index, render_page([(item.summary, item.figure, item.runs) for item in reports], index, by))
            print(f"page: {index}")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be written to: {error.strerror}; choose another folder with output=FOLDER"
        ) from None


def _build_reports(studies: list[Study], cfg: ReportConfig, runs_key: str) -> list[Report]:
    """Build the reports of all studies without writing anything."""
    from sppnet.report.collect import build_tables
    from sppnet.report.figures import draw_svg  # imports matplotlib
    from sppnet.report.summary import Summary

    first_of = {study.folder: study for study in reversed(studies)}  # the rows of transfer are those of a folder
    study_tables = [
        (study, table) for study in studies for table in build_tables(study, transfer=first_of[study.folder] is study)
    ]
    if not any(row.results for _, table in study_tables for row in table.rows):
        raise UserError(f"{runs_key}: {_nothing_done(studies)}")
    names = Counter(table.name for _, table in study_tables)
    reports = []
    for study, table in study_tables:
        # if several folders have runs of the same experiments file, only the folder's name tells their reports apart
        name = f"{study.folder.name}_{table.name}" if names[table.name] > 1 else table.name
        summary = Summary(replace(table, name=name))
        folder = Path(cfg.output).expanduser() if cfg.output else default_folder(study)
        if not cfg.output and folder == RESULTS and not cfg.force and find_foreign_file(folder, summary.table):
            folder = study.folder / "report"
            notice(f"{RESULTS} already has a report on {name} from different runs; force=true replaces it")
        figure = draw_svg(summary.table)
        reports.append(Report(summary, figure, study.folder, folder, _files(summary, figure, cfg.latex)))
    return reports


def _page_path(reports: Sequence[Report], output: str | None, runs: Path) -> Path:
    """Return the path of the HTML page: in `output` if it is set, otherwise in a `report` folder.

    The `report` folder is in the study's folder if all reports are on runs in that folder; otherwise, it is in `runs`.
    """
    if output:
        return Path(output).expanduser() / "index.html"
    folders = {report.runs for report in reports}
    return (folders.pop() if len(folders) == 1 else runs) / "report" / "index.html"


def _check_targets(reports: Sequence[Report], index: Path | None, cfg: ReportConfig) -> None:
    """Check every file and folder that the reports will write to, before anything is written.

    Raises:
        UserError: a report on different runs would be replaced, or a folder cannot be written to.
    """
    for folder in dict.fromkeys([*(report.folder for report in reports), *([index.parent] if index else [])]):
        check_writable(folder)
    if cfg.force:
        return
    default = not cfg.output
    foreign = [
        path
        for report in reports
        if (path := find_foreign_file(report.folder, report.summary.table, _in_own_folder(report, default)))
    ]
    if index and is_foreign_page(index, [report.summary.table for report in reports], default):
        foreign.append(index)
    if foreign:
        verb = "are not reports" if len(foreign) > 1 else "is not a report"
        raise UserError(
            f"{', '.join(map(str, foreign[:5]))} {verb} on these runs, so nothing was written; replace existing files"
            " with force=true, or choose another folder with output=FOLDER"
        )


def _in_own_folder(report: Report, default: bool) -> bool:
    """Whether a report goes to its study's `report` folder, where it may replace an earlier report."""
    return default and report.folder == report.runs / "report"


def _files(summary: Summary, figure: str | None, tex: bool) -> dict[str, str]:
    """Return the content of each file of a report, by file name."""
    from sppnet.report.table_formats import latex, markdown, runs_csv, settings_csv

    name = summary.table.name
    # NAME_runs.csv is written first, so that even after an interruption it records which runs the files belong to
    files = {f"{name}_runs.csv": runs_csv(summary), f"{name}.csv": settings_csv(summary)}
    if figure:
        files[f"{name}.svg"] = figure
    if tex:
        files[f"{name}.tex"] = latex(summary)
    return files | {f"{name}.md": markdown(summary, f"{name}.svg" if figure else None)}


def _show(summary: Summary) -> None:
    """Print the table, and the results that are missing from it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(summary.table.name), title_justify="left", title_style="bold", box=box.SIMPLE)
    head, *rows = summary.main()
    for text in head:
        table.add_column(Text(text), overflow="fold")  # in a narrow terminal, wrap cells instead of cutting them off
    for i, row in enumerate(rows, start=1):
        # Text objects, because rich would parse a string such as `spp [eb2d09e622]` as markup
        table.add_row(*(Text(cell, "bold" if summary.marked(i, j) else "") for j, cell in enumerate(row)))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 500
    Console(width=width, highlight=False).print(table)
    results = [result for row in summary.table.rows for result in row.results.values()]
    if summary.table.mixed:
        notice(f"{summary.table.name}: {summary.table.mixed}, so no row is marked as better than another")
    elif formats := {format_mismatch(result.provenance.get("format")) for result in results} - {""}:
        notice(f"{summary.table.name}: all rows show {', '.join(formats)}")
    for column in summary.unlike:
        notice(f"{summary.table.name}: not all rows compute {column.label} alike, so no row is marked as better by it")
    for line in summary.missing():
        print(f"missing: {line}")


def _nothing_done(studies: list[Study]) -> str:
    names = ", ".join(study.name for study in studies)
    has_others = any(study.points and any(study.folder.glob("*/summary.json")) for study in studies)
    return (
        f"no run of {names} is done yet"
        f"{'; the study folder has finished runs that are not in the plan' if has_others else ''}"
    )
