"""What SLURM says of its jobs. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NUMBER = "number.txt"  # in the folder of a submission: what sbatch printed
KEPT = 2.0  # seconds for which an answer is good

_seen: tuple[float, dict[str, str] | None] = (-KEPT, None)
_booked: dict[str, tuple[float, dict[str, str]]] = {}  # of every array that squeue has forgotten


def states() -> dict[str, str] | None:
    """Of every job that SLURM knows (`ARRAY_INDEX` or `JOB`), its state and, if it waits, why; None if it cannot be
    asked."""
    global _seen
    if time.monotonic() - _seen[0] > KEPT:
        _seen = (time.monotonic(), _ask())
    return _seen[1]


def forget() -> None:
    """Ask anew next time."""
    global _seen
    _seen = (-KEPT, None)
    _booked.clear()


def state(job: str) -> str | None:
    """What SLURM says of one job, or its accounting, which remembers longer; "" if it knows the job no more, None if
    it cannot be asked."""
    known = states()
    if known is None or job in known:
        return None if known is None else known[job]
    array = job.partition("_")[0]
    if array not in _booked or time.monotonic() - _booked[array][0] > 30 * KEPT:
        _booked[array] = (time.monotonic(), _ask_accounting(array))
    return _booked[array][1].get(job, "")


def number_of(folder: Path) -> str:
    """The number that SLURM gave to the submission in `folder`; "" if it was not sent."""
    with contextlib.suppress(OSError):
        return (folder / NUMBER).read_text(encoding="utf-8").strip().split(";")[0]  # behind it, the cluster's name
    return ""


def call(words: Sequence[str], into: Path | None = None) -> tuple[int, str, str]:
    """Run a command of SLURM's: exit code, output, errors; 127 if there is no such command.

    With `into` its output goes to that file, and the command outlives this process and the terminal.
    """
    try:
        if into:
            with into.open("w") as file:
                done = subprocess.run(
                    list(words), stdout=file, stderr=subprocess.PIPE, text=True, start_new_session=True
                )
            return done.returncode, "", done.stderr.strip()
        done = subprocess.run(list(words), capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        return 127, "", f"{words[0]} is not there: this is no machine of a SLURM cluster"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def _ask() -> dict[str, str] | None:
    code, out, _ = call(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"])
    if code:
        return None
    found = {}
    for line in out.splitlines():
        job, state, reason = line.split("|", 2)
        found[job] = state if reason in {"None", ""} else f"{state} ({reason})"
    return found


def _ask_accounting(array: str) -> dict[str, str]:
    """The last state of every job of an array."""
    words = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State", f"--jobs={array}"]
    code, out, _ = call([*words, "--array"])  # of what was cancelled as it waited, a line per job
    if code:
        code, out, _ = call(words)  # an older SLURM
    return dict(line.split("|", 1) for line in out.splitlines() if "|" in line) if code == 0 else {}
