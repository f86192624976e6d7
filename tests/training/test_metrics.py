"""Metrics of a phase, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sppnet.training.metrics import SizeMetrics


def test_a_class_without_images_does_not_drag_the_mean_average_precision() -> None:
    metrics = SizeMetrics("test", 3, multilabel=True)
    target = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]).float()
    metrics.update(48, target * 10 - 5, target, torch.zeros(4), torch.ones(4, dtype=torch.bool))
    assert metrics.compute()["test/map"] == 1.0
    first, second, third = metrics.per_class()["48"]
    assert first == second == 1.0
    assert math.isnan(third)


def test_average_precision_is_the_mean_precision_at_the_images_of_the_class() -> None:
    metrics = SizeMetrics("test", 2, multilabel=True)
    scores = torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
    target = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]]).float()
    for half in (slice(0, 2), slice(2, 4)):
        metrics.update(48, scores[half], target[half], torch.zeros(2), torch.ones(2, dtype=torch.bool))
    assert metrics.per_class()["48"] == [pytest.approx((1 + 2 / 3) / 2), 1.0]


def test_invalid_images_do_not_count() -> None:
    metrics = SizeMetrics("val", 3, multilabel=False)
    logits, target = torch.eye(3)[[0, 1, 2]] * 9, torch.tensor([0, 1, 0])
    metrics.update(48, logits, target, torch.tensor([1.0, 2.0, 99.0]), torch.tensor([True, True, False]))
    values = metrics.compute()
    assert values["val/top1"] == values["val/48/top1"] == values["val/class_accuracy"] == 1.0
    assert values["val/loss"] == 1.5


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mean_over_many_images_is_right_whatever_type_the_network_computes_in(kind: torch.dtype) -> None:
    """In a step Lightning makes the precision's dtype the default, and bfloat16 counts to 256 only."""
    batch = (torch.zeros(7, 3), torch.zeros(7, dtype=torch.long), torch.full((7,), 1.1), torch.ones(7) > 0)
    train, test = SizeMetrics("train", 3, multilabel=False), SizeMetrics("test", 3, multilabel=False)
    torch.set_default_dtype(kind)
    try:
        for _ in range(150):
            train.update(24, *batch)
            test.update(24, *batch)
    finally:
        torch.set_default_dtype(torch.float32)
    resumed = SizeMetrics("train", 3, multilabel=False)
    resumed.load(train.state(), torch.device("cpu"), 0)
    for metrics in (train, resumed):
        metrics.update(24, *batch)
    assert train.compute() == resumed.compute()
    assert train.compute()["train/loss"] == pytest.approx(1.1, abs=1e-4)
    assert test.compute()["test/loss"] == pytest.approx(1.1, abs=1e-4)
    assert test.images() == {"24": 1050}
