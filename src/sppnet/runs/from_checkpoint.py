"""Resolves `checkpoint=RUN_DIR_OR_FILE`: the stored configuration of a trained network plus what the user typed.

The run's overrides are composed twice, alone and together with the typed ones. Only the difference between the two is
applied to the stored configuration, so a later change of a default in `conf/` does not reach an old run.
Only `read_checkpoint` imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sppnet.config import compose
from sppnet.config.compose import Job
from sppnet.config.instantiate import check_target
from sppnet.config.merge import differences, merge
from sppnet.config.schema import check_layout, format_value
from sppnet.errors import UserError, notice
from sppnet.runs.identity import digest, file_digest, own_class_digests
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record
from sppnet.storage.paths import expand_path

NORMALISATION = ("data.mean", "data.std")

# Keys that change how fast or how exactly a network runs, so every command may override them.
HARDWARE = (
    *("trainer.accelerator", "trainer.precision", "trainer.threads", "trainer.deterministic", "trainer.compile"),
    *("trainer.channels_last", "trainer.limit_batches", "trainer.progress"),
)


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network as a command is to use it; nothing is loaded yet.

    Attributes:
        cfg: configuration of its run, with the typed overrides applied.
        checkpoint: the value of `checkpoint`.
        run: the run that `checkpoint` belongs to; None for a file outside a run directory.
        weights: the checkpoint file.
        typed_keys: keys and config groups that the user typed.
        changed_code: digests of the user's own backbone classes whose source file differs from the trained one.
    """

    cfg: dict[str, Any]
    checkpoint: Path
    run: Run | None
    weights: Path
    typed_keys: tuple[str, ...]
    changed_code: dict[str, str]

    @property
    def name(self) -> str:
        """Identifies the weights in the identity of a test.

        `best` for best.ckpt of a finished run, so that the test counts as the run's own. Otherwise a digest of the
        file, and of the backbone's code if that has changed.
        """
        if self.changed_code:
            return f"{file_digest(self.weights)} in {digest(self.changed_code)}"
        if self.run is not None and self.run.done and self.weights.resolve() == self.run.best.resolve():
            return "best"
        return file_digest(self.weights)


def resolve_checkpoint(
    command: str, job: Job, command_keys: Sequence[str], may_change: Sequence[str]
) -> TrainedNetwork:
    """Apply the typed overrides to the configuration stored with `job.cfg["checkpoint"]`.

    Args:
        command: the command that composed `job`.
        job: composed from the run's overrides, followed by the typed ones.
        command_keys: top-level keys that belong to the command and that no run has.
        may_change: keys (and sections) in which the command may differ from the run.

    Raises:
        UserError: the checkpoint does not exist or is not one, or a key differs that may not.
    """
    checkpoint = checkpoint_path(job.cfg.pop("checkpoint"))
    stored, overrides = load_stored_config(checkpoint)
    overrides = compose.drop_missing_options(command, overrides)
    typed_keys = [override.partition("=")[0].lstrip("+~") for override in job.overrides[len(overrides) :]]
    before, after = compose.compose_config(command, overrides), job.cfg
    command_cfg = {key: after.pop(key) for key in command_keys}
    cfg = merge(stored, {key: value for key, value in before.items() if key not in command_keys}, after, typed_keys)
    refuse_changes(stored, cfg, may_change, command)
    run, weights = locate(checkpoint)
    changed_code = _changed_code(cfg.get("backbone"), checkpoint, run)
    return TrainedNetwork(cfg | command_cfg, checkpoint, run, weights, tuple(typed_keys), changed_code)


