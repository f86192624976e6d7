"""The paper's four networks (Table 1) up to the ReLU after their last convolution. The head does the last pooling.

Table 1 does not specify padding, normalisation or initialisation; `docs/decisions/0011` explains our choices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn


class WithinChannelNorm(nn.Module):
    """Local response normalisation over a `size` x `size` neighbourhood in the same channel.

    Computes `x / (1 + alpha * mean(x^2))^beta`, like Caffe's WITHIN_CHANNEL. The mean includes the padding's zeros.
    `torch.nn.LocalResponseNorm` sums across channels instead.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` (N, C, H, W)."""
        power = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        return x / (1 + self.alpha * power) ** self.beta

    def extra_repr(self) -> str:
        """Show the arguments in `print(module)`."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


class ZF5(nn.Module):
    """ZF-5, the five convolutions of Zeiler and Fergus; total stride 16, 256 channels.

    The map is 13x13 for inputs of 224 pixels and 10x10 for 180, as in the paper (section 2.3). This requires padding 1
    in conv1, no padding in conv2, and pooling that rounds up. These settings, the normalisation within channels and the
    initialisation follow the authors' released model.

    Initial weights are Gaussian with standard deviation 0.01. Initial biases are 1 in conv2, conv4 and conv5, and 0 in
    the other layers.
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
        _initialise(self, biases={"conv2": 1.0, "conv4": 1.0, "conv5": 1.0})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map (N, 256, h, w) of `images` (N, 3, H, W)."""
        x = self.pool(self.norm(F.relu(self.conv1(images))))
        x = self.pool(self.norm(F.relu(self.conv2(x))))
        return F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x))))))


class Convnet5(nn.Module):
    """Convnet*-5: AlexNet with pooling after conv2 and conv3 instead of conv1 and conv2; total stride 16, 256 channels.

    The map is 13x13 for inputs of 224 pixels and 10x10 for 180 (section 2.3). The convolutions are not grouped.

    As in AlexNet (Krizhevsky et al., 2012), normalisation is across 5 channels, and initial weights are Gaussian with
    standard deviation 0.01. Initial biases are 1 in conv2, conv4 and conv5, and 0 in the other layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1)
        self.norm = _across_channels()
        self.pool = nn.MaxPool2d(3, stride=2)
        _initialise(self, biases={"conv2": 1.0, "conv4": 1.0, "conv5": 1.0})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map (N, 256, h, w) of `images` (N, 3, H, W)."""
        x = self.norm(F.relu(self.conv1(images)))
        x = self.pool(self.norm(F.relu(self.conv2(x))))
        x = self.pool(F.relu(self.conv3(x)))
        return F.relu(self.conv5(F.relu(self.conv4(x))))


class Overfeat(nn.Module):
    """Overfeat-5 and Overfeat-7: five or seven convolutions; total stride 12, 512 channels.

    As in Table 1, inputs of 224 pixels give maps of 36x36 after the first pooling and 18x18 after the second. The final
    map is 14x14 for 180 pixels.

    The paper takes its modifications of Overfeat from Chatfield et al. (2014). As in their CNN-S, normalisation is
    across 5 channels, initial weights are Gaussian with standard deviation 0.01, and initial biases are 0.

    Args:
        convolutions: number of convolutions, 5 or 7.
    """

    def __init__(self, convolutions: int) -> None:
        super().__init__()
        if convolutions not in (5, 7):
            raise ValueError(f"convolutions={convolutions} must be 5 or 7")
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        self.pool1 = nn.MaxPool2d(3, stride=3)
        self.norm = _across_channels()
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2)
        self.pool2 = nn.MaxPool2d(2, stride=2)
        self.last = [f"conv{i}" for i in range(3, convolutions + 1)]
        for inputs, name in zip([256, 512, 512, 512, 512], self.last, strict=False):
            self.add_module(name, nn.Conv2d(inputs, 512, 3, padding=1))
        _initialise(self, biases={})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map (N, 512, h, w) of `images` (N, 3, H, W)."""
        x: torch.Tensor = self.norm(self.pool1(F.relu(self.conv1(images))))
        x = self.pool2(F.relu(self.conv2(x)))
        for name in self.last:
            x = F.relu(self.get_submodule(name)(x))
        return x


def _across_channels() -> nn.LocalResponseNorm:
    """The normalisation of AlexNet and CNN-S: `x / (2 + 1e-4 * (sum of the squares of 5 channels))^0.75`."""
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)  # torch divides alpha by the 5 channels


def _initialise(trunk: nn.Module, biases: Mapping[str, float]) -> None:
    """Draw weights from a Gaussian with standard deviation 0.01. A layer's bias is `biases[name]`, or 0 by default."""
    for name, layer in trunk.named_children():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, biases.get(name, 0.0))
