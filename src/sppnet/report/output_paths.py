"""Chooses where a report goes, and checks whether existing files there belong to other runs. Writes nothing."""

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

# The folder for results under version control, relative to a checkout; the study files are in its parent folder.
RESULTS = Path("experiments/results")
ENDINGS = (".csv", "_runs.csv", ".md", ".svg", ".tex")
PAGE_MARK = "<!-- sppnet report of "  # precedes the list of runs in an HTML page


def default_folder(study: Study) -> Path:
    """Return the folder that a report goes to if `output=FOLDER` is not given.

    It is `experiments/results` if the study ran exactly as its file in this checkout says; otherwise, `report/` in the
    study's folder.
    """
    file = RESULTS.parent / f"{study.name}.yaml"
    filed = option_files.root() / file
    if study.as_filed and file.is_file() and filed.is_file() and file.read_bytes() == filed.read_bytes():
        return RESULTS
    return study.folder / "report"


def run_keys(tables: Iterable[Table]) -> set[str]:
    """Return a key for each run in `tables`, made of its hash and the time of its result."""
    results = [result for table in tables for row in table.rows for result in row.results.values()]
    return {f"{result.provenance['hash']}@{result.provenance['time']}" for result in results}


def find_foreign_file(folder: Path, table: Table, own: bool = False) -> Path | None:
    """Find a file in `folder` that belongs to other runs and would be replaced by the report on `table`.

    In the study's own folder (`own`), a report may replace any earlier report, but no other file.

    Returns:
        The first such file; None if no file would be replaced, or only files that belong to the same runs.
    """
    existing = [path for ending in ENDINGS if (path := folder / f"{table.name}{ending}").exists()]
    if not existing:
        return None
    try:
        with (folder / f"{table.name}_runs.csv").open(encoding="utf-8", newline="") as file:
            reported = {f"{line['hash']}@{line['time']}" for line in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return existing[0]
    return None if own or reported <= run_keys([table]) else existing[0]


def is_foreign_page(page: Path, tables: Iterable[Table], own: bool = False) -> bool:
    """Whether writing `tables` to `page` would replace a page on other runs; for `own`, see `find_foreign_file`."""
    if not page.exists():
        return False
    try:
        mark = re.search(f"{re.escape(PAGE_MARK)}(.*) -->", page.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return mark is None or not (own or set(mark[1].split()) <= run_keys(tables))


def check_writable(folder: Path) -> None:
    """Check that files can be written to `folder`, which need not exist.

    Raises:
        UserError: files cannot be written there.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written to; choose another folder with output=FOLDER")
