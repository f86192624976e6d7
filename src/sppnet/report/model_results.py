"""Finds the test results of one run for its model card, in the table of its study if a study planned the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sppnet.config.schema import Report
from sppnet.export.model_card import Results, Score
from sppnet.report.collect import build_columns, build_tables
from sppnet.report.figures import draw_svg
from sppnet.report.run_results import build_result, format_commit, format_machine, read_provenance
from sppnet.report.summary import format_metric, format_spread
from sppnet.report.table import Column, Row, Table
from sppnet.runs.identity import digest
from sppnet.runs.run_directory import Run
from sppnet.statistics import spread
from sppnet.studies.lookup import load_studies


def model_results(run: Run, report: Report) -> Results | None:
    """Return the results of a finished run: those of its row in its study, or its own; None if there are none.

    Args:
        run: the run; its folder is that of its study.
        report: the section `report`, which names the metrics, unless the study's file sets it.

    Raises:
        UserError: `study.json` is damaged, or `report.metrics` names a metric that the runs lack.
    """
    if not run.done:
        return None
    run = Run(run.path.resolve())
    planned = list(_planned_results(run, report))
    own_test = run.own_test
    if planned:
        return next((results for results, test in planned if test == own_test), planned[0][0])
    own = run.result(own_test)
    if own is None:
        return None
    result = build_result(run, own, read_provenance(run))
    columns = build_columns(report.metrics, [result])
    return _results(Row("", {0: result}, {}, {}), 0, columns, own, None)


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


def _planned_results(run: Run, report: Report) -> Iterator[tuple[Results, str]]:
    """Yield the results of the run, and the hash of their test, in each row of its studies that has it."""
    for study in load_studies(run.path.parent, report):
        for table in build_tables(study, transfer=False) if study.points else ():
            for row in table.rows:
                for seed, result in row.results.items():
                    test = run.find_test(result.metrics) if result.run == run.path.name else ""
                    if record := run.result(test):
                        yield _results(row, seed, table.columns, record, table), test


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
