"""`sppnet export checkpoint=RUN_DIR_OR_FILE format=NAME output=PATH`: write a trained network for other programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sppnet.commands import checkpoint_app
from sppnet.config import compose
from sppnet.config.command_schemas import ExportConfig
from sppnet.config.load import load, replace
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.runs.onnx_checkpoint import require_packages
from sppnet.storage.files import atomic_write

if TYPE_CHECKING:
    from sppnet.export.verification import Agreement

NEEDS = {  # packages, all of the extra `export`
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "pt2": (),
    "safetensors": ("safetensors",),
    "hub": ("safetensors", "huggingface_hub"),
}
ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}


def main(words: Sequence[str]) -> None:
    checkpoint_app.run("export", words, export)


def export(trained: TrainedNetwork[ExportConfig]) -> None:
    """Write the network that `checkpoint` names to `output`.

    Raises:
        UserError: a value is not allowed, a package is missing, or the format cannot express the network.
        RunFailed: what was exported differs from the network; no file has been written.
    """
    cfg, output = trained.cfg, Path(trained.cfg.output).expanduser()
    require_packages(f"format={cfg.format}", NEEDS[cfg.format])
    check_output(cfg, output)
    # imports torch
    from sppnet.runs.checkpoint_files import read_checkpoint
    from sppnet.runs.model_metadata import describe
    from sppnet.training.losses import uses_sigmoid

    checkpoint = read_checkpoint(trained.weights)
    stored = load(Config, checkpoint["sppnet"]["config"])
    sigmoid = uses_sigmoid(stored.loss, stored.data.name, checkpoint["sppnet"]["multilabel"])
    metadata = describe(trained, checkpoint, stored, sigmoid)
    if cfg.format == "safetensors":
        raise NotImplementedError
    if cfg.format == "hub":
        raise NotImplementedError
    from sppnet.export.graph import build_graph
    from sppnet.training.trainer import set_threads_and_filter_warnings

    set_threads_and_filter_warnings(cfg)
    content, agreements = build_graph(_with_views(cfg), checkpoint, stored, metadata, trained.weights)
    with atomic_write(output, "wb") as file:
        file.write(content)
    print(*_format_table(agreements), sep="\n")
    print(f"written: {output} ({len(content) / 1e6:.1f} MB)")


def _with_views(cfg: ExportConfig) -> ExportConfig:
    """Return the configuration with whole images or, for a fixed size, images that are warped to a square."""
    views = compose.compose_plain("export", [f"views={'full' if cfg.size is None else 'warp'}"])["views"]
    return replace(cfg, {"views": views})


def check_output(cfg: ExportConfig, output: Path) -> None:
    """Raise UserError if `output` has the wrong ending, exists, or cannot be written."""
    ending = ENDINGS.get(cfg.format)
    if ending is not None and output.suffix != ending:
        raise UserError(f"output={cfg.output}: a file of format={cfg.format} ends in {ending}")
    if ending is not None and output.is_dir():
        raise UserError(f"output={cfg.output} is a folder")
    if output.exists() and not cfg.force:
        raise UserError(f"output={cfg.output} exists; force=true replaces it")
    if ending is not None and not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise UserError(f"output={cfg.output}: there is no folder {output.parent} that can be written to")


def _format_table(agreements: Sequence[Agreement]) -> list[str]:
    rows = [("", "shapes", "images", "largest difference", "same top-1")]
    for a in agreements:
        rows.append((a.what, str(a.shapes), str(a.images), f"{a.difference:.1e}", f"{a.same} of {a.images}"))
    width = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{width}}  {row[1]:>6}  {row[2]:>6}  {row[3]:>18}  {row[4]:>12}" for row in rows]
