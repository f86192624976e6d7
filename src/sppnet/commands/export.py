"""`sppnet export checkpoint=RUN_DIR_OR_FILE format=NAME output=PATH`: write a trained network for other programs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.commands import checkpoint_app
from sppnet.config.command_schemas import ExportConfig
from sppnet.config.load import load
from sppnet.config.schema import Config, Flatten
from sppnet.errors import UserError, notice
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
    if cfg.format in ("onnx", "pt2"):
        check_sides(cfg)
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
    content, agreements = _build(trained, checkpoint, stored, metadata)
    with atomic_write(output, "wb") as file:
        file.write(content)
    print(*_format_table(agreements), sep="\n")
    print(f"written: {output} ({len(content) / 1e6:.1f} MB)")


def _build(
    trained: TrainedNetwork[ExportConfig], checkpoint: Mapping[str, Any], stored: Config, metadata: Mapping[str, Any]
) -> tuple[bytes, list[Agreement]]:
    """Return the content of an ONNX file or a program of torch.export, and how far it agrees with the network."""
    from sppnet.export.deployed import Deployed
    from sppnet.export.onnx_file import OnnxRun, build_onnx
    from sppnet.export.torch_program import SMALLEST_MAP, ProgramRun, build_program
    from sppnet.export.verification import build_examples, compare, smallest_side
    from sppnet.training.inference import load_network
    from sppnet.training.trainer import set_threads_and_filter_warnings

    cfg = trained.cfg
    set_threads_and_filter_warnings(cfg)
    if stored.trainer.precision in ("bf16-true", "64-true"):
        notice(f"trainer.precision={stored.trainer.precision}: the network is exported in float32")
    deployed = Deployed(load_network(checkpoint, stored, trained.weights), metadata, cfg.preprocess)
    cells = 1 if cfg.format == "onnx" else SMALLEST_MAP
    examples = build_examples(deployed, [*stored.sizes.train, *stored.sizes.test], cfg.size, cells)
    largest = max(stored.sizes.train)
    example = deployed.example(2, *((cfg.size, cfg.size) if cfg.size else (largest, largest + largest // 3)))
    build, runner = (build_onnx, OnnxRun) if cfg.format == "onnx" else (build_program, ProgramRun)
    # below this side, ONNX Runtime can end the whole process
    smallest = cfg.size or smallest_side(deployed, cells)
    content = build(deployed, example, cfg.size is not None, {**metadata, "smallest": smallest})
    run = runner(content)
    advice = "nothing is written" if cfg.size else f"nothing is written; size={stored.sizes.test[0]} fixes the side"
    agreements = [compare(deployed, run, examples, "random images", advice)]
    return content, agreements


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


def check_sides(cfg: ExportConfig) -> None:
    """Raise UserError if the network takes images of one size only, and `size` is not given."""
    if cfg.size is None and isinstance(cfg.pooling, Flatten):
        raise UserError(f"pooling=flatten takes images of one size; use size={cfg.sizes.train[0]}")


def _format_table(agreements: Sequence[Agreement]) -> list[str]:
    rows = [("", "images", "largest difference", "same top-1")]
    rows += [(a.what, str(a.images), f"{a.difference:.1e}", f"{a.same} of {a.images}") for a in agreements]
    width = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{width}}  {row[1]:>6}  {row[2]:>18}  {row[3]:>12}" for row in rows]
