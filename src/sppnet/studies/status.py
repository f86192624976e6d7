"""The state of a sweep point, according to its run directory and to SLURM. Does not import torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sppnet.runs.identity import format_mismatch
from sppnet.runs.ranks import is_echo
from sppnet.runs.run_directory import Run
from sppnet.slurm.queue import job_number, job_state

WAITING = ("PENDING", "RUNNING", "CONFIGURING", "REQUEUED", "COMPLETING", "SUSPENDED", "REQUEUE_HOLD", "SPECIAL_EXIT")
State = Literal["missing", "queued", "running", "preempted", "failed", "lost", "done"]


@dataclass(frozen=True)
class RunStatus:
    """The state of a sweep point.

    Attributes:
        state: the state. `lost` means that the status file is no longer true: it says `running` but no process holds
            the run's lock, `queued` but SLURM will not start the job, or `done` but best.ckpt and the result are
            missing.
        reason: the last line of the error, or another remark on the state.
        status: the contents of the run's `status.json`.
        result: the record of the point's test; None unless the state is `done`.
    """

    state: State
    reason: str
    status: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def speed(self) -> float | None:
        """Optimizer steps per second, averaged over all starts of the run."""
        step, seconds = self.status.get("step"), self.status.get("seconds")
        return step / seconds if step and seconds else None

    @property
    def seconds_left(self) -> float | None:
        """The estimated number of seconds until training ends."""
        return (self.status["steps"] - self.status["step"]) / self.speed if self.speed else None

    @property
    def ends_at(self) -> str:
        """The estimated time of day at which training ends; "" if it is unknown."""
        seconds = self.seconds_left
        return time.strftime("%H:%M", time.localtime(time.time() + seconds)) if seconds is not None else ""


def run_status(run: Run, test: str) -> RunStatus:
    """Read the state of a run and of its test with the hash `test`."""
    status = run.status
    state, reason = status.get("state"), str(status.get("reason") or "")
    if state is None:
        return RunStatus("missing", "", status, None)
    if state == "done":
        if result := run.result(test):  # does not need the checkpoints, which a copied run may lack
            remarks = [str(status.get("stopped") or ""), format_mismatch(result["identity"].get("format"))]
            return RunStatus("done", "; ".join(filter(None, remarks)), status, result)
        if run.best.is_file():
            return RunStatus("missing", "trained, but this test is missing", status, None)
        return RunStatus("lost", "its best.ckpt is gone", status, None)
    slurm_state = _slurm_state(status)
    if state == "queued":
        if slurm_state is None or slurm_state.startswith(WAITING):
            return RunStatus("queued", "; ".join(filter(None, [reason, slurm_state])), status, None)
        return RunStatus("lost", f"its SLURM job is {slurm_state}", status, None)
    if state == "preempted" and slurm_state:
        requeued = slurm_state.startswith(WAITING)
        reason = f"{reason} (its SLURM job is {slurm_state})"
        return RunStatus("queued" if requeued else "preempted", reason, status, None)
    if state == "failed" and is_echo(reason):
        reason = run.failed_rank or reason
    if state == "running" and not run.held():
        return _abandoned_status(run, status, slurm_state)
    return RunStatus(state, reason, status, None)


def _abandoned_status(run: Run, status: dict[str, Any], slurm_state: str | None) -> RunStatus:
    """The state of a run whose status file says `running` while no process holds the run's lock."""
    if rank_reason := run.failed_rank:
        return RunStatus("failed", rank_reason, status, None)
    if slurm_state and slurm_state.startswith(WAITING):
        return RunStatus("queued", f"preempted at step {status.get('step')}; {slurm_state}", status, None)
    reason = f"process {status.get('pid')} on {status.get('host')} was killed, or the machine is down"
    return RunStatus("lost", f"{reason} (its SLURM job is {slurm_state})" if slurm_state else reason, status, None)


def _slurm_state(status: dict[str, Any]) -> str | None:
    """The state of the run's SLURM job; None if the run has no job or SLURM cannot be reached."""
    mark = status.get("slurm")
    if not mark:
        return None
    job = mark.get("job")
    if job is None:
        number = job_number(Path(mark["submission"]))
        if not number:
            return "not submitted"
        job = f"{number}_{mark['index']}"
    slurm_state = job_state(job)
    return slurm_state if slurm_state is None else f"{slurm_state or 'no longer known to SLURM'} ({job})"
