"""The jobs of a sweep: which run each job names, whether it can be skipped, and how it ended.

`local_launcher.py` runs the jobs on this machine, `slurm_launcher.py` on a cluster. Only a job that starts from a
checkpoint file outside a run directory makes this module import torch.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from sppnet.config import option_files
from sppnet.config.command_schemas import PredictConfig
from sppnet.config.overrides import quote_names, sets_hydra
from sppnet.config.schema import Config
from sppnet.errors import UserError, notice
from sppnet.runs.from_checkpoint import load_job
from sppnet.runs.identity import init_setting
from sppnet.runs.plan import PlannedRun, check_duplicates, check_init, plan_run
from sppnet.runs.result_text import result_lines
from sppnet.studies.status import run_status
from sppnet.studies.study import (
    SweepPoint,
    add_points,
    common_overrides,
    config_digest,
    identifying_overrides,
    sweep_point,
)
from sppnet.studies.warm_start import with_init

SKIPPED_STATES = {  # for each value of `retry`, the states in which a sweep does not start a run again
    "all": (),
    "failed": ("queued", "running"),
    "none": ("queued", "running", "failed", "lost", "preempted"),
}


@dataclass
class SweepJob:
    """One job of a sweep.

    Attributes:
        number: the index of the job in the sweep.
        overrides: the overrides on the job's command line.
        composed: the job's configuration as Hydra composed it.
        row: the name of the job's listed row; "" if the sweep lists no rows.
        cfg: the job's configuration; None before planning, if it is refused, and for commands without runs.
        plan: the run and the test that the job names; None before planning and for commands other than `train`.
        outcome: "" until the outcome is known, then `done`, `failed`, `refused`, `queued` or `left` (skipped).
        lines: the lines that are printed below the job's status line.
    """

    number: int
    overrides: list[str]
    composed: DictConfig
    row: str = ""
    cfg: Config | None = None
    plan: PlannedRun | None = None
    outcome: str = ""
    lines: list[str] = field(default_factory=list)


class Sweep:
    """Runs `sppnet COMMAND OVERRIDES` for each job; a failed job does not stop the others.

    A job whose result exists is not started. Jobs that name the same run (and differ only in test settings) run one
    after another, so that the run is trained only once.

    Args:
        command: the `sppnet` command of all jobs.
        jobs: the jobs of the sweep.
        record: whether to record the points in `study.json`; False for a single job.
    """

    def __init__(self, command: str, jobs: list[SweepJob], record: bool = True) -> None:
        self.command, self.jobs, self.record = command, jobs, record
        folder = option_files.config_dir()  # --config-dir is not an override, so `job.overrides` does not contain it
        self.options = ["--config-dir", str(folder)] if folder else []
        self._common = common_overrides(job.overrides for job in jobs)

    def run(self) -> None:
        """Run all jobs.

        Raises:
            UserError: the configuration of every job is invalid.
            SystemExit: with code 1, if any job failed or was refused.
        """
        for job in self.jobs:
            self._plan(job)
        self._refuse_shared_outputs()
        if self.record:
            self._record_points()
        pending = [job.plan.images for job in self.jobs if job.plan and not job.outcome]
        for line in dict.fromkeys(line for images in pending for line in images.notices()):
            notice(line)
        self._notice_equal_jobs()
        self._notice_unlike_starts()
        groups: dict[object, list[SweepJob]] = {}
        for job in self.jobs:
            if job.outcome:
                self.print_status(job)
            else:
                groups.setdefault(job.plan.run if job.plan else job.number, []).append(job)
        self.start(list(groups.values()))
        if self.jobs and all(job.outcome == "refused" for job in self.jobs):
            raise UserError(self.jobs[0].lines[-1].removeprefix(f"sppnet {self.command}: "))
        if any(job.outcome not in {"done", "left", "queued"} for job in self.jobs):
            raise SystemExit(1)

    def start(self, groups: list[list[SweepJob]]) -> None:
        """Start the groups; the jobs of a group run one after another."""
        raise NotImplementedError

    def command_line(self, group: list[SweepJob], job: SweepJob) -> list[str]:
        """The command line of a job. Under `force=true`, only the first job of a group trains the shared run again.

        A job alone cannot know its row, so `init=study:NAME` becomes the run that it stands for.
        """
        replaced = [] if job is group[0] else ["force=false"]
        if self.command == "train" and job.cfg is not None and job.cfg.init is not None:
            replaced.append(quote_names(f"init={job.cfg.init}"))
        return [
            sys.executable,
            "-P",
            "-m",
            "sppnet.cli",
            self.command,
            *self.options,
            *job.overrides,
            *replaced,
            "hydra.mode=RUN",
        ]

    def skip_if_done(self, job: SweepJob) -> None:
        """Set the outcome of a job if its result exists or if `retry` says not to start its run again.

        This is called again right before a job starts, because another sweep may have started the run in the meantime.
        """
        if job.plan is None:
            return
        planned, retry = job.plan, job.plan.cfg.retry
        if planned.result is not None and not planned.cfg.force:
            job.outcome, job.lines = "done", [f"{result_lines(planned.result)[0]}  (already done)"]
            return
        status = run_status(planned.run, planned.test)
        if status.state in SKIPPED_STATES[retry]:
            reason = status.reason or f"process {status.status.get('pid')} on {status.status.get('host')}"
            job.outcome, job.lines = "left", [f"{status.state}: {reason}  (retry={retry})"]

    def print_status(self, job: SweepJob, seconds: float = 0.0) -> None:
        """Print a job's outcome, the overrides that distinguish it, and its lines."""
        shown = [override for override in job.overrides if override not in self._common or len(self.jobs) == 1]
        overrides = " ".join(word.lstrip("+") for word in shown if not sets_hydra(word))
        head = f"[{job.number + 1}/{len(self.jobs)}] {job.outcome or 'started':<7} {overrides}"
        path = f"  {job.plan.run.path}" if job.plan else ""
        duration = f"  ({seconds:.0f} s)" if seconds else ""
        lines = [f"{head}{path}{duration}", *(f"    {line}" for line in job.lines), ""]
        print("\n".join(lines), end="", flush=True)  # a single write; otherwise, the lines of parallel jobs could mix

    def _plan(self, job: SweepJob) -> None:
        """Determine the run that a job names. If the configuration is invalid, the job's outcome is `refused`."""
        try:
            cfg = load_job(self.command, job.composed, job.overrides)
            job.cfg = cfg if isinstance(cfg, Config) else None
            if self.command != "train":
                return
            assert job.cfg is not None
            job.cfg = with_init(job.cfg, job.row, job.overrides, self._common)
            planned = plan_run(job.cfg)
            check_duplicates(planned)
            check_init(planned)
        except UserError as error:
            job.outcome, job.lines = "refused", [str(error)]
        else:
            job.plan = planned
            self.skip_if_done(job)

    def _refuse_shared_outputs(self) -> None:
        """Refuse each job of `predict` that would write to the same file as a job before it."""
        first: dict[str, int] = {}
        for job in self.jobs:
            output = job.cfg.output if isinstance(job.cfg, PredictConfig) else None
            if output not in {None, "-"} and first.setdefault(output, job.number) != job.number:
                reason = f"output={output} is not allowed: job {first[output] + 1} writes to it; give each job its own"
                job.outcome, job.lines = "refused", [reason]

    def _notice_equal_jobs(self) -> None:
        """Say which jobs are the same run and test, such as those of `pooling=gap` in a sweep over pyramids."""
        equal: dict[tuple[Path, str], list[str]] = {}
        for job in self.jobs:
            if job.plan is not None:
                equal.setdefault((job.plan.run.path, job.plan.test), []).append(str(job.number + 1))
        for (path, _), numbers in equal.items():
            if len(numbers) > 1:
                notice(f"jobs {', '.join(numbers)} are one run ({path}), which is trained and tested once")

    def _notice_unlike_starts(self) -> None:
        """Say which jobs differ only in their seeds, but start from runs that differ in more (see `init`)."""
        starts_by_setting: dict[tuple[str, ...], dict[str, str]] = {}
        for job in self.jobs:
            if job.plan is not None and job.plan.cfg.init is not None and job.plan.starts_anew:
                words = identifying_overrides(job.overrides, self._common)
                setting = job.row, *(word for word in words if not word.startswith("seed="))
                starts_by_setting.setdefault(setting, {}).setdefault(init_setting(job.plan.cfg.init), job.plan.cfg.init)
        for starts in starts_by_setting.values():
            if len(starts) > 1:
                notice(f"jobs that differ only in their seeds start from unlike runs: {', '.join(starts.values())}")

    def _record_points(self) -> None:
        """Record the points in the `study.json` of their studies, so that tables can show missing results."""
        points_by_folder: dict[Path, list[SweepPoint]] = {}
        digest = config_digest()
        for job in self.jobs:
            if job.plan is not None:
                point = sweep_point(job.overrides, self._common, job.row, job.plan, digest)
                points_by_folder.setdefault(job.plan.run.path.parent, []).append(point)
        for folder, points in points_by_folder.items():
            try:
                add_points(folder, points)
            except OSError as error:
                raise UserError(f"paths.runs: cannot write to {folder} ({error.strerror})") from None
