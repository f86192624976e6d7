"""Compute features of images on one device, with the backbone and the requested layers on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.config.load import replace
from sppnet.config.schema import GAP, MLP, SPP, AnyHead, AnyPooling
from sppnet.data import build_sizes
from sppnet.data.seeding import preserved_generators
from sppnet.errors import notice
from sppnet.models.fit_check import check_network
from sppnet.models.network import build_backbone
from sppnet.models.normalise import Normalise
from sppnet.models.pooling import build_pooling
from sppnet.models.probe import map_size, probe
from sppnet.pyramid import SpatialPyramidPool2d
from sppnet.runs.checkpoint_files import read_checkpoint
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.runs.identity import ONE_DEVICE
from sppnet.training.inference import load_network, place_on_device
from sppnet.training.own_parts import check_repeatable, has_own_parts
from sppnet.training.preflight import check_hardware, gem_notices
from sppnet.transfer.task import Task


class Extractor(nn.Module):
    """Map uint8 images (N, 3, H, W) to float32 features (N, D) for each layer; each image's features have L2 norm 1.

    Args:
        normalise: maps uint8 images to the backbone's input.
        backbone: maps images to a feature map (N, C, h, w).
        pooling: the pooling of the configuration or of a trained network, for the layer `pooling`, for fully connected
            layers, and for the exponent that a pyramid with `pool: gem` has learned.
        head: the head of a trained network, needed only for its fully connected layers.
        layers: descriptions from `Task.describe`. `conv` is the flattened feature map; `fc1` and `fc2` are taken
            after their ReLUs.
        kernel: the implementation of spatial pyramid pooling (`pooling.kernel`).
    """

    def __init__(
        self,
        normalise: Normalise,
        backbone: nn.Module,
        pooling: nn.Module,
        head: nn.Module | None,
        layers: list[dict[str, Any]],
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.backbone, self.pooling, self.head, self.kernel = backbone, pooling, head, kernel
        self.layers = nn.ModuleList([self._build_layer(layer) for layer in layers])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps_NCHW = self.backbone(self.normalise(images))
        # a pooling of the user's own may change its maps
        maps = [maps_NCHW, *(maps_NCHW.clone() for _ in self.layers[1:])]
        pooled = [layer(each) for layer, each in zip(self.layers, maps, strict=True)]
        return [F.normalize(features.flatten(1).float()) for features in pooled]

    def _build_layer(self, layer: Mapping[str, Any]) -> nn.Module:
        if layer["kind"] == "pyramid":
            return self._build_pyramid(layer)
        if layer["kind"] == "pooling":
            return self.pooling
        if layer["kind"] == "fc":
            assert isinstance(self.head, nn.Sequential)
            return nn.Sequential(self.pooling, *self.head[: layer["number"]])
        return nn.AdaptiveAvgPool2d(1) if layer["kind"] == "gap" else nn.Identity()

    def _build_pyramid(self, layer: Mapping[str, Any]) -> nn.Module:
        exponents = {name: layer[name] for name in ("p", "r") if name in layer}
        pyramid = SpatialPyramidPool2d(layer["bins"], layer["pool"], layer["rule"], self.kernel, **exponents)
        trained = self.pooling
        if isinstance(trained, SpatialPyramidPool2d) and layer["pool"] == trained.pool == "gem":
            if isinstance(trained.p, nn.Parameter):
                pyramid.p = trained.p
            else:
                del pyramid.p
                pyramid.register_buffer("p", trained.p, persistent=False)
        return pyramid


def check_extraction(task: Task) -> None:
    """Check that the hardware, the network and the image size fit together, without reading data or weights.

    Raises:
        UserError: they do not fit together.
    """
    cfg, layer = task.cfg, task.layer
    check_hardware(replace(cfg, ONE_DEVICE))
    # placeholders for the trained pooling and head, which only their own layers need
    pooling: AnyPooling = GAP(name="gap")
    head: AnyHead = MLP(name="mlp", hidden=[], dropout=0.0)
    sizes = {"train": [], "val": [], "test": [task.size]}
    if layer["kind"] in ("fc", "pooling"):
        pooling, head = cfg.pooling, cfg.head if layer["kind"] == "fc" else head
        if task.trained is not None:
            sizes |= {"train": list(build_sizes(cfg.sizes).sizes), "val": cfg.sizes.val}
    elif layer["kind"] == "pyramid":
        pooling = SPP(name="spp", bins=layer["bins"], pool=layer["pool"], rule=layer["rule"])
    backbone = cfg.backbone if task.trained is None else cfg.backbone.model_copy(update={"weights": None})
    whole = cfg.views.fit == "full"
    aspects = [("sizes.test", task.size, cfg.views.aspect_step)] if whole else []
    check_network(backbone, pooling, head, sizes, whole, aspects=aspects)


def load_checkpoint_metadata(trained: TrainedNetwork[Any]) -> dict[str, Any]:
    """Load the run's metadata from the checkpoint, such as `config`, `classes` and the data set's `fingerprint`."""
    metadata: dict[str, Any] = read_checkpoint(trained.weights)["sppnet"]
    return metadata


class Runner:
    """Runs an `Extractor` for the layers `names` of `task`, on the device and at the precision that `trainer` sets.

    Raises:
        UserError: the weights do not fit the network.
    """

    def __init__(self, task: Task, names: list[str]) -> None:
        self.fabric, self.extractor = place_on_device(_build(task, names), task.cfg)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Map uint8 images (N, 3, H, W) to features (N, D) for each layer, returned on the CPU."""
        with self.fabric.autocast():
            return [features.cpu() for features in self.extractor(self.fabric.to_device(images))]


