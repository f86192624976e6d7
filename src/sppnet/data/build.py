"""Builds the size schedule, the data set and its train, val and test parts from the config. Does not import torch.

- `build_images_from_config` builds the data set of a complete config and sets its cache folder.
- `build_images` builds the data set from the `data` part of the config.
- `load_splits` builds the data set if needed, checks its labels, and returns its `Splits`.
- `make_splits` returns the `Splits` of a data set without checking the labels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sppnet.config.instantiate import instantiate, is_own
from sppnet.config.overrides import sets_key
from sppnet.config.schema import Config, Data, Sizes
from sppnet.data.datasets.base import ImageSet, groups_of
from sppnet.data.datasets.image_files import decodes_files
from sppnet.data.datasets.trial import try_own_images
from sppnet.data.size_schedules import SizeSchedule
from sppnet.data.splits import IntArray, all_labels, make_parts
from sppnet.errors import UserError


@dataclass(frozen=True)
class Splits:
    """A data set and the image indices of its parts; `val` may equal `test`."""

    images: ImageSet
    train: IntArray
    val: IntArray
    test: IntArray

    def parts(self) -> dict[str, IntArray]:
        """The image indices of each part, keyed by the part's name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def trainval(self) -> IntArray:
        """The sorted indices of all train and val images that are not in the test part."""
        return np.setdiff1d(np.union1d(self.train, self.val), self.test)


def build_sizes(cfg: Sizes) -> SizeSchedule:
    """Build the size schedule that the config's `sizes` describes.

    Raises:
        UserError: the class or the sizes are not allowed.
    """
    try:
        return instantiate(cfg.node(), SizeSchedule, "sizes")  # type: ignore[type-abstract]
    except UserError as error:
        # size_schedules.py is self-contained, so it raises ValueError instead of UserError. Its messages start with a
        # key of `sizes`, such as `train`, so the prefix `sizes.` is added here.
        if type(error.__cause__) is ValueError:
            raise UserError(f"sizes.{error.__cause__}") from None
        raise


def build_images_from_config(cfg: Config) -> ImageSet:
    """Build the data set of a complete config, with `paths.cache` as its cache folder.

    Raises:
        UserError: see `build_images` and `try_own_images`.
    """
    images = build_images(cfg.data)
    images.keep_in(Path(cfg.paths.cache).expanduser(), cfg.progress)
    if is_own(images):
        try_own_images(images)
    return images


def build_images(cfg: Data) -> ImageSet:
    """Build the data set that the config's `data` describes. This lists its files but does not read any image.

    Each call lists the files again, since only a new listing shows whether a file has changed. To avoid a
    second listing, reuse the returned object: it caches its `fingerprint()` and can be passed to `load_splits`.

    Raises:
        UserError: the class is not allowed, or there is a problem with the files.
    """
    return instantiate(cfg.node(), ImageSet, "data")  # type: ignore[type-abstract]


def fingerprint(cfg: Data) -> str:
    """The fingerprint of the data set that `cfg` describes: 64 hexadecimal digits by default.

    The data set's class may return a different kind of string. The fingerprint does not depend on where the data are
    stored.

    Raises:
        UserError: see `build_images`.
    """
    return build_images(cfg).fingerprint()


def load_splits(cfg: Data, images: ImageSet | None = None) -> Splits:
    """Build the data set that the config's `data` describes, check all labels, and divide it into parts.

    No image is read.

    Args:
        cfg: the config's `data`.
        images: the result of `build_images(cfg)`, if available, so that the files are not listed again.

    Raises:
        UserError: see `build_images`, `check_labels` and `make_splits`.
    """
    images = build_images(cfg) if images is None else images
    check_labels(cfg, images)
    return make_splits(cfg, images)


def decoding_notices(cfg: Data, images: ImageSet) -> list[str]:
    """Say if `data.decode=scaled` has no effect on a data set of the user's own. The schema knows of the others."""
    if cfg.decode == "full" or not is_own(images) or decodes_files(images):
        return []
    return [
        f"data.decode=scaled has no effect on {type(images).__qualname__}: its read method decodes the images, in full"
    ]


def split_notices(overrides: Sequence[str], images: ImageSet) -> list[str]:
    """Say which shares of `data.split` were typed but have no effect, because the data set has such a part."""
    official = images.split() or {}
    return [
        f"data.split.{part} has no effect: the data set has its own part {part!r}"
        for part in ("test", "val")
        if part in official and sets_key(overrides, f"data.split.{part}")
    ]


def make_splits(cfg: Data, images: ImageSet) -> Splits:
    """Divide `images` into the official parts or as `cfg.split` describes, without checking the labels.

    Raises:
        UserError: see `make_parts`; or a part is empty.
    """
    split = cfg.split
    parts = make_parts(images, split.val, split.test, split.seed, split.fold)
    for part, members in parts.items():
        if not len(members):
            raise UserError(f"data={cfg.name}: the part {part!r} contains no images")
    return Splits(images, **parts)


