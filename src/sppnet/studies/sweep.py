"""The jobs of a sweep: which runs they name, what is done of them, how each went. Nothing here imports torch.

`local_launcher` runs them on this machine, `slurm_launcher` on a cluster. No thread count is set anywhere: that is part
of a run's identity.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig

from sppnet.config import option_files
from sppnet.config.compose import to_plain
from sppnet.errors import UserError, notice
from sppnet.runs.plan import PlannedRun, check_duplicates, plan_run
from sppnet.runs.result_text import result_lines
from sppnet.studies.status import run_status
from sppnet.studies.study import SweepPoint, cell, common, conf, remember

LEFT_ALONE = {  # by `retry`, states of runs that are not started again
    "all": (),
    "failed": ("queued", "running"),
    "none": ("queued", "running", "failed", "lost", "preempted"),
}


@dataclass
class SweepJob:
    """One job: what was typed for it, the run and test it names (training only), and how it went."""

    number: int
    overrides: list[str]
    cfg: DictConfig
    row: str = ""
    plan: PlannedRun | None = None
    outcome: str = ""  # "" until it has ended: done, failed, refused; queued; or left as it was
    lines: list[str] = field(default_factory=list)


class Sweep:
    """`sppnet COMMAND OVERRIDES` for each of `jobs`.

    `planned` keeps what was asked for in the plans of its studies, as a sweep does and a single job does not.

    One job's failure is its own: the others run on. A job that is done is not started at all, and jobs that name the
    same run (they differ in test settings only) go one after the other and share its training.
    """

    def __init__(self, command: str, jobs: list[SweepJob], planned: bool = True) -> None:
        self.command, self.jobs, self.planned = command, jobs, planned
        folder = option_files.config_dir()  # no override: it would be lost
        self.options = ["--config-dir", str(folder)] if folder else []
        self._common = common(job.overrides for job in jobs)

    def run(self) -> None:
        """Run all jobs.

        Raises:
            UserError: no job could start, each because of a mistake in its configuration.
            SystemExit: with code 1, if any job failed.
        """
        for job in self.jobs:
            self._plan(job)
        if self.planned:
            self._remember()
        left = [job.plan.images for job in self.jobs if job.plan and not job.outcome]
        for line in dict.fromkeys(line for images in left for line in images.notices()):
            notice(line)
        together: dict[object, list[SweepJob]] = {}
        for job in self.jobs:
            if job.outcome:
                self.say(job)
            else:
                together.setdefault(job.plan.run if job.plan else job.number, []).append(job)
        self.start(list(together.values()))
        if self.jobs and all(job.outcome == "refused" for job in self.jobs):
            raise UserError(self.jobs[0].lines[-1].removeprefix(f"sppnet {self.command}: "))
        if any(job.outcome not in {"done", "left", "queued"} for job in self.jobs):
            raise SystemExit(1)

    def start(self, groups: list[list[SweepJob]]) -> None:
        """Run the jobs of each group one after the other."""
        raise NotImplementedError

    def command_line(self, group: list[SweepJob], job: SweepJob) -> list[str]:
        """The command line of a job of a group: a run is done anew (`force=true`) once, not by each of its jobs."""
        once = [] if job is group[0] else ["force=false"]
        return [
            sys.executable,
            "-P",
            "-m",
            "sppnet.cli",
            self.command,
            *self.options,
            *job.overrides,
            *once,
            "hydra.mode=RUN",
        ]

    def look(self, job: SweepJob) -> None:
        """Settle a job whose result is there, or whose run `retry` leaves alone; another sweep may be at it too."""
        if job.plan is None:
            return
        planned, retry = job.plan, job.plan.cfg["retry"]
        if planned.result is not None and not planned.cfg["force"]:
            job.outcome, job.lines = "done", [f"{result_lines(planned.result)[0]}  (was done)"]
            return
        found = run_status(planned.run, planned.test)
        if found.state in LEFT_ALONE[retry]:
            reason = found.reason or f"process {found.status.get('pid')} on {found.status.get('host')}"
            job.outcome, job.lines = "left", [f"{found.state}: {reason}  (retry={retry})"]

    def say(self, job: SweepJob, seconds: float = 0.0) -> None:
        """Print where a job stands."""
        typed = " ".join(filter_overrides([w for w in job.overrides if w not in self._common or len(self.jobs) == 1]))
        head = f"[{job.number + 1}/{len(self.jobs)}] {job.outcome or 'started':<7} {typed}"
        where = f"  {job.plan.run.path}" if job.plan else ""
        took = f"  ({seconds:.0f} s)" if seconds else ""
        lines = [f"{head}{where}{took}", *(f"    {line}" for line in job.lines), ""]
        print("\n".join(lines), end="", flush=True)  # in one piece: jobs end side by side

    def _plan(self, job: SweepJob) -> None:
        """Find the run that a job names, or what is wrong with its configuration."""
        if self.command != "train":
            return
        try:
            planned = plan_run(to_plain(job.cfg))
            check_duplicates(planned)
        except UserError as error:
            job.outcome, job.lines = "refused", [str(error)]
        else:
            job.plan = planned
            self.look(job)

    def _remember(self) -> None:
        """Note in the studies what was asked for: a table shows what is missing of it."""
        folders: dict[Path, list[SweepPoint]] = {}
        now = conf()
        for job in self.jobs:
            if job.plan is not None:
                made = cell(job.overrides, self._common, job.row, job.plan, now)
                folders.setdefault(job.plan.run.path.parent, []).append(made)
        for folder, cells in folders.items():
            try:
                remember(folder, cells)
            except OSError as error:
                raise UserError(f"paths.runs: cannot write to {folder}: {error.strerror}") from None
