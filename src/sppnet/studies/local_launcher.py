"""A sweep on this machine: every job a process of its own, n at a time, each on cores and GPUs of its own.

The thread count is the run's (`trainer.threads`) and no business of a launcher: it is part of what a run is.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from sppnet.errors import UserError, notice
from sppnet.runs.result_text import result_lines
from sppnet.runs.run_directory import Run
from sppnet.studies.gpus import Gpus, visible, wanted
from sppnet.studies.sweep import Sweep, SweepJob

OUTCOMES = {0: "done", 2: "refused"}  # by exit code; any other is a failure


class Processes(Sweep):
    """Runs the jobs `n` at a time and prints how each went.

    Args:
        command: names the command.
        jobs: those of the sweep.
        n: how many run at a time; None for as many as have GPUs of their own, or two where no job wants one. With 1,
            every job sees all GPUs.
    """

    def __init__(self, command: str, jobs: list[SweepJob], n: int | None) -> None:
        if n is not None and n < 1:
            raise UserError(f"hydra.launcher.n={n} is not allowed; it takes null or a whole number of at least 1")
        super().__init__(command, jobs)
        self.n = n
        self._cores: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        self._gpus = Gpus([])
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()

    def start(self, groups: list[list[SweepJob]]) -> None:
        """Run the groups side by side."""
        n = self._share_out(groups)
        before = signal.signal(signal.SIGTERM, self._interrupt)
        try:
            with ThreadPoolExecutor(n) as pool:
                try:
                    for future in [pool.submit(self._run_group, group) for group in groups]:
                        future.result()
                except BaseException:
                    self._stopping.set()  # the jobs that run have the terminal's signal too, or _interrupt's
                    raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def _share_out(self, groups: list[list[SweepJob]]) -> int:
        """Deal out cores and GPUs; returns how many jobs run at a time."""
        names = [] if self.n == 1 else visible()
        sizes = [
            what if isinstance(what, int) else len(what) for what in map(_gpus_of, (job for g in groups for job in g))
        ]
        sizes = sorted((size for size in sizes if 0 < size <= len(names)), reverse=True)
        n = self.n or (min(len(names) // sizes[-1], len(groups)) if sizes else 2)
        shared = sum(sizes[:n]) > len(names)
        if self.n and shared:
            notice(
                f"hydra.launcher.n={n}: up to {n} jobs at a time share the {len(names)} GPU(s) here, dealt out in turn"
            )
        self._gpus = Gpus(names, bool(self.n) and shared)
        for share in shares(n):
            self._cores.put(share)
        return n

    def _run_group(self, group: list[SweepJob]) -> None:
        for job in group:
            if self._stopping.is_set():
                return
            self.look(job)
            if job.outcome:
                self.say(job)
            else:
                self._run(job, self.command_line(group, job))

    def _run(self, job: SweepJob, command: list[str]) -> None:
        cores = self._cores.get()
        try:
            with self._gpus.taken(_gpus_of(job), self._stopping.is_set) as seen:
                if self._stopping.is_set():
                    return
                self.say(job)
                began = time.monotonic()
                code, printed = self._call(job, command, cores, seen)
        finally:
            self._cores.put(cores)
        if code == 2:
            self.look(job)  # another sweep may have taken the run at the same moment
        if not job.outcome:
            job.outcome = OUTCOMES.get(code, "failed")
            job.lines = self._result(job, printed, code)
        self.say(job, time.monotonic() - began)

    def _call(self, job: SweepJob, command: list[str], cores: set[int], seen: dict[str, str]) -> tuple[int, list[str]]:
        """Exit code and output of a job that sees certain GPUs."""
        env = os.environ | seen | ({"SPPNET_JOB_LOG": "1"} if job.plan else {})
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            self._children.add(child)
            if job.plan and len(cores) >= _threads(job.plan.cfg):  # on fewer its threads would wait for each other
                with contextlib.suppress(OSError):  # it has ended
                    os.sched_setaffinity(child.pid, cores)
            code = child.wait()
            self._children.discard(child)
            output.seek(0)
            return code, output.read().decode(errors="replace").splitlines()

    def _result(self, job: SweepJob, printed: list[str], code: int) -> list[str]:
        """What is worth showing of a job that has ended: its figures, or the reason and where to read on."""
        if job.plan is None:
            return printed or [f"exit code {code}"]
        run = job.plan.run
        found = run.result(job.plan.test)
        if job.outcome == "done" and found:
            return result_lines(found)
        if job.outcome == "refused" or not (run.path / "log.txt").exists():
            return printed[-1:] or [f"exit code {code}"]
        return [f"{_reason(run, code)}  (see {run.path / 'log.txt'})"]

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        for child in list(self._children):
            child.terminate()
        raise KeyboardInterrupt


def shares(n: int) -> list[set[int]]:
    """The cores of this process dealt out to `n` jobs; empty sets where there are too few, or no way to say it."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // n
    return [set(cores[each * i : each * (i + 1)]) for i in range(n)] if n > 1 else [set()]


def _gpus_of(job: SweepJob) -> int | list[int]:
    """How many GPUs a job takes, or which; only training takes several."""
    if job.plan is not None:
        return wanted(job.plan.cfg["trainer"])
    return wanted({"accelerator": job.cfg.trainer.accelerator, "devices": 1})


def _threads(cfg: Mapping[str, Any]) -> int:
    """How many threads a job computes with at once."""
    devices, threads = cfg["trainer"]["devices"], cfg["trainer"]["threads"]
    return int(threads) * (devices if isinstance(devices, int) else len(devices))


def _reason(run: Run, code: int) -> str:
    """Why a job failed: what it wrote last, or, if it was killed and could write nothing, the signal."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return str(run.status.get("reason") or f"exit code {code}")
