"""`sppnet export checkpoint=RUN_DIR_OR_FILE format=NAME output=PATH`: write a trained network for other programs."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.commands import checkpoint_app
from sppnet.config.command_schemas import ExportConfig
from sppnet.config.load import load
from sppnet.config.schema import Config, Flatten
from sppnet.errors import UserError, notice
from sppnet.runs.checkpoint_files import CONFIG, WEIGHTS
from sppnet.runs.from_checkpoint import TrainedNetwork
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
    check_packages(cfg.format)
    check_output(cfg, output)
    check_sides(cfg)
    # imports torch
    from sppnet.runs.checkpoint_files import read_checkpoint
    from sppnet.runs.model_metadata import describe
    from sppnet.training.losses import uses_sigmoid

    checkpoint = read_checkpoint(trained.weights)
    stored = load(Config, checkpoint["sppnet"]["config"])
    sigmoid = uses_sigmoid(stored.loss, stored.data.name, checkpoint["sppnet"]["multilabel"])
    metadata = describe(trained, checkpoint, stored, sigmoid)
    if cfg.format == "hub":
        _write_hub_folder(trained, checkpoint, stored, metadata, output)
        return
    agreements: list[Agreement] = []
    if cfg.format == "safetensors":
        from sppnet.export.safetensors_file import build_safetensors

        content = build_safetensors(checkpoint["state_dict"], metadata)
    else:
        content, agreements = _build(trained, checkpoint, stored, metadata)
    with atomic_write(output, "wb") as file:
        file.write(content)
    if agreements:
        print(*_format_table(agreements), sep="\n")
    print(f"written: {output} ({len(content) / 1e6:.1f} MB)")


def _write_hub_folder(
    trained: TrainedNetwork[ExportConfig],
    checkpoint: Mapping[str, Any],
    stored: Config,
    metadata: Mapping[str, Any],
    output: Path,
) -> None:
    """Write the weights, the configuration, the model card and the figure of a network, and say how to upload them."""
    from sppnet.export.hub_folder import CARD, FIGURE, build_config, write_folder
    from sppnet.export.model_card import build_card
    from sppnet.export.safetensors_file import build_safetensors
    from sppnet.report.model_results import model_results, training_facts

    run = trained.run
    # the results and the provenance are those of the run's best weights
    is_best = run is not None and trained.weights.resolve() == run.best.resolve()
    results = model_results(run, stored.report) if run is not None and is_best else None
    facts, command = training_facts(run) if run is not None and is_best else ([], [])
    name = str(metadata["origin"]["run"] or output.resolve().name)
    card = build_card(name, stored, metadata, facts, command, results, FIGURE)
    files = {
        WEIGHTS: build_safetensors(checkpoint["state_dict"], metadata),
        CONFIG: build_config(metadata).encode(),
        CARD: card.encode(),
    }
    if results is not None and results.figure:
        files[FIGURE] = results.figure.encode()
    write_folder(output, files)
    print(f"written: {output} ({', '.join(files)})")
    print(f"choose a license in {output / CARD}, then upload it: hf upload USER/NAME {shlex.quote(str(output))}")


def _build(
    trained: TrainedNetwork[ExportConfig], checkpoint: Mapping[str, Any], stored: Config, metadata: Mapping[str, Any]
) -> tuple[bytes, list[Agreement]]:
    """Return the content of an ONNX file or a program of torch.export, and how far it agrees with the network."""
    from sppnet.export.deployed import Deployed
    from sppnet.export.onnx_file import OnnxRun, build_onnx
    from sppnet.export.torch_program import SMALLEST_MAP, ProgramRun, build_program
    from sppnet.export.verification import build_examples, compare
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
    content = build(deployed, example, cfg.size is not None, metadata)
    run = runner(content)
    advice = "nothing is written" if cfg.size else f"nothing is written; size={stored.sizes.test[0]} fixes the side"
    agreements = [compare(deployed, run, examples, "random images", advice)]
    return content, agreements


def check_packages(format_name: str) -> None:
    """Raise UserError if a package that a format needs is not installed."""
    missing = [name for name in NEEDS[format_name] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"format={format_name} needs {' and '.join(missing)}, not installed here: run uv sync --extra export (a"
            " later uv sync without the extra removes it), or put it on the command: uv run --extra export sppnet ..."
        )


def check_output(cfg: ExportConfig, output: Path) -> None:
    """Raise UserError if `output` has the wrong ending, exists, or cannot be written."""
    if cfg.format == "hub":
        from sppnet.export.hub_folder import check_folder

        check_folder(output, cfg.force)
        return
    ending = ENDINGS[cfg.format]
    if output.suffix != ending:
        raise UserError(f"output={cfg.output}: a file of format={cfg.format} ends in {ending}")
    if output.is_dir():
        raise UserError(f"output={cfg.output} is a folder")
    if output.exists() and not cfg.force:
        raise UserError(f"output={cfg.output} exists; force=true replaces it")
    if not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
        raise UserError(f"output={cfg.output}: there is no folder {output.parent} that can be written to")


def check_sides(cfg: ExportConfig) -> None:
    """Raise UserError if the format has no use for `size` or `preprocess`, or `size` is missing.

    It is missing if the file would have to take images of any size, but the network takes one size only.
    """
    if cfg.format not in ("onnx", "pt2"):
        if cfg.size is not None or not cfg.preprocess:
            key = f"size={cfg.size}" if cfg.size is not None else "preprocess=false"
            raise UserError(f"{key} has no effect with format={cfg.format}, which holds weights; leave it out")
    elif cfg.size is None and isinstance(cfg.pooling, Flatten):
        raise UserError(f"pooling=flatten takes images of one size; use size={cfg.sizes.train[0]}")


def _format_table(agreements: Sequence[Agreement]) -> list[str]:
    rows = [("", "images", "largest difference", "same top-1")]
    rows += [(a.what, str(a.images), f"{a.difference:.1e}", f"{a.same} of {a.images}") for a in agreements]
    width = max(len(row[0]) for row in rows)
    return [f"{row[0]:<{width}}  {row[1]:>6}  {row[2]:>18}  {row[3]:>12}" for row in rows]
