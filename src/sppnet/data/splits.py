"""The train, val and test parts of a data set: the official parts, or a seeded, stratified split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from sppnet.data.datasets.base import ImageSet, Label, groups_of
from sppnet.data.group_splits import Counts, count_classes, divide_groups
from sppnet.data.size_schedules import rng
from sppnet.errors import UserError

IntArray = npt.NDArray[np.int64]


def make_parts(images: ImageSet, val: float, test: float, seed: int, fold: int | None = None) -> dict[str, IntArray]:
    """The sorted image indices of the parts `train`, `val` and `test`.

    Official parts are used as they are; if there is no `val` part, the share `val` of the training images of each class
    becomes the validation part. A data set without official parts is split by the shares `test` and `val` of each
    class. With `val=0`, the test part is used for validation, unless there is an official `val` part. Images of one
    group (`ImageSet.groups`) are always in the same part.

    Args:
        images: the data set.
        val: share of each class to use for validation, 0 <= val < 1.
        test: share of each class to use for testing if the data set has no official parts, 0 < test < 1.
        seed: seed of the split. It is not the run's seed, so that runs are compared on the same images.
        fold: index of the cross-validation fold to test on. The `round(1 / test)` folds are disjoint and together cover
            all images. None for a single split.

    Raises:
        UserError: a class has too few images or groups, `fold` is not allowed, or the official parts lack `train` or
            `test`.
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
    groups = groups_of(images)
    if official is None:
        fold_of, shares = None if fold is None else (fold, folds), {"test": test, "val": val}
        parts = stratified_split(labels, range(len(labels)), shares, images.classes, seed, fold_of, groups)
    else:
        parts = {part: np.sort(np.asarray(official[part], dtype=np.int64)) for part in official}
        if "val" not in official:
            test_part = parts["test"]
            members = parts["train"].tolist()
            parts = stratified_split(labels, members, {"val": val}, images.classes, seed, groups=groups)
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
    groups: Sequence[int] | None = None,
) -> dict[str, IntArray]:
    """Split `members` separately for each class. A multi-label image counts only towards its rarest class.

    Each class has its own generator, so adding a class does not change the split of the other classes. With `groups`,
    classes cannot be split separately; see `_split_groups`.

    Args:
        labels: labels of all images in the data set.
        members: indices of the images to split.
        shares: share of every class for each part (at least one image unless the share is 0). The rest goes to `train`.
        classes: class names.
        seed: seed of the split.
        fold: (k, number of folds). The first part in `shares` gets fold k of every class instead of its share.
        groups: the group of each image in the data set; None if each image is a group of its own.

    Raises:
        UserError: a class has too few images or groups to leave one for `train`.
    """
    if groups is not None:
        return _split_groups(labels, groups, members, shares, classes, seed, fold)
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
            kind = f"class {name}" if stratum >= 0 else "the kind without a class"
            needs = " and ".join(f"{size} for {part}" for part, size in sizes.items())
            raise UserError(
                f"data.split: {kind} has {len(order)} image(s); using {needs} would leave none for training"
            )
        for part, size in sizes.items():
            parts[part] += order[:size]
            order = order[size:]
        parts["train"] += order
    return {part: np.sort(np.asarray(chosen, dtype=np.int64)) for part, chosen in parts.items()}


def _split_groups(
    labels: Sequence[Label],
    groups: Sequence[int],
    members: Sequence[int],
    shares: dict[str, float],
    classes: Sequence[str],
    seed: int,
    fold: tuple[int, int] | None,
) -> dict[str, IntArray]:
    """Split `members` without dividing a group. Every part gets nearly its share of the images and of every class.

    The arguments are those of `stratified_split`.

    Raises:
        UserError: there are too few groups for the parts or folds, or a class would have no training images.
    """
    units = group_members(groups, members)
    counts = [count_classes(all_labels(labels[i]) for i in unit) for unit in units]
    part_of = ["train"] * len(units)
    if fold is not None:
        tested, *others = shares
        for unit in _draw_fold(counts, *fold, seed):
            part_of[unit] = tested
        left = sum(len(unit) for unit, part in zip(units, part_of, strict=True) if part == "train")
        shares = {part: shares[part] * len(members) / max(left, 1) for part in others}
    rest = [unit for unit, part in enumerate(part_of) if part == "train"]
    drawn = [part for part, share in shares.items() if share]
    targets = [*(shares[part] for part in drawn), 1 - sum(shares.values())]
    if len(rest) < len(targets) or targets[-1] <= 0:
        raise UserError(
            f"data.split: {len(rest)} group(s) of images are too few for {', '.join((*drawn, 'train'))}, because a"
            " group is not divided"
        )
    numbers = divide_groups([counts[unit] for unit in rest], targets, rng("split", seed, "groups"), train=len(drawn))
    for unit, number in zip(rest, numbers, strict=True):
        part_of[unit] = (*drawn, "train")[number]
    _check_group_split(part_of, drawn, counts, classes)
    parts: dict[str, list[int]] = {part: [] for part in ("test", "val", "train")}
    for images, part in zip(units, part_of, strict=True):
        parts[part] += images
    return {part: np.sort(np.asarray(chosen, dtype=np.int64)) for part, chosen in parts.items()}


def _draw_fold(counts: Sequence[Counts], fold: int, folds: int, seed: int) -> list[int]:
    """The indices of the groups in a fold. All folds are drawn at once, so they are disjoint and cover all groups."""
    if len(counts) < folds:
        raise UserError(
            f"data.split: {folds} folds need at least {folds} groups of images, but there are {len(counts)}; with a"
            " higher data.split.test, there are fewer folds"
        )
    fold_of = divide_groups(counts, [1 / folds] * folds, rng("split", seed, "folds"))
    return [unit for unit, number in enumerate(fold_of) if number == fold]


def _check_group_split(
    part_of: Sequence[str], parts: Sequence[str], counts: Sequence[Counts], classes: Sequence[str]
) -> None:
    """Check that no part is empty, and that every class has training images.

    Raises:
        UserError: this is not the case.
    """
    for part in (*parts, "train"):
        if part not in part_of:
            raise UserError(
                f"data.split: {len(counts)} group(s) of images are too few to leave any for {part}, because a group is"
                " not divided"
            )
    trained = {kind for unit, part in zip(counts, part_of, strict=True) if part == "train" for kind in unit}
    for label, name in enumerate(classes):
        if label not in trained and (number := sum(label in unit for unit in counts)):
            raise UserError(
                f"data.split: class {name} has images in {number} group(s), and none of them is left for training,"
                " because a group is not divided"
            )


def group_members(groups: Sequence[int], members: Iterable[int]) -> list[list[int]]:
    """The images of each group among `members`, in the order of their first images."""
    by_group: dict[int, list[int]] = {}
    for index in sorted(members):
        by_group.setdefault(groups[index], []).append(index)
    return list(by_group.values())


def all_labels(label: Label) -> tuple[int, ...]:
    """The classes of an image as a tuple, whether the data set is multi-label or not."""
    return label if isinstance(label, tuple) else (label,)
