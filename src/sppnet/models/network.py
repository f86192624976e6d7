"""The network: a backbone and a head, built from their configurations and checked against the input sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sppnet.config.instantiate import instantiate
from sppnet.errors import UserError
from sppnet.models.heads import build_head
from sppnet.models.pretrained import load_weights, resolve_weights
from sppnet.models.probe import map_size, probe


class SPPNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, K).

    `head` is a sequence of named stages, `pool`, `fc1`, `fc2` ..., `classifier`, so features are a slice of it:
    `net.head[:1](net.backbone(x))` is the pooled vector, `net.head[:2](...)` the first fully connected layer.

    Args:
        backbone: images -> feature map (N, C, h, w).
        head: feature map -> logits.
        freeze: the backbone's parameters take no gradient, and it stays in evaluation mode, so that training moves
            no statistics of its batch normalisation either.
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
        """Logits (N, K) of `images` (N, 3, H, W), of any H and W that leave a map."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits

    def train(self, mode: bool = True) -> SPPNet:
        """Switch to training mode, all but a frozen backbone."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self


def build_network(
    backbone: Mapping[str, Any], head: Mapping[str, Any], classes: int, size: int | None = None
) -> SPPNet:
    """The network that the configurations `backbone` and `head` describe.

    Args:
        backbone: see `build_backbone`; and `freeze`.
        head: see `build_head`.
        classes: number of logits.
        size: side of the square input in pixels; only the `flatten` head depends on it.

    Raises:
        UserError: a value is not allowed, weights do not load, or the head does not fit the backbone.
    """
    trunk = build_backbone(backbone)
    side = min(map_size(trunk, size, size)) if size is not None else None
    return SPPNet(trunk, build_head(head, probe(trunk).out_channels, classes, side), bool(backbone.get("freeze")))


def build_backbone(cfg: Mapping[str, Any]) -> nn.Module:
    """The module named by `_target_`, with its `weights`: null, a file or, for torchvision's networks, their name.

    All other keys but `name` and `freeze` are arguments of its constructor.

    Raises:
        UserError: a value is not allowed, or the weights do not load.
    """
    node = {key: value for key, value in cfg.items() if key not in {"name", "weights", "freeze"}}
    weights = resolve_weights(cfg)
    if isinstance(weights, str):
        node["weights"] = weights
    try:
        module = instantiate(node, nn.Module, "backbone")
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # the last: more than fits in memory
        raise UserError(f"backbone._target_={cfg['_target_']} refuses its arguments: {error}") from error
    if isinstance(weights, Path):
        load_weights(module, weights)
    return module
