"""Finds and reads checkpoints: the weights file that `checkpoint` or `init` names, and the stored configuration.

Only `read_checkpoint` imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sppnet.config.keys import keys
from sppnet.config.load import check_layout
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.runs.onnx_checkpoint import is_onnx, read_onnx_checkpoint, refuse_exported
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_json
from sppnet.storage.paths import expand_path
from sppnet.storage.safetensors_files import is_safetensors, read_metadata

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # in a folder for the Hugging Face Hub
LIBRARY = "library_name"  # the only entry of config.json that is not in the header of the weights
OF_OTHERS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf")
# what a checkpoint holds under the key `sppnet`, beside the layout
PARTS = {"config": dict, "code": dict, "fingerprint": str, "classes": list, "multilabel": bool}


def checkpoint_path(typed: str) -> Path:
    """Expand the path that the user typed for `checkpoint`.

    Raises:
        UserError: the path is empty or cannot be accessed.
    """
    if not typed:
        raise UserError("checkpoint= is empty; give a run directory, a checkpoint file or a folder of format=hub")
    return expand_path("checkpoint", typed)


def locate(checkpoint: Path, key: str = "checkpoint") -> tuple[Run | None, Path]:
    """Find the run and the weights file of `checkpoint`: a run directory, a checkpoint file or a folder for the Hub.

    The run is None for a file outside a run directory. `key` is the key that gives the path, for messages.

    Raises:
        UserError: the path does not exist, it is a directory with neither `checkpoints/best.ckpt` nor
            `model.safetensors`, it is an exported file that `key` does not take, or `config.json` in a folder for the
            Hub is not what the weights file says.
    """
    if is_hub_folder(checkpoint):
        _check_hub_folder(checkpoint, key)
        return None, checkpoint / WEIGHTS
    if checkpoint.is_dir():
        run = Run(checkpoint)
        if not run.best.is_file():
            raise UserError(f"{key}={checkpoint} contains no {_describe_missing(run)}")
        return run, run.best
    if not checkpoint.is_file():
        raise UserError(f"{key}={checkpoint}: no such file or directory")
    refuse_exported(checkpoint, key, (".pt2",) if key == "checkpoint" else (".onnx", ".pt2"))
    folder = checkpoint.resolve().parent
    if is_onnx(checkpoint) or folder.name != "checkpoints" or not (folder.parent / "config.yaml").is_file():
        return None, checkpoint
    as_typed = checkpoint.parent.parent  # not the run directory if `checkpoint` is a symlink or a bare file name
    return Run(as_typed if as_typed.resolve() == folder.parent else folder.parent), checkpoint


def is_hub_folder(path: Path) -> bool:
    """Whether a folder is one that `sppnet export format=hub` writes, and not a run directory."""
    return (path / WEIGHTS).is_file() and not Run(path).best.is_file()


def _check_hub_folder(folder: Path, key: str) -> None:
    """Check that `config.json` says what the header of the weights says, which is what is read."""
    metadata, config = read_metadata(folder / WEIGHTS, key), read_json(folder / CONFIG)
    if not metadata:
        raise UserError(f"{key}={folder}: {WEIGHTS} is not an sppnet checkpoint (another program wrote it)")
    if not isinstance(config, dict):
        raise UserError(f"{key}={folder}: {CONFIG} is missing or not a JSON object; {key}={folder / WEIGHTS} works")
    stated = {name: value for name, value in config.items() if name != LIBRARY}
    if json.dumps(stated, sort_keys=True) != json.dumps(metadata, sort_keys=True):
        names = stated.keys() | metadata.keys()
        differing = sorted(name for name in names if stated.get(name) != metadata.get(name)) or ["a number"]
        raise UserError(
            f"{key}={folder}: {CONFIG} has been changed ({', '.join(differing)}): it differs from the header of"
            f" {WEIGHTS}, which is what is read; export the folder again"
        )


def _describe_missing(run: Run) -> str:
    """Say what a directory lacks, and what it has instead."""
    state = run.status.get("state")
    files = sorted(path.name for path in run.path.iterdir() if path.suffix in OF_OTHERS and path.is_file())
    if state is None and files:
        return f"checkpoints/best.ckpt and no {WEIGHTS} of sppnet; these files are not opened: {', '.join(files[:5])}"
    return f"checkpoints/best.ckpt (status: {state or 'none, so this is not an sppnet run'})"


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

    if is_safetensors(path):
        _read_header(path, key)  # refuses a file of another program before its tensors are read
    loaded = read_tensor_file(path, key)
    metadata = loaded.get("sppnet") if isinstance(loaded, dict) else None
    is_ours = isinstance(metadata, dict) and isinstance(metadata.get("config"), dict) and "classes" in metadata
    if not is_ours or "state_dict" not in loaded:
        raise UserError(f"{key}={path} is not an sppnet checkpoint (it lacks the configuration or the weights)")
    _check_parts(loaded["sppnet"], f"{key}={path}")
    checkpoint: dict[str, Any] = loaded
    return checkpoint


def _check_parts(metadata: Mapping[str, Any], name: str) -> None:
    """Raise UserError if a checkpoint's metadata, which a header holds as text, lack a part or are not of its type."""
    check_layout(metadata.get("layout"), name)
    damaged = [part for part, kind in PARTS.items() if not isinstance(metadata.get(part), kind)]
    if not damaged and not all(isinstance(label, str) for label in metadata["classes"]):
        damaged = ["classes"]
    if not damaged and len(set(metadata["classes"])) < len(metadata["classes"]):
        damaged = ["classes, of which two have the same name"]
    if damaged:
        raise UserError(f"{name} is not an sppnet checkpoint (damaged: {', '.join(damaged)})")
    if not _is_complete(metadata["config"]):
        raise UserError(f"{name}: the configuration in it is damaged")


