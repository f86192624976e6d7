"""Resolves `checkpoint=RUN_DIR_OR_FILE` to a trained network's stored configuration plus what the user typed.

The stored configuration takes the place of the defaults in `conf/`, so that a later change to a default does not affect
old runs. Does not import torch, unless the checkpoint is a file outside a run directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf

from sppnet.config.command_schemas import COMMANDS
from sppnet.config.compose import Job, compose_hydra, explained, load_composed, resolve, unresolved
from sppnet.config.load import load
from sppnet.config.merge import check_changes, merge
from sppnet.config.overlay import Overlay, compose_overlay
from sppnet.config.overrides import key_of
from sppnet.config.schema import Config, Section
from sppnet.errors import UserError, notice
from sppnet.runs.checkpoint_files import checkpoint_path, load_stored_config, locate, read_checkpoint
from sppnet.runs.identity import NETWORK_SECTIONS, digest, file_digest, own_class_digests
from sppnet.runs.onnx_checkpoint import refuse_exported
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record

Cfg = TypeVar("Cfg", bound=Config)


@dataclass(frozen=True)
class TrainedNetwork(Generic[Cfg]):
    """The configuration of a trained network and the path of its weights file, which a command is about to load.

    Attributes:
        cfg: the configuration of the network's run, with the typed overrides applied.
        checkpoint: the path that `checkpoint=` gives.
        run: the run that `checkpoint` belongs to; None for a file outside a run directory.
        weights: the checkpoint file.
        stored: the configuration of the network's run, as plain data.
        typed_keys: the keys and groups, with dots, that were typed or that the typed study's file sets, and the
            outermost groups of which a chosen option chooses an option.
        changed_code: maps each of the user's classes of the network and its loss whose code has changed since training
            to the current digest of the code.
    """

    cfg: Cfg
    checkpoint: Path
    run: Run | None
    weights: Path
    stored: Mapping[str, Any]
    typed_keys: tuple[str, ...]
    changed_code: dict[str, str]

    @property
    def name(self) -> str:
        """The name that the identity of a test uses for the weights.

        For the best.ckpt of a finished run, the name is `best`, so that the test counts as one of the run's own tests.
        For any other file, the name is the file's digest. In both cases, if the code of the network has changed since
        training, the name consists of two digests instead: that of the file and that of the code.
        """
        if self.changed_code:
            return f"{file_digest(self.weights)} in {digest(self.changed_code)}"
        if self.run is not None and self.run.done and self.weights.resolve() == self.run.best.resolve():
            return "best"
        return file_digest(self.weights)


def resolve_checkpoint(command: str, job: Job[DictConfig]) -> TrainedNetwork[Any]:
    """Apply the overrides of a job to the configuration stored with its `checkpoint`.

    Args:
        command: the command, such as `test`.
        job: the job as Hydra composed it: its overrides, and the values of the keys that only `command` has.

    Raises:
        UserError: the checkpoint does not exist or is not an sppnet checkpoint, or an override has a value that is not
            allowed, or changes a key that must stay as it was in training.
    """
    base = _read(command, job.cfg, job.overrides)
    if base is None:
        raise UserError("checkpoint must be given: checkpoint=VALUE")
    checkpoint, stored, overlay = base.checkpoint, base.stored, base.overlay
    cfg = _load(command, base)
    assert isinstance(cfg, Config)
    run, weights = locate(checkpoint)
    changed_code = _changed_code(cfg, checkpoint, run, weights)
    # an implied group counts: a study's file that chooses debug=study chooses data=digits
    typed_keys = tuple(sorted(overlay.names | {name for name in overlay.implied if "." not in name}))
    return TrainedNetwork(cfg, checkpoint, run, weights, stored, typed_keys, changed_code)


def load_job(command: str, cfg: DictConfig, overrides: list[str]) -> Section:
    """Return the configuration that a job of any command will have, checked.

    Args:
        command: the command.
        cfg: the configuration as Hydra composed it.
        overrides: the overrides of the job.

    Raises:
        UserError: as for `resolve_checkpoint`, or only a file sets the checkpoint of `transfer`.
    """
    base = _read(command, cfg, overrides)
    return load_composed(command, cfg, overrides) if base is None else _load(command, base)


def refuse_untyped(checkpoint: object) -> NoReturn:
    """Refuse a checkpoint of `transfer` that a file sets: the command line alone decides whether a run is the base."""
    raise UserError(f"checkpoint={checkpoint} must be typed on the command line, not set in a config file")


def configure(command: str, overrides: list[str]) -> dict[str, Any] | None:
    """Return the configuration that `command` would run with, and the section `hydra`; None without a checkpoint.

    Mandatory keys of `command` itself may be missing.

    Raises:
        UserError: as for `resolve_checkpoint`.
    """
    with explained(command):
        cfg = compose_hydra(command, overrides)
    base = _read(command, cfg, overrides)
    if base is None:
        return None
    missing = {name: node for name, node in base.own.items() if node == "???"}  # paths, so "???" passes as a value
    given = {name: node for name, node in base.own.items() if name not in missing}
    plain = {**_apply(command, base.stored, base.overlay, given), **missing}
    load(COMMANDS[command], plain)
    check_changes(command, base.stored, plain)
    return {"hydra": OmegaConf.to_container(cfg.hydra, resolve=False), **plain}


class _Base(NamedTuple):
    """What the configuration of a job is made of: that of the run, what was typed, and the command's own keys."""

    checkpoint: Path
    stored: dict[str, Any]
    overlay: Overlay
    own: dict[str, Any]


