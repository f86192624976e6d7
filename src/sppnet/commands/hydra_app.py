"""From the command line to a plain, resolved configuration: Hydra's part of every command.

Hydra composes; the job itself runs after Hydra has finished, so that its error handling (several lines, exit code 1)
and Lightning's detection of Hydra (which would restart ranks with a changed command line) stay out of the way.
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
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet import errors
from sppnet.config import compose, option_files, overrides, schema
from sppnet.config.compose import Job, plain
from sppnet.errors import UserError
from sppnet.studies.slurm_launcher import Submission
from sppnet.studies.sweep import SweepJob

SWEPT = ("train", "transfer")  # commands of which a study is a sweep


@functools.cache
def _scratch() -> str:
    """A directory that ends with the process: Hydra insists on one for a sweep's multirun.yaml."""
    path = tempfile.mkdtemp(prefix="sppnet-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


OmegaConf.register_new_resolver("sppnet.root", lambda: str(option_files.root()), replace=True)
OmegaConf.register_new_resolver("sppnet.scratch", _scratch, replace=True)


def normalise(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command line as Hydra takes them; `--config-dir` counts from here on.

    Raises:
        UserError: an unknown option, or a word that is no override.
    """
    option_files.use_config_dir(words)
    return overrides.normalise(command, words)


def run(command: str, words: Sequence[str], job: Callable[[Job], None], replayed: int = 0) -> None:
    """Compose `conf/COMMAND.yaml` with the command line and run `job` on the result (or sweep, under `-m`).

    Args:
        command: names the primary configuration file.
        words: what follows the command on the command line.
        job: does the work.
        replayed: how many of the overrides come from a run and not from the user, who is not warned of them again.

    Raises:
        UserError: an option, a key or a value that Hydra does not accept, as one line.
    """
    words = normalise(command, words)
    composed: list[tuple[DictConfig, list[str], tuple[str, ...], str, dict[str, Any] | None]] = []
    alone = True  # not one job of a sweep

    def task(cfg: DictConfig) -> None:
        nonlocal alone
        alone = HydraConfig.get().mode == RunMode.RUN and "hydra.mode=RUN" not in words  # as our launchers start a job
        overrides = _resolved(HydraConfig.get().overrides.task)
        wrong = _unswept(overrides[replayed:]) if alone and command in SWEPT else ""
        typed = _resolved(HydraConfig.get().overrides.hydra)
        sweeper = tuple(word for word in typed if word.startswith("hydra.sweeper."))
        composed.append((cfg, overrides, sweeper, wrong, _submitted() if alone else None))
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # a launcher that is not ours calls us in its worker
            option_files.use_config_dir(words)
            start()

    def start() -> None:
        while composed:
            cfg, overrides, sweeper, wrong, options = composed.pop()
            if wrong:
                raise UserError(wrong)
            if options is not None:
                Submission(command, [SweepJob(0, overrides[replayed:], cfg)], options, planned=False).run()
                continue
            _heed_traceback(cfg, overrides[replayed:] if replayed else None)
            made = Job(plain(cfg), overrides, sweeper)
            _warn(made.cfg, made.overrides[replayed:], {"retry": "a single job"} if alone and command in SWEPT else {})
            job(made)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through; `sppnet.cli` words them
    sys.argv[1:] = words  # Hydra reads them there
    try:
        hydra.main(version_base="1.3", config_path=str(option_files.root() / "conf"), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error, command)) from error
    except UserError:  # of a launcher of ours
        raise
    except (ValueError, TypeError) as error:  # of Hydra, about a group that was given a list or a number
        if wrong := option_files.unnamed_option(words):
            raise UserError(wrong) from error
        raise
    start()


def _resolved(node: Any) -> list[str]:
    """Overrides with their interpolations resolved, where they can be: `${.val}` means something at its key alone, and
    what leads nowhere is for `plain` to refuse."""
    made = OmegaConf.to_container(node, resolve=False)
    assert isinstance(made, list)
    for i in range(len(made)):
        with contextlib.suppress(OmegaConfBaseException):
            made[i] = node[i]
    return made


def _heed_traceback(cfg: DictConfig, typed: list[str] | None) -> None:
    """Obey `debug.traceback`; of a command that starts from a run, only if it was typed."""
    if typed is None or any(word.lstrip("+").startswith(("debug", "experiments=")) for word in typed):
        errors.show_traceback = OmegaConf.select(cfg, "debug.traceback") is True


def _submitted() -> dict[str, Any] | None:
    """Options of a launcher that takes a single job as well as a sweep; None for one that does not."""
    node = HydraConfig.get()
    if not str(node.launcher.get("_target_", "")).endswith(".SlurmLauncher"):
        return None
    return {str(key): value for key, value in node.launcher.items() if key != "_target_"}


def _unswept(typed: list[str]) -> str:
    """What is wrong with a study that was typed without `-m`: one network would be trained, with nothing of what the
    study sweeps."""
    node = HydraConfig.get()
    study = next((word for word in typed if word.startswith("experiments=")), None)
    rows, axes = node.sweeper.get("rows"), node.sweeper.get("params")
    if not study or not (rows or axes):
        return ""
    some = f"; of its rows, hydra.sweeper.only=[{next(iter(rows))}] takes that one" if rows else ""
    return f"{study} is a sweep, which -m starts{some}"


def _warn(cfg: dict[str, Any], overrides: list[str], idle: dict[str, str]) -> None:
    """Say which of the values that were typed have no effect; defaults may lie idle, as `optim.schedule` has."""
    typed = {word.lstrip("+").partition("=")[0] for word in overrides}
    for key, why in (schema.unused(cfg) | idle).items():
        if key in typed:
            print(f"sppnet: warning: {key} has no effect with {why}", file=sys.stderr)
