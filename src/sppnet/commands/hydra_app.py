"""Compose a command's configuration with Hydra, check it against the command's schema, and call the command with it.

Hydra only composes; the job runs after `hydra.main` has returned. If the job ran inside `hydra.main`, Hydra would
report its errors in Hydra's own format (several lines, exit code 1), and Lightning would detect Hydra and launch the
other ranks with a different command line. This module does not import torch.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet import errors
from sppnet.config import command_line, compose, option_files
from sppnet.config.command_schemas import STARTS_JOBS
from sppnet.config.compose import Job
from sppnet.config.keys import without_effect
from sppnet.config.schema import Section
from sppnet.errors import UserError

SWEEPABLE = ("train", "transfer")  # the commands that a study can run as a sweep
SWEEPER = r"[+~]*hydra[./]sweeper[./=]"  # the beginning of an override of the sweeper


@functools.cache
def _scratch_directory() -> str:
    """Create a directory, removed at exit, for the files that sweepers and launchers of Hydra write."""
    path = tempfile.mkdtemp(prefix="sppnet-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


OmegaConf.register_new_resolver("sppnet.root", lambda: str(option_files.root()), replace=True)
OmegaConf.register_new_resolver("sppnet.scratch", _scratch_directory, replace=True)


def normalise(command: str, words: Sequence[str]) -> list[str]:
    """Rewrite a command line for Hydra, and register the folder that `--config-dir` names as a source of option files.

    Raises:
        UserError: a command-line option is unknown, or a word is not an override.
    """
    option_files.use_config_dir(words)
    if (folder := option_files.config_dir()) is not None and not folder.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    return command_line.normalise(command, words)


@dataclass(frozen=True)
class _Composed:
    """What Hydra composed for one job.

    Attributes:
        job: the job, with its configuration not yet resolved.
        slurm_options: the launcher's options if this is a single job for SLURM; None otherwise.
        problem: what to say if a study's sweep was typed without `-m`; empty otherwise.
    """

    job: Job[DictConfig]
    slurm_options: dict[str, Any] | None
    problem: str


def run(command: str, words: Sequence[str], run_command: Callable[[Job[Any]], None]) -> None:
    """Compose `conf/COMMAND.yaml` with the command line and call `run_command` with the result; `-m` runs a sweep.

    The configuration is an object of the class that `COMMANDS` names for the command.

    Raises:
        UserError: Hydra does not accept an option, or a key or value is not allowed. The message is one line.
    """

    def run_typed(job: Job[DictConfig]) -> None:
        cfg = compose.load_composed(command, job.cfg, job.overrides)
        single = {"retry": "a single job"} if command in SWEEPABLE and not job.in_sweep else {}
        of_reports = {"report": "sppnet train; sppnet report takes it"} if command == "train" else {}
        warn_of_keys_without_effect(cfg, job.overrides, single | of_reports)
        run_command(Job(cfg, job.overrides, job.sweeper, job.in_sweep))

    run_composed(command, words, run_typed)


def run_composed(command: str, words: Sequence[str], run_command: Callable[[Job[DictConfig]], None]) -> None:
    """Do what `run` does, but pass the configuration on as Hydra composed it, neither resolved nor checked.

    Args:
        command: the name of the command and of its primary configuration file.
        words: the words that follow the command on the command line.
        run_command: the body of the command.

    Raises:
        UserError: Hydra does not accept an option, a key or a value. The message is one line.
    """
    words = normalise(command, words)
    composed: list[_Composed] = []

    def task(cfg: DictConfig) -> None:
        composed.append(_describe(command, words, cfg))
        # In MULTIRUN mode, a third-party launcher (such as joblib) calls `task` for one job of a sweep. This may happen
        # in a worker process, which never reaches the last line of this function, so the job is started here.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            option_files.use_config_dir(words)
            start()

    def start() -> None:
        while composed:
            _start(command, composed.pop(), run_command)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra re-raise exceptions, which `sppnet.cli` prints
    sys.argv[1:] = words  # Hydra reads the command line from there
    try:
        hydra.main(version_base="1.3", config_path=str(option_files.root() / "conf"), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error, command, words)) from error
    except UserError:  # raised by our launchers; it is a ValueError, so the next clause would catch it
        raise
    except (ValueError, TypeError) as error:  # raised by Hydra if a group gets a list or a number instead of a name
        if problem := option_files.unnamed_option(words):
            raise UserError(problem) from error
        raise
    start()


def _describe(command: str, words: Sequence[str], cfg: DictConfig) -> _Composed:
    hydra_config = HydraConfig.get()
    # our launchers add hydra.mode=RUN to the command line of each job in a sweep
    in_sweep = hydra_config.mode != RunMode.RUN or "hydra.mode=RUN" in words
    # An override of a test refers to the values of the run, and one of a sweep to those of each job.
    task = hydra_config.overrides.task
    typed = _resolved(task) if command == "train" else _words(task)
    sweeper = tuple(word for word in _resolved(hydra_config.overrides.hydra) if re.match(SWEEPER, word))
    starts_jobs = command in STARTS_JOBS
    # `sppnet status` does not need the launcher that a study's file chooses
    launches = starts_jobs or any(re.match(r"launch=|[+~]*hydra[./]launcher", word) for word in words)
    return _Composed(
        job=Job(cfg, typed, sweeper, in_sweep),
        slurm_options=_slurm_options() if launches and not in_sweep else None,
        problem=_missing_multirun(command, typed, sweeper) if starts_jobs and not in_sweep else "",
    )


def _start(command: str, composed: _Composed, run_command: Callable[[Job[DictConfig]], None]) -> None:
    """Submit the job if its launcher is the SLURM launcher; otherwise run it in this process."""
    job = composed.job
    if composed.problem and command in SWEEPABLE:
        raise UserError(composed.problem)
    if composed.problem:
        errors.notice(f"warning: {composed.problem}")
    if composed.slurm_options is not None:
        from sppnet.studies.slurm_launcher import SlurmSweep
        from sppnet.studies.sweep import SweepJob

        jobs = [SweepJob(0, job.overrides, job.cfg)]
        SlurmSweep(command, jobs, composed.slurm_options, record=False).run()
        return
    errors.show_traceback = OmegaConf.select(job.cfg, "debug.traceback") is True
    run_command(job)


def _words(node: Any) -> list[str]:
    words = OmegaConf.to_container(node, resolve=False)
    assert isinstance(words, list)
    return words


def _resolved(node: Any) -> list[str]:
    """Return the overrides in `node` with their interpolations resolved.

    An override is returned unchanged if its interpolation cannot be resolved here, which happens if the interpolation
    is relative to the override's key (`${.val}`) or names a missing key. `compose.resolve` reports a missing key later.
    """
    words = _words(node)
    for i in range(len(words)):
        with contextlib.suppress(OmegaConfBaseException):
            words[i] = node[i]
    return words


def _slurm_options() -> dict[str, Any] | None:
    """Return the options of the SLURM launcher; None for any other launcher.

    Only the SLURM launcher is used for single jobs as well as for sweeps.
    """
    launcher = HydraConfig.get().launcher
    if not str(launcher.get("_target_", "")).endswith(".SlurmLauncher"):
        return None
    return {str(key): value for key, value in launcher.items() if key != "_target_"}


def _missing_multirun(command: str, typed: Sequence[str], of_sweeper: Sequence[str]) -> str:
    """Return what to say if a study's sweep, or overrides of the sweeper, were typed without `-m`; "" otherwise.

    Without `-m`, the command runs a single job instead of the sweep.
    """
    sweeper = HydraConfig.get().sweeper
    study = next((word for word in typed if word.startswith("experiments=")), None)
    rows, axes = sweeper.get("rows"), sweeper.get("params")
    if not study or not (rows or axes):
        return f"{of_sweeper[0]} has no effect without -m" if of_sweeper else ""
    if command not in SWEEPABLE:
        return f"the rows and axes of {study} have no effect without -m"
    one_row = f"; hydra.sweeper.only=[{next(iter(rows))}] selects a single row" if rows else ""
    return f"{study} is a sweep: start it with -m{one_row}"


def warn_of_keys_without_effect(cfg: Section, typed: Sequence[str], more: Mapping[str, str]) -> None:
    """Warn about each typed key or group that has no effect.

    Keys that were not typed are ignored, because it is normal for a default (such as `data.aspect_step`) to have
    no effect.
    """
    reasons = {**without_effect(cfg), **more}
    for name in dict.fromkeys(word.lstrip("+").partition("=")[0] for word in typed):
        setting = next((s for key, s in reasons.items() if f"{name.replace('/', '.')}.".startswith(f"{key}.")), None)
        if setting is not None:
            print(f"sppnet: warning: {name} has no effect with {setting}", file=sys.stderr)
