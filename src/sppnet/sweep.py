"""A sweep on this machine: every job a process of its own, n at a time.

One job's failure is its own: the others run on. A job that is done is not started at all, and jobs that name the same
run (they differ in test settings only) go one after the other and share its training. No thread count is set here:
that is part of a run's identity. Nothing here imports torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig

from sppnet import groups, words
from sppnet.compose import plain
from sppnet.errors import UserError
from sppnet.runs import Plan, Run, plan, read_json
from sppnet.show import result_lines
from sppnet.standing import stand
from sppnet.study import Cell, cell, remember

LEFT_ALONE = {  # by `retry`, states of runs that are not started again
    "all": (),
    "failed": ("queued", "running"),
    "none": ("queued", "running", "failed", "lost", "preempted"),
}
OUTCOMES = {0: "done", 2: "refused"}  # by exit code; any other is a failure


@dataclass
class SweepJob:
    """One job: what was typed for it, the run and test it names (training only), and how it went."""

    number: int
    overrides: list[str]
    cfg: DictConfig
    row: str = ""
    plan: Plan | None = None
    outcome: str = ""  # "" until it has ended: done, failed, refused; or left as it was
    lines: list[str] = field(default_factory=list)


class Sweep:
    """Runs `sppnet VERB OVERRIDES` for each of `jobs`, `n` at a time, and prints how each went."""

    def __init__(self, verb: str, n: int, jobs: list[SweepJob]) -> None:
        if n < 1:
            raise UserError(f"hydra.launcher.n={n} is not allowed; it takes a whole number of at least 1")
        self.verb, self.n, self.jobs = verb, n, jobs
        folder = words.config_dir()  # no override: it would be lost
        self.options = ["--config-dir", str(folder)] if folder else []
        self._common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set[str]()
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()

    def run(self) -> None:
        """Run all jobs.

        Raises:
            UserError: no job could start, each because of a mistake in its configuration.
            SystemExit: with code 1, if any job failed.
        """
        for job in self.jobs:
            self._plan(job)
        self._remember()
        self._start_all()
        if self.jobs and all(job.outcome == "refused" for job in self.jobs):
            raise UserError(self.jobs[0].lines[-1].removeprefix(f"sppnet {self.verb}: "))
        if any(job.outcome not in {"done", "left"} for job in self.jobs):
            raise SystemExit(1)

    def _plan(self, job: SweepJob) -> None:
        """Find the run that a job names, or what is wrong with its configuration."""
        if self.verb != "train":
            return
        try:
            job.plan = plan(plain(job.cfg))
        except UserError as error:
            job.outcome, job.lines = "refused", [str(error)]
        else:
            self._look(job, job.plan)

    def _look(self, job: SweepJob, planned: Plan) -> None:
        """Settle a job whose result is there, or whose run `retry` leaves alone; another sweep may be at it too."""
        retry = planned.cfg["retry"]
        if planned.result is not None and not planned.cfg["force"]:
            job.outcome, job.lines = "done", [f"{result_lines(planned.result['metrics'])[0]}  (was done)"]
            return
        found = stand(planned.run, planned.test)
        if found.state in LEFT_ALONE[retry]:
            reason = found.reason or f"process {found.status.get('pid')} on {found.status.get('host')}"
            job.outcome, job.lines = "left", [f"{found.state}: {reason}  (retry={retry})"]

    def _remember(self) -> None:
        """Note in the studies what was asked for: a table shows what is missing of it."""
        folders: dict[Path, list[Cell]] = {}
        conf = groups.digest()
        for job in self.jobs:
            if job.plan is not None:
                folders.setdefault(job.plan.run.path.parent, []).append(cell(job.overrides, job.row, job.plan, conf))
        for folder, cells in folders.items():
            try:
                remember(folder, cells)
            except OSError as error:
                raise UserError(f"paths.runs: cannot write to {folder}: {error.strerror}") from None

    def _start_all(self) -> None:
        groups: dict[object, list[SweepJob]] = {}
        for job in self.jobs:
            if job.outcome:
                self._say(job)
            else:
                groups.setdefault(job.plan.run if job.plan else job.number, []).append(job)
        before = signal.signal(signal.SIGTERM, self._interrupt)
        try:
            with ThreadPoolExecutor(self.n) as pool:
                try:
                    for future in [pool.submit(self._run_group, group) for group in groups.values()]:
                        future.result()
                except BaseException:
                    self._stopping.set()  # the jobs that run have the terminal's signal too, or _interrupt's
                    raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def _run_group(self, group: list[SweepJob]) -> None:
        for job in group:
            if self._stopping.is_set():
                return
            if job.plan is not None:
                self._look(job, job.plan)
            if job.outcome:
                self._say(job)
            else:
                self._run(job, [] if job is group[0] else ["force=false"])  # one run is done anew once, not per test

    def _run(self, job: SweepJob, more: list[str]) -> None:
        began = time.monotonic()
        self._say(job)
        command = [sys.executable, "-P", "-m", "sppnet.cli", self.verb, *self.options, *job.overrides, *more]
        command.append("hydra.mode=RUN")
        env = os.environ | ({"SPPNET_JOB_LOG": "1"} if job.plan else {})
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
            output.seek(0)
            printed = output.read().decode(errors="replace").splitlines()
        job.outcome = OUTCOMES.get(code, "failed")
        job.lines = self._result(job, printed, code)
        self._say(job, time.monotonic() - began)

    def _result(self, job: SweepJob, printed: list[str], code: int) -> list[str]:
        """What is worth showing of a job that has ended: its figures, or the reason and where to read on."""
        if job.plan is None:
            return printed or [f"exit code {code}"]
        run = job.plan.run
        found = read_json(run.test_file(job.plan.test))
        if job.outcome == "done" and found:
            return result_lines(found["metrics"])
        if job.outcome == "refused" or not (run.path / "log.txt").exists():
            return printed[-1:] or [f"exit code {code}"]
        return [f"{_reason(run, code)}  (see {run.path / 'log.txt'})"]

    def _say(self, job: SweepJob, seconds: float = 0.0) -> None:
        typed = " ".join(filter_overrides([word for word in job.overrides if word not in self._common]))
        head = f"[{job.number + 1}/{len(self.jobs)}] {job.outcome or 'started':<7} {typed}"
        where = f"  {job.plan.run.path}" if job.plan else ""
        took = f"  ({seconds:.0f} s)" if seconds else ""
        print(f"{head}{where}{took}", *(f"    {line}" for line in job.lines), sep="\n", flush=True)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        for child in list(self._children):
            child.terminate()
        raise KeyboardInterrupt


def _reason(run: Run, code: int) -> str:
    """Why a job failed: what it wrote last, or, if it was killed and could write nothing, the signal."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return str(run.status.get("reason") or f"exit code {code}")
