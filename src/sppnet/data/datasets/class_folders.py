"""Lists class folders, with parts (train/, val/, test/) above them or without. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sppnet.data.datasets.file_names import PARTS, has_suffix, ignored
from sppnet.data.datasets.listing import Listing, Walk, subfolders
from sppnet.errors import UserError


def class_folders(base: Path) -> Listing:
    """List `base`/CLASS/.../IMAGE, or `base`/PART/CLASS/.../IMAGE where its folders have the names of parts.

    Without a folder for the test part, that of the validation part is it.

    Raises:
        UserError: as `one_tree`; also two folders for one part, or a folder with pictures beside the parts.
    """
    found = subfolders(base)
    parts = _parts(base, found)
    if not parts:
        return one_tree(base, base)
    others = [name for name in found if name not in parts.values() and _holds_pictures(base / name)]
    if others:
        raise UserError(
            f"data.root={base} holds {', '.join(f'{name}/' for name in parts.values())} beside"
            f" {', '.join(f'{name}/' for name in others[:5])}; allowed are train/ (or training/), val/ (valid/,"
            " validation/) and test/ (testing/) and no others with pictures, or one folder per class, none of them"
            " called so"
        )
    if "test" in parts or "val" not in parts:
        return part_trees(base, base, {"train": "train", "test": "test"} | parts)
    listing = part_trees(base, base, {"train": parts.get("train", "train"), "test": parts["val"]})
    assert listing.parts is not None
    count = len(listing.parts["test"])
    says = f"data.root={base} has no test/: the {count} images of {parts['val']}/ are its test part"
    share = f"; in training the share data.split.val of {parts.get('train')}/ validates" if "train" in parts else ""
    listing.notices.insert(0, says + share)
    return listing


def one_tree(base: Path, root: Path, drop: Collection[str] = ()) -> Listing:
    """List `base`/CLASS/.../IMAGE, without the classes in `drop`; names are relative to `root`.

    Raises:
        UserError: there is no image, a file that cannot be looked at, a name that is no UTF-8, a link that makes an
            image count twice, or the folders of classes look like parts.
    """
    walk = Walk(root)
    by_class = walk.classes(base, drop)
    walk.needs_classes(base, by_class)
    listing = Listing(root, list(by_class))
    for label, files in enumerate(by_class.values()):
        for file in files:
            listing.add(file, label)
    walk.finish(listing)
    return listing


def part_trees(base: Path, root: Path, parts: Mapping[str, str]) -> Listing:
    """List `base`/FOLDER/CLASS/.../IMAGE for each part and its folder, of which some may be missing.

    Raises:
        UserError: as `one_tree`, and if all folders are missing.
    """
    folders = {part: folder for part, folder in parts.items() if (base / folder).is_dir()}
    walk = Walk(root)
    for part in ("train", "test"):
        if part not in folders:
            there = ", ".join(subfolders(base)) or "none"
            walk.refuse_training(f"data.root={base} has no folder {parts[part]}/ (found: {there})")
    if not folders:
        raise UserError(walk.untrainable)
    if list(folders) == ["train"]:
        walk.untrainable += (
            f"; without test/ or val/ give data=folder data.root={base / folders['train']} to split that"
        )
    walk.enter(base)
    walk.packed(base, {*PARTS.values()}.difference(PARTS.get(folder.lower(), "") for folder in folders.values()))
    trees = {}
    for part, folder in folders.items():
        trees[part] = walk.classes(base / folder)
        if part == "train":
            walk.needs_classes(base / folder, trees[part])
    listing = Listing(root, sorted({name for by_class in trees.values() for name in by_class}), parts={})
    labels = {name: label for label, name in enumerate(listing.classes)}
    for part, by_class in trees.items():
        for name, files in by_class.items():
            if name not in trees.get("train", by_class):
                walk.refuse_training(
                    f"data.root={root}: class {folders[part]}/{name} is not among those of {parts['train']}/"
                )
            for file in files:
                listing.add(file, labels[name], part)
    walk.finish(listing)
    return listing


def _parts(base: Path, found: Sequence[str]) -> dict[str, str]:
    """The folder of each part that is among `found`, by the usual names in any case."""
    parts: dict[str, str] = {}
    for name in found:
        part = PARTS.get(name.lower())
        if part is not None and (other := parts.setdefault(part, name)) != name:
            raise UserError(f"data.root={base} holds {other}/ and {name}/, two folders for one part; keep one of them")
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def _holds_pictures(folder: Path) -> bool:
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not ignored(name)]
        if any(map(has_suffix, names)):
            return True
    return False
