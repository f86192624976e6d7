"""Runs a sweep on this machine: `n` jobs at a time, each in a process with its own cores and GPUs.

The launcher does not change the number of threads, because `compute.num_threads` is part of a run's identity.
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
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from sppnet.config.schema import Config
from sppnet.errors import UserError, notice
from sppnet.runs.result_text import result_lines
from sppnet.runs.run_directory import Run
from sppnet.studies.gpus import GpuPool, requested_gpus, visible_gpus
from sppnet.studies.sweep import Sweep, SweepJob

OUTCOMES = {0: "done", 2: "refused"}  # maps exit codes to outcomes; any other code means `failed`


class LocalSweep(Sweep):
    """Runs the jobs `n` at a time and prints the outcome of each.

    Args:
        command: the `sppnet` command of all jobs.
        jobs: the jobs of the sweep.
        n: the number of jobs that run at a time. If None, as many jobs run as can have their own GPUs, or two if no
            job uses a GPU. With 1, every job sees all GPUs.
    """

    def __init__(self, command: str, jobs: list[SweepJob], n: int | None) -> None:
        if n is not None and n < 1:
            raise UserError(f"hydra.launcher.n={n} is not allowed: must be null or an integer of at least 1")
        super().__init__(command, jobs)
        self.n = n
        self._cores: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        self._gpus = GpuPool([])
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._shown: set[str] = set()  # notices of jobs

    def start(self, groups: list[list[SweepJob]]) -> None:
        """Run the groups in parallel, and the jobs of each group one after another."""
        n = self._assign_resources(groups)
        previous_handler = signal.signal(signal.SIGTERM, self._interrupt)
        try:
            with ThreadPoolExecutor(n) as pool:
                try:
                    for future in [pool.submit(self._run_group, group) for group in groups]:
                        future.result()
                except BaseException:
                    # No new jobs start. The running jobs receive a signal from the terminal or from `_interrupt`.
                    self._stopping.set()
                    raise
        finally:
            signal.signal(signal.SIGTERM, previous_handler)

    def _assign_resources(self, groups: list[list[SweepJob]]) -> int:
        """Divide the cores among the jobs and set up the GPU pool; return how many jobs run at a time."""
        gpus = [] if self.n == 1 else visible_gpus()
        requests = [_gpus_of(job) for group in groups for job in group]
        sizes = [request if isinstance(request, int) else len(request) for request in requests]
        sizes = sorted((size for size in sizes if 0 < size <= len(gpus)), reverse=True)
        n = self.n or (min(len(gpus) // sizes[-1], len(groups)) if sizes else 2)
        shared = sum(sizes[:n]) > len(gpus)
        if self.n and shared:
            notice(
                f"hydra.launcher.n={n}: up to {n} jobs at a time share {len(gpus)} GPU(s); each new job gets the"
                " least busy of them"
            )
        self._gpus = GpuPool(gpus, bool(self.n) and shared)
        for cores in split_cores(n):
            self._cores.put(cores)
        return n

    def _run_group(self, group: list[SweepJob]) -> None:
        for job in group:
            if self._stopping.is_set():
                return
            self.skip_if_done(job)
            if job.outcome:
                self.print_status(job)
            else:
                self._run(job, self.command_line(group, job))

    def _run(self, job: SweepJob, command: list[str]) -> None:
        cores = self._cores.get()
        try:
            with self._gpus.reserve(_gpus_of(job), self._stopping.is_set) as gpu_env:
                if self._stopping.is_set():
                    return
                self.print_status(job)
                began = time.monotonic()
                code, output = self._call(job, command, cores, gpu_env)
        finally:
            self._cores.put(cores)
        if code == 2:
            self.skip_if_done(job)  # the job may have been refused because another sweep had started the run
        if not job.outcome:
            job.outcome = OUTCOMES.get(code, "failed")
            job.lines = self._result(job, output, code)
        self.print_status(job, time.monotonic() - began)

    def _call(
        self, job: SweepJob, command: list[str], cores: set[int], gpu_env: dict[str, str]
    ) -> tuple[int, list[str]]:
        """Run the process of a job; return its exit code and the lines of its output."""
        env = os.environ | gpu_env | ({"SPPNET_JOB_LOG": "1"} if job.plan else {})
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            self._children.add(child)
            # with fewer cores than threads, the threads would wait for each other
            if job.plan and len(cores) >= _threads(job.plan.cfg):
                with contextlib.suppress(OSError):  # the process may have ended already
                    os.sched_setaffinity(child.pid, cores)
            code = child.wait()
            self._children.discard(child)
            output.seek(0)
            return code, output.read().decode(errors="replace").splitlines()

    def _result(self, job: SweepJob, output: list[str], code: int) -> list[str]:
        """The lines to print for a finished job: its metrics, or the reason for its failure and the path of its log."""
        if job.plan is None:
            return output or [f"exit code {code}"]
        run = job.plan.run
        result = run.result(job.plan.test)
        if job.outcome == "done" and result:
            return [*result_lines(result), *self._new_notices(run)]
        if job.outcome == "refused" or not (run.path / "log.txt").exists():
            return output[-1:] or [f"exit code {code}"]
        return [f"{_reason(run, code)}  (see {run.path / 'log.txt'})"]

    def _new_notices(self, run: Run) -> list[str]:
        """The notices in a run's log that this sweep has not shown for another run, such as what `init` leaves out."""
        log = run.path / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        new = [line for line in dict.fromkeys(lines) if line.startswith("sppnet: ") and line not in self._shown]
        self._shown.update(new)
        return new

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        for child in list(self._children):
            child.terminate()
        raise KeyboardInterrupt


def split_cores(n: int) -> list[set[int]]:
    """Split this process's cores into `n` equal sets; the sets are empty if that is impossible or if `n` is 1."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    size = len(cores) // n
    return [set(cores[size * i : size * (i + 1)]) for i in range(n)] if n > 1 else [set()]


def _gpus_of(job: SweepJob) -> int | list[int]:
    """The number of GPUs that a job needs, or their indexes; only training can use several GPUs."""
    if job.cfg is None:
        return 0
    trainer = job.cfg.trainer
    return requested_gpus(trainer.accelerator, trainer.devices if job.plan else 1)


def _threads(cfg: Config) -> int:
    """The total number of compute threads in all processes of a job."""
    devices = cfg.trainer.devices
    return cfg.compute.num_threads * (devices if isinstance(devices, int) else len(devices))


def _reason(run: Run, code: int) -> str:
    """Why a job failed: the signal that killed it, or the reason in its status file."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return str(run.status.get("reason") or f"exit code {code}")
