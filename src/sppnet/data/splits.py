"""The train, val and test parts of a data set: the official parts, or a seeded, stratified split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sppnet.data.datasets.base import ImageSet, Label
from sppnet.data.size_schedules import rng
from sppnet.errors import UserError

IntArray = npt.NDArray[np.int64]


def make_parts(images: ImageSet, val: float, test: float, seed: int, fold: int | None = None) -> dict[str, IntArray]:
    """The sorted image indices of the parts `train`, `val` and `test`.

    Official parts are used as they are; if there is no `val` part, the share `val` of the training images of each class
    becomes the validation part. A data set without official parts is split by the shares `test` and `val` of each
    class. With `val=0`, the test part is used for validation, unless there is an official `val` part.

    Args:
        images: the data set.
        val: share of each class to use for validation, 0 <= val < 1.
        test: share of each class to use for testing if the data set has no official parts, 0 < test < 1.
        seed: seed of the split. It is not the run's seed, so that runs are compared on the same images.
        fold: index of the cross-validation fold to test on. The `round(1 / test)` folds are disjoint and together cover
            all images. None for a single split.

    Raises:
        UserError: a class has too few images, `fold` is not allowed, or the official parts lack `train` or `test`.
    """
    folds = round(1 / test)
    if fold is not None and not 0 <= fold < folds:
        raise UserError(f"data.split.fold={fold} is not allowed; data.split.test={test} gives folds 0 to {folds - 1}")
    labels = [images.label(i) for i in range(len(images))]
    official = images.split()
    if official is not None and not {"train", "test"} <= official.keys():
        raise UserError(
            f"data: the data set must have the parts train and test (val is optional), but has {', '.join(official)}"
        )
    if official is not None and fold is not None:
        raise UserError(f"data.split.fold={fold} is not allowed: the data set has its own test part")
    if official is None:
        fold_of = None if fold is None else (fold, folds)
        parts = stratified_split(labels, range(len(labels)), {"test": test, "val": val}, images.classes, seed, fold_of)
    else:
        parts = {part: np.sort(np.asarray(official[part], dtype=np.int64)) for part in official}
        if "val" not in official:
            test_part = parts["test"]
            parts = stratified_split(labels, parts["train"].tolist(), {"val": val}, images.classes, seed)
            parts["test"] = test_part
    if not len(parts["val"]):
        parts["val"] = parts["test"]
    return {part: parts[part] for part in ("train", "val", "test")}


def stratified_split(
    labels: Sequence[Label],
    members: Sequence[int],
    shares: dict[str, float],
    classes: Sequence[str],
    seed: int,
    fold: tuple[int, int] | None = None,
) -> dict[str, IntArray]:
    """Split `members` separately for each class. A multi-label image counts only towards its rarest class.

    Each class has its own generator, so adding a class does not change the split of the other classes.

    Args:
        labels: labels of all images in the data set.
        members: indices of the images to split.
        shares: share of every class for each part (at least one image unless the share is 0). The rest goes to `train`.
        classes: class names.
        seed: seed of the split.
        fold: (k, number of folds). The first part in `shares` gets fold k of every class instead of its share.

    Raises:
        UserError: a class has too few images to leave one for `train`.
    """
    strata: dict[int, list[int]] = {}
    counts: Counter[int] = Counter(c for i in members for c in all_labels(labels[i]))
    for i in members:
        strata.setdefault(min(all_labels(labels[i]), key=lambda c: (counts[c], c), default=-1), []).append(i)
    parts: dict[str, list[int]] = {part: [] for part in (*shares, "train")}
    for stratum, images in sorted(strata.items()):
        name = classes[stratum] if stratum >= 0 else "none"
        order = rng("split", seed, name).permutation(np.sort(images)).tolist()
        sizes = {part: max(1, round(share * len(order))) if share else 0 for part, share in shares.items()}
        if fold is not None:
            first, end = (k * len(order) // fold[1] for k in (fold[0], fold[0] + 1))
            order = order[first:] + order[:first]
            sizes[next(iter(shares))] = end - first
        if sum(sizes.values()) >= len(order):
            needs = " and ".join(f"{size} for {part}" for part, size in sizes.items())
            raise UserError(
                f"data.split: class {name} has {len(order)} image(s); using {needs} would leave none for training"
            )
        for part, size in sizes.items():
            parts[part] += order[:size]
            order = order[size:]
        parts["train"] += order
    return {part: np.sort(np.asarray(chosen, dtype=np.int64)) for part, chosen in parts.items()}


def all_labels(label: Label) -> tuple[int, ...]:
    """The classes of an image as a tuple, whether the data set is multi-label or not."""
    return label if isinstance(label, tuple) else (label,)
