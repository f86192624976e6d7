"""Queries SLURM for the states of jobs. Does not import torch."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NUMBER_FILE = "number.txt"  # in a submission's folder: the output of sbatch, which contains the job ID
MAX_AGE = 2.0  # seconds for which the output of squeue is cached; the output of sacct is cached for 30 times as long

_queued: tuple[float, dict[str, str] | None] = (-MAX_AGE, None)  # the time of the squeue query, and the job states
_finished: dict[str, tuple[float, dict[str, str]]] = {}  # per array: the time of the sacct query, and the job states


def job_states() -> dict[str, str] | None:
    """The state of every job in the queue, with SLURM's reason if it gives one; None if SLURM does not answer.

    The keys are job names such as `12_3` (element 3 of array 12) or `12` (a job outside an array).
    """
    global _queued
    if time.monotonic() - _queued[0] > MAX_AGE:
        _queued = (time.monotonic(), _ask_queue())
    return _queued[1]


def clear_cached_states() -> None:
    global _queued
    _queued = (-MAX_AGE, None)
    _finished.clear()


def job_state(job: str) -> str | None:
    """Look up the state of a job in the queue, and then in the accounting database, which keeps jobs for longer.

    Returns:
        The state; "" if neither knows the job, None if SLURM does not answer.
    """
    states = job_states()
    if states is None or job in states:
        return None if states is None else states[job]
    array = job.partition("_")[0]
    if array not in _finished or time.monotonic() - _finished[array][0] > 30 * MAX_AGE:
        _finished[array] = (time.monotonic(), _ask_accounting(array))
    return _finished[array][1].get(job, "")


def job_number(folder: Path) -> str:
    """The job ID of the submission in `folder`; "" if nothing was submitted."""
    with contextlib.suppress(OSError):
        return (folder / NUMBER_FILE).read_text(encoding="utf-8").strip().split(";")[0]  # "ID" or "ID;CLUSTER"
    return ""


def run_slurm_command(command: Sequence[str], into: Path | None = None) -> tuple[int, str, str]:
    """Run a SLURM command; return its exit code, standard output and standard error.

    The exit code is 127 if the command does not exist, and 126 if it cannot be run or times out.

    Args:
        command: the command line.
        into: a file for the standard output. If it is given, the command keeps running even if this process ends
            or its terminal is closed.
    """
    try:
        if into:
            with into.open("w") as file:
                done = subprocess.run(
                    list(command), stdout=file, stderr=subprocess.PIPE, text=True, start_new_session=True
                )
            return done.returncode, "", done.stderr.strip()
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return 127, "", f"{command[0]} not found: this machine is not part of a SLURM cluster"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def _ask_queue() -> dict[str, str] | None:
    code, out, _ = run_slurm_command(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"])
    if code:
        return None
    states = {}
    for line in out.splitlines():
        job, state, reason = line.split("|", 2)
        states[job] = state if reason in {"None", ""} else f"{state} ({reason})"
    return states


def _ask_accounting(array: str) -> dict[str, str]:
    """The last state of each job in an array, as recorded in the accounting database."""
    command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={array}"]
    code, out, _ = run_slurm_command([*command, "--array"])  # one line per job, even for jobs cancelled while pending
    if code:
        code, out, _ = run_slurm_command(command)  # older versions of sacct have no --array
    return dict(line.split("|", 1) for line in out.splitlines() if "|" in line) if code == 0 else {}
