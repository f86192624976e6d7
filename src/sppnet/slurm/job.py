"""A job's side of SLURM: which job it is, what a signal means, being queued again.

Imports next to nothing: a signal that comes before `listen` ends the process.

SLURM sends USR2 before a job's limit (`launch=slurm`, `warning`) and, where the cluster is set so, before it is
preempted: the job saves, asks to be queued again and ends. TERM comes before it is cancelled, or preempted: then SLURM
queues it again by itself, but only if it has not ended within its time of grace, so it saves and goes on until it is
killed.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from sppnet.slurm.queue import call

WARNING = signal.SIGUSR2

noted: list[int] = []  # signals that came before training could act on them
trained = False  # whether all that is left is the test


def inside() -> bool:
    """Whether this process is one of a job that `launch=slurm` sent."""
    return "SPPNET_SUBMISSION" in os.environ and "SLURM_JOB_ID" in os.environ


def rank() -> int:
    """Which of the job's tasks this is; 0 outside."""
    return int(os.environ.get("SLURM_PROCID", 0)) if inside() else 0


def restarts() -> int:
    """How often SLURM has started this job before; from the second start on, what was to be done anew (`force`) has
    begun."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) if inside() else 0


def name() -> str:
    """`ARRAY_INDEX`, as SLURM calls the job. (SLURM_JOB_ID of one element of an array is the name of all of it.)"""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def listen() -> None:
    """Note signals from here on; `sppnet.training.checkpointing` acts on them during training."""
    if inside():
        signal.signal(WARNING, _on_warning)
        signal.signal(signal.SIGTERM, _on_term)


def goes_on() -> bool:
    """After TERM: whether the job runs on in a time of grace. False once SLURM is ending it."""
    status, out, _ = call(["squeue", "--noheader", "--format=%T", f"--jobs={name()}"])
    return status == 0 and out == "RUNNING"


def requeue() -> str | None:
    """Ask SLURM to queue this job again once it has ended; why not, if it refuses."""
    status, _, error = call(["scontrol", "requeue", name()])
    return None if status == 0 else error.splitlines()[-1] if error else f"scontrol requeue: {status}"


def test_is_left() -> None:
    """All that is left is a test, which saves nothing on its way: a warning, then or already, is a wish to be queued
    again."""
    global trained
    trained = True
    if WARNING in noted and rank() == 0:
        requeue()


def _on_warning(number: int, _frame: FrameType | None) -> None:
    if trained and rank() == 0:
        requeue()
    elif not trained:
        noted.append(number)


def _on_term(number: int, _frame: FrameType | None) -> None:
    if not goes_on():
        raise SystemExit(128 + number)
