"""The default backbone: a small network for small images on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from sppnet.errors import UserError


class Tiny(nn.Module):
    """Four 3x3 convolutions with batch normalisation; total stride 4, `2 * width` channels.

    The map is 12x12 for inputs of 48 pixels and 10x10 for 40. These sizes are close to the 13x13 and 10x10 of the
    paper's ZF-5, so the paper's pyramids suit them. The first two layers have stride 2, because convolutions
    on larger maps would take most of the time.
    """

    def __init__(self, width: int = 32) -> None:
        if not isinstance(width, int) or width < 1:
            raise UserError(f"backbone.width={width!r} must be a positive integer")
        super().__init__()
        self.conv1 = _conv(3, width, stride=2)
        self.conv2 = _conv(width, 2 * width, stride=2)
        self.conv3 = _conv(2 * width, 2 * width)
        self.conv4 = _conv(2 * width, 2 * width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map (N, 2 * width, ceil(H / 4), ceil(W / 4)) of `images` (N, 3, H, W)."""
        out: torch.Tensor = self.conv4(self.conv3(self.conv2(self.conv1(images))))
        return out


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