def _changed_code(backbone: Any, checkpoint: Path, run: Run | None) -> dict[str, str]:
    """Digests of the backbone's own classes whose file has changed since training; the user gets a notice of each."""
    if not isinstance(backbone, Mapping):
        return {}
    check_target(backbone.get("_target_"), "backbone")  # before Python searches for a package of that name
    if not (now := own_class_digests(backbone)):
        return {}
    if run is not None:
        then = (read_record(run.path / "provenance.json").get("identity") or {}).get("code") or {}
    else:
        then = read_checkpoint(checkpoint)["sppnet"]["code"]
    changed = {target: file_hash for target, file_hash in now.items() if target in then and then[target] != file_hash}
    for target in changed:
        notice(
            f"the file of backbone._target_={target} has changed since checkpoint={checkpoint} was trained; its weights"
            " might not fit the current code"
        )
    return changed


def checkpoint_path(typed: str) -> Path:
    """The path that the user typed for `checkpoint`.

    Raises:
        UserError: it is empty.
    """
    if not typed:
        raise UserError("checkpoint= is empty; give a run directory or a checkpoint file")
    return expand_path("checkpoint", typed)


def locate(checkpoint: Path) -> tuple[Run | None, Path]:
    """The run that `checkpoint` is, or lies in (None if neither), and the file of weights.

    Raises:
        UserError: the path does not exist, or the run has no checkpoint yet.
    """
    if checkpoint.is_dir():
        run = Run(checkpoint)
        if not run.best.is_file():
            state = run.status.get("state", "not an sppnet run")
            raise UserError(f"checkpoint={checkpoint}: there is no checkpoints/best.ckpt in it ({state})")
        return run, run.best
    if not checkpoint.is_file():
        raise UserError(f"checkpoint={checkpoint}: no such file or directory")
    folder = checkpoint.resolve().parent
    if folder.name != "checkpoints" or not (folder.parent / "config.yaml").is_file():
        return None, checkpoint
    as_typed = checkpoint.parent.parent  # not the run directory if the file is a link, or was typed from inside
    return Run(as_typed if as_typed.resolve() == folder.parent else folder.parent), checkpoint


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load an sppnet checkpoint onto the CPU.

    Raises:
        UserError: the file does not exist, is damaged or is not an sppnet checkpoint; it holds pickled objects (which
            are not executed); or its configuration has the key names of another layout.
    """
    from sppnet.storage.tensors import read_tensor_file  # imports torch

    loaded = read_tensor_file(path, "checkpoint")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("sppnet"), dict) or "state_dict" not in loaded:
        raise UserError(f"checkpoint={path} is not an sppnet checkpoint (it holds no configuration)")
    check_layout(loaded["sppnet"].get("layout"), f"checkpoint={path}")
    return loaded


def load_stored_config(checkpoint: Path) -> tuple[dict[str, Any], list[str]]:
    """Configuration and overrides of the run that wrote the checkpoint; a file outside a run holds its own.

    Raises:
        UserError: the path does not exist, or what it stores cannot be read.
    """
    run, weights = locate(checkpoint)
    if run is not None:
        try:
            cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
            if not isinstance(cfg, dict) or not isinstance(cfg.get("data"), dict):
                raise UserError(
                    f"checkpoint={checkpoint}: its config.yaml is damaged; copy a checkpoint file out of the run"
                    " directory, it holds the configuration too"
                )
            check_layout(cfg.pop("layout", None), f"checkpoint={checkpoint}")
            return cfg, (run.path / "overrides.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"checkpoint={checkpoint}: its configuration cannot be read: {error}") from None
    content = read_checkpoint(weights)["sppnet"]
    return content["config"], content["overrides"]


def refuse_changes(stored: Mapping[str, Any], cfg: Mapping[str, Any], may_change: Sequence[str], command: str) -> None:
    """Compare a command's configuration with the stored one.

    Raises:
        UserError: they differ in a key outside `may_change`.
    """
    for key, old, new in differences(stored, cfg):
        if not any(key == may or key.startswith(f"{may}.") for may in may_change) or key in NORMALISATION:
            raise UserError(
                f"{key}={format_value(new)} is not allowed: a {command} takes it from its checkpoint, where it is"
                f" {format_value(old)}; only these may change: {', '.join(may_change)}"
            )
