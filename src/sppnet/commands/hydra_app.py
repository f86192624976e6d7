"""From the command line to a plain, resolved configuration: Hydra's part of every verb.

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sppnet import errors
from sppnet.config import compose, option_files, overrides, schema
from sppnet.errors import UserError

SWEPT = ("train", "transfer")  # verbs of which a study is a sweep


@functools.cache
def _scratch() -> str:
    """A directory that ends with the process: Hydra insists on one for a sweep's multirun.yaml."""
    path = tempfile.mkdtemp(prefix="sppnet-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


OmegaConf.register_new_resolver("sppnet.root", lambda: str(option_files.root()), replace=True)
OmegaConf.register_new_resolver("sppnet.scratch", _scratch, replace=True)


@dataclass(frozen=True)
class Job:
    """One composed job: its resolved configuration as plain data and the overrides that were typed for it.

    `sweeper` are those of `hydra.sweeper`, which say nothing of a single job and much of the study that it is of.
    """

    cfg: dict[str, Any]
    overrides: list[str]
    sweeper: tuple[str, ...] = ()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve `cfg` into plain dicts and lists, without Hydra's own node.

    Raises:
        UserError: a mandatory value is missing or an interpolation leads nowhere.
    """
    keys = [str(key) for key in cfg if key != "hydra"]
    kept = OmegaConf.masked_copy(cfg, keys)
    try:
        made = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        # often one wrong value (sizes.train=[]) leaves nowhere for another key's interpolation to lead
        schema.check_values(OmegaConf.to_container(kept, resolve=False))
        raise UserError(compose.one_line(error)) from None
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}


def run(verb: str, job: Callable[[Job], None], replayed: int = 0) -> None:
    """Compose `conf/<verb>.yaml` with the command line and run `job` on the result (or sweep, under `-m`).

    Args:
        verb: names the primary configuration file.
        job: does the work.
        replayed: how many of the overrides come from a run and not from the user, who is not warned of them again.

    Raises:
        UserError: an option, a key or a value that Hydra does not accept, as one line.
    """
    composed: list[tuple[DictConfig, list[str], tuple[str, ...], str, dict[str, Any] | None]] = []
    alone = True  # not one job of a sweep

    def task(cfg: DictConfig) -> None:
        nonlocal alone
        alone = _alone()
        overrides = _resolved(HydraConfig.get().overrides.task)
        wrong = _unswept(overrides[replayed:]) if alone and verb in SWEPT else ""
        typed = _resolved(HydraConfig.get().overrides.hydra)
        sweeper = tuple(word for word in typed if word.startswith("hydra.sweeper."))
        composed.append((cfg, overrides, sweeper, wrong, _submitted() if alone else None))
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # a launcher that is not ours calls us in its worker
            start()

    def start() -> None:
        while composed:
            cfg, overrides, sweeper, wrong, options = composed.pop()
            if wrong:
                raise UserError(wrong)
            if options is not None:
                from sppnet.studies.slurm_launcher import Submission
                from sppnet.studies.sweep import SweepJob

                Submission(verb, [SweepJob(0, overrides[replayed:], cfg)], options, planned=False).run()
                continue
            _heed_traceback(cfg, overrides[replayed:] if replayed else None)
            made = Job(plain(cfg), overrides, sweeper)
            _warn(made.cfg, made.overrides[replayed:], {"retry": "a single job"} if alone and verb in SWEPT else {})
            job(made)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through; the dispatcher words them
    overrides.settle(verb)
    try:
        hydra.main(version_base="1.3", config_path=str(option_files.root() / "conf"), config_name=verb)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error, verb)) from error
    except UserError:  # of a launcher of ours
        raise
    except (ValueError, TypeError) as error:  # of Hydra, about a group that was given a list or a number
        if wrong := option_files.unnamed_option():
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
    """Take up `debug.traceback`, wherever it was set; of a verb that replays a run's overrides, only what was typed."""
    if typed is None or any(word.lstrip("+").startswith(("debug", "experiments=")) for word in typed):
        errors.show_traceback = OmegaConf.select(cfg, "debug.traceback") is True


def _alone() -> bool:
    """Whether this is no job of a sweep: neither of Hydra's own, nor one that a launcher of ours has started."""
    return HydraConfig.get().mode == RunMode.RUN and "hydra.mode=RUN" not in sys.argv


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
