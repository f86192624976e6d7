"""Who trains and who is tested, and the figures that come of it: a set's own parts, or Caltech-101's random splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppnet.data import ImageSet, load_splits
from sppnet.data.build import check_labels
from sppnet.data.duplicates import describe_duplicates
from sppnet.data.splits import IntArray, all_labels
from sppnet.errors import UserError, notice
from sppnet.statistics import spread
from sppnet.transfer.splits import Split, draw_splits
from sppnet.transfer.svm import Array, accuracies, marks, precisions
from sppnet.transfer.task import Task

PARTS = ("train", "val", "test")


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


def check_protocol(task: Task, images: ImageSet) -> str:
    """Check that the set can be split as asked, say which files are in it twice, and return in words how it is split.

    Raises:
        UserError: labels contradict each other, a class has too few images, the set has too few for its parts,
            or an image is there twice and `data.duplicates` is `error`.
    """
    splits = _splits(task, images, [])
    drawn = task.own_parts(images) is None and not images.multilabel  # any image may come into either part
    parts = None if drawn else {"train": splits[0].train, "test": splits[0].test}
    for line in describe_duplicates(task.cfg["data"], images, parts):
        notice(line)
    return _in_words(task, images, splits)


def evaluate(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Fit and score the SVM on all images but those that are `bad`.

    Raises:
        UserError: a class has too few images.
    """
    return (_rank if images.multilabel else _classify)(task, images, features_ND, bad)


def _classify(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Accuracy on the set's own parts, or over random splits (section 3.3)."""
    labels, splits = _labels(images), _splits(task, images, bad)
    found = []
    for number, split in enumerate(splits):
        one = accuracies(features_ND, labels, split, len(images.classes), task.own["svm"]["C"])
        found.append(_by_class(one, images.classes, f"the SVM of split {number}" if len(splits) > 1 else "the SVM"))
    _say_missing(images, labels, splits)
    figures: dict[str, float] = {}
    for name in ("accuracy", "overall"):
        over_splits = spread([one[name] for one in found])
        assert over_splits is not None
        figures[name] = over_splits.mean
        if over_splits.deviation is not None:
            figures[f"{name}_std"] = over_splits.deviation
    return Outcome(figures, found, _in_words(task, images, splits))


def _rank(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Mean average precision on the set's own parts (section 3.2)."""
    classes, every = len(images.classes), range(len(images))
    splits = _splits(task, images, bad)
    has = marks([all_labels(images.label(index)) for index in every], classes)
    difficult = marks([images.difficult(index) for index in every], classes)
    one = precisions(features_ND, has, difficult, splits[0], task.own["svm"]["C"])
    one = _by_class(one, images.classes, "the SVM")
    if none := [name for name, value in one["per_class"].items() if value is None]:
        if len(none) == classes:
            raise UserError(f"data={task.cfg['data']['name']}: no class has images in both parts")
        notice(f"warning: left out of the means, not in both parts: {', '.join(none)}")
    figures = {name: one[name] for name in ("map", "map_all")}
    return Outcome(figures, [one], _in_words(task, images, splits))


def _splits(task: Task, images: ImageSet, bad: Sequence[int]) -> list[Split]:
    """Who trains and who is tested, without the images that are `bad`. What validates a training trains here.

    Raises:
        UserError: labels contradict each other, or there are too few images.
    """
    data = task.cfg["data"]
    if (own := task.own_parts(images)) is not None:
        check_labels(data, images)
        train = np.setdiff1d([*own["train"], *own.get("val", [])], own["test"])  # a set may validate on its test part
        split = Split(*(np.setdiff1d(np.asarray(part, dtype=np.int64), bad) for part in (train, own["test"])))
        if (not images.multilabel and len(set(_labels(images)[split.train].tolist())) < 2) or not len(split.test):
            raise UserError(
                f"data={data['name']}: its train part must hold images of two classes, its test part one image"
            )
        return [split]
    if images.multilabel:
        sets = load_splits(data, images)
        return [Split(*(np.setdiff1d(part, bad) for part in (sets.trainval(), sets.test)))]
    check_labels(data, images)
    members = np.setdiff1d(np.arange(len(images)), bad).tolist()
    return draw_splits(_labels(images).tolist(), members, images.classes, task.splits)


def _in_words(task: Task, images: ImageSet, splits: Sequence[Split]) -> str:
    train, test = (len(part) for part in splits[0])
    if (own := task.own_parts(images)) is not None:
        parts = "train and val" if own.get("val") else "train"
        return f"the set's own parts, {train} images to train on ({parts}), {test} to test on"
    if images.multilabel:
        return f"a split by data.split, {train} images to train on, {test} to test on"
    s, own = task.splits, images.split()
    kept = f", whose own parts ({', '.join(sorted(own, key=PARTS.index))}) do not count" if own else ""
    many = f"{s['count']} random splits" if s["count"] > 1 else "1 random split"
    return f"{many} of all images{kept}: {s['train']} of each class to train on, at most {s['test']} to test on"


def _labels(images: ImageSet) -> IntArray:
    return np.asarray([all_labels(images.label(index))[0] for index in range(len(images))], dtype=np.int64)


def _say_missing(images: ImageSet, labels: IntArray, splits: Sequence[Split]) -> None:
    """Say which classes are in one of a set's own parts alone (of a random split, every class is in both)."""
    trained, tested = (set(labels[getattr(splits[0], part)].tolist()) for part in ("train", "test"))
    untested = [name for number, name in enumerate(images.classes) if number not in tested]
    if untested:
        notice(f"warning: left out of the mean over classes, not in the test part: {', '.join(untested)}")
    if unknown := [images.classes[number] for number in sorted(tested - trained)]:
        notice(f"warning: always wrong, tested and not in the train part: {', '.join(unknown)}")


def _by_class(found: dict[str, Any], classes: Sequence[str], what: str) -> dict[str, Any]:
    """`found` with its lists over the classes as mappings of names; says so if the fit has not converged."""
    if not found["converged"]:
        notice(f"warning: {what} has not converged; with a smaller svm.C it does sooner")
    for key in ("per_class", "per_class_all"):
        if key in found:
            found[key] = {name: None if v != v else v for name, v in zip(classes, found[key], strict=True)}
    return found
