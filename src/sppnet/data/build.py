"""From the config to data objects: what `_target_` names, and the parts of the set. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppnet.config.instantiate import instantiate
from sppnet.data.datasets.base import ImageSet
from sppnet.data.size_schedules import SizeSchedule
from sppnet.data.splits import IntArray, all_labels, make_parts
from sppnet.errors import UserError

OWN_KEYS = frozenset({
    "name", "fit", "batch_size", "workers", "split", "crop", "flip", "color", "aspect_step", "bad_files",
    "mean", "std", "short_side", "resampler", "cache", "duplicates",
})  # fmt: skip
"""Keys of `data` that are the template's; all others are arguments of the class that `_target_` names."""


@dataclass(frozen=True)
class Splits:
    """A data set and the positions of its images in each part (`val` may be the test part itself)."""

    images: ImageSet
    train: IntArray
    val: IntArray
    test: IntArray

    def parts(self) -> dict[str, IntArray]:
        """Positions by the name of the part."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def trainval(self) -> IntArray:
        """Positions of all images outside the test part, sorted."""
        return np.setdiff1d(np.union1d(self.train, self.val), self.test)


def build_sizes(cfg: Mapping[str, Any]) -> SizeSchedule:
    """The schedule that `sizes` describes.

    Raises:
        UserError: its class or its sizes are not allowed.
    """
    try:
        return instantiate(cfg, SizeSchedule, "sizes")  # type: ignore[type-abstract]
    except UserError as error:
        if type(error.__cause__) is ValueError:  # sizes.py can be copied elsewhere: it knows no UserError, but the key
            raise UserError(f"sizes.{error.__cause__}") from None
        raise


def images_of(cfg: Mapping[str, Any]) -> ImageSet:
    """The data set of a whole configuration, as `build_images`; what it works out is kept in `paths.cache`."""
    images = build_images(cfg["data"])
    images.keep_in(Path(cfg["paths"]["cache"]).expanduser(), cfg["trainer"]["progress"])
    return images


def build_images(cfg: Mapping[str, Any]) -> ImageSet:
    """The data set that `data` describes: its files are listed, no picture is read.

    Every call lists them anew, as only that shows whether one has changed; where the same set is needed twice, keep it
    (its `fingerprint()` is kept with it, and `load_splits` takes it).

    Raises:
        UserError: the class is not allowed, or something is wrong with the files.
    """
    arguments = {key: value for key, value in cfg.items() if key not in OWN_KEYS}
    return instantiate(arguments, ImageSet, "data")  # type: ignore[type-abstract]


def fingerprint(cfg: Mapping[str, Any]) -> str:
    """What `data` is, as 64 hexadecimal digits: the same for the same data at another path.

    Raises:
        UserError: as `build_images`.
    """
    return build_images(cfg).fingerprint()


def load_splits(cfg: Mapping[str, Any], images: ImageSet | None = None) -> Splits:
    """The data set with its training, validation and test parts; no picture is read.

    Args:
        cfg: the config's `data`, plain.
        images: what `build_images(cfg)` returned, to spare a second listing of the files.

    Raises:
        UserError: as `build_images`; also no `split`, one class only, a label that is no class, a part without images.
    """
    images = build_images(cfg) if images is None else images
    check_labels(cfg, images)
    return make_splits(cfg, images)


def make_splits(cfg: Mapping[str, Any], images: ImageSet) -> Splits:
    """`images` in the parts that `cfg` describes.

    Raises:
        UserError: `cfg` has no `split`, a class has too few images for it, or a part has none.
    """
    split = cfg.get("split")
    if not isinstance(split, Mapping) or not {"val", "test", "seed"} <= split.keys():
        found = f"={split} is not allowed" if "split" in cfg else " is missing"
        raise UserError(f"data.split{found}; it takes shares and a seed, such as {{val: 0.15, test: 0.15, seed: 0}}")
    parts = make_parts(images, split["val"], split["test"], split["seed"], split.get("fold"))
    for part, members in parts.items():
        if not len(members):
            raise UserError(f"data={cfg['name']}: its part {part!r} holds no images")
    return Splits(images, **parts)


def check_labels(cfg: Mapping[str, Any], images: ImageSet) -> None:
    """Check that `images`, which `cfg` describes, can be trained on, and every label is one or more of several classes.

    Raises:
        UserError: they cannot, there is one class only, or a label that is none.
    """
    check_training(cfg, images)
    check_each_label(cfg, images)


def check_training(cfg: Mapping[str, Any], images: ImageSet) -> None:
    """Check that `images`, which `cfg` describes, have parts and classes to train on; no label is asked for.

    Raises:
        UserError: they have not.
    """
    if why := images.untrainable():
        raise UserError(why)
    if len(images.classes) < 2 and not images.multilabel:
        raise UserError(f"data={cfg['name']} has one class only ({', '.join(images.classes)}); two are needed")


def check_each_label(cfg: Mapping[str, Any], images: ImageSet) -> None:
    """Check that every label of `images`, which `cfg` describes, is one or more of its classes, and its own parts.

    Raises:
        UserError: one is not, two classes have one name, or an image is trained on and in another part.
    """
    if twice := [name for name, count in Counter(map(str, images.classes)).items() if count > 1]:
        raise UserError(f"data={cfg['name']} has two classes called {twice[0]}")
    _check_parts(cfg, images)
    count, whole = len(images.classes), (int, np.integer)
    for i in range(len(images)):
        label = images.label(i)
        if type(label) is int and 0 <= label < count and not images.multilabel:
            continue  # nearly all of a million
        if isinstance(label, tuple) != images.multilabel:
            raise UserError(f"data={cfg['name']}: label({i}) is {label!r}: a tuple if and only if multilabel is set")
        if not all(isinstance(c, whole) and type(c) is not bool and 0 <= c < count for c in all_labels(label)):
            raise UserError(
                f"data={cfg['name']}: label({i}) is {label!r}, but there are {count} classes, and labels are whole"
                " numbers from 0 on"
            )


def _check_parts(cfg: Mapping[str, Any], images: ImageSet) -> None:
    """Check that a set's own parts are of different images, and what is trained on is in no other."""
    trained = np.zeros(len(images), dtype=bool)
    for part, given in sorted((images.split() or {}).items(), key=lambda item: item[0] != "train"):
        try:
            members = np.asarray(given) if len(given) else np.arange(0)
        except (TypeError, ValueError):  # a generator; lists of several lengths
            members = np.asarray(None)
        whole = members.ndim == 1 and members.dtype.kind in "iu"
        if not whole or ((members < 0) | (members >= len(images))).any() or (np.bincount(members) > 1).any():
            raise UserError(
                f"data={cfg['name']}: its part {part!r} must be different positions, whole numbers from 0 to"
                f" {len(images) - 1}"
            )
        shared = members[trained[members]]
        if len(shared):
            raise UserError(
                f"data={cfg['name']}: {len(shared)} images are in its parts 'train' and {part!r} alike (such as"
                f" {images.name(int(shared[0]))})"
            )
        if part == "train":
            trained[members] = True
