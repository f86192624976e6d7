"""Builds the content of an ONNX file or of a program of `torch.export`, and verifies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention

from sppnet.config.command_schemas import ExportConfig
from sppnet.config.schema import SPP, Config, Flatten, OwnPooling
from sppnet.errors import UserError, format_value, notice
from sppnet.export.deployed import Deployed
from sppnet.export.onnx_file import OnnxRun, build_onnx
from sppnet.export.sample_images import read_samples
from sppnet.export.shapes import Sides, draw_shapes, fixed_shapes
from sppnet.export.torch_program import ProgramRun, build_program
from sppnet.export.verification import Agreement, Run, compare
from sppnet.models.fit_check import takes_any_shape
from sppnet.models.network import SPPNet
from sppnet.training.inference import load_network

SAMPLES = 16  # images of the run's data that are compared


class Format(NamedTuple):
    """How a format is written and run.

    Attributes:
        build: returns the content of a file (see `build_onnx`).
        run: runs the content of a file, given whether its output are probabilities.
        cells: the smallest side of a feature map that the format takes. `torch.export` takes a side of 1 for a
            constant, and the program refuses other sides.
    """

    build: Callable[[Deployed, Tensor, bool, Mapping[str, Any], str], bytes]
    run: Callable[[bytes, bool], Run]
    cells: int


FORMATS = {"onnx": Format(build_onnx, OnnxRun, 1), "pt2": Format(build_program, ProgramRun, 2)}


def build_graph(
    cfg: ExportConfig, checkpoint: Mapping[str, Any], stored: Config, metadata: Mapping[str, Any], path: Path
) -> tuple[bytes, list[Agreement]]:
    """Return the content of the file, and how far it agrees with the network.

    Args:
        cfg: the configuration of the command.
        checkpoint: content of the checkpoint.
        stored: the configuration of the training.
        metadata: see `sppnet.runs.model_metadata.describe`.
        path: the checkpoint file, used in messages.

    Raises:
        UserError: the format cannot express the network, or not at every size.
        RunFailed: the file differs from the network.
    """
    network = load_network(checkpoint, stored, path)
    sizes = [*stored.sizes.test, *stored.sizes.train]
    if stored.trainer.precision != "32-true":
        notice(f"trainer.precision={stored.trainer.precision}: the network is exported in float32")
    deployed, fixed = Deployed(network, metadata, cfg.preprocess), cfg.size is not None
    build, run, cells = FORMATS[cfg.format]
    if cfg.size is not None:
        sides, shapes = None, fixed_shapes(deployed, cfg.size)
        smallest, side = cfg.size, (cfg.size, cfg.size)
        advice = "format=safetensors holds the weights"
    else:
        check_sides(stored, network, sizes[0])
        sides = Sides(deployed, sizes, cells)
        shapes = list(draw_shapes(sides))
        check_all_sizes(sides, cfg.format, sizes[0])
        smallest, side = sides.smallest, sides.example()
        if smaller := sorted(size for size in {*sizes} if size < smallest):
            notice(
                f"format={cfg.format}: the file takes sides from {smallest} pixels on, and the network was trained or"
                f" tested at {format_value(smaller)}; size={smaller[0]} exports it for images of that size"
            )
        advice = f"size={sizes[0]} may export it for images of one size"
    samples = _read_samples(cfg, deployed, sides)
    # below the smallest side, ONNX Runtime may answer wrongly, or end the whole process
    content = build(deployed, deployed.example(2, *side), fixed, {**metadata, "smallest": smallest}, advice)
    advice = f"nothing is written; {advice}"
    runner = run(content, cfg.preprocess)
    examples = [deployed.example(*shape, seed=number) for number, shape in enumerate(shapes)]
    agreements = [compare(deployed, runner, examples, "random images", advice)]
    if samples:
        agreements.append(compare(deployed, runner, samples, f"images of {cfg.data.name}", advice))
    return content, agreements


def check_all_sizes(sides: Sides, format_name: str, side: int) -> None:
    """Raise UserError if the network refuses some sizes, and a file of the format cannot."""
    if format_name == "onnx" and sides.valid and sides.refused is not None:
        raise UserError(
            f"the network refuses some sizes, such as {'x'.join(map(str, sides.refused))} (height x width), which an"
            f" ONNX file cannot; size={side} exports it for images of one size"
        )
    if not sides.valid:
        raise UserError("the network takes none of the images that it would be compared on")


def check_sides(cfg: Config, network: SPPNet, side: int) -> None:
    """Check that a file with this network can take images of any size.

    Args:
        cfg: the configuration of the training.
        network: the network.
        side: a size that it was tested at, in pixels, for the message.

    Raises:
        UserError: the network takes images of one size only, is traced for one size only, or refuses some sizes.
    """
    pooling, reason = cfg.pooling, ""
    if isinstance(pooling, SPP) and pooling.rule != "adaptive":
        reason = f"pooling.rule={pooling.rule} refuses some sizes, and an exported file would refuse others"
    elif isinstance(pooling, Flatten):
        reason = "pooling=flatten takes images of one size"
    elif isinstance(pooling, OwnPooling) and not takes_any_shape(cfg.backbone, pooling, side):
        reason = f"pooling: {type(network.pooling).__name__} takes images of one size"
    if any(isinstance(module, ShiftedWindowAttention) for module in network.modules()):
        reason = f"backbone.name={cfg.backbone.name}: its shifted windows are traced for images of one size"
    if reason:
        raise UserError(f"{reason}; size={side} exports the network for that size")


def _read_samples(cfg: ExportConfig, deployed: Deployed, sides: Sides | None) -> Sequence[Tensor]:
    """Read images of the run's data, as the network takes them, and say in one line if some cannot be used.

    Args:
        cfg: the configuration of the command.
        deployed: the network.
        sides: the sides that the file takes; None for images of one size.
    """
    try:
        samples, unreadable = read_samples(cfg, SAMPLES)
    except UserError as error:
        notice(f"only random images are compared, because images of the run's data cannot be read ({error})")
        return []
    taken = [images for images in samples if sides is None or sides.takes(*images.shape[1:3])]
    if not samples and not unreadable:
        notice("only random images are compared, because the run's data have no test images")
    if unreadable:
        notice(f"{unreadable} of {unreadable + len(samples)} images of the run's data cannot be read, and are left out")
    if len(taken) < len(samples):
        notice(f"{len(samples) - len(taken)} images of the run's data have shapes that the file does not take")
    return taken if cfg.preprocess else [deployed.normalise(x.permute(0, 3, 1, 2)) for x in taken]
