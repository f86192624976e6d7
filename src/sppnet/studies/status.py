"""Where a cell of a study stands, read from its run directory alone. Nothing here imports torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sppnet.runs.identity import format_mismatch
from sppnet.runs.run_directory import FAILED_RANK, Run
from sppnet.slurm.queue import job_number, job_state

WAITING = ("PENDING", "RUNNING", "CONFIGURING", "REQUEUED", "COMPLETING", "SUSPENDED", "REQUEUE_HOLD", "SPECIAL_EXIT")
State = Literal["missing", "queued", "running", "preempted", "failed", "lost", "done"]


@dataclass(frozen=True)
class RunStatus:
    """State of a cell.

    Attributes:
        state: `lost` is a run that says it runs, and nobody does it: it was killed, or its machine went down.
        reason: the last line of the error, or what else is to be said.
        status: the run's `status.json`.
        result: the record of the cell's test, once it is done.
    """

    state: State
    reason: str
    status: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def speed(self) -> float | None:
        """Optimiser steps per second, over all starts of the run."""
        step, seconds = self.status.get("step"), self.status.get("seconds")
        return step / seconds if step and seconds else None

    @property
    def left(self) -> float | None:
        """Seconds of training that are left at that speed."""
        return (self.status["steps"] - self.status["step"]) / self.speed if self.speed else None

    @property
    def end(self) -> str:
        """The time of day at which training should be over."""
        return time.strftime("%H:%M", time.localtime(time.time() + self.left)) if self.left is not None else ""


def run_status(run: Run, test: str) -> RunStatus:
    """Where the run, and its test with the hash `test`, stands."""
    status = run.status
    state, reason = status.get("state"), str(status.get("reason") or "")
    if state is None:
        return RunStatus("missing", "", status, None)
    if state == "done":
        if result := run.result(test):  # it may have been copied here without its checkpoints
            why = [str(status.get("stopped") or ""), format_mismatch(result["identity"].get("format"))]
            return RunStatus("done", "; ".join(filter(None, why)), status, result)
        if run.best.is_file():
            return RunStatus("missing", "trained; this test of it is missing", status, None)
        return RunStatus("lost", "its best.ckpt is gone", status, None)
    said = _slurm(status)
    if state == "queued":
        if said is None or said.startswith(WAITING):
            return RunStatus("queued", "; ".join(filter(None, [reason, said])), status, None)
        return RunStatus("lost", f"its SLURM job is {said}", status, None)
    if state == "preempted" and said:
        queued = said.startswith(WAITING)  # again
        return RunStatus("queued" if queued else "preempted", f"{reason} (its SLURM job is {said})", status, None)
    if state == "failed" and (other := _failed_rank(run)):
        reason = other  # the first task saw no more than that the other was gone
    if state == "running" and not run.held():
        return _stopped(run, status, said)
    return RunStatus(state, reason, status, None)


def _stopped(run: Run, status: dict[str, Any], said: str | None) -> RunStatus:
    """A run that says it runs, and nobody holds its directory."""
    if failed := _failed_rank(run):
        return RunStatus("failed", failed, status, None)
    if said and said.startswith(WAITING):
        return RunStatus("queued", f"preempted at step {status.get('step')}; {said}", status, None)
    where = f"process {status.get('pid')} on {status.get('host')} holds it no more: killed, or the machine is down"
    return RunStatus("lost", f"{where} (its SLURM job is {said})" if said else where, status, None)


def _failed_rank(run: Run) -> str:
    """Why a task other than the first failed."""
    path = run.path / FAILED_RANK
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _slurm(status: dict[str, Any]) -> str | None:
    """What SLURM says of the run's job; None if it has none, or SLURM cannot be asked."""
    mark = status.get("slurm")
    if not mark:
        return None
    job = mark.get("job")
    if job is None:
        number = job_number(Path(mark["submission"]))
        if not number:
            return "not submitted"
        job = f"{number}_{mark['index']}"
    found = job_state(job)
    return found if found is None else f"{found or 'not known any more'} ({job})"
