"""Finds and reads checkpoints: the weights file that `checkpoint` or `init` names, and the stored configuration.

Only `read_checkpoint` imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sppnet.config.keys import keys
from sppnet.config.load import check_layout
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.runs.onnx_checkpoint import is_onnx, read_onnx_checkpoint, refuse_exported
from sppnet.runs.run_directory import Run
from sppnet.storage.paths import expand_path


def checkpoint_path(typed: str) -> Path:
    """Expand the path that the user typed for `checkpoint`.

    Raises:
        UserError: the path is empty or cannot be accessed.
    """
    if not typed:
        raise UserError("checkpoint= is empty; give a run directory or a checkpoint file")
    return expand_path("checkpoint", typed)


def locate(checkpoint: Path, key: str = "checkpoint") -> tuple[Run | None, Path]:
    """Find the run and the weights file of `checkpoint`, which is a run directory or a checkpoint file.

    The run is None for a file outside a run directory. `key` is the key that gives the path, for messages.

    Raises:
        UserError: the path does not exist, it is a directory without `checkpoints/best.ckpt`, or an exported file that
            `key` does not take.
    """
    if checkpoint.is_dir():
        run = Run(checkpoint)
        if not run.best.is_file():
            state = run.status.get("state", "none, so this is not an sppnet run")
            raise UserError(f"{key}={checkpoint} contains no checkpoints/best.ckpt (status: {state})")
        return run, run.best
    if not checkpoint.is_file():
        raise UserError(f"{key}={checkpoint}: no such file or directory")
    refuse_exported(checkpoint, key, (".pt2",) if key == "checkpoint" else (".onnx", ".pt2"))
    folder = checkpoint.resolve().parent
    if is_onnx(checkpoint) or folder.name != "checkpoints" or not (folder.parent / "config.yaml").is_file():
        return None, checkpoint
    as_typed = checkpoint.parent.parent  # not the run directory if `checkpoint` is a symlink or a bare file name
    return Run(as_typed if as_typed.resolve() == folder.parent else folder.parent), checkpoint


def init_weights(init: str) -> Path:
    """The checkpoint file that the key `init` names.

    Raises:
        UserError: there is none, or it is that of a run that is not done.
    """
    path = expand_path("init", init)
    run, weights = locate(path, "init")
    if run is not None and not run.done:
        state = run.status.get("state", "unknown")
        raise UserError(
            f"init={init} is not done (status: {state}), so its weights may still change; train it to its end, or copy"
            " a checkpoint out of its directory"
        )
    return weights


def read_checkpoint(path: Path, key: str = "checkpoint") -> dict[str, Any]:
    """Load an sppnet checkpoint onto the CPU. `key` is the key that gives the path, for messages.

    Raises:
        UserError: the file does not exist, is damaged, is not an sppnet checkpoint, contains pickled objects (which are
            not executed), or stores a configuration in a layout that this version of sppnet does not read.
    """
    from sppnet.storage.tensors import read_tensor_file  # imports torch

    loaded = read_tensor_file(path, key)
    metadata = loaded.get("sppnet") if isinstance(loaded, dict) else None
    is_ours = isinstance(metadata, dict) and isinstance(metadata.get("config"), dict) and "classes" in metadata
    if not is_ours or "state_dict" not in loaded:
        raise UserError(f"{key}={path} is not an sppnet checkpoint (it lacks the configuration or the weights)")
    check_layout(loaded["sppnet"].get("layout"), f"{key}={path}")
    checkpoint: dict[str, Any] = loaded
    return checkpoint


def load_stored_config(checkpoint: Path) -> dict[str, Any]:
    """Load the configuration of the run that wrote the checkpoint.

    It is read from the run directory or, if `checkpoint` is a file outside a run directory, from that file.

    Raises:
        UserError: the path does not exist, or the configuration cannot be read.
    """
    run, weights = locate(checkpoint)
    if is_onnx(weights):
        return {**read_onnx_checkpoint(weights).config, "force": False}
    if run is None:
        # force applies to one start only, so config.yaml does not store it either
        return {**read_checkpoint(weights)["sppnet"]["config"], "force": False}
    try:
        cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"checkpoint={checkpoint}: the configuration cannot be read ({error})") from None
    required = [key for key in keys(Config) if "." not in key.name and key.field.is_required()]
    if not isinstance(cfg, dict) or not all(
        isinstance(cfg.get(key.name), dict) if key.alternatives else key.name in cfg for key in required
    ):
        raise UserError(
            f"checkpoint={checkpoint}: config.yaml is damaged; copy a checkpoint file out of the run directory and use"
            " the copy, which contains the configuration as well"
        )
    check_layout(cfg.pop("layout", None), f"checkpoint={checkpoint}")
    return cfg
