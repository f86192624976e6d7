"""Asks SLURM for the states of jobs. Does not import torch."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NUMBER_FILE = "number.txt"  # in a submission's folder: the output of sbatch
MAX_AGE = 2.0  # seconds for which an answer of squeue is cached; one of sacct 30 times as long

_queued: tuple[float, dict[str, str] | None] = (-MAX_AGE, None)  # time of the answer, states by job
_finished: dict[str, tuple[float, dict[str, str]]] = {}  # the same, for each array that squeue no longer lists


def job_states() -> dict[str, str] | None:
    """State of every job in the queue, with the reason if it is waiting; None if SLURM does not answer.

    Keys are `ARRAY_INDEX` or `JOB`.
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
    """State of one job by the queue, or by the accounting, which remembers longer.

    Returns:
        "" if both have forgotten the job, None if SLURM does not answer.
    """
    states = job_states()
    if states is None or job in states:
        return None if states is None else states[job]
    array = job.partition("_")[0]
    if array not in _finished or time.monotonic() - _finished[array][0] > 30 * MAX_AGE:
        _finished[array] = (time.monotonic(), _ask_accounting(array))
    return _finished[array][1].get(job, "")


def job_number(folder: Path) -> str:
    """The job number of the submission in `folder`; "" if it was never submitted."""
    with contextlib.suppress(OSError):
        return (folder / NUMBER_FILE).read_text(encoding="utf-8").strip().split(";")[0]  # "NUMBER;CLUSTER"
    return ""


def run_slurm_command(command: Sequence[str], into: Path | None = None) -> tuple[int, str, str]:
    """Run a SLURM command and return exit code, output and errors; exit code 127 if the command does not exist.

    Args:
        command: the command line.
        into: a file for the output; the command then survives the end of this process and its terminal.
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
        return 127, "", f"{command[0]} is not there: this machine is not part of a SLURM cluster"
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
    """The last state of every job of an array."""
    command = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={array}"]
    code, out, _ = run_slurm_command([*command, "--array"])  # one line per job, also of jobs cancelled while waiting
    if code:
        code, out, _ = run_slurm_command(command)  # older SLURM has no --array
    return dict(line.split("|", 1) for line in out.splitlines() if "|" in line) if code == 0 else {}