def _is_complete(cfg: object) -> bool:
    """Whether plain data have every required section of a configuration."""
    required = [key for key in keys(Config) if "." not in key.name and key.field.is_required()]
    return isinstance(cfg, dict) and all(
        isinstance(cfg.get(key.name), dict) if key.alternatives else key.name in cfg for key in required
    )


def _read_header(path: Path, key: str) -> dict[str, Any]:
    """Read what the header of a safetensors file holds under the key `sppnet`, checked."""
    parts = read_metadata(path, key).get("sppnet")
    if not isinstance(parts, dict):
        raise UserError(f"{key}={path} is not an sppnet checkpoint (its header lacks the configuration)")
    _check_parts(parts, f"{key}={path}")
    return parts


def load_stored_config(checkpoint: Path) -> dict[str, Any]:
    """Load the configuration of the run that wrote the checkpoint.

    It is read from the run directory or, if `checkpoint` is a file outside a run directory, from that file.

    Raises:
        UserError: the path does not exist, or the configuration cannot be read.
    """
    run, weights = locate(checkpoint)
    if is_onnx(weights):
        onnx = read_onnx_checkpoint(weights)
        _check_parts(onnx.network, f"checkpoint={weights}")
        return {**onnx.config, "force": False}
    if run is None:
        parts = _read_header(weights, "checkpoint") if is_safetensors(weights) else read_checkpoint(weights)["sppnet"]
        # force applies to one start only, so config.yaml does not store it either
        return {**parts["config"], "force": False}
    try:
        cfg = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"checkpoint={checkpoint}: the configuration cannot be read ({error})") from None
    if not _is_complete(cfg):
        raise UserError(
            f"checkpoint={checkpoint}: config.yaml is damaged; copy a checkpoint file out of the run directory and use"
            " the copy, which contains the configuration as well"
        )
    check_layout(cfg.pop("layout", None), f"checkpoint={checkpoint}")
    stored: dict[str, Any] = cfg
    return stored
