"""The SLURM job that this process belongs to: its name, rank, signals and requeueing.

This module has few imports, so that `install_signal_handlers` can be called early. Until it is called, SIGUSR2 and
SIGTERM end the process.

- SIGUSR2 arrives before the time limit (the `warning` option of `launch=slurm` sets how many seconds before) and, on
  some clusters, before the job is preempted. The job saves a checkpoint, asks SLURM for a requeue and ends.
- SIGTERM arrives when the job is cancelled or about to be preempted. SLURM requeues a preempted job itself, but only if
  the job is still running at the end of its grace time. The job therefore saves a checkpoint and continues until it is
  killed.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from sppnet.slurm.queue import run_slurm_command

WARNING = signal.SIGUSR2

pending_signals: list[int] = []  # signals received before training or the test can handle them
training_finished = False  # if True, only the test remains


def inside_slurm() -> bool:
    """Whether this process belongs to a job that `launch=slurm` submitted."""
    return "SPPNET_SUBMISSION" in os.environ and "SLURM_JOB_ID" in os.environ


def rank() -> int:
    """The rank of this task within the job; 0 outside a job."""
    return int(os.environ.get("SLURM_PROCID", 0)) if inside_slurm() else 0


def restarts() -> int:
    """How often SLURM has restarted this job. A restart resumes the run; `force` applies only to the first start."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) if inside_slurm() else 0


def name() -> str:
    """SLURM's name for this job, such as `12_3`. SLURM_JOB_ID is not used: it may be the ID of the whole array."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def install_signal_handlers() -> None:
    """Handle SIGUSR2 and SIGTERM in a SLURM job until `sppnet.training.checkpointing` installs its own handlers."""
    if inside_slurm():
        signal.signal(WARNING, _on_warning)
        signal.signal(signal.SIGTERM, _on_term)


def still_running() -> bool:
    """Whether the job may continue after SIGTERM.

    True in the grace time before preemption, false if SLURM is ending the job. True if SLURM does not answer, or if
    `squeue` itself gets SIGTERM: SLURM then ends a cancelled job a little later.
    """
    status, out, _ = run_slurm_command(["squeue", "--noheader", "--format=%T", f"--jobs={name()}"])
    return status != 0 or out in {"RUNNING", "SIGNALING"}  # SIGNALING: SLURM is still sending the SIGTERM


def requeue() -> str | None:
    """Ask SLURM to requeue this job; return the reason if SLURM refuses, else None."""
    status, _, error = run_slurm_command(["scontrol", "requeue", name()])
    return None if status == 0 else error.splitlines()[-1] if error else f"scontrol requeue: {status}"


def requeue_on_warning() -> None:
    """Requeue this job when the warning signal arrives, or now if it has already arrived.

    Called before a test. No effect outside a job.
    """
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
