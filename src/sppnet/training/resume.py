"""Chooses the checkpoint that a run resumes from, and reports what is wrong with a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from sppnet.errors import RunFailed, UserError, notice
from sppnet.runs.checkpoint_files import read_checkpoint
from sppnet.runs.run_directory import Run
from sppnet.training.checkpointing import Checkpoints

RESTART = "force=true starts the run from scratch"


def checkpoint_to_resume(run: Run) -> Path | None:
    """Choose last.ckpt, or best.ckpt if last.ckpt is damaged or missing, or None if the run has no checkpoint.

    Raises:
        RunFailed: the run has checkpoints, but cannot resume from any of them.
    """
    warn = rank_zero_only(notice)
    last, last_problem = read_own_checkpoint(run, run.last)
    last_is_whole = last is not None
    has_best_score = last is not None and last["callbacks"][Checkpoints.__name__]["best_score"] is not None
    del last  # keep only one checkpoint in memory
    best, best_problem = read_own_checkpoint(run, run.best)
    if last_is_whole:
        if best is None and has_best_score:
            best_problem = best_problem or f"{run.best} is missing"
            warn(f"{best_problem}; unless a later epoch scores higher, there will be nothing to test ({RESTART})")
        return run.last
    last_problem = last_problem or f"{run.last} is missing"
    if best is None:
        if run.has_checkpoint:
            raise RunFailed("; ".join(filter(None, (last_problem, best_problem, RESTART))))
        return None
    if not best["callbacks"][Checkpoints.__name__]["whole"]:
        if not run.last.exists():  # stopped before the first last.ckpt: nothing but a few steps is lost
            warn(f"{run.path} was stopped before it had saved a checkpoint to resume from; it starts again")
            return None
        raise RunFailed(
            f"{last_problem}; best.ckpt was saved within an accumulation window, so the run cannot resume from it;"
            f" {RESTART}"
        )
    warn(f"{last_problem}; resuming from best.ckpt at step {best['global_step']} (epoch {best['epoch'] + 1})")
    return run.best


def read_own_checkpoint(run: Run, path: Path) -> tuple[dict[str, Any] | None, str]:
    """Read a checkpoint of `run`.

    Returns:
        `(checkpoint, "")`, or `(None, problem)` if it cannot be used; `problem` is "" if the file does not exist.
    """
    if not path.exists():
        return None, ""
    try:
        checkpoint = read_checkpoint(path)
    except UserError as error:
        return None, str(error)
    owner = checkpoint["callbacks"][Checkpoints.__name__]["run"]
    return (checkpoint, "") if owner == run.hash else (None, f"{path} belongs to a different run ({owner})")
