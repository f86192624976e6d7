"""`SPPNet`, which joins a backbone, a pooling and a head, and the functions that build it from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import AnyHead, AnyPooling, Backbone, OwnHead
from sppnet.models.freezing import frozen_modules
from sppnet.models.heads import build_head, check_head
from sppnet.models.pooling import build_pooling, pooled_length
from sppnet.models.pretrained import load_weights, resolve_weights
from sppnet.models.probe import check_initialised, map_size, probe


class SPPNet(nn.Module):
    """A backbone, a pooling and a head: images (N, 3, H, W) -> logits (N, K).

    Args:
        backbone: module that maps images to a feature map (N, C, h, w).
        pooling: module that maps feature maps to vectors (N, D).
        head: module that maps vectors to logits. That of `head=mlp` is a sequence, so `network.head[:1]` ends with the
            first fully connected layer.
        freeze: whether to freeze the backbone, or the names of its modules to freeze. Their parameters then get no
            gradient, and they stay in evaluation mode, so that their batch normalisation statistics do not change
            either.

    Raises:
        UserError: the backbone has no module of a name in `freeze`.
    """

    def __init__(
        self, backbone: nn.Module, pooling: nn.Module, head: nn.Module, freeze: bool | Sequence[str] = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.head = head
        self.freeze = freeze
        self._frozen = frozen_modules(backbone, freeze)  # a list, so that they are not registered again
        for part in self._frozen:
            part.requires_grad_(False)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of `images` (N, 3, H, W), for any H and W that give a feature map."""
        logits: torch.Tensor = self.head(self.pooling(self.backbone(images)))
        return logits

    def train(self, mode: bool = True) -> SPPNet:
        """Set training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self


def build_network(backbone: Backbone, pooling: AnyPooling, head: AnyHead, classes: int, size: int) -> SPPNet:
    """Build the network from the configurations `backbone`, `pooling` and `head`.

    Args:
        backbone: the configuration `backbone`, as for `build_backbone`. `freeze` freezes it, or modules of it.
        pooling: the configuration `pooling`, as for `build_pooling`.
        head: the configuration `head`, as for `build_head`.
        classes: number of logits.
        size: side, in pixels, of a square image to train on.

    Raises:
        UserError: a value is invalid, the weights cannot be loaded, or the parts do not fit together.
    """
    trunk = build_backbone(backbone)
    channels, side = probe(trunk).out_channels, min(map_size(trunk, size, size))
    pool = build_pooling(pooling, channels, side)
    length = pooled_length(pool, channels, side, side)
    classifier = build_head(head, length, classes)
    if isinstance(head, OwnHead):
        check_head(classifier, length, classes)
    return SPPNet(trunk, pool, classifier, backbone.freeze)


def build_backbone(cfg: Backbone) -> nn.Module:
    """Build the module named by `_target_` and load its `weights` (null, a file or the name of torchvision weights).

    All other keys except `name`, `freeze` and `update_bn` are passed to its constructor.

    Raises:
        UserError: a value is invalid, or the weights cannot be loaded.
    """
    weights = resolve_weights(cfg)
    node = cfg.node(weights=weights) if isinstance(weights, str) else cfg.node()
    module = instantiate(node, nn.Module, "backbone")
    check_initialised(module, "backbone")
    if isinstance(weights, Path):
        load_weights(module, weights)
    return module
