"""The losses against their formulas, written out number by number."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from sppnet.config.compose import compose_config
from sppnet.config.load import replace
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.models.network import SPPNet, build_network
from sppnet.training.lit_module import Classifier

SCORES = [[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [-0.25, 0.75, 4.0], [1.0, 1.0, 1.0]]
NUMBERS = [0, 2, 2, 1]  # the label of each image
SETS = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]  # its labels, in a multi-label set


@functools.cache
def network() -> tuple[Config, SPPNet]:
    cfg = compose_config(["backbone.width=2", "head.hidden=[2]", "pooling.bins=[1]"])
    return cfg, build_network(cfg.backbone, cfg.pooling, cfg.head, 3, 24)


def classifier(name: str, multilabel: bool) -> Classifier:
    cfg, net = network()
    return Classifier(net, replace(cfg, {"loss.name": name}), ["cat", "dog", "owl"], multilabel)


def losses(trained: Classifier, targets: list[Any], smoothing: float) -> list[float]:
    target = torch.tensor(targets, dtype=torch.float32 if trained.multilabel else torch.int64)
    values: list[float] = trained.losses(torch.tensor(SCORES), target, smoothing).tolist()
    return values


def softmax(scores: list[float], label: int, smoothing: float) -> float:
    """-log p of the label; smoothed, a share of it is that of all classes alike."""
    total = sum(math.exp(score) for score in scores)
    surprise = [-math.log(math.exp(score) / total) for score in scores]
    return (1 - smoothing) * surprise[label] + smoothing * sum(surprise) / len(scores)


def sigmoid(scores: list[float], labels: list[int], smoothing: float) -> float:
    """The mean over classes of a yes or no each; smoothed, yes is 1 - s / 2 and no is s / 2."""
    terms = []
    for score, label in zip(scores, labels, strict=True):
        yes, wanted = 1 / (1 + math.exp(-score)), 1 - smoothing / 2 if label else smoothing / 2
        terms.append(-wanted * math.log(yes) - (1 - wanted) * math.log(1 - yes))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ["cross_entropy", "auto"])
def test_an_image_of_one_class_loses_by_the_softmax(name: str, smoothing: float) -> None:
    expected = [softmax(scores, label, smoothing) for scores, label in zip(SCORES, NUMBERS, strict=True)]
    assert losses(classifier(name, False), NUMBERS, smoothing) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_an_image_of_one_class_may_lose_by_a_sigmoid_of_each_class(smoothing: float) -> None:
    only = [[int(label == each) for each in range(3)] for label in NUMBERS]
    expected = [sigmoid(scores, labels, smoothing) for scores, labels in zip(SCORES, only, strict=True)]
    assert losses(classifier("bce", False), NUMBERS, smoothing) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", ["bce", "auto"])
def test_an_image_of_several_classes_loses_by_a_sigmoid_of_each_class(name: str, smoothing: float) -> None:
    expected = [sigmoid(scores, labels, smoothing) for scores, labels in zip(SCORES, SETS, strict=True)]
    assert losses(classifier(name, True), SETS, smoothing) == pytest.approx(expected, rel=1e-5)


def test_a_softmax_over_several_labels_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss=cross_entropy: images of digits have several labels"):
        classifier("cross_entropy", True)
