"""Finds the test results of one run for its model card, in the table of its study if a study planned the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sppnet.config.schema import Report
from sppnet.export.model_card import Results, Score
from sppnet.report.collect import build_columns, build_tables
from sppnet.report.figures import draw_svg
from sppnet.report.run_results import build_result, contains, format_commit, format_machine, read_provenance
from sppnet.report.summary import format_metric, format_spread
from sppnet.report.table import Column, Result, Row, Table
from sppnet.runs.identity import digest
from sppnet.runs.run_directory import Run
from sppnet.statistics import spread
from sppnet.studies.lookup import load_studies


def model_results(run: Run, report: Report) -> Results | None:
    """Return the results of the test that ended a run's training; None if it is not done, or they are not on record.

    If a study planned this test, the results of the other seeds in its row are with them.

    Args:
        run: the run; its folder is that of its study.
        report: the section `report`, which names the metrics, unless the study's file sets it.

    Raises:
        UserError: `study.json` is damaged, or `report.metrics` names a metric that the runs lack.
    """
    if not run.done:
        return None
    run = Run(run.path.resolve())
    record = run.result(run.own_test)
    if record is None or "images_per_size" not in record:  # early versions did not count the images
        return None
    own = build_result(run, record, read_provenance(run))
    if planned := next(_planned_rows(run, own, report), None):
        table, row, seed = planned
        return _results(row, seed, table.columns, record, table)
    return _results(Row("", {0: own}, {}, {}), 0, build_columns(report.metrics, [own]), record, None)


def training_facts(run: Run) -> tuple[list[tuple[str, str]], list[str]]:
    """Return facts about a training as (name, value), and the command line that repeats it."""
    provenance, summary, status = read_provenance(run), run.summary, run.status
    last = provenance["starts"][-1]
    code = last.get("code") or {}
    identity = provenance["identity"]
    facts = {
        "status": None if run.done else f"{status.get('state')} in epoch {status.get('epoch')}",
        "epochs trained": summary.get("epochs"),
        "seconds": summary.get("seconds"),
        "parameters": summary.get("parameters"),
        "last start": last.get("time"),
        "machine": format_machine(last["machine"]) if last.get("machine") else None,
        "commit": format_commit(code.get("commit"), code.get("dirty")) if code else None,
        "sppnet": code.get("version"),
        "hash of the configuration": digest(identity) if identity else None,
    }
    shown = [(name, str(value)) for name, value in facts.items() if value is not None]
    overrides = run.path / "overrides.txt"  # those of this run alone; a sweep's command trains others as well
    words = overrides.read_text(encoding="utf-8", errors="replace").splitlines() if overrides.is_file() else []
    return shown, ["sppnet", "train", *words]


def _planned_rows(run: Run, own: Result, report: Report) -> Iterator[tuple[Table, Row, int]]:
    """Yield each row of the run's studies that has the result `own` of the run, with its table and the run's seed."""
    for study in load_studies(run.path.parent, report):
        for table in build_tables(study, transfer=False) if study.points else ():
            for row in table.rows:
                for seed, result in row.results.items():
                    if contains(result, own):
                        yield table, row, seed


def _results(row: Row, seed: int, columns: Sequence[Column], record: Mapping[str, Any], table: Table | None) -> Results:
    """Build the results of a run from its row and the record of its test; `table` is that of its study."""
    views = str((record["identity"]["config"].get("views") or {}).get("name"))
    return Results(
        list(_scores(row, seed, columns, record["images_per_size"], table is not None)),
        views,
        table.name if table else "",
        row.name,
        str(row.results[seed].provenance["note"] or ""),
        draw_svg(table) if table else None,
    )


def _scores(
    row: Row, seed: int, columns: Sequence[Column], images_per_size: Mapping[str, int], planned: bool
) -> Iterator[Score]:
    """Yield a score for each metric of the columns and each test size."""
    for column in {column.name: column for column in columns}.values():
        for size, images in images_per_size.items():
            values = row.values(f"test/{size}/{column.name}")
            if seed in values:
                shown = format_metric(column, values[seed]) + (" %" if column.percent else "")
                over_seeds = format_spread(column, spread(list(values.values())), row) if planned else ""
                yield Score(column.name, size, images, values[seed], shown, over_seeds, len(values))
