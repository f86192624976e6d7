"""Who trains and who is tested, and the figures that come of it: Caltech-101's random splits, VOC 2007's own parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppnet.data import ImageSet, load_sets
from sppnet.data.build import check_labels
from sppnet.data.duplicates import duplicates
from sppnet.data.split import all_labels
from sppnet.errors import UserError, notice
from sppnet.transfer.options import Task
from sppnet.transfer.splits import Split, draw_splits
from sppnet.transfer.svm import Array, accuracies, marks, precisions
from sppnet.transfer.table import mean_and_deviation


@dataclass(frozen=True)
class Outcome:
    """What an SVM achieved.

    Attributes:
        figures: the means that are reported.
        splits: for each split, its figures, overall and per class.
        says: the protocol in words.
    """

    figures: dict[str, float]
    splits: list[dict[str, Any]]
    says: str


def check_protocol(task: Task, images: ImageSet) -> None:
    """Check that the set can be split as asked, and say which files are in it twice.

    Raises:
        UserError: labels contradict each other, a class has too few images, the set has too few for its parts,
            or an image is there twice and `data.duplicates` is `error`.
    """
    if images.multilabel:
        sets = load_sets(task.cfg["data"], images)
        lines = duplicates(task.cfg["data"], images, sets.parts())
    else:
        check_labels(task.cfg["data"], images)
        _draw(task, images, [])
        lines = duplicates(task.cfg["data"], images)
    for line in lines:
        notice(line)


def evaluate(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Fit and score the SVM on all images but those that are `bad`.

    Raises:
        UserError: a class has too few images.
    """
    return (_rank if images.multilabel else _classify)(task, images, features_ND, bad)


def _classify(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Accuracy over random splits (section 3.3)."""
    labels = np.asarray([images.label(index) for index in range(len(images))])
    found = []
    for number, split in enumerate(_draw(task, images, bad)):
        one = accuracies(features_ND, labels, split, len(images.classes), task.own["svm"]["C"])
        found.append(_by_class(one, images.classes, f"the SVM of split {number}"))
    figures: dict[str, float] = {}
    for name in ("accuracy", "overall"):
        mean, deviation = mean_and_deviation([one[name] for one in found])
        figures |= {name: mean} | ({} if deviation is None else {f"{name}_std": deviation})
    s = task.splits
    says = f"{s['train']} images of each class to train on, at most {s['test']} to test on, {s['count']} split(s)"
    return Outcome(figures, found, says)


def _rank(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Mean average precision on the set's own parts (section 3.2)."""
    classes, every = len(images.classes), range(len(images))
    sets = load_sets(task.cfg["data"], images)
    split = Split(*(np.setdiff1d(part, bad) for part in (sets.trainval(), sets.test)))
    has = marks([all_labels(images.label(index)) for index in every], classes)
    unclear = marks([images.unclear(index) for index in every], classes)
    one = precisions(features_ND, has, unclear, split, task.own["svm"]["C"])
    one = _by_class(one, images.classes, "the SVM")
    if none := [name for name, value in one["per_class"].items() if value is None]:
        if len(none) == classes:
            raise UserError(f"data={task.cfg['data']['name']}: no class has images in both parts")
        print(f"sppnet: warning: left out of the means, not in both parts: {', '.join(none)}", file=sys.stderr)
    figures = {name: one[name] for name in ("map", "map_all")}
    return Outcome(figures, [one], f"{len(split.train)} images to train on, {len(split.test)} to test on")


def _draw(task: Task, images: ImageSet, bad: Sequence[int]) -> list[Split]:
    labels = [all_labels(images.label(index))[0] for index in range(len(images))]
    members = np.setdiff1d(np.arange(len(images)), bad).tolist()
    return draw_splits(labels, members, images.classes, task.splits)


def _by_class(found: dict[str, Any], classes: Sequence[str], what: str) -> dict[str, Any]:
    """`found` with its lists over the classes as mappings of names; says so if the fit has not converged."""
    if not found["converged"]:
        print(f"sppnet: warning: {what} has not converged; with a smaller svm.C it does sooner", file=sys.stderr)
    for key in ("per_class", "per_class_all"):
        if key in found:
            found[key] = {name: None if v != v else v for name, v in zip(classes, found[key], strict=True)}
    return found
