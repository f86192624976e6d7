"""Sending jobs: a sweep becomes arrays of `sbatch`, one script each, which stay beside the study's runs.

Not by submitit: it watches its jobs from the process that sent them and hands results back in pickles, so a job that is
cancelled hangs the sweep, a failing rank above 0 is not seen, and closing the terminal loses the watch (docs/decisions,
0017). Here a job is the same command as on a laptop, its results are in its run directory, and nobody has to watch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sppnet.config.schema import check_slurm_options
from sppnet.errors import RunFailed, UserError
from sppnet.runs.identity import digest
from sppnet.runs.provenance import COMMAND, code_state
from sppnet.runs.run_directory import Run
from sppnet.slurm.job import WARNING
from sppnet.slurm.queue import NUMBER_FILE, clear_cached_states, job_number, run_slurm_command
from sppnet.storage.files import file_lock, write_json, write_text
from sppnet.studies.sweep import Sweep, SweepJob

MOST = 1000  # jobs of an array; MaxArraySize is 1001 by default


class Submission(Sweep):
    """Submits the jobs and ends."""

    def __init__(self, command: str, jobs: list[SweepJob], options: Mapping[str, Any], planned: bool = True) -> None:
        super().__init__(command, jobs, planned)
        self.options_of_sbatch = check_slurm_options(options)

    def start(self, groups: list[list[SweepJob]]) -> None:
        """Send the groups, those of the same shape (nodes and tasks) as one array.

        Raises:
            UserError: a job's network and sizes do not fit together, or `sbatch` refuses.
        """
        groups = [fitting for group in groups if (fitting := self._check(group))]
        shapes: dict[tuple[int, int], list[list[SweepJob]]] = {}
        for group in groups:
            shapes.setdefault(_shape(group[0]), []).append(group)
        for shape, members in shapes.items():
            for first in range(0, len(members), MOST):
                with file_lock(self._home(members[0][0]) / ".lock"):  # two people may send the same study at once
                    clear_cached_states()
                    self._submit(shape, self._left(members[first : first + MOST]))

    def _check(self, group: list[SweepJob]) -> list[SweepJob]:
        """The jobs that can start: a mistake is found now and not in the queue."""
        if self.command != "train":
            return group
        from sppnet.training.preflight import check_fit  # imports torch

        for job in group:
            assert job.plan is not None
            try:
                check_fit(job.plan.cfg)
            except UserError as error:
                job.outcome, job.lines = "refused", [str(error)]
                self.say(job)
        return [job for job in group if not job.outcome]

    def _left(self, groups: list[list[SweepJob]]) -> list[list[SweepJob]]:
        """The groups without the jobs that somebody else has queued meanwhile."""
        for job in (job for group in groups for job in group):
            self.look(job)
            if job.outcome:
                self.say(job)
        return [kept for group in groups if (kept := [job for job in group if not job.outcome])]

    def _submit(self, shape: tuple[int, int], groups: list[list[SweepJob]]) -> None:
        if not groups:
            return
        folder = self._folder(groups[0][0])
        script = folder / "job.sh"
        write_text(script, self._script(folder, shape, groups))
        runs = [str(group[0].plan.run.path.absolute()) if group[0].plan else None for group in groups]
        made = code_state()
        write_json(folder / "submission.json", {"runs": runs, "code": made, "code_digest": digest(made)})
        marked = [_mark(group[0].plan.run, folder, index) for index, group in enumerate(groups) if group[0].plan]
        # sbatch writes the number itself: it is kept even if this process is killed meanwhile
        status, _, error = run_slurm_command(["sbatch", "--parsable", str(script)], folder / NUMBER_FILE)
        if status:
            for undo in filter(None, marked):
                undo()
            for path in (script, folder / "submission.json", folder / NUMBER_FILE):
                path.unlink(missing_ok=True)
            folder.rmdir()
            raise (UserError if status == 127 else RunFailed)(f"sbatch: {error.splitlines()[-1] if error else status}")
        number = job_number(folder)
        for index, group in enumerate(groups):
            for job in group:
                job.outcome, job.lines = "queued", [f"SLURM job {number}_{index}"]
                self.say(job)

    def _home(self, job: SweepJob) -> Path:
        """The folder of the study's submissions, beside its runs."""
        return Path(str(job.cfg.paths.runs)).expanduser() / str(job.cfg.study) / ".slurm"

    def _folder(self, job: SweepJob) -> Path:
        """A new folder for script and logs."""
        for number in range(1, 1_000_000):
            folder = (self._home(job) / str(number)).absolute()
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
        raise AssertionError

    def _script(self, folder: Path, shape: tuple[int, int], groups: list[list[SweepJob]]) -> str:
        nodes, tasks = shape
        o = self.options_of_sbatch
        given = {
            "job-name": f"sppnet-{folder.parent.parent.name}",
            "array": f"0-{len(groups) - 1}" + (f"%{o['parallel']}" if o["parallel"] else ""),
            "output": f"{folder}/%a.log",
            "open-mode": "append",
            "signal": f"USR2@{o['warning']}",
            "nodes": nodes,
            "ntasks-per-node": tasks,
            "cpus-per-task": o["cpus"],
            "gpus-per-task": o["gpus"] or None,
            "mem": o["memory"],
            **{key: o[key] for key in ("partition", "account", "qos", "time")},
            **o["options"],
        }
        kept = {key: value for key, value in given.items() if value is not None and value is not False}
        lines = ["#!/bin/bash", *(_directive(key, value) for key, value in kept.items())]
        lines += ["#SBATCH --requeue", "", f"cd {shlex.quote(str(Path.cwd()))} || exit", *o["setup"]]
        lines += [f"export SPPNET_SUBMISSION={shlex.quote(str(folder))} SPPNET_JOB_LOG=1", "status=0"]
        lines += [f"export {COMMAND}={shlex.quote(os.environ.get(COMMAND, ''))}"]  # whatever sbatch lets through
        lines += ['run() { srun --kill-on-bad-exit=1 "$@" || status=$?; }', "case $SLURM_ARRAY_TASK_ID in"]
        for index, group in enumerate(groups):
            lines += [f"{index})", *(f"  run {shlex.join(self.command_line(group, job))}" for job in group), "  ;;"]
        lines += ["esac", f"if [ $status -eq {128 + WARNING} ]; then  # warned before the program could listen"]
        lines += ["  scontrol requeue ${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "fi", "exit $status"]
        return "\n".join(lines) + "\n"


def _directive(key: str, value: object) -> str:
    """An option of sbatch, as it reads them in a script: a flag (true) stands alone, blanks are quoted."""
    if value is True:
        return f"#SBATCH --{key}"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'#SBATCH --{key}="{text}"' if re.search(r"[\s\"'\\#]", text) else f"#SBATCH --{key}={text}"


def _shape(job: SweepJob) -> tuple[int, int]:
    """Nodes, and tasks of each."""
    trainer = job.cfg.trainer
    devices = trainer.devices
    return int(trainer.num_nodes), devices if isinstance(devices, int) else len(devices)


def _mark(run: Run, folder: Path, index: int) -> Callable[[], None] | None:
    """Say that a run is queued, unless it is done (a further test of it is) or somebody is at it; returns what takes
    that back."""
    before, new = run.status, not run.path.exists()
    if run.done:
        return None
    try:
        with run.locked():
            run.write_status("queued", slurm={"submission": str(folder), "index": index})
    except UserError:
        return None  # it runs; the job will find it so, or done

    def undo() -> None:
        if new:
            run.clear()
            (run.path / "lock").unlink()
            run.path.rmdir()
        elif before:
            write_json(run.path / "status.json", before)
        else:
            (run.path / "status.json").unlink()

    return undo
