"""Random splits of a data set, drawn class by class (section 3.3: 30 training and at most 50 test images per class)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sppnet.data.size_schedules import rng
from sppnet.data.splits import IntArray
from sppnet.errors import UserError


class Split(NamedTuple):
    """Sorted indices of the training and the test images; no image is in both parts."""

    train: IntArray
    test: IntArray


def draw_splits(
    labels: Sequence[int], members: Sequence[int], classes: Sequence[str], splits: Mapping[str, int]
) -> list[Split]:
    """Draw seeded splits of `members`.

    Each class is drawn independently, so adding a class does not change which images of the other classes are drawn.

    Args:
        labels: the class of each image in the data set.
        members: indices of the images to draw from.
        classes: class names.
        splits: `count`, the number of splits; `train`, the number of training images per class; `test`, the maximum
            number of test images per class; and the `seed`.

    Raises:
        UserError: a class has too few images to leave any for testing.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(classes))}
    for index in sorted(members):
        by_class[labels[index]].append(index)
    least = splits["train"] + 1
    if few := [f"{classes[c]} ({len(indices)})" for c, indices in by_class.items() if len(indices) < least]:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise UserError(
            f"per_class.train={splits['train']} leaves no test images for these classes, listed with their numbers of"
            f" images: {', '.join(few[:5])}{more}"
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
