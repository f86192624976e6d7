"""Finds the test results of one run for its model card, in the table of its study if a study planned the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from sppnet.config.schema import Report
from sppnet.errors import UserError
from sppnet.export.model_card import Results, Score
from sppnet.report.collect import build_columns, build_tables
from sppnet.report.figures import draw_svg
from sppnet.report.run_results import (
    build_result,
    format_commit,
    format_machine,
    is_same_test,
    measures_alike,
    read_provenance,
)
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
        report: the section `report` of the run. It names the metrics, unless the study's file does.

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
    table, row = _planned_row(run, own, report.model_copy(update={"metrics": None}))  # later tests may lack these
    names: Sequence[str] = ()
    if table is not None and table.report.metrics:  # of the study's file, which may name others than this test has
        alone = Row("", {0: own}, {}, {})
        names = [name for name in table.report.metrics if alone.values(f"test/{name}")]
    return Results(
        list(_scores(build_columns(names or report.metrics, [own]), own, row, record["images_per_size"])),
        views=str((record["identity"]["config"].get("views") or {}).get("name")),
        study=table.name if table else "",
        row=row.name if row else "",
        note=str(own.provenance["note"] or ""),
        figure=draw_svg(table) if table else None,
    )


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


def _planned_row(run: Run, own: Result, report: Report) -> tuple[Table, Row] | tuple[None, None]:
    """Return the row of the run's studies that has the test of the result `own`, and its table.

    Of several, it is one with the same metrics of the user's, if there is one.
    """
    found: list[tuple[bool, Table, Row]] = []
    for study in load_studies(run.path.parent, report):
        try:
            tables = build_tables(study, transfer=False) if study.points else []
        except UserError as error:  # of the study's file
            raise UserError(f"the card needs the results of the study {study.name}: {error}") from error
        for table in tables:
            for row in table.rows:
                for result in row.results.values():
                    if is_same_test(result, own):
                        same = own.provenance["measures"].items() <= result.provenance["measures"].items()
                        found.append((same, table, row))
    if not found:
        return None, None
    _, table, row = max(found, key=lambda each: each[0])
    return table, row


def _scores(
    columns: Sequence[Column], own: Result, row: Row | None, images_per_size: Mapping[str, int]
) -> Iterator[Score]:
    """Yield a score for each metric of the columns and each test size; `row` is that of a study, with all seeds."""
    alone = Row("", {0: own}, {}, {})
    for column in {column.name: column for column in columns}.values():
        for size, images in images_per_size.items():
            metric = f"test/{size}/{column.name}"
            if 0 not in (values := alone.values(metric)):
                continue
            value, over_seeds, seeds = values[0], "", 1
            if row is not None:
                over = _values_over_seeds(row, own, column, metric)
                over_seeds, seeds = format_spread(column, spread(over), row), len(over)
            shown = format_metric(column, value) + (" %" if column.percent else "")
            yield Score(column.name, size, images, value, shown, over_seeds, seeds)


def _values_over_seeds(row: Row, own: Result, column: Column, metric: str) -> list[float]:
    """Return the values of a metric in a row, that of `own` among them.

    The row's runs may have been tested again, with another metric of this name: it is left out. If the run of `own` is,
    there are no values.
    """
    alike = {seed: result for seed, result in row.results.items() if measures_alike(result, own, column)}
    values = replace(row, results=alike).values(metric)
    return list(values.values()) if any(is_same_test(alike[seed], own) for seed in values) else []
