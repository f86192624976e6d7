"""From images to features: the trunk and the part of the head that a row is about, on the device it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.data import build_sizes
from sppnet.errors import UserError
from sppnet.models.fit_check import check_network
from sppnet.models.network import SPPNet, build_backbone, build_network
from sppnet.models.normalise import Normalise
from sppnet.pyramid import SpatialPyramidPool2d
from sppnet.runs.from_checkpoint import TrainedNetwork, read_checkpoint
from sppnet.training.inference import place_on_device
from sppnet.training.preflight import check_hardware
from sppnet.transfer.task import Task


class Extractor(nn.Module):
    """uint8 images (N, 3, H, W) -> one (N, D) float32 for each layer, every row of length 1.

    Args:
        normalise: uint8 images -> images as the backbone takes them.
        backbone: images -> map (N, C, h, w).
        head: of a trained network; only its fully connected layers need it.
        layers: their descriptions (`Task.describe`). `conv` is the map as it is, flattened; `fc1` and `fc2` are what
            comes out of the ReLU.
    """

    def __init__(
        self, normalise: Normalise, backbone: nn.Module, head: nn.Sequential | None, layers: list[dict[str, Any]]
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.backbone, self.head = backbone, head
        self.layers = nn.ModuleList([self._stage(layer) for layer in layers])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of `images`, in the order of the layers."""
        maps = self.backbone(self.normalise(images))
        return [F.normalize(stage(maps).flatten(1).float()) for stage in self.layers]

    def _stage(self, layer: Mapping[str, Any]) -> nn.Module:
        if layer["kind"] == "pyramid":
            return SpatialPyramidPool2d(layer["bins"], layer["pool"], layer["rule"])
        if layer["kind"] == "fc":
            assert self.head is not None
            return self.head[: layer["number"] + 1]
        return nn.AdaptiveAvgPool2d(1) if layer["kind"] == "gap" else nn.Identity()


def check(task: Task) -> None:
    """Check that hardware, network and size fit together; reads no data and no weights.

    Raises:
        UserError: one line on what does not fit.
    """
    cfg, layer = task.cfg, task.layer
    check_hardware({**cfg["trainer"], "devices": 1, "num_nodes": 1}, 1)
    # what a trained head is matters to its own layers only
    head: dict[str, Any] = {"name": "gap", "bins": [1], "hidden": []}
    sizes: dict[str, Any] = {"train": [], "val": [], "test": [task.size]}
    if layer["kind"] == "fc":
        head, sizes = cfg["head"], {**cfg["sizes"], "train": build_sizes(cfg["sizes"]).sizes}
    elif layer["kind"] == "pyramid":
        head = {**layer, "name": "spp", "hidden": []}
    backbone = cfg["backbone"] if task.trained is None else {**cfg["backbone"], "weights": None}
    check_network(backbone, head, sizes, whole_images=cfg["views"]["fit"] == "full")


def checkpoint(trained: TrainedNetwork) -> dict[str, Any]:
    """What a checkpoint says of its run: `config`, `classes`, `fingerprint` of its data."""
    found: dict[str, Any] = read_checkpoint(trained.weights)["sppnet"]
    return found


class Runner:
    """Runs the `Extractor` of `task` for some of its layers, on the device and at the precision of `trainer`.

    Raises:
        UserError: the weights are not as they must be.
    """

    def __init__(self, task: Task, names: list[str]) -> None:
        self.fabric, self.extractor = place_on_device(_build(task, names), task.cfg["trainer"])

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Features (n, D) of 8-bit images (n, 3, h, w), one for each layer, on the CPU."""
        with self.fabric.autocast():
            return [features.cpu() for features in self.extractor(self.fabric.to_device(images))]


def _build(task: Task, names: list[str]) -> Extractor:
    cfg = task.cfg
    layers = [task.describe(name) for name in names]
    normalise = Normalise(cfg["data"]["mean"], cfg["data"]["std"], cfg["trainer"]["channels_last"])
    if task.trained is None:
        torch.manual_seed(cfg["seed"])
        extractor = Extractor(normalise, build_backbone(cfg["backbone"]), None, layers)
    else:
        network = _trained_network(task, task.trained)
        extractor = Extractor(normalise, network.backbone, network.head, layers)
    if cfg["trainer"]["compile"]:
        extractor.compile(dynamic=True)
    return extractor


def _trained_network(task: Task, trained: TrainedNetwork) -> SPPNet:
    found, cfg = read_checkpoint(trained.weights), task.cfg
    made = found["sppnet"]
    # the head is the checkpoint's: cfg's may have another pyramid, for layer=spp
    head, side = made["config"]["head"], cfg["sizes"]["train"][0]
    network = build_network({**cfg["backbone"], "weights": None}, head, len(made["classes"]), side)
    try:
        network.load_state_dict({key.removeprefix("network."): value for key, value in found["state_dict"].items()})
    except RuntimeError as error:
        raise UserError(f"checkpoint={trained.checkpoint} is of another network: {error}") from None
    return network