def describe_missing_classes(sets: Splits) -> list[str]:
    """A line for each part that was drawn without images of a class, as may happen because groups are not divided."""
    images, lines = sets.images, []
    if groups_of(images) is None:
        return []

    def classes_of(members: IntArray) -> set[int]:
        return {label for index in members.tolist() for label in all_labels(images.label(index))}

    drawn = {"test": sets.test} if sets.val is sets.test else {"val": sets.val, "test": sets.test}
    for part, members in drawn.items():
        missing = classes_of(sets.train) - classes_of(members) if part not in (images.split() or {}) else set()
        if missing:
            names = ", ".join(str(images.classes[label]) for label in sorted(missing)[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            lines.append(
                f"data.split: there are too few groups of images to have all classes in {part}, which has no images of"
                f" {names}{more}"
            )
    return lines


def check_labels(cfg: Data, images: ImageSet) -> None:
    """Check that `images`, built from `cfg`, can be used for training and has valid labels and official parts.

    Raises:
        UserError: see `check_training` and `check_each_label`.
    """
    check_training(cfg, images)
    check_each_label(cfg, images)


def check_training(cfg: Data, images: ImageSet) -> None:
    """Check that `images`, built from `cfg`, has a training part and enough classes. Does not read the labels.

    Raises:
        UserError: the data set can only be used for testing, it is single-label and has fewer than two classes, or it
            is multi-label and `cfg.sampling` is `balanced`.
    """
    if problem := images.untrainable():
        raise UserError(problem)
    if len(images.classes) < 2 and not images.multilabel:
        count = f"only one class ({images.classes[0]})" if images.classes else "no classes"
        raise UserError(f"data={cfg.name} has {count}; at least two are needed")
    if images.multilabel and cfg.sampling == "balanced":
        raise UserError(
            f"data.sampling=balanced is not allowed with data={cfg.name}: its images have several labels; use"
            " data.sampling=uniform"
        )


def check_each_label(cfg: Data, images: ImageSet) -> None:
    """Check the class names, the official parts and every label of `images`, built from `cfg`.

    Raises:
        UserError: a label is not a class index, two classes have the same name, an official part contains invalid
            indices or overlaps with `train`, or a group has images in two official parts.
    """
    if repeated := [name for name, count in Counter(map(str, images.classes)).items() if count > 1]:
        raise UserError(f"data={cfg.name} has two classes called {repeated[0]}")
    _check_parts(cfg, images)
    _check_groups(cfg, images)
    count, integer_types = len(images.classes), (int, np.integer)
    for i in range(len(images)):
        label = images.label(i)
        if type(label) is int and 0 <= label < count and not images.multilabel:
            continue  # the fast path: a data set may have a million labels
        if isinstance(label, tuple) != images.multilabel:
            raise UserError(
                f"data={cfg.name}: label({i}) is {label!r}; it must be a tuple if and only if multilabel is set"
            )
        if not all(isinstance(c, integer_types) and type(c) is not bool and 0 <= c < count for c in all_labels(label)):
            raise UserError(
                f"data={cfg.name}: label({i}) is {label!r}, but class indices must be integers that are at least 0"
                f" and less than the number of classes, {count}"
            )


def _check_parts(cfg: Data, images: ImageSet) -> None:
    """Check that each official part holds distinct indices, and that no index of `train` is in another part."""
    is_trained = np.zeros(len(images), dtype=bool)
    for part, indices in sorted((images.split() or {}).items(), key=lambda item: item[0] != "train"):
        try:
            members = np.asarray(indices) if len(indices) else np.arange(0)
        except (TypeError, ValueError):  # `indices` is a generator, or contains lists of different lengths
            members = np.asarray(None)
        is_list = members.ndim == 1 and members.dtype.kind in "iu"
        if not is_list or ((members < 0) | (members >= len(images))).any() or (np.bincount(members) > 1).any():
            raise UserError(
                f"data={cfg.name}: the part {part!r} must be a list of distinct indices (integers from 0 to"
                f" {len(images) - 1})"
            )
        shared = members[is_trained[members]]
        if len(shared):
            raise UserError(
                f"data={cfg.name}: the parts 'train' and {part!r} must not overlap, but {len(shared)} image(s) are"
                f" in both (for example {images.name(int(shared[0]))})"
            )
        if part == "train":
            is_trained[members] = True


def _check_groups(cfg: Data, images: ImageSet) -> None:
    """Check that no group has images in two official parts. `val` and `test` may be the same images."""
    parts, groups = images.split() or {}, groups_of(images)
    if groups is None:
        return
    image_by_group = {part: {groups[i]: int(i) for i in members} for part, members in parts.items()}
    for first, second in itertools.combinations(image_by_group, 2):
        shared = image_by_group[first].keys() & image_by_group[second].keys()
        if shared and set(map(int, parts[first])).isdisjoint(map(int, parts[second])):
            group = min(shared)
            pair = (images.name(image_by_group[part][group]) for part in (first, second))
            raise UserError(
                f"data={cfg.name}: the parts {first!r} and {second!r} must not share a group, but {len(shared)}"
                f" group(s) are in both (for example that of {' and '.join(pair)})"
            )
