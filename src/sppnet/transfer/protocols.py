"""Split a data set into train and test images, by its own parts or at random as for Caltech-101, and score the SVM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sppnet.data import ImageSet, load_splits
from sppnet.data.build import check_labels
from sppnet.data.datasets.base import groups_of
from sppnet.data.duplicates import describe_duplicates
from sppnet.data.splits import IntArray, all_labels
from sppnet.errors import UserError, notice
from sppnet.statistics import spread
from sppnet.transfer.splits import Split, draw_splits
from sppnet.transfer.svm import Array, accuracies, one_hot, precisions
from sppnet.transfer.task import Task

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Outcome:
    """The scores of the SVM.

    Attributes:
        figures: means over the splits, and standard deviations if there are several splits.
        splits: the scores on each split, overall and per class.
        protocol: a description of the splits.
    """

    figures: dict[str, float]
    splits: list[dict[str, Any]]
    protocol: str


def check_protocol(task: Task, images: ImageSet) -> str:
    """Check that the data set can be split, warn about duplicate files, and describe the split.

    Raises:
        UserError: labels contradict each other, a class or part has too few images, or an image occurs twice and
            `data.duplicates` is `error`.
    """
    splits = _splits(task, images, [])
    random = task.own_parts(images) is None and not images.multilabel  # any image may be drawn for either part
    parts = None if random else {"train": splits[0].train, "test": splits[0].test}
    for line in describe_duplicates(task.cfg.data, images, parts):
        notice(line)
    return _describe(task, images, splits)


def evaluate(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Fit and score the SVM, leaving out the images `bad`.

    Raises:
        UserError: a class has too few images.
    """
    return (_rank if images.multilabel else _classify)(task, images, features_ND, bad)


def _classify(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Compute the accuracy, either on the data set's own test part or averaged over random splits (section 3.3)."""
    labels, splits = _labels(images), _splits(task, images, bad)
    results = []
    for number, split in enumerate(splits):
        result = accuracies(features_ND, labels, split, len(images.classes), task.cfg.svm.C)
        name = f"the SVM of split {number}" if len(splits) > 1 else "the SVM"
        results.append(_name_classes(result, images.classes, name))
    _warn_of_missing_classes(images, labels, splits)
    figures: dict[str, float] = {}
    for name in ("accuracy", "overall"):
        statistics = spread([result[name] for result in results])
        assert statistics is not None
        figures[name] = statistics.mean
        if statistics.deviation is not None:
            figures[f"{name}_std"] = statistics.deviation
    return Outcome(figures, results, _describe(task, images, splits))


def _rank(task: Task, images: ImageSet, features_ND: Array, bad: Sequence[int]) -> Outcome:
    """Train on the train part of a multi-label data set, and compute the mAP on its test part (section 3.2)."""
    classes, indices = len(images.classes), range(len(images))
    splits = _splits(task, images, bad)
    has = one_hot([all_labels(images.label(index)) for index in indices], classes)
    difficult = one_hot([images.difficult(index) for index in indices], classes)
    result = precisions(features_ND, has, difficult, splits[0], task.cfg.svm.C)
    result = _name_classes(result, images.classes, "the SVM")
    if missing := [name for name, value in result["per_class"].items() if value is None]:
        if len(missing) == classes:
            raise UserError(f"data={task.cfg.data.name}: no class is in both the train and the test part")
        notice(
            "warning: these classes are missing from the train or the test part, so the means leave them out:"
            f" {', '.join(missing)}"
        )
    figures = {name: result[name] for name in ("map", "map_all")}
    return Outcome(figures, [result], _describe(task, images, splits))


def _splits(task: Task, images: ImageSet, bad: Sequence[int]) -> list[Split]:
    """Return the train and test images of each split, without the images `bad`.

    Validation images are used for training.

    Raises:
        UserError: labels contradict each other, or there are too few images.
    """
    data = task.cfg.data.model_copy(update={"sampling": "uniform"})  # an SVM gets each image once
    if (own := task.own_parts(images)) is not None:
        check_labels(data, images)
        # the val part may be the same as the test part, whose images must not be used for training
        train = np.setdiff1d([*own["train"], *own.get("val", [])], own["test"])
        split = Split(*(np.setdiff1d(np.asarray(part, dtype=np.int64), bad) for part in (train, own["test"])))
        if (not images.multilabel and len(set(_labels(images)[split.train].tolist())) < 2) or not len(split.test):
            raise UserError(
                f"data={data.name}: the train part needs images of at least two classes, and the test part at least"
                " one image"
            )
        return [split]
    if images.multilabel:
        sets = load_splits(data, images)
        return [Split(*(np.setdiff1d(part, bad) for part in (sets.trainval(), sets.test)))]
    check_labels(data, images)
    members = np.setdiff1d(np.arange(len(images)), bad).tolist()
    return draw_splits(_labels(images).tolist(), members, images.classes, task.splits, groups_of(images))


def _describe(task: Task, images: ImageSet, splits: Sequence[Split]) -> str:
    train, test = (len(part) for part in splits[0])
    if (own := task.own_parts(images)) is not None:
        parts = "train and val" if own.get("val") else "train"
        return f"the data set's own parts, {train} images to train on ({parts}), {test} to test on"
    if images.multilabel:
        return f"a split by data.split, {train} images to train on, {test} to test on"
    s, own = task.splits, images.split()
    ignored = f", ignoring the data set's own parts ({', '.join(sorted(own, key=PARTS.index))})" if own else ""
    count = f"{s['count']} random splits" if s["count"] > 1 else "1 random split"
    whole = "" if groups_of(images) is None else ", without dividing groups"
    return (
        f"{count} of all images{ignored}{whole}: {s['train']} of each class to train on, at most {s['test']} to test on"
    )


def _labels(images: ImageSet) -> IntArray:
    return np.asarray([all_labels(images.label(index))[0] for index in range(len(images))], dtype=np.int64)


def _warn_of_missing_classes(images: ImageSet, labels: IntArray, splits: Sequence[Split]) -> None:
    """Warn about classes that are in only one of the data set's own parts; random splits have every class in both."""
    trained, tested = (set(labels[getattr(splits[0], part)].tolist()) for part in ("train", "test"))
    untested = [name for number, name in enumerate(images.classes) if number not in tested]
    if untested:
        notice(f"warning: these classes are not in the test part and are left out of the mean: {', '.join(untested)}")
    if unknown := [images.classes[number] for number in sorted(tested - trained)]:
        notice(f"warning: these classes lack training images, so they are always misclassified: {', '.join(unknown)}")


def _name_classes(result: dict[str, Any], classes: Sequence[str], svm: str) -> dict[str, Any]:
    """Replace the per-class lists in `result` by dicts from class name to value; warn if the fit has not converged."""
    if not result["converged"]:
        notice(f"warning: {svm} has not converged; a smaller svm.C converges faster")
    for key in ("per_class", "per_class_all"):
        if key in result:
            result[key] = {name: None if v != v else v for name, v in zip(classes, result[key], strict=True)}
    return result
