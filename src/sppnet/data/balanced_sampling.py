"""Balanced sampling (`data.sampling=balanced`): an epoch in which all classes have the same number of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sppnet.data.splits import IntArray


def group_by_class(members: IntArray, labels: IntArray) -> list[IntArray]:
    """Divide image indices into one array per class that has any; `labels` holds the class of each of `members`."""
    order = np.argsort(labels, kind="stable")
    return np.split(members[order], np.flatnonzero(np.diff(labels[order])) + 1)


def balanced_draws(classes: Sequence[IntArray], total: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `total` images, class by class.

    The numbers of draws of two classes differ by at most one, and so do those of two images of a class. The generator
    chooses which of them get one more.

    Args:
        classes: the image indices of each class, at least one.
        total: number of images to draw.
        generator: random generator that draws.

    Returns:
        An array (total, 2) of image indices and of how often each image was drawn before.
    """
    counts = np.full(len(classes), total // len(classes))
    counts[generator.permutation(len(classes))[: total % len(classes)]] += 1
    indices = [np.resize(generator.permutation(members), n) for members, n in zip(classes, counts, strict=True)]
    draws = [np.arange(n) // len(members) for members, n in zip(classes, counts, strict=True)]
    return np.stack([np.concatenate(indices), np.concatenate(draws)], axis=1)
