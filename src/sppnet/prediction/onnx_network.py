"""Scores images with an ONNX file of `sppnet export` in ONNX Runtime: the network's part of `sppnet predict`."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection

import torch
from torch import Tensor

from sppnet.config.command_schemas import PredictConfig
from sppnet.config.load import replace
from sppnet.config.schema import Windows
from sppnet.config.timm_networks import TIMM
from sppnet.data.datasets.unlabelled import InputFiles
from sppnet.data.loader import Batch
from sppnet.errors import RunFailed, UserError, format_value, notice
from sppnet.models.normalise import Normalise
from sppnet.prediction.predictor import Predictor
from sppnet.runs.onnx_checkpoint import OnnxCheckpoint, open_session
from sppnet.training.preflight import check_fit

# Sections that say how a network is computed, and the keys of them that ONNX Runtime knows, too.
COMPUTATION, KNOWN = ("trainer", "compute", "pooling"), ("accelerator", "num_threads")
NO_GPU = (
    "trainer.accelerator: ONNX Runtime sees no GPU here (it needs the package onnxruntime-gpu, and CUDA); use"
    " trainer.accelerator=cpu or auto"
)
INPUTS = {"tensor(uint8)": (3, (1, 2)), "tensor(float)": (1, (2, 3))}  # the axes of channels and sides


class OnnxNetwork:
    """The network in an ONNX file.

    Args:
        checkpoint: what the file says of the network.
        threads: number of CPU threads.
        gpu: whether to run it on a GPU of NVIDIA.

    Attributes:
        side: the only side of the images in pixels; None if they may have any height and width.
        smallest: the smallest side of the images in pixels.

    Raises:
        UserError: ONNX Runtime cannot load the file or use a GPU, or the network takes other inputs.
    """

    def __init__(self, checkpoint: OnnxCheckpoint, threads: int, gpu: bool) -> None:
        import onnxruntime  # of an extra

        self.checkpoint, self.name = checkpoint, f"checkpoint={checkpoint.path}"
        if gpu and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError(NO_GPU)
        try:
            self.session = open_session(checkpoint.content, threads, gpu)
        except Exception as error:  # of the runtime, which has many
            raise UserError(f"{self.name}: ONNX Runtime cannot load it ({_first_line(error)})") from error
        if gpu and self.session.get_providers()[0] != "CUDAExecutionProvider":
            raise UserError(NO_GPU)
        self.side = self._check_shapes()
        self.smallest: int = checkpoint.metadata["smallest"]
        self.sigmoid = checkpoint.metadata["activation"] == "sigmoid"
        self.normalise = Normalise(checkpoint.metadata["mean"], checkpoint.metadata["std"], channels_last=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the probabilities, float64 (N, K), of uint8 images (N, 3, H, W).

        Raises:
            RunFailed: the runtime fails, or the scores are not finite.
        """
        batch = images.permute(0, 2, 3, 1).contiguous() if self.preprocess else self.normalise(images)
        height, width = images.shape[2:]
        try:
            scores = torch.from_numpy(self.session.run(None, {"images": batch.numpy()})[0]).double()
        except Exception as error:  # of the runtime, which has many
            raise RunFailed(f"{self.name} fails on images of {width}x{height} ({_first_line(error)})") from error
        if not torch.isfinite(scores).all():
            raise RunFailed(f"{self.name}: the network's scores of images of {width}x{height} are not finite")
        if self.preprocess:
            return scores
        return scores.sigmoid() if self.sigmoid else scores.softmax(1)

    def _check_shapes(self) -> int | None:
        """Return the only side of the images; None if they may have any height and width."""
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shape, kind = inputs[0].shape, inputs[0].type
        fits = (len(inputs), inputs[0].name, len(outputs), len(shape)) == (1, "images", 1, 4) and kind in INPUTS
        channels, axes = INPUTS.get(kind, (0, (0, 0)))
        sides = [shape[axis] for axis in axes] if fits else []
        fixed = [side for side in sides if isinstance(side, int)]
        if not fits or shape[channels] != 3 or isinstance(shape[0], int) or fixed not in ([], [sides[0]] * 2):
            takes = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
            raise UserError(f"{self.name} takes other inputs than a file of sppnet export: {takes}")
        if outputs[0].shape[1:] != [len(self.checkpoint.metadata["classes"])]:
            raise UserError(f"{self.name} gives other outputs than a file of sppnet export: {outputs[0].shape}")
        self.preprocess = kind == "tensor(uint8)"
        return fixed[0] if fixed else None


class OnnxPredictor(Predictor):
    """A network in an ONNX file, ready to predict."""

    def __init__(self, cfg: PredictConfig, network: OnnxNetwork, files: InputFiles) -> None:
        super().__init__(cfg, network.checkpoint.network, files)
        self.network = network

    def probabilities(self, batch: Batch) -> Tensor:
        return self.network(batch["image"])


def open_network(checkpoint: OnnxCheckpoint, cfg: PredictConfig, typed: Collection[str]) -> OnnxNetwork:
    """Load an ONNX file into ONNX Runtime, on the CPU unless a GPU was typed.

    Raises:
        UserError: see `OnnxNetwork`; or a typed key has no effect on an ONNX file.
    """
    for key in typed:
        section, _, name = key.partition(".")
        in_float32 = name == "precision" and cfg.trainer.precision == "32-true"
        if section in COMPUTATION and name and name not in KNOWN and not in_float32:
            raise UserError(f"{key} has no effect on an ONNX file, which ONNX Runtime runs in float32")
    if cfg.draw is not False:
        raise UserError(
            f"draw={format_value(cfg.draw)}: an ONNX file has no feature maps to plot; give the run instead"
        )
    accelerator = cfg.trainer.accelerator if "trainer.accelerator" in typed else "cpu"
    if accelerator == "mps":
        raise UserError("trainer.accelerator=mps: an ONNX file runs on a CPU or a GPU of NVIDIA")
    return OnnxNetwork(checkpoint, cfg.compute.num_threads, accelerator in ("gpu", "cuda"))


def fit_to_file(cfg: PredictConfig, network: OnnxNetwork, typed: Collection[str]) -> PredictConfig:
    """Return the configuration for a prediction with an ONNX file: at its own size, if it has one.

    Raises:
        UserError: the file does not take the views or the size, or the network does not.
    """
    views, size, side = cfg.views, cfg.sizes.test[0], network.side
    if isinstance(views, Windows):
        raise UserError(
            f"views={views.name}: an ONNX file scores one view of each image; use views=full, center or warp"
        )
    if side is not None and views.fit == "full":
        raise UserError(f"views={views.name}: {network.name} takes squares of {side} pixels; use views=warp or center")
    if side not in (None, size) and "sizes.test" in typed:
        raise UserError(f"sizes.test=[{size}]: {network.name} takes squares of {side} pixels only")
    if side is None and size < network.smallest:
        raise UserError(f"sizes.test=[{size}] is too small: {network.name} takes sides of at least {network.smallest}")
    if side is not None and not any(key.split(".")[0] == "views" for key in typed):
        notice(f"{network.name} takes squares of {side} pixels, so every image is warped to one")
    cfg = replace(cfg, {"sizes.test": [side or size], "trainer.precision": "32-true", "compute.compile": False})
    lacks_timm = cfg.backbone.target == TIMM and importlib.util.find_spec("timm") is None
    if not network.checkpoint.has_own_classes and not lacks_timm:
        check_fit(cfg)  # an exported network may answer where the network itself refuses a shape
    return cfg


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
