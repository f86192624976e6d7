"""The additional processes of a run on several devices; they take no lock and write no status.

On each machine, Lightning runs `sppnet rank RUN_DIR` in every process except the first. Such a process reads the
configuration from the run directory and ends when the first process on its machine ends. SLURM starts all tasks of
a job with the same command (`sppnet train`), and every task except the first calls `join`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from sppnet.config.load import check_layout, load
from sppnet.config.schema import Config
from sppnet.errors import RunFailed, UserError
from sppnet.processes import die_with_parent
from sppnet.runs import ranks
from sppnet.runs.plan import PlannedRun
from sppnet.runs.run_directory import FAILED_RANK, Run
from sppnet.runs.slurm_status import slurm_fields
from sppnet.slurm import job
from sppnet.storage.files import write_text

# How often a task checks whether the job's first task has started, and how long it waits for that.
POLL_SECONDS, WAIT_SECONDS = 0.5, 900.0


def main(words: Sequence[str]) -> None:
    """Train as an additional process of the run in the directory `words[0]`."""
    if len(words) != 1 or "LOCAL_RANK" not in os.environ:
        raise UserError("`sppnet rank` is started by `sppnet train trainer.devices=N`, not by hand")
    # Otherwise, its collective operations would wait forever once the first process has ended.
    die_with_parent()
    run = Run(Path(words[0]))
    stored = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    check_layout(stored.pop("layout", None), str(run.path))
    cfg = load(Config, stored)

    from sppnet.training.checkpointing import Preempted
    from sppnet.training.trainer import fit, prepare

    with _recorded(run), contextlib.suppress(Preempted):  # the first process reports the preemption
        fit(prepare(cfg, starts_anew=not run.last.exists()), run)


def join(planned: PlannedRun) -> None:
    """Train as an additional task of a SLURM job, once the job's first task has locked the run directory.

    Raises:
        RunFailed: the first task does not start within `WAIT_SECONDS`.
    """
    run, slurm_job = planned.run, slurm_fields()["slurm"]
    for _ in range(int(WAIT_SECONDS / POLL_SECONDS)):
        status = run.status
        if status.get("state") == "running" and status.get("slurm") == slurm_job:
            break
        if planned.result is not None and not planned.cfg.force:
            return  # the run is done, so the first task does not train either
        time.sleep(POLL_SECONDS)
    else:
        raise RunFailed(f"task {job.rank()}: the job's first task did not start within {WAIT_SECONDS:.0f} s")
    from sppnet.training.checkpointing import Preempted
    from sppnet.training.trainer import fit, prepare

    with _recorded(run), contextlib.suppress(Preempted):
        fit(prepare(planned.cfg, planned.images, planned.starts_anew), run)


@contextlib.contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Write the error of this process to the run directory, because the first one sees only that it is gone."""
    try:
        yield
    except Exception as error:
        if not ranks.is_echo(f"{type(error).__name__}: {error}"):
            number = job.rank() if job.inside_slurm() else os.environ["LOCAL_RANK"]
            lines = str(error).strip().splitlines() or [""]
            write_text(run.path / FAILED_RANK, f"rank {number}: {type(error).__name__}: {lines[-1]}\n")
        raise
