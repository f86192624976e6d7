"""Losses of a user's own, most of them with a mistake, and a multi-label data set."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sppnet.data import ImageSet


class Tempered(nn.Module):
    """The cross-entropy at a temperature that is trained."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(start))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits / self.temperature, target, reduction="none")


class Perceptron(nn.Module):
    """Has no gradient at an image that is classified correctly."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.amax(1) - logits.gather(1, target[:, None])[:, 0]


class Binary(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)


class Scalar(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.cross_entropy(logits, target)


class ScalarInTests(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.cross_entropy(logits, target, reduction="none" if self.training else "mean")


class PerClass(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(target, logits.shape[1]).float(), reduction="none")


class OfClasses(PerClass):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return super().forward(logits, target).mean(0)


class Column(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.cross_entropy(logits, target, reduction="none")[:, None]


class Counts(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return (logits.argmax(1) != target).long()


class Constant(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return (logits * 0).sum(1)


class Detached(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.cross_entropy(logits.detach(), target, reduction="none")


class Parameter(Tempered):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return self.temperature * target


class NotANumber(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return logits.sum(1) * torch.nan


class RootOfZero(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return (logits - logits).sum(1).sqrt() + F.cross_entropy(logits, target, reduction="none")


class NoisyInTests(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        losses = F.cross_entropy(logits, target, reduction="none")
        return losses if self.training else losses + torch.rand_like(losses)


class Unprepared(nn.Module):
    def __init__(self) -> None:
        self.scale = 1.0


class Raises(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        F.dropout(logits)  # draws random numbers
        raise KeyError("such a class")


class Pair(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return logits.sum(1), target


class Counting(nn.Module):
    """Counts its images, and can't do with one that is left over."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, logits: Tensor, target: Tensor) -> Any:
        if len(logits) % 2:
            raise ValueError("an odd number\nof images")
        self.seen += len(logits)
        return F.cross_entropy(logits, target, reduction="none")


class Calls(nn.Module):
    """Counts its calls in a number that no checkpoint holds."""

    calls = 0

    def forward(self, logits: Tensor, target: Tensor) -> Any:
        self.calls += self.training
        return F.cross_entropy(logits, target, reduction="none")


class Uncopied(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.cross_entropy(logits, target, reduction="none")


class SmoothsInPlace(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return F.binary_cross_entropy_with_logits(logits, target.mul_(0.9).add_(0.05), reduction="none").mean(1)


class CentresInPlace(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        with torch.no_grad():
            logits -= logits.mean(1, keepdim=True)
        return F.cross_entropy(logits, target, reduction="none")


class NoShares(nn.Module):
    def forward(self, logits: Tensor, target: Tensor) -> Any:
        return -logits.gather(1, target[:, None])[:, 0]


class Several(ImageSet):
    """Grey images with two labels each."""

    classes = ("cat", "dog", "owl")
    multilabel = True

    def __len__(self) -> int:
        return 60

    def label(self, index: int) -> tuple[int, ...]:
        return index % 3, (index + 1) % 3

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (30, 30), (4 * index, 0, 0))


class OneOfSeveral(Several):
    """A single image to validate and three to test, fewer than two processes need."""

    def split(self) -> dict[str, Any]:
        return {"train": range(4, 60), "val": [0], "test": [1, 2, 3]}


class One(OneOfSeveral):
    """The same with one label each."""

    multilabel = False

    def label(self, index: int) -> Any:
        return index % 3
