"""Compose a command's configuration with Hydra and run the command on it, as a plain, resolved dict.

Hydra only composes; the job runs after `hydra.main` has returned. Hydra's error handling (several lines, exit code 1)
and Lightning's detection of Hydra (which would restart ranks with a changed command line) then do not apply to it.
Nothing here imports torch.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet import errors
from sppnet.config import compose, option_files, overrides, schema
from sppnet.config.compose import Job, to_plain
from sppnet.errors import UserError
from sppnet.studies.slurm_launcher import SlurmSweep
from sppnet.studies.sweep import SweepJob

SWEEPABLE = ("train", "transfer")  # the commands that a study runs as a sweep


@functools.cache
def _scratch_directory() -> str:
    """A directory for a sweep's multirun.yaml, which Hydra insists on writing; removed when the process ends."""
    path = tempfile.mkdtemp(prefix="sppnet-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


OmegaConf.register_new_resolver("sppnet.root", lambda: str(option_files.root()), replace=True)
OmegaConf.register_new_resolver("sppnet.scratch", _scratch_directory, replace=True)


def normalise(command: str, words: Sequence[str]) -> list[str]:
    """Rewrite a command line for Hydra and use its `--config-dir` from now on.

    Raises:
        UserError: an unknown option, or a word that is not an override.
    """
    option_files.use_config_dir(words)
    return overrides.normalise(command, words)


@dataclass(frozen=True)
class _Composed:
    """What Hydra composed for one job.

    Attributes:
        cfg: the configuration, not yet resolved.
        task_overrides: the overrides of the job, those replayed from a run first.
        sweeper_overrides: the overrides of `hydra.sweeper`.
        in_sweep: whether the job belongs to a sweep.
        slurm_options: the launcher's options if the job is to be submitted to SLURM on its own; None otherwise.
        problem: the problem with a study that was typed without `-m`; empty if there is none.
    """

    cfg: DictConfig
    task_overrides: list[str]
    sweeper_overrides: tuple[str, ...]
    in_sweep: bool
    slurm_options: dict[str, Any] | None
    problem: str


def run(command: str, words: Sequence[str], run_command: Callable[[Job], None], replayed: int = 0) -> None:
    """Compose `conf/COMMAND.yaml` with the command line and call `run_command` on the result (or sweep, under `-m`).

    Args:
        command: the name of the command and of its primary configuration file.
        words: the command line after the command.
        run_command: the body of the command.
        replayed: how many of the overrides come from a run. The user did not type them and is not warned of them.

    Raises:
        UserError: an option, a key or a value that Hydra does not accept, as one line.
    """
    words = normalise(command, words)
    composed: list[_Composed] = []

    def task(cfg: DictConfig) -> None:
        composed.append(_describe(command, words, replayed, cfg))
        # Only a launcher that is not ours (joblib) calls this function for a job of a sweep, in its worker.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            option_files.use_config_dir(words)
            start()

    def start() -> None:
        while composed:
            _start(command, replayed, composed.pop(), run_command)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through; `sppnet.cli` prints them
    sys.argv[1:] = words  # where Hydra reads the command line
    try:
        hydra.main(version_base="1.3", config_path=str(option_files.root() / "conf"), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error, command)) from error
    except UserError:  # a ValueError, too, but raised by one of our launchers
        raise
    except (ValueError, TypeError) as error:  # Hydra's reaction to a list or a number where a group needs a name
        if problem := option_files.unnamed_option(words):
            raise UserError(problem) from error
        raise
    start()


def _describe(command: str, words: Sequence[str], replayed: int, cfg: DictConfig) -> _Composed:
    hydra_config = HydraConfig.get()
    # our launchers start the jobs of a sweep with hydra.mode=RUN
    in_sweep = hydra_config.mode != RunMode.RUN or "hydra.mode=RUN" in words
    task_overrides = _resolved(hydra_config.overrides.task)
    hydra_overrides = _resolved(hydra_config.overrides.hydra)
    return _Composed(
        cfg=cfg,
        task_overrides=task_overrides,
        sweeper_overrides=tuple(word for word in hydra_overrides if word.startswith("hydra.sweeper.")),
        in_sweep=in_sweep,
        slurm_options=None if in_sweep else _slurm_options(),
        problem="" if in_sweep or command not in SWEEPABLE else _missing_multirun(task_overrides[replayed:]),
    )


def _start(command: str, replayed: int, composed: _Composed, run_command: Callable[[Job], None]) -> None:
    """Submit the job to SLURM if its launcher says so; otherwise run it here."""
    typed = composed.task_overrides[replayed:]
    if composed.problem:
        raise UserError(composed.problem)
    if composed.slurm_options is not None:
        SlurmSweep(command, [SweepJob(0, typed, composed.cfg)], composed.slurm_options, record=False).run()
        return
    _set_show_traceback(composed.cfg, typed if replayed else None)
    job = Job(to_plain(composed.cfg), composed.task_overrides, composed.sweeper_overrides)
    single = not composed.in_sweep and command in SWEEPABLE
    _warn_of_keys_without_effect(job.cfg, typed, {"retry": "a single job"} if single else {})
    run_command(job)


def _resolved(node: Any) -> list[str]:
    """The overrides of `node` with their interpolations resolved.

    An override whose interpolation cannot be resolved here stays as it is: `${.val}` is relative to its own key, and
    `to_plain` refuses what leads nowhere.
    """
    words = OmegaConf.to_container(node, resolve=False)
    assert isinstance(words, list)
    for i in range(len(words)):
        with contextlib.suppress(OmegaConfBaseException):
            words[i] = node[i]
    return words


def _set_show_traceback(cfg: DictConfig, typed: list[str] | None) -> None:
    """Obey `debug.traceback`; in a command that starts from a run, only if the user typed it (`typed` is not None)."""
    if typed is None or any(word.lstrip("+").startswith(("debug", "experiments=")) for word in typed):
        errors.show_traceback = OmegaConf.select(cfg, "debug.traceback") is True


def _slurm_options() -> dict[str, Any] | None:
    """The options of the SLURM launcher, which also takes a single job; None with any other launcher."""
    launcher = HydraConfig.get().launcher
    if not str(launcher.get("_target_", "")).endswith(".SlurmLauncher"):
        return None
    return {str(key): value for key, value in launcher.items() if key != "_target_"}


def _missing_multirun(typed: list[str]) -> str:
    """The problem with a sweep that was typed without `-m`: it would train one network and vary nothing."""
    sweeper = HydraConfig.get().sweeper
    study = next((word for word in typed if word.startswith("experiments=")), None)
    rows, axes = sweeper.get("rows"), sweeper.get("params")
    if not study or not (rows or axes):
        return ""
    one_row = f"; hydra.sweeper.only=[{next(iter(rows))}] selects a row of it" if rows else ""
    return f"{study} is a sweep: start it with -m{one_row}"


def _warn_of_keys_without_effect(cfg: dict[str, Any], typed: list[str], more: dict[str, str]) -> None:
    """Warn of typed values that have no effect; defaults may have none, as `optim.schedule.factor` does."""
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    for key, setting in (schema.keys_without_effect(cfg) | more).items():
        if key in keys:
            print(f"sppnet: warning: {key} has no effect with {setting}", file=sys.stderr)
