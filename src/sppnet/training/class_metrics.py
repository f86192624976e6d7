"""Metrics per class that torchmetrics computes otherwise, or at a cost that grows with the square of the classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassCalibrationError, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat


class ClassCounts(Metric):
    """Counts images by class: rightly predicted as it, wrongly predicted as it, not predicted as it, of it (K, 4).

    The metrics of torchmetrics that count by class compare each image with K * K numbers if algorithms must be
    deterministic. Here, integers are added in any order.
    """

    higher_is_better, is_differentiable, full_state_update = None, False, False
    right: Tensor
    predicted: Tensor
    images: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("right", "predicted", "images"):
            self.add_state(name, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_NK: Tensor, target_N: Tensor) -> None:
        """Count the images of a batch."""
        predicted_N, one = logits_NK.argmax(1), torch.ones_like(target_N)
        self.right.scatter_add_(0, target_N, (predicted_N == target_N).long())
        self.predicted.scatter_add_(0, predicted_N, one)
        self.images.scatter_add_(0, target_N, one)

    def compute(self) -> Tensor:
        """Return the counts (K, 4)."""
        return torch.stack([self.right, self.predicted - self.right, self.images - self.right, self.images], 1)


class ConfusionMatrix(Metric):
    """Counts the images of each class (row) that are predicted as each class (column)."""

    higher_is_better, is_differentiable, full_state_update = None, False, False
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("counts", torch.zeros(classes * classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_NK: Tensor, target_N: Tensor) -> None:
        """Count the images of a batch."""
        self.counts.scatter_add_(0, target_N * self.classes + logits_NK.argmax(1), torch.ones_like(target_N))

    def compute(self) -> Tensor:
        """Return the counts (K, K)."""
        return self.counts.view(self.classes, self.classes)


class AveragePrecision(MultilabelAveragePrecision):
    """Average precision per class, with NaN for a class without images.

    torchmetrics returns 0 for such a class, which would lower the mean.
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the average precisions (K,); by now, torchmetrics has gathered `target` from all ranks."""
        value: Tensor = super().compute()
        return value.masked_fill(dim_zero_cat(self.target).sum(0) == 0, torch.nan)


class CalibrationError(MulticlassCalibrationError):
    """Expected calibration error whose last bin includes a confidence of 1, for which torchmetrics has a bin more."""

    confidences: list[Tensor]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the probabilities (N, K) and class indices (N,) of a batch."""
        super().update(preds, target)
        self.confidences[-1].clamp_(max=1 - torch.finfo(torch.float32).eps)
