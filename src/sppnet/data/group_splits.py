"""Divides groups of images, such as all photographs of a patient, into parts that have given shares of every class.

scikit-learn's `StratifiedGroupKFold` makes folds of equal size only, so it cannot set aside a share of 15 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

ALL, NONE = -2, -1  # keys of `Counts` beside the class indices: all images, and those without a class
Counts = Mapping[int, int]  # for each class index, `NONE` and `ALL`: the number of images in a group
# With these costs, parts miss their share of the images by less than half a group, or exceed it where a class would be
# lacking.
SIZE_WEIGHT = 30  # how much the number of images in a part counts, compared with the number of each class
LACKING = 30  # the cost of a class without images in a part; it has no score there
MISSING = 1e9  # the cost of an empty part, or of a class without training images
SMALL = 1000  # groups that are few
FEW, MANY = (10, 5), (1, 2)  # attempts, of which the best counts, and passes, in which each group may move


def count_classes(labels: Iterable[tuple[int, ...]]) -> Counts:
    """Count the classes in a group; `labels` has the class indices of each image."""
    counts: Counter[int] = Counter()
    for label in labels:
        counts.update((ALL, *(label or (NONE,))))
    return counts


def divide_groups(
    groups: Sequence[Counts], shares: Sequence[float], generator: np.random.Generator, train: int | None = None
) -> list[int]:
    """Assign each group to one of the parts, whose shares of the images and of every class are nearly `shares`.

    The cost of a division is the chi-square distance between the numbers of images in the parts and their shares. Each
    group goes to the part where it costs least, the larger groups first. Then groups move while that lowers the cost.
    Only then is an empty part costly; otherwise, the largest groups would fill the smallest parts and never leave.

    Args:
        groups: the number of images of each class in each group.
        shares: the share of each part, greater than 0; they sum to 1.
        generator: random generator that orders the groups.
        train: index of the part that should have images of every class. If it is None, no part should have all images
            of a class.

    Returns:
        The index of each group's part. A part may be empty, or a class lack training images, if there are few groups.
    """
    division = _Division(groups, shares, train)
    attempts, passes = FEW if len(groups) <= SMALL else MANY
    made = [division.attempt(generator, passes, small_first=number % 2 == 0) for number in range(attempts)]
    return min(made, key=lambda attempt: attempt[0])[1]


class _Division:
    def __init__(self, groups: Sequence[Counts], shares: Sequence[float], train: int | None) -> None:
        self.groups, self.train = groups, train
        self.totals: Counter[int] = Counter()
        for counts in groups:
            self.totals.update(counts)
        self.expected = [{kind: share * total for kind, total in self.totals.items()} for share in shares]
        self.weights = [
            {kind: (SIZE_WEIGHT if kind == ALL else 1) / number for kind, number in expected.items()}
            for expected in self.expected
        ]

    def attempt(self, generator: np.random.Generator, passes: int, small_first: bool) -> tuple[float, list[int]]:
        """Return the cost of a division (up to a constant), and the part of each group.

        `small_first` says in which order the groups move after the first pass. If large groups move first, one of them
        fills a part that is still empty; if small ones do, they leave no class for training in some small tables.
        """
        # The generator orders groups of about the same size. A full order by size would leave nothing to chance.
        order = generator.permutation(len(self.groups)).tolist()
        order.sort(key=lambda group: -self.groups[group][ALL].bit_length())
        parts = range(len(self.expected))
        counts: list[Counter[int]] = [Counter() for _ in parts]
        part_of = [-1] * len(self.groups)
        for number in range(passes):
            moved = False
            for group in order[::-1] if number and small_first else order:
                old = part_of[group]
                if old >= 0:
                    counts[old].subtract(self.groups[group])
                costs = [self._increase(counts[part], self.groups[group], part, number > 0) for part in parts]
                new = old if old >= 0 and costs[old] == min(costs) else costs.index(min(costs))
                counts[new].update(self.groups[group])
                part_of[group] = new
                moved |= new != old
            if not moved:
                break
        return sum(self._increase(Counter(), counts[part], part) for part in parts), part_of

    def _increase(self, counts: Counts, group: Counts, part: int, fill: bool = True) -> float:
        """The increase of the cost if `group` joins `part`, which has `counts`; with `fill`, it should not be empty."""
        increase = 0.0
        for kind, number in group.items():
            before = counts[kind]
            increase += number * (2 * (before - self.expected[part][kind]) + number) * self.weights[part][kind]
            if before == 0 < number and (fill or kind != ALL):
                increase -= MISSING if kind == ALL or part == self.train else LACKING
            if before + number == self.totals[kind] and part != self.train:
                increase += MISSING
        return increase
