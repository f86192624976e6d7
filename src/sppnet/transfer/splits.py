"""Random splits of a whole data set, class by class (paper, section 3.3: 30 to train and at most 50 to test on)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sppnet.data.size_schedules import rng
from sppnet.data.splits import IntArray
from sppnet.errors import UserError


class Split(NamedTuple):
    """Positions of the images in the set, sorted; no image is in both."""

    train: IntArray
    test: IntArray


def draw_splits(
    labels: Sequence[int], members: Sequence[int], classes: Sequence[str], splits: Mapping[str, int]
) -> list[Split]:
    """Seeded splits of `members`, each class drawn by itself, so that another class more leaves its draw alone.

    Args:
        labels: the class of every image of the set.
        members: positions of the images to draw from.
        classes: names of the classes.
        splits: `count` of splits, images of each class to `train` on, the most to `test` on, `seed`.

    Raises:
        UserError: a class has too few images to be tested.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(classes))}
    for index in sorted(members):
        by_class[labels[index]].append(index)
    least = splits["train"] + 1
    if few := [f"{classes[c]} ({len(found)})" for c, found in by_class.items() if len(found) < least]:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise UserError(
            f"per_class.train={splits['train']} leaves nothing to test on of the class(es) {', '.join(few[:5])}{more};"
            " their numbers of images are in brackets"
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
