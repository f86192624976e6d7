"""Where a cell of a study stands, read from its run directory alone. Nothing here imports torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from sppnet.runs import Run, read_json

State = Literal["missing", "queued", "running", "preempted", "failed", "lost", "done"]


@dataclass(frozen=True)
class Standing:
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


def stand(run: Run, test: str) -> Standing:
    """Where the run, and its test with the hash `test`, stands."""
    status = run.status
    state, reason = status.get("state"), str(status.get("reason") or "")
    if state is None:
        return Standing("missing", "", status, None)
    if state == "done" and run.best.is_file():
        result = read_json(run.test_file(test))
        if isinstance(result, dict):
            return Standing("done", "", status, result)
        return Standing("missing", "trained; this test of it is missing", status, None)
    if state == "done":
        return Standing("lost", "its best.ckpt is gone", status, None)
    if state == "running" and not run.held():
        where = f"process {status.get('pid')} on {status.get('host')} holds it no more: killed, or the machine is down"
        return Standing("lost", where, status, None)
    return Standing(state, reason, status, None)
