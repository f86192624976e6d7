"""The backbone of the blog posts that made the pooling layer popular: four 4x4 convolutions."""

from __future__ import annotations

import torch
from torch import nn


class Blog(nn.Module):
    """Four 4x4 convolutions with 64, 128, 256 and 512 filters; total stride 2, 512 channels.

    The first convolution has stride 2, the others have stride 1. As in DCGAN, batch normalisation follows all but the
    first convolution, and leaky ReLU has slope 0.2. With the pyramid 4-2-1, the pooled vector has 512 * 21 = 10,752
    values. The smallest input is 8 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2))
        self.conv2 = _conv(64, 128)
        self.conv3 = _conv(128, 256)
        self.conv4 = _conv(256, 512)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map (N, 512, H // 2 - 3, W // 2 - 3) of `images` (N, 3, H, W)."""
        out: torch.Tensor = self.conv4(self.conv3(self.conv2(self.conv1(images))))
        return out


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 4, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)
    )
