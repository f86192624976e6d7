"""Which images of a set a trained network is tested on, and which of its classes they have. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sppnet.data.build import Splits, check_each_label, make_splits
from sppnet.data.datasets.base import ImageSet, Label
from sppnet.data.splits import all_labels
from sppnet.errors import UserError


class Renumbered(ImageSet):
    """`images` with the classes of a network, in its order; they are matched by name.

    Of an image with several labels those remain that the network knows; the only label of an image must be one.
    """

    def __init__(self, images: ImageSet, classes: Sequence[str]) -> None:
        self.images, self.classes, self.multilabel = images, list(classes), images.multilabel
        known = {name: number for number, name in enumerate(classes)}
        self.numbers = {label: known[name] for label, name in enumerate(images.classes) if name in known}

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> Label:
        label = self.images.label(index)
        if isinstance(label, tuple):
            return tuple(sorted(self.numbers[one] for one in label if one in self.numbers))
        return self.numbers[label]

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


def load_tested(
    cfg: Mapping[str, Any], images: ImageSet, trained: Mapping[str, Any], chosen: bool
) -> tuple[Splits, list[str]]:
    """The images to test a network on, as the test part, and what a user would not expect of them, a line each.

    On the data that were trained on, wherever they lie, it is the run's own test part; of other data it is their test
    part, or all images of a set without parts.

    Args:
        cfg: the config's `data`, plain.
        images: what `build_images(cfg)` returned.
        trained: `classes`, `multilabel`, `fingerprint` and `config` as a checkpoint holds them.
        chosen: whether the user chose the data; if not, they are meant to be those that were trained on.

    Raises:
        UserError: another split than the run's would test on images trained on, or there is nothing to test on.
    """
    classes, where = list(trained["classes"]), _where(cfg)
    if images.fingerprint() == trained["fingerprint"] and list(images.classes) == classes:
        split, notices = trained["config"]["data"]["split"], list(images.notices())
        if cfg["split"] != split:
            if not len((images.split() or {}).get("test", ())):
                raise UserError(
                    "data.split is taken from the run: another split of its data would test on images trained on"
                )
            notices.append(f"{where} has a test part of its own, on which data.split has no effect")
        return make_splits({**cfg, "split": split}, images), notices
    if images.multilabel != trained["multilabel"]:
        has, knows = ("several labels", "one") if images.multilabel else ("one label", "several")
        raise UserError(f"{where}: its images have {has} each, and the network was trained on images of {knows}")
    check_each_label(cfg, images)
    members, notices = _members(where, images, chosen)
    before = trained["config"]["data"]
    if cfg["name"] == before["name"] and cfg["split"] != before["split"]:  # else it is the default of the other set
        notices.append(
            f"warning: data.split has no effect on a test of {where}, as the network was trained on other data"
        )
    found = Renumbered(images, classes)
    members, unknown = _known(where, found, members)
    none = np.arange(0)
    return Splits(found, none, none, np.asarray(members, dtype=np.int64)), [*images.notices(), *notices, *unknown]


def _members(where: str, images: ImageSet, chosen: bool) -> tuple[list[int], list[str]]:
    """The test part of data that were not trained on, or all of it."""
    says = f"{where} is not the set that was trained on"
    own = images.split()
    if own is None and not chosen:
        raise UserError(
            f"{where} has changed since the network was trained, so that it is not known which of its images were"
            f" trained on; to test on all of them nevertheless, type {where}"
        )
    if own is None:
        members = list(range(len(images)))
        return members, [f"{says}, and has no parts: all of it is tested; make sure that none of it was trained on"]
    if not len(own.get("test", ())):
        raise UserError(f"{where} has no images in a test part (its parts: {', '.join(own)})")
    members = sorted(own["test"])
    return members, [f"{says}: its test part is tested; make sure that none of it was trained on"]


def _known(where: str, images: Renumbered, members: Sequence[int]) -> tuple[list[int], list[str]]:
    """Of `members` those of a class that the network knows, and what is to be said of the classes."""
    names, original = images.classes, images.images
    known, unknown, seen = [], Counter[str](), set[int]()
    for index in members:
        labels = all_labels(original.label(index))
        unknown.update(original.classes[label] for label in labels if label not in images.numbers)
        seen |= {images.numbers[label] for label in labels if label in images.numbers}
        if images.multilabel or labels[0] in images.numbers:
            known.append(index)
    if not seen:
        raise UserError(
            f"{where} has none of the {len(names)} classes that the network was trained on ({_few(names)}); its own are"
            f" {_few(original.classes)}"
        )
    notices = []
    if unknown:
        what = "labels" if images.multilabel else "images"
        notices.append(
            f"{where}: {unknown.total()} {what} of {len(unknown)} class(es) that the network does not know are left"
            f" out: {_few(sorted(unknown))}"
        )
    if lacking := [name for number, name in enumerate(names) if number not in seen]:
        notices.append(
            f"{where} has no images of {len(lacking)} of the network's {len(names)} classes: {_few(lacking)}"
        )
    return known, notices


def _where(cfg: Mapping[str, Any]) -> str:
    return f"data.root={cfg['root']}" if cfg.get("root") else f"data={cfg['name']}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
