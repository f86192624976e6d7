"""Compares an exported file, run in its own runtime, with the network in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sppnet.errors import RunFailed
from sppnet.export.deployed import Deployed

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit of the batch
# Runs the exported file on batches of images, and returns for each batch the output and the logits, or the error.
Run = Callable[[Sequence[Tensor]], list[tuple[Tensor, Tensor] | str]]


@dataclass(frozen=True)
class Agreement:
    """How far an exported file agrees with its network on some images.

    Attributes:
        what: the images.
        shapes: number of distinct shapes of batches.
        images: number of images.
        difference: largest difference of a logit, relative to the largest logit of its batch.
        same: number of images with the same likeliest class.
    """

    what: str
    shapes: int
    images: int
    difference: float
    same: int


def compare(deployed: Deployed, run: Run, batches: Sequence[Tensor], what: str, advice: str) -> Agreement:
    """Compare an exported file with the network on batches of images, such as `deployed.example` makes.

    Args:
        deployed: the network.
        run: runs the exported file.
        batches: the images.
        what: names the images.
        advice: what to do if they differ.

    Raises:
        RunFailed: they differ by more than `TOLERANCE`, the file fails, or the network's own logits are not finite; the
            message names the shape.
    """
    differences, same = [0.0], 0
    for images, result in zip(batches, run(batches), strict=True):
        shape = "x".join(map(str, images.shape))
        with torch.inference_mode():
            logits = deployed.logits(images)
            expected = (deployed.activate(logits), logits)
        if not torch.isfinite(logits).all():
            raise RunFailed(f"the network's scores of {what} of shape {shape} are not finite; nothing is written")
        if isinstance(result, str):
            raise RunFailed(f"the exported file fails on {what} of shape {shape} ({result}); {advice}")
        difference = max(_difference(*pair) for pair in zip(result, expected, strict=True))
        if not difference <= TOLERANCE:  # also true of NaN
            raise RunFailed(
                f"the exported file differs from the network by {difference:.2g} on {what} of shape {shape}, and at"
                f" most {TOLERANCE:g} is allowed; {advice}"
            )
        differences.append(difference)
        same += int((result[1].argmax(1) == logits.argmax(1)).sum())
    shapes = len({batch.shape for batch in batches})
    return Agreement(what, shapes, sum(map(len, batches)), max(differences), same)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; NaN if the shapes differ."""
    if actual.shape != expected.shape:
        return float("nan")
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((actual - expected).abs().max() / largest)
