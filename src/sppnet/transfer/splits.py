"""Random splits of a data set, drawn class by class (section 3.3: 30 training and at most 50 test images per class)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sppnet.data.size_schedules import rng
from sppnet.data.splits import IntArray, group_members
from sppnet.errors import UserError

ATTEMPTS = 100  # orders of the groups to try until every class has test images


class Split(NamedTuple):
    """Sorted indices of the training and the test images; no image is in both parts."""

    train: IntArray
    test: IntArray


def draw_splits(
    labels: Sequence[int],
    members: Sequence[int],
    classes: Sequence[str],
    splits: Mapping[str, int],
    groups: Sequence[int] | None = None,
) -> list[Split]:
    """Draw seeded splits of `members`.

    Each class is drawn independently, so adding a class does not change which images of the other classes are drawn.
    With `groups`, each split first chooses the groups whose images may be used for training; the images of all other
    groups may be used for testing.

    Args:
        labels: the class of each image in the data set.
        members: indices of the images to draw from.
        classes: class names.
        splits: `count`, the number of splits; `train`, the number of training images per class; `test`, the maximum
            number of test images per class; and the `seed`.
        groups: the group of each image in the data set; None if each image is a group of its own.

    Raises:
        UserError: a class has too few images or groups to leave any for testing.
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
    if groups is not None:
        return [
            _draw_groups(by_class, group_members(groups, members), classes, splits, n) for n in range(splits["count"])
        ]
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
    return _sorted(train, test)


def _draw_groups(
    by_class: Mapping[int, Sequence[int]],
    groups: Sequence[Sequence[int]],
    classes: Sequence[str],
    splits: Mapping[str, int],
    number: int,
) -> Split:
    """Draw the images of a split, from one half of the groups for training and from the other half for testing."""
    label_of = {index: label for label, members in by_class.items() for index in members}
    counts = [Counter(label_of[index] for index in group) for group in groups]
    generator = rng("transfer", splits["seed"], number, "groups")
    lacking: list[int] = []
    for _ in range(ATTEMPTS):
        chosen = _choose_groups(counts, generator.permutation(len(groups)).tolist(), splits["train"])
        trained = {index for group in chosen for index in groups[group]}
        lacking = [label for label, members in by_class.items() if trained.issuperset(members)]
        if not lacking:
            break
    else:
        raise UserError(
            f"per_class.train={splits['train']} leaves no group of images for testing for these classes:"
            f" {', '.join(classes[label] for label in lacking[:5])}"
        )
    train: list[int] = []
    test: list[int] = []
    for label, members in by_class.items():
        order = rng("transfer", splits["seed"], number, classes[label]).permutation(members).tolist()
        train += [index for index in order if index in trained][: splits["train"]]
        test += [index for index in order if index not in trained][: splits["test"]]
    return _sorted(train, test)


def _choose_groups(counts: Sequence[Counter[int]], order: Sequence[int], least: int) -> set[int]:
    """Choose groups with at least `least` images of each class, in the given order, as few as possible."""
    chosen, total = [], Counter[int]()
    for group in order:
        if any(total[label] < least for label in counts[group]):
            chosen.append(group)
            total.update(counts[group])
    kept = set(chosen)
    for group in chosen:  # groups that later ones have made unnecessary
        if all(total[label] - count >= least for label, count in counts[group].items()):
            kept.remove(group)
            total.subtract(counts[group])
    return kept


def _sorted(train: Sequence[int], test: Sequence[int]) -> Split:
    return Split(*(np.sort(np.asarray(part, dtype=np.int64)) for part in (train, test)))
