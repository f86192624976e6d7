"""Random splits of a data set, class by class (section 3.3: 30 images to train on and at most 50 to test on)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sppnet.data.size_schedules import rng
from sppnet.data.splits import IntArray
from sppnet.errors import UserError


class Split(NamedTuple):
    """Sorted indices of images; no image is in both parts."""

    train: IntArray
    test: IntArray


def draw_splits(
    labels: Sequence[int], members: Sequence[int], classes: Sequence[str], splits: Mapping[str, int]
) -> list[Split]:
    """Draw seeded splits of `members`. Each class is drawn by itself, so further classes do not change its draw.

    Args:
        labels: the class of each image of the data set.
        members: indices of the images to draw from.
        classes: class names.
        splits: `count` of splits, images of each class to `train` on, the most to `test` on, `seed`.

    Raises:
        UserError: a class has too few images to be tested.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(classes))}
    for index in sorted(members):
        by_class[labels[index]].append(index)
    least = splits["train"] + 1
    if few := [f"{classes[c]} ({len(indices)})" for c, indices in by_class.items() if len(indices) < least]:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise UserError(
            f"per_class.train={splits['train']} leaves nothing to test on in {', '.join(few[:5])}{more}; numbers of"
            " images are in brackets"
        )
    return [_draw(by_class, classes, splits, number) for number in range(splits["count"])]


def _draw(
    by_class: Mapping[int, Sequence[int]], classes: Sequence[str], splits: Mapping[str, int], number: int
) -> Split:
    train: list[int] = []
    test: list[int] = []
    for label, members in by_class.items():
        order = rng("transfer", splits["seed"], number, classes[label]).permutation(members).tolist()
        train += order[: splits["train"]]
        test += order[splits["train"] : splits["train"] + splits["test"]]
    return Split(*(np.sort(np.asarray(part, dtype=np.int64)) for part in (train, test)))
