"""The further processes of a run on several devices: they hold no lock and write no status.

`sppnet rank RUN_DIR` is started by Lightning on behalf of the first process of a machine, takes the configuration from
the run directory and ends when that process ends. Tasks of a SLURM job are all started alike and `join` the first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from sppnet.errors import RunFailed, UserError
from sppnet.runs.plan import Plan
from sppnet.runs.run_directory import FAILED_RANK, Run
from sppnet.runs.slurm_status import mark
from sppnet.slurm import job
from sppnet.storage.files import write_text

PR_SET_PDEATHSIG = 1
GLANCE, PATIENCE = 0.5, 900.0  # seconds between two looks for the first task, and until that is given up


def main(words: Sequence[str]) -> None:
    """Join the run whose directory is the only argument."""
    if len(words) != 1 or "LOCAL_RANK" not in os.environ:
        raise UserError("`sppnet rank` is started by `sppnet train trainer.devices=N`, not by hand")
    if sys.platform == "linux":  # a killed first process must not leave us waiting in a collective
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    run = Run(Path(words[0]))
    cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    del cfg["layout"]
    overrides = (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()

    from sppnet.training.checkpointing import Preempted
    from sppnet.training.trainer import fit, prepare

    with contextlib.suppress(Preempted):  # the first process says so
        fit(prepare(cfg, overrides), run)


def join(planned: Plan, overrides: list[str]) -> None:
    """Train as a further task of a SLURM job, once its first task has the run directory.

    Raises:
        RunFailed: the first task does not begin.
    """
    run, mine = planned.run, mark()["slurm"]
    for _ in range(int(PATIENCE / GLANCE)):
        status = run.status
        if status.get("state") == "running" and status.get("slurm") == mine:
            break
        if planned.result is not None and not planned.cfg["force"]:
            return  # there is nothing to do, as the first task found too
        time.sleep(GLANCE)
    else:
        raise RunFailed(f"task {job.rank()}: the job's first task has not begun within {PATIENCE:.0f} s")
    from sppnet.training.checkpointing import Preempted
    from sppnet.training.trainer import fit, prepare

    try:
        with contextlib.suppress(Preempted):
            fit(prepare(planned.cfg, overrides, planned.images), run)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        write_text(run.path / FAILED_RANK, f"rank {job.rank()}: {type(error).__name__}: {lines[-1]}\n")
        raise
