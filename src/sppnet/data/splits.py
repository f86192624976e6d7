"""Training, validation and test parts: a set's own, or a seeded, stratified split."""

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
    """The positions of the images in `train`, `val` and `test`, each sorted.

    A set's own parts are kept. Without a part `val`, that share of the training images (of every class) is taken for
    it; `val=0` validates on the test part instead.

    Args:
        images: the set.
        val: share of each class for validation, 0 <= val < 1.
        test: share of each class for testing, used where the set has no parts of its own, 0 < test < 1.
        seed: seed of the split, apart from the run's seed so that runs are compared on the same images.
        fold: which of the `round(1 / test)` test parts that together are all images (cross-validation); None: one of
            its own.

    Raises:
        UserError: a class has too few images for a split, or there is no such fold.
    """
    folds = round(1 / test)
    if fold is not None and not 0 <= fold < folds:
        raise UserError(f"data.split.fold={fold} is not allowed; data.split.test={test} makes folds 0 to {folds - 1}")
    labels = [images.label(i) for i in range(len(images))]
    own = images.split()
    if own is not None and not {"train", "test"} <= own.keys():
        raise UserError(f"data: the set's own parts are {', '.join(own)}; it takes train and test, and perhaps val")
    if own is not None and fold is not None:
        raise UserError(f"data.split.fold={fold} is not allowed: the set has a test part of its own")
    if own is None:
        which = None if fold is None else (fold, folds)
        shares = stratified(labels, range(len(labels)), {"test": test, "val": val}, images.classes, seed, which)
    else:
        shares = {part: np.sort(np.asarray(own[part], dtype=np.int64)) for part in own}
        if "val" not in own:
            test_part = shares["test"]
            shares = stratified(labels, shares["train"].tolist(), {"val": val}, images.classes, seed)
            shares["test"] = test_part
    if not len(shares["val"]):
        shares["val"] = shares["test"]
    return {part: shares[part] for part in ("train", "val", "test")}


def stratified(
    labels: Sequence[Label],
    members: Sequence[int],
    shares: dict[str, float],
    classes: Sequence[str],
    seed: int,
    fold: tuple[int, int] | None = None,
) -> dict[str, IntArray]:
    """Split `members` by class: each of `shares` gets its share of every class (at least one), `train` the rest.

    With `fold`, (number, of how many), the first of `shares` gets that fold of every class.

    Each class is drawn by itself, so adding a class leaves the others' split alone. In a multi-label set an image goes
    by the rarest of its classes.
    """
    found: dict[int, list[int]] = {}
    counts: Counter[int] = Counter(c for i in members for c in all_labels(labels[i]))
    for i in members:
        found.setdefault(min(all_labels(labels[i]), key=lambda c: (counts[c], c), default=-1), []).append(i)
    parts: dict[str, list[int]] = {part: [] for part in (*shares, "train")}
    for stratum, images in sorted(found.items()):
        name = classes[stratum] if stratum >= 0 else "none"
        order = rng("split", seed, name).permutation(np.sort(images)).tolist()
        takes = {part: max(1, round(share * len(order))) if share else 0 for part, share in shares.items()}
        if fold is not None:
            first, end = (number * len(order) // fold[1] for number in (fold[0], fold[0] + 1))
            order = order[first:] + order[:first]
            takes[next(iter(shares))] = end - first
        if sum(takes.values()) >= len(order):
            wanted = " and ".join(f"{n} for {part}" for part, n in takes.items())
            raise UserError(
                f"data.split: class {name} has {len(order)} image(s), of which {wanted} would leave none to train on"
            )
        for part, take in takes.items():
            parts[part] += order[:take]
            order = order[take:]
        parts["train"] += order
    return {part: np.sort(np.asarray(chosen, dtype=np.int64)) for part, chosen in parts.items()}


def all_labels(label: Label) -> tuple[int, ...]:
    """The classes of an image, multi-label set or not."""
    return label if isinstance(label, tuple) else (label,)
