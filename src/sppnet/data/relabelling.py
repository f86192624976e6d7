"""Selects the images to test a trained network on and maps their labels to its classes. Does not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sppnet.config.load import load
from sppnet.config.schema import Data, Split
from sppnet.data.build import Splits, check_each_label, make_splits
from sppnet.data.datasets.base import ImageSet, Label
from sppnet.data.splits import all_labels
from sppnet.errors import UserError


class RelabelledImages(ImageSet):
    """A data set whose labels are mapped, by class name, to the class indices of a network.

    In a multi-label data set, labels that the network does not know are dropped. In a single-label data set, `label`
    raises KeyError for an image whose class the network does not know.

    Attributes:
        images: the original data set.
        class_map: maps a class index of `images` to the class index of the network, for the classes that both have.
    """

    def __init__(self, images: ImageSet, classes: Sequence[str]) -> None:
        self.images, self.classes, self.multilabel = images, list(classes), images.multilabel
        indices = {name: index for index, name in enumerate(classes)}
        self.class_map = {label: indices[name] for label, name in enumerate(images.classes) if name in indices}

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> Label:
        label = self.images.label(index)
        if isinstance(label, tuple):
            return tuple(sorted(self.class_map[c] for c in label if c in self.class_map))
        return self.class_map[label]

    def read(self, index: int) -> Image.Image:
        return self.images.read(index)

    def shape(self, index: int) -> tuple[int, int]:
        return self.images.shape(index)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def fingerprint(self) -> str:
        return self.images.fingerprint()

    def state(self) -> str | None:
        return self.images.state()


def load_tested(cfg: Data, images: ImageSet, trained: Mapping[str, Any], chosen: bool) -> tuple[Splits, list[str]]:
    """Select the images to test a network on. Returns them as the test part of a `Splits`, with one-line notices.

    A network that was trained on `images` is tested on the test images of its run, even if the files have moved since.
    Any other network is tested on the test part of `images`, or on all images if the data set has no parts.

    Args:
        cfg: the config's `data`.
        images: the result of `build_images(cfg)`.
        trained: `classes`, `multilabel`, `fingerprint` and `config`, as stored in a checkpoint.
        chosen: whether the user selected the data on the command line. If not, the data are expected to be those that
            the network was trained on.

    Raises:
        UserError: `cfg` splits the training data differently from the training run, so that training images would be
            used for testing; the labels do not suit the network; or there are no images to test on.
    """
    classes, setting = list(trained["classes"]), _setting(cfg)
    trained_data = trained["config"]["data"]
    split = load(Split, trained_data["split"])
    if images.fingerprint() == trained["fingerprint"] and list(images.classes) == classes:
        notices = list(images.notices())
        if cfg.split != split:
            if not len((images.split() or {}).get("test", ())):
                raise UserError(
                    "data.split must be the same as in training: with a different split, the network would be tested on"
                    " training images"
                )
            notices.append(f"data.split has no effect on {setting}, which has its own test part")
        return make_splits(cfg.model_copy(update={"split": split}), images), notices
    if images.multilabel != trained["multilabel"]:
        own, networks = ("several labels", "one label") if images.multilabel else ("one label", "several labels")
        raise UserError(f"{setting} has {own} per image, but the network was trained with {networks} per image")
    check_each_label(cfg, images)
    members, notices = _test_members(setting, images, chosen)
    # No warning if the names differ: each data set has its own default for data.split, so a different value need not be
    # the user's choice.
    if cfg.name == trained_data["name"] and cfg.split != split:
        notices.append(
            f"warning: data.split has no effect when testing on {setting}: it splits only the data set that the"
            " network was trained on"
        )
    relabelled = RelabelledImages(images, classes)
    members, class_notices = _members_of_known_classes(setting, relabelled, members)
    none = np.arange(0)
    test = np.asarray(members, dtype=np.int64)
    return Splits(relabelled, none, none, test), [*images.notices(), *notices, *class_notices]


def _test_members(setting: str, images: ImageSet, chosen: bool) -> tuple[list[int], list[str]]:
    """Select the test images of a data set that the network was not trained on. Returns their indices and notices.

    The test images are the test part of the data set, or all images if it has no parts.
    """
    prefix = f"{setting} is not the data set that the network was trained on"
    parts = images.split()
    if parts is None and not chosen:
        raise UserError(
            f"{setting} has changed since the network was trained, so it is unknown which of its images were used for"
            f" training; to test on all of them anyway, add {setting} to the command"
        )
    if parts is None:
        members = list(range(len(images)))
        return members, [
            f"{prefix}, and it has no parts, so the test uses all images; make sure that none were used for training"
        ]
    if not len(parts.get("test", ())):
        raise UserError(f"{setting} has no test images (its parts: {', '.join(parts)})")
    members = sorted(parts["test"])
    return members, [f"{prefix}, so the test uses its test part; make sure that none of it was used for training"]


def _members_of_known_classes(
    setting: str, images: RelabelledImages, members: Sequence[int]
) -> tuple[list[int], list[str]]:
    """Drop the images whose class the network does not know. Returns the remaining indices and notices.

    The notices name classes that only the data set or only the network has. In a multi-label data set, all images
    remain, since an image without any class is a valid negative example.
    """
    names, original = images.classes, images.images
    remaining, unknown, present = [], Counter[str](), set[int]()
    for index in members:
        labels = all_labels(original.label(index))
        unknown.update(original.classes[label] for label in labels if label not in images.class_map)
        present |= {images.class_map[label] for label in labels if label in images.class_map}
        if images.multilabel or labels[0] in images.class_map:
            remaining.append(index)
    if not present:
        raise UserError(
            f"{setting} has none of the {len(names)} classes that the network was trained on ({_abridged(names)}); its"
            f" own classes are {_abridged(original.classes)}"
        )
    notices = []
    if unknown:
        noun = "label(s)" if images.multilabel else "image(s)"
        notices.append(
            f"{setting}: {unknown.total()} {noun} of {len(unknown)} class(es) that the network does not know are left"
            f" out ({_abridged(sorted(unknown))})"
        )
    if missing := [name for index, name in enumerate(names) if index not in present]:
        notices.append(
            f"{setting} has no images of {len(missing)} of the network's {len(names)} classes ({_abridged(missing)})"
        )
    return remaining, notices


def _setting(cfg: Data) -> str:
    """The command-line override that selects the data, for use in messages."""
    if cfg.file:
        return f"data.file={cfg.file}"
    return f"data.root={cfg.root}" if cfg.root else f"data={cfg.name}"


def _abridged(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
