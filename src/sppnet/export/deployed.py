"""The module that is exported: a network from 8-bit images to probabilities, or from normalised images to logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.models.normalise import Normalise


class Deployed(nn.Module):
    """A network in float32, in evaluation mode.

    Args:
        network: module that maps normalised images (N, 3, H, W) to logits (N, K).
        metadata: see `sppnet.runs.model_metadata.describe`.
        preprocess: whether it takes uint8 RGB images (N, H, W, 3) and returns probabilities (N, K); otherwise, it is
            the network.
    """

    def __init__(self, network: nn.Module, metadata: Mapping[str, Any], preprocess: bool) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self.sigmoid = metadata["activation"] == "sigmoid"
        self.normalise = Normalise(metadata["mean"], metadata["std"], channels_last=False)
        self.float().eval()

    @property
    def output(self) -> str:
        """The name of the output."""
        return "probabilities" if self.preprocess else "logits"

    def free_dimensions(self, fixed: bool) -> dict[int, str]:
        """Return the dimensions of the images that may have any length, and their names.

        Args:
            fixed: whether the height and width are fixed.
        """
        height, width = (1, 2) if self.preprocess else (2, 3)
        return {0: "batch"} if fixed else {0: "batch", height: "height", width: "width"}

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of the same images that `forward` takes."""
        if self.preprocess:
            images = self.normalise(images.permute(0, 3, 1, 2))
        logits: Tensor = self.network(images)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities, or the logits, (N, K) of `images`."""
        return self.activate(self.logits(images))

    def activate(self, logits: Tensor) -> Tensor:
        """Return the output for logits (N, K)."""
        if not self.preprocess:
            return logits
        return logits.sigmoid() if self.sigmoid else logits.softmax(1)

    def example(self, count: int, height: int, width: int, seed: int = 0) -> Tensor:
        """Return random images of the kind that `forward` takes."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
        return images if self.preprocess else self.normalise(images.permute(0, 3, 1, 2))
