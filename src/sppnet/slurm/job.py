"""Inside a SLURM job: its name and rank, what a signal means, and requeueing.

This module imports next to nothing, because a signal that arrives before `install_signal_handlers` ends the process.

- USR2 comes before the time limit (`warning` of `launch=slurm`) and, on some clusters, before preemption. The job
  saves, asks to be requeued and ends.
- TERM comes before a cancellation or a preemption. SLURM requeues a preempted job by itself, but only if the job is
  still running at the end of its grace time; so the job saves and continues until it is killed.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from sppnet.slurm.queue import run_slurm_command

WARNING = signal.SIGUSR2

pending_signals: list[int] = []  # received before training could act on them
training_finished = False  # only the test remains


def inside_slurm() -> bool:
    """Whether this process belongs to a job that `launch=slurm` submitted."""
    return "SPPNET_SUBMISSION" in os.environ and "SLURM_JOB_ID" in os.environ


def rank() -> int:
    """This task's number within the job; 0 outside a job."""
    return int(os.environ.get("SLURM_PROCID", 0)) if inside_slurm() else 0


def restarts() -> int:
    """How often SLURM has restarted this job. After a restart, `force` no longer applies: the new run has begun."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) if inside_slurm() else 0


def name() -> str:
    """`ARRAY_INDEX`, SLURM's name of this job. (SLURM_JOB_ID of an array element may name the whole array.)"""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def install_signal_handlers() -> None:
    """Record signals from now on. During training, `sppnet.training.checkpointing` takes over."""
    if inside_slurm():
        signal.signal(WARNING, _on_warning)
        signal.signal(signal.SIGTERM, _on_term)


def still_running() -> bool:
    """After TERM: True if the job is within its grace time, False if SLURM is ending it."""
    status, out, _ = run_slurm_command(["squeue", "--noheader", "--format=%T", f"--jobs={name()}"])
    return status == 0 and out == "RUNNING"


def requeue() -> str | None:
    """Ask SLURM to requeue this job once it has ended; returns the reason if SLURM refuses."""
    status, _, error = run_slurm_command(["scontrol", "requeue", name()])
    return None if status == 0 else error.splitlines()[-1] if error else f"scontrol requeue: {status}"


def requeue_on_warning() -> None:
    """Requeue on a warning from now on, and on one that has already come: a test has no state to save first."""
    global training_finished
    training_finished = True
    if WARNING in pending_signals and rank() == 0:
        requeue()


def _on_warning(number: int, _frame: FrameType | None) -> None:
    if training_finished and rank() == 0:
        requeue()
    elif not training_finished:
        pending_signals.append(number)


def _on_term(number: int, _frame: FrameType | None) -> None:
    if not still_running():
        raise SystemExit(128 + number)
