"""Submits a sweep to SLURM as job arrays, whose scripts are stored beside the study's runs.

submitit is not used. It watches its jobs from the submitting process and returns results as pickles, so a cancelled job
hangs the sweep, the failure of a rank above 0 goes unnoticed, and closing the terminal loses the jobs (docs/decisions,
0017). Here, a job is the same command as on a laptop. It writes its results to its run directory, and no process has to
watch it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sppnet.config.command_schemas import STARTS_JOBS, SlurmOptions
from sppnet.config.load import load
from sppnet.errors import RunFailed, UserError
from sppnet.runs.identity import digest
from sppnet.runs.provenance import COMMAND, code_state
from sppnet.runs.run_directory import Run
from sppnet.slurm.queue import NUMBER_FILE, clear_cached_states, job_number, run_slurm_command
from sppnet.storage.files import file_lock, write_json, write_text
from sppnet.studies.sbatch_script import build_script
from sppnet.studies.sweep import Sweep, SweepJob

MAX_ARRAY_JOBS = 1000  # SLURM's default MaxArraySize is 1001


class SlurmSweep(Sweep):
    """Submits the jobs without waiting for them; see `Sweep` for the other arguments.

    Args:
        options: the options of `launch=slurm`.
    """

    def __init__(self, command: str, jobs: list[SweepJob], options: Mapping[str, Any], record: bool = True) -> None:
        if command not in STARTS_JOBS:
            raise UserError(f"launch=slurm is not allowed: sppnet {command} runs on this machine")
        super().__init__(command, jobs, record)
        self.sbatch_options = load_slurm_options(options)

    def start(self, groups: list[list[SweepJob]]) -> None:
        """Submit the groups; groups with the same number of nodes and tasks become one array.

        Raises:
            UserError: this machine has no `sbatch`.
            RunFailed: `sbatch` rejects the script.
        """
        groups = [startable for group in groups if (startable := self._check(group))]
        groups_by_shape: dict[tuple[int, int], list[list[SweepJob]]] = {}
        for group in groups:
            groups_by_shape.setdefault(_shape(group[0]), []).append(group)
        for shape, members in groups_by_shape.items():
            for first in range(0, len(members), MAX_ARRAY_JOBS):
                with file_lock(self._home(members[0][0]) / ".lock"):  # two people may submit the same study at once
                    clear_cached_states()
                    self._submit(shape, self._drop_queued(members[first : first + MAX_ARRAY_JOBS]))

    def _check(self, group: list[SweepJob]) -> list[SweepJob]:
        """Return the jobs in `group` that can start. Refuse invalid jobs now rather than after a wait in the queue."""
        if self.command != "train":
            return group
        from sppnet.training.preflight import check_augmentation, check_fit  # imports torch

        for job in group:
            assert job.plan is not None
            try:
                check_fit(job.plan.cfg)
                check_augmentation(job.plan.cfg)
            except UserError as error:
                job.outcome, job.lines = "refused", [str(error)]
                self.print_status(job)
        return [job for job in group if not job.outcome]

    def _drop_queued(self, groups: list[list[SweepJob]]) -> list[list[SweepJob]]:
        """Drop the jobs that another sweep has queued or finished in the meantime, and groups that become empty."""
        for job in (job for group in groups for job in group):
            self.skip_if_done(job)
            if job.outcome:
                self.print_status(job)
        return [pending for group in groups if (pending := [job for job in group if not job.outcome])]

    def _submit(self, shape: tuple[int, int], groups: list[list[SweepJob]]) -> None:
        if not groups:
            return
        folder = self._create_folder(groups[0][0])
        script = folder / "job.sh"
        commands = [[self.command_line(group, job) for job in group] for group in groups]
        environment = {COMMAND: os.environ.get(COMMAND, "")}
        write_text(script, build_script(folder, self.sbatch_options, shape, commands, environment))
        runs = [str(group[0].plan.run.path.absolute()) if group[0].plan else None for group in groups]
        commit = code_state()
        write_json(folder / "submission.json", {"runs": runs, "code": commit, "code_digest": digest(commit)})
        marks = [_mark_queued(group[0].plan.run, folder, index) for index, group in enumerate(groups) if group[0].plan]
        # sbatch itself writes the job ID to the file, so that the ID is not lost if this process is killed
        status, _, error = run_slurm_command(["sbatch", "--parsable", str(script)], folder / NUMBER_FILE)
        if status:
            for undo in filter(None, marks):
                undo()
            for path in (script, folder / "submission.json", folder / NUMBER_FILE):
                path.unlink(missing_ok=True)
            folder.rmdir()
            raise (UserError if status == 127 else RunFailed)(f"sbatch: {error.splitlines()[-1] if error else status}")
        number = job_number(folder)
        for index, group in enumerate(groups):
            for job in group:
                job.outcome, job.lines = "queued", [f"SLURM job {number}_{index}"]
                self.print_status(job)

    def _home(self, job: SweepJob) -> Path:
        """The folder for the study's submissions, beside its runs.

        If the folder is not writable, because the run is someone else's, or if a test or a prediction finds no such
        folder, because the run was moved, the submissions go below the `paths.runs` of the command line.
        """
        assert job.cfg is not None
        folder = Path(job.cfg.paths.runs).expanduser() / job.cfg.study
        moved = self.command in {"test", "predict"} and not folder.is_dir()
        if moved or (self.command != "train" and folder.is_dir() and not os.access(folder, os.W_OK)):
            folder = Path(str(job.composed.paths.runs)).expanduser() / str(job.composed.study)
        return folder / ".slurm"

    def _create_folder(self, job: SweepJob) -> Path:
        """Create a folder for the script and the logs of a new submission."""
        for number in range(1, 1_000_000):
            folder = (self._home(job) / str(number)).absolute()
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
        raise AssertionError


def load_slurm_options(options: Mapping[str, Any]) -> SlurmOptions:
    """Check the options of the SLURM launcher.

    Raises:
        UserError: an option is unknown, missing or not allowed.
    """
    plain = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()}
    try:
        return load(SlurmOptions, plain, "hydra.launcher.")
    except UserError as error:
        hint = ""
        if plain.keys() - SlurmOptions.model_fields.keys():
            hint = " (set other sbatch options in hydra.launcher.options)"
        elif SlurmOptions.model_fields.keys() - plain.keys():
            hint = " (launch=slurm sets its default)"
        raise UserError(f"{error}{hint}") from None


def _shape(job: SweepJob) -> tuple[int, int]:
    """The number of nodes that a job needs, and the number of tasks per node."""
    if job.plan is None:  # only training uses several devices
        return 1, 1
    trainer = job.plan.cfg.trainer
    return trainer.num_nodes, trainer.devices if isinstance(trainer.devices, int) else len(trainer.devices)


def _mark_queued(run: Run, folder: Path, index: int) -> Callable[[], None] | None:
    """Set a run's status to `queued`; return a function that restores the previous status.

    Change nothing and return None if a process holds the run's lock, or if the run is done and only another test is
    queued.
    """
    previous, new = run.status, not run.path.exists()
    if run.done:
        return None
    try:
        with run.locked():
            run.write_status("queued", slurm={"submission": str(folder), "index": index})
    except UserError:
        return None  # the run is in progress; the queued job will find it running or done

    def undo() -> None:
        if new:
            run.clear()
            (run.path / "lock").unlink()
            run.path.rmdir()
        elif previous:
            write_json(run.path / "status.json", previous)
        else:
            (run.path / "status.json").unlink()

    return undo
