"""From images to features: the trunk and the part of the head that a row is about, on the device it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.commands.checkpoint_app import Trained
from sppnet.data import build_sizes
from sppnet.errors import UserError
from sppnet.models.network import SPPNet, build_backbone, build_network, check_network
from sppnet.pyramid import SpatialPyramidPool2d
from sppnet.storage.tensors import read_checkpoint
from sppnet.training.preflight import check_hardware
from sppnet.transfer.task import Task

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


class Extractor(nn.Module):
    """Images (N, 3, H, W), normalised -> one (N, D) float32 for each layer, every row of length 1.

    Args:
        backbone: images -> map (N, C, h, w).
        head: of a trained network; only its fully connected layers need it.
        layers: their descriptions (`Task.describe`). `conv` is the map as it is, flattened; `fc1` and `fc2` are what
            comes out of the ReLU.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential | None, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.layers = nn.ModuleList([self._stage(layer) for layer in layers])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of `images`, in the order of the layers."""
        maps = self.backbone(images)
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


def checkpoint(trained: Trained) -> dict[str, Any]:
    """What a checkpoint says of its run: `config`, `classes`, `fingerprint` of its data."""
    found: dict[str, Any] = read_checkpoint(trained.weights)["sppnet"]
    return found


class Runner:
    """Runs the `Extractor` of `task` for some of its layers, on the device and at the precision of `trainer`.

    Raises:
        UserError: the weights are not as they must be.
    """

    def __init__(self, task: Task, names: list[str]) -> None:
        self.device, cfg = _device(task), task.cfg
        self.network = _build(task, names).to(self.device, TRUE.get(cfg["trainer"]["precision"]))
        self.dtype = TRUE.get(cfg["trainer"]["precision"], torch.float32)
        self.mixed = MIXED.get(cfg["trainer"]["precision"])
        self.format = torch.channels_last if cfg["trainer"]["channels_last"] else torch.contiguous_format
        shape = (1, 3, 1, 1)
        self.mean, self.std = (
            torch.tensor(cfg["data"][key], dtype=self.dtype, device=self.device).reshape(shape)
            for key in ("mean", "std")
        )

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Features (n, D) of 8-bit images (n, 3, h, w), one for each layer, on the CPU."""
        x = images.to(self.device).contiguous(memory_format=self.format).to(self.dtype)
        x = (x / 255 - self.mean) / self.std
        with torch.autocast(self.device.type, self.mixed, enabled=self.mixed is not None):
            return [found.cpu() for found in self.network(x)]


def _build(task: Task, names: list[str]) -> Extractor:
    cfg = task.cfg
    layers = [task.describe(name) for name in names]
    torch.backends.cudnn.deterministic = cfg["trainer"]["deterministic"]
    if task.trained is None:
        torch.manual_seed(cfg["seed"])
        extractor = Extractor(build_backbone(cfg["backbone"]), None, layers)
    else:
        network = _trained_network(task, task.trained)
        extractor = Extractor(network.backbone, network.head, layers)
    if cfg["trainer"]["compile"]:
        extractor.compile(dynamic=True)
    return extractor


def _trained_network(task: Task, trained: Trained) -> SPPNet:
    found, cfg = read_checkpoint(trained.weights), task.cfg
    made = found["sppnet"]
    # the head is the checkpoint's: cfg's may have another pyramid, for layer=spp
    head, side = made["config"]["head"], cfg["sizes"]["train"][0]
    network = build_network({**cfg["backbone"], "weights": None}, head, len(made["classes"]), side)
    try:
        network.load_state_dict({key.removeprefix("network."): value for key, value in found["state_dict"].items()})
    except RuntimeError as error:
        raise UserError(f"checkpoint={trained.where} is of another network: {error}") from None
    return network


def _device(task: Task) -> torch.device:
    kind = task.cfg["trainer"]["accelerator"]
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind in there or kind == "cpu":
        return torch.device(kind)
    return torch.device(next((name for name, found in there.items() if found), "cpu"))
