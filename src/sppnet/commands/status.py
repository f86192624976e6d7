"""`sppnet status [experiments=NAME | study=NAME]`: where every cell of a study stands, read from run directories."""

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
from sppnet.config import schema
from sppnet.config.compose import Job
from sppnet.config.validators import FLAG, LABEL, or_null
from sppnet.runs.plan import validate
from sppnet.runs.run_directory import Run
from sppnet.studies.lookup import chosen
from sppnet.studies.status import RunStatus, run_status
from sppnet.studies.study import Study, SweepPoint

EVERY = 3.0  # seconds between two looks
COLOURS = {"done": "green", "running": "cyan", "queued": "blue", "failed": "red", "lost": "red", "preempted": "yellow"}
OWN = ("watch",)
MANY = 60  # cells above which those that are done are counted and not listed


def main(words: Sequence[str]) -> None:
    """Compose `conf/status.yaml` and show what it asks for."""
    hydra_app.run("status", words, status)


def status(job: Job) -> None:
    """Print a table of each study; with `watch=true`, again and again.

    Raises:
        UserError: there is no such study.
    """
    own = schema.take(job.cfg, {"watch": FLAG})
    schema.take({"study": job.cfg["study"]}, {"study": or_null(LABEL)})
    validate({**job.cfg, "study": "all"})
    console = Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else 300, highlight=False)
    if not own["watch"]:
        console.print(_shown(chosen(job, OWN)))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            studies = chosen(job, OWN)
            live.update(_shown(studies), refresh=True)
            time.sleep(EVERY)


def _shown(studies: list[Study]) -> RenderableType:
    return Group(*(part for study in studies for part in _study(study)))


def _study(study: Study) -> Iterator[RenderableType]:
    unplanned = _unplanned(study)
    cells, others = (list(study.cells), len(unplanned)) if study.cells else (unplanned, 0)
    standings = [(cell, run_status(Run(study.folder / cell.run), cell.test)) for cell in cells]
    counts = Counter[str](standing.state for _, standing in standings)
    said = ", ".join(f"{counts[state]} {state}" for state in (*COLOURS, "missing") if counts[state])
    beside = f"; beside them {others} that it does not ask for" if others else ""
    features = len(list((study.folder / "transfer").glob("*.json")))
    rows = f"; {features} rows of features under an SVM" if features else ""
    yield Text.assemble((study.name, "bold"), f"  {len(cells)} runs: {said or 'none'}{beside}{rows}  ({study.folder})")
    if len(cells) > MANY:
        standings = [(cell, one) for cell, one in standings if one.state not in {"done", "missing"}]
    if not standings:
        return
    drawn = Table(box=box.SIMPLE, show_edge=False)
    for head in ("run", "state", "result", "step", "steps/s", "ends", "why"):
        drawn.add_column(head, no_wrap=head != "why", overflow="fold")
    common = set.intersection(*(set(cell.words) for cell in cells))
    for cell, one in standings:
        name = " ".join(word for word in cell.words if word not in common) or cell.run or cell.row or study.name
        state = Text(one.state, COLOURS.get(one.state, ""))
        drawn.add_row(Text(name), state, _result(one), *_progress(one), Text(one.reason))
    yield drawn


def _result(one: RunStatus) -> str:
    """The first figure of the test, which is what best.ckpt follows."""
    metrics = (one.result or {}).get("metrics") or {}
    return next((f"{name.removeprefix('test/')} {value:.4f}" for name, value in metrics.items()), "")


def _progress(one: RunStatus) -> tuple[str, str, str]:
    step, steps = one.status.get("step"), one.status.get("steps")
    if step is None or one.state in {"missing", "done"}:
        return "", "", ""
    speed = f"{one.speed:.3g}" if one.speed else ""
    return f"{step}/{steps}", speed, one.end if one.state == "running" else ""


def _unplanned(study: Study) -> list[SweepPoint]:
    """Runs that the study did not ask for; each by its first test."""
    found, planned = [], {cell.run for cell in study.cells}
    for path in sorted(study.folder.glob("*/status.json")):
        if path.parent.name in planned:
            continue
        tests = sorted((path.parent / "tests").glob("*.json"))
        found.append(SweepPoint((), path.parent.name, tests[0].stem if tests else "", "", "", None))
    return found
