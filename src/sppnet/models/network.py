"""`SPPNet`, a network that joins a backbone and a head, and the functions that build it from its configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import MLP, AnyPooling, Backbone
from sppnet.models.heads import build_head
from sppnet.models.pretrained import load_weights, resolve_weights
from sppnet.models.probe import map_size, probe


class SPPNet(nn.Module):
    """A backbone and a head: images (N, 3, H, W) -> logits (N, K).

    `head` is a sequence of the stages `pool`, `fc1`, `fc2` ..., `classifier`, so slices of it give features:
    `net.head[:1](net.backbone(x))` is the pooled vector, and `net.head[:2](...)` is the output of the first fully
    connected layer.

    Args:
        backbone: module that maps images to a feature map (N, C, h, w).
        head: stages that map the feature map to logits.
        freeze: whether to freeze the backbone. Its parameters then get no gradient, and it stays in evaluation mode, so
            that its batch normalisation statistics do not change either.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential, freeze: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.freeze = freeze
        if freeze:
            backbone.requires_grad_(False)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of `images` (N, 3, H, W), for any H and W that give a feature map."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits

    def train(self, mode: bool = True) -> SPPNet:
        """Set training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self


def build_network(backbone: Backbone, pooling: AnyPooling, head: MLP, classes: int, size: int | None = None) -> SPPNet:
    """Build the network from the configurations `backbone`, `pooling` and `head`.

    Args:
        backbone: the configuration `backbone`, as for `build_backbone`. `freeze: true` freezes the backbone.
        pooling: the configuration `pooling`, as for `build_head`.
        head: the configuration `head`, as for `build_head`.
        classes: number of logits.
        size: side of the square input in pixels. Only `pooling=flatten` needs it.

    Raises:
        UserError: a value is invalid, the weights cannot be loaded, or the pooling does not fit the backbone.
    """
    trunk = build_backbone(backbone)
    side = min(map_size(trunk, size, size)) if size is not None else None
    return SPPNet(trunk, build_head(pooling, head, probe(trunk).out_channels, classes, side), backbone.freeze)


def build_backbone(cfg: Backbone) -> nn.Module:
    """Build the module named by `_target_` and load its `weights` (null, a file or the name of torchvision weights).

    All other keys except `name` and `freeze` are passed to its constructor.

    Raises:
        UserError: a value is invalid, or the weights cannot be loaded.
    """
    weights = resolve_weights(cfg)
    node = cfg.node(weights=weights) if isinstance(weights, str) else cfg.node()
    module = instantiate(node, nn.Module, "backbone")
    if isinstance(weights, Path):
        load_weights(module, weights)
    return module
