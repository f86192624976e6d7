"""`sppnet status [experiments=NAME | study=NAME]`: show the state of a study's runs, read from their directories."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sppnet.commands import hydra_app
from sppnet.config.command_schemas import StatusConfig
from sppnet.config.compose import Job
from sppnet.runs.run_directory import Run
from sppnet.studies.lookup import find_studies
from sppnet.studies.status import RunStatus, run_status
from sppnet.studies.study import Study, SweepPoint

REFRESH_SECONDS = 3.0  # refresh interval of watch=true
COLOURS = {"done": "green", "running": "cyan", "queued": "blue", "failed": "red", "lost": "red", "preempted": "yellow"}
LONG_TABLE = 60  # with more runs than this, the table omits the runs that are done or missing


def main(words: Sequence[str]) -> None:
    hydra_app.run("status", words, status)


def status(job: Job[StatusConfig]) -> None:
    """Print a table for each study; with `watch=true`, refresh the tables until Ctrl-C.

    Raises:
        UserError: the study does not exist, or one of its points is not a valid run.
    """
    console = Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 300, highlight=False)
    if not job.cfg.watch:
        console.print(_render(find_studies(job)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            studies = find_studies(job)
            live.update(_render(studies), refresh=True)
            time.sleep(REFRESH_SECONDS)


def _render(studies: list[Study]) -> RenderableType:
    return Group(*(part for study in studies for part in _render_study(study)))


def _render_study(study: Study) -> Iterator[RenderableType]:
    """Yield the study's headline, then the table of its runs unless the table would be empty."""
    unplanned = _unplanned_runs(study)
    # a study without a plan consists of the runs in its folder
    points, extra = (list(study.points), len(unplanned)) if study.points else (unplanned, 0)
    statuses = [(point, run_status(Run(study.folder / point.run), point.test)) for point in points]
    yield _headline(study, statuses, extra)
    if len(points) > LONG_TABLE:
        statuses = [(point, run) for point, run in statuses if run.state not in {"done", "missing"}]
    if not statuses:
        return
    table = Table(box=box.SIMPLE, show_edge=False)
    for column in ("run", "state", "result", "step", "steps/s", "ends", "why"):
        table.add_column(column, no_wrap=column != "why", overflow="fold")
    common = set.intersection(*(set(point.words) for point in points))
    for point, run in statuses:
        name = " ".join(word for word in point.words if word not in common) or point.run or point.row or study.name
        state = Text(run.state, COLOURS.get(run.state, ""))
        table.add_row(Text(name), state, _result(run), *_progress(run), Text(run.reason))
    yield table


def _headline(study: Study, statuses: Sequence[tuple[SweepPoint, RunStatus]], extra: int) -> Text:
    counts = Counter[str](run.state for _, run in statuses)
    by_state = ", ".join(f"{counts[state]} {state}" for state in (*COLOURS, "missing") if counts[state]) or "none"
    beside = f"; runs that are not in the study's plan: {extra}" if extra else ""
    features = len(list((study.folder / "transfer").glob("*.json")))
    transfer = f"; transfer results: {features}" if features else ""
    return Text.assemble(
        (study.name, "bold"), f"  {len(statuses)} runs: {by_state}{beside}{transfer}  ({study.folder})"
    )


def _result(run: RunStatus) -> str:
    """Return the first test metric as text."""
    metrics = (run.result or {}).get("metrics") or {}
    return next((f"{name.removeprefix('test/')} {value:.4f}" for name, value in metrics.items()), "")


def _progress(run: RunStatus) -> tuple[str, str, str]:
    """Return the cells for the columns `step`, `steps/s` and `ends`."""
    step, steps = run.status.get("step"), run.status.get("steps")
    if step is None or run.state in {"missing", "done"}:
        return "", "", ""
    speed = f"{run.speed:.3g}" if run.speed else ""
    return f"{step}/{steps}", speed, run.ends_at if run.state == "running" else ""


def _unplanned_runs(study: Study) -> list[SweepPoint]:
    """Return the runs in the study's folder that are not in the study's plan, each with the test that ended it."""
    planned = {point.run for point in study.points}
    unplanned = []
    for path in sorted(study.folder.glob("*/status.json")):
        if path.parent.name in planned:
            continue
        unplanned.append(SweepPoint((), path.parent.name, Run(path.parent).own_test, "", "", None))
    return unplanned
