"""ZF-5, the paper's smallest network (Table 1), with the paddings of the authors' released model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a `size` x `size` neighbourhood of the same channel.

    `x / (1 + alpha * mean(x^2))^beta`, Caffe's WITHIN_CHANNEL: zeros beyond the border count in the mean.
    `torch.nn.LocalResponseNorm` sums across channels instead.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` (N, C, H, W); the shape stays."""
        power = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        return x / (1 + self.alpha * power) ** self.beta

    def extra_repr(self) -> str:
        """The three settings, for `print(module)`."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


class ZF5(nn.Module):
    """Five convolutions up to conv5 and its ReLU; total stride 16, 256 channels.

    The map is 13x13 at an input of 224 and 10x10 at 180, as in the paper (section 2.3): that takes a padding of 1 in
    conv1, none in conv2 and pooling that rounds up, all as released. Normalisation is within channels, as released
    (the paper does not say). The pooling after conv5 is the head's.

    Weights start as Gaussian with deviation 0.01; biases are 1 in conv2, conv4 and conv5 and else 0, as released.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2, padding=1)
        self.conv2 = nn.Conv2d(96, 256, 5, stride=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.norm = WithinChannelNorm()
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.bias, 1.0 if name in {"conv2", "conv4", "conv5"} else 0.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (N, 256, h, w) of `images` (N, 3, H, W)."""
        x = self.pool(self.norm(F.relu(self.conv1(images))))
        x = self.pool(self.norm(F.relu(self.conv2(x))))
        return F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x))))))