def _build(task: Task, names: list[str]) -> Extractor:
    cfg = task.cfg
    layers = [task.describe(name) for name in names]
    normalise = Normalise(cfg.data.mean, cfg.data.std, cfg.compute.channels_last)
    kernel = cfg.pooling.kernel if isinstance(cfg.pooling, SPP) else "auto"
    if task.trained is None:
        L.seed_everything(cfg.seed, verbose=False)  # NumPy too, which a backbone of the user's own may draw from
        backbone = build_backbone(cfg.backbone)
        channels, side = probe(backbone).out_channels, min(map_size(backbone, task.size, task.size))
        extractor = Extractor(normalise, backbone, build_pooling(cfg.pooling, channels, side), None, layers, kernel)
        _check_own_parts(extractor, task, pools=any(layer["kind"] == "pooling" for layer in layers))
    else:
        # Build pooling and head as the checkpoint describes them, not as cfg does: with layer=spp, the pyramid in cfg
        # may differ from the trained one, and the trained weights might not fit.
        checkpoint = read_checkpoint(task.trained.weights)
        network = load_network(checkpoint, cfg, task.trained.checkpoint)
        extractor = Extractor(normalise, network.backbone, network.pooling, network.head, layers, kernel)
    lines = (line for layer in extractor.layers for line in gem_notices(extractor.backbone, layer, task.size))
    for line in dict.fromkeys(lines):
        notice(line)
    if cfg.compute.compile:
        extractor.compile(dynamic=True)
    return extractor


@torch.no_grad()
def _check_own_parts(extractor: Extractor, task: Task, pools: bool) -> None:
    """Refuse a backbone or pooling of the user's own whose features could not be repeated, as before a training."""
    if not has_own_parts(task.cfg):
        return
    x = torch.rand(2, 3, task.size, task.size, generator=torch.Generator().manual_seed(0))
    with preserved_generators():
        for slot, part in (("backbone", extractor.backbone), ("pooling", extractor.pooling))[: 1 + pools]:
            x = check_repeatable(f"{slot}: {type(part).__name__}", part, x)
