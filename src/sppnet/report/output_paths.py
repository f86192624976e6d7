"""Where a report goes, and whether what lies there is of other runs. Reads files, and writes none."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path

from sppnet.config import option_files
from sppnet.errors import UserError
from sppnet.report.table import Table
from sppnet.studies.study import Study

RESULTS = Path("experiments/results")  # of a checkout: the evidence, which is kept beside the studies
ENDINGS = (".csv", "_runs.csv", ".md", ".svg", ".tex")
MARK = "<!-- sppnet report of "  # in a page, before the runs that it is of


def place(study: Study) -> Path:
    """The folder of a report if none was typed."""
    file = RESULTS.parent / f"{study.name}.yaml"
    filed = option_files.root() / file
    if study.as_filed and file.is_file() and filed.is_file() and file.read_bytes() == filed.read_bytes():
        return RESULTS
    return study.folder / "report"


def runs_of(tables: Iterable[Table]) -> set[str]:
    """The runs of tables, each by its hash and the time of its result."""
    results = [one for table in tables for row in table.rows for one in row.results.values()]
    return {f"{one.made['hash']}@{one.made['time']}" for one in results}


def of_other_runs(folder: Path, table: Table, own: bool = False) -> Path | None:
    """A file that the report of `table` would replace, and that is not of its runs; None if there is none.

    In a study's `own` folder a report replaces the last one, whatever runs that had, and nothing else.
    """
    there = [path for ending in ENDINGS if (path := folder / f"{table.name}{ending}").exists()]
    if not there:
        return None
    try:
        with (folder / f"{table.name}_runs.csv").open(encoding="utf-8", newline="") as file:
            kept = {f"{line['hash']}@{line['time']}" for line in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return there[0]
    return None if own or kept <= runs_of([table]) else there[0]


def page_of_other_runs(page: Path, tables: Iterable[Table], own: bool = False) -> bool:
    """Whether a page of all studies would replace a file that is not of their runs; `own` as for `of_other_runs`."""
    if not page.exists():
        return False
    try:
        marked = re.search(f"{re.escape(MARK)}(.*) -->", page.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return marked is None or not (own or set(marked[1].split()) <= runs_of(tables))


def check_writable(folder: Path) -> None:
    """Raise UserError unless files can be written to `folder`, or it can be made."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written to; output=FOLDER names another place")