def _read(command: str, cfg: DictConfig, overrides: list[str]) -> _Base | None:
    """Read what the configuration of a job is made of; None without a checkpoint.

    Raises:
        UserError: as for `resolve_checkpoint`, or only a file sets the checkpoint of `transfer`.
    """
    with explained(command):
        typed = None if OmegaConf.is_missing(cfg, "checkpoint") else cfg.get("checkpoint")
    if typed is None:
        return None
    if command == "transfer" and not any(key_of(word) == "checkpoint" for word in overrides):
        refuse_untyped(typed)
    checkpoint = checkpoint_path(str(typed))
    if command != "predict":
        refuse_exported(checkpoint, "checkpoint")
    own = {name: node for name, node in unresolved(cfg).items() if name not in Config.model_fields}
    return _Base(checkpoint, load_stored_config(checkpoint), compose_overlay(command, overrides), own)


def _load(command: str, base: _Base) -> Section:
    plain = _apply(command, base.stored, base.overlay, base.own)
    cfg = load(COMMANDS[command], plain)  # names a typed name or value that is wrong before what may not change
    check_changes(command, base.stored, plain)
    return cfg


def _apply(command: str, stored: Mapping[str, Any], overlay: Overlay, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `stored` with what `overlay` sets, and the keys that `command` adds to those of a run, which `own` has."""
    added = COMMANDS[command].model_fields.keys() - Config.model_fields.keys()
    of_run = {name: value for name, value in merge(command, stored, overlay).items() if name not in added}
    return resolve(command, {**of_run, **own})


def _changed_code(cfg: Config, checkpoint: Path, run: Run | None, weights: Path) -> dict[str, str]:
    """Print a notice for each user class whose code has changed since training; return the current digests."""
    if not any(own_class_digests(getattr(cfg, name).plain()) for name in NETWORK_SECTIONS):
        return {}
    if run is not None:
        then = (read_record(run.path / "provenance.json").get("identity") or {}).get("code") or {}
    else:
        then = read_checkpoint(weights)["sppnet"]["code"]
    return changed_code(cfg, then, f"checkpoint={checkpoint}")


def changed_code(
    cfg: Config, then: Mapping[str, Any], name: str, sections: Sequence[str] = NETWORK_SECTIONS
) -> dict[str, str]:
    """Print a notice for each user class whose code has changed since training; return the current digests.

    Args:
        cfg: the configuration of the network.
        then: the digests of the code in training, by class.
        name: the network, for messages.
        sections: the sections of the configuration whose classes are looked at.
    """
    changed: dict[str, str] = {}
    for section in sections:
        digests = own_class_digests(getattr(cfg, section).plain())
        of_section = {target: code for target, code in digests.items() if target in then and then[target] != code}
        for target in of_section:
            problem = "its values might differ" if section == "loss" else "the weights might not fit the current code"
            notice(f"{section}._target_={target}: its code has changed since {name} was trained; {problem}")
        changed |= of_section
    return changed
