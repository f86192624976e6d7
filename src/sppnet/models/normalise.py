"""Normalises 8-bit images: (x / 255 - mean) / std."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Map uint8 images (N, 3, H, W) to (images / 255 - mean) / std, in the dtype of the module's buffers.

    Args:
        mean: means of R, G and B.
        std: standard deviations of R, G and B.
        channels_last: whether the result is channels-last instead of contiguous.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels_last: bool) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        for name, values in (("mean", mean), ("std", std)):  # not persistent: the configuration holds the values
            values_1C11 = torch.tensor(values, dtype=torch.float32).reshape(1, 3, 1, 1)
            self.register_buffer(name, values_1C11, persistent=False)

    def forward(self, images: Tensor, offset: Tensor | None = None) -> Tensor:
        """Normalise `images`. `offset` (N, 3) is added to the RGB values in [0, 1] before the mean is subtracted."""
        images = images.contiguous(memory_format=self.layout).to(self.mean.dtype) / 255
        if offset is not None:
            images = images + offset[:, :, None, None].to(images.dtype)
        return (images - self.mean) / self.std
