"""Lists the images in class folders, which may be inside part folders (train/, val/, test/). Does not import torch."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sppnet.data.datasets.file_names import PARTS, has_image_suffix, is_ignored_folder
from sppnet.data.datasets.folder_walk import FolderWalk
from sppnet.data.datasets.listing import Listing, list_subfolders
from sppnet.errors import UserError


def list_class_folders(base: Path) -> Listing:
    """List `base`/CLASS/.../IMAGE, or `base`/PART/CLASS/.../IMAGE if `base` holds folders named like parts.

    Without a test folder, the validation folder serves as the test part.

    Raises:
        UserError: for any reason given in `list_tree`; also if two folders stand for the same part, or if there are
            other folders with images beside the parts.
    """
    subfolders = list_subfolders(base)
    folder_by_part = _match_parts(base, subfolders)
    if not folder_by_part:
        return list_tree(base, base)
    strangers = [name for name in subfolders if name not in folder_by_part.values() and _holds_images(base / name)]
    if strangers:
        raise UserError(
            f"data.root={base} holds {', '.join(f'{name}/' for name in folder_by_part.values())} beside"
            f" {', '.join(f'{name}/' for name in strangers[:5])}; it may hold parts, called train/ (or training/),"
            " val/ (or valid/, validation/) and test/ (or testing/), or one folder per class with any other name, but"
            " not both"
        )
    if "test" in folder_by_part or "val" not in folder_by_part:
        return list_parts(base, base, {"train": "train", "test": "test"} | folder_by_part)
    val = folder_by_part["val"]
    listing = list_parts(base, base, {"train": folder_by_part.get("train", "train"), "test": val})
    assert listing.parts is not None
    notice = f"data.root={base} has no test/: the {len(listing.parts['test'])} images of {val}/ are its test part"
    if "train" in folder_by_part:
        notice += f"; a share (data.split.val) of {folder_by_part['train']}/ is used for validation"
    listing.notices.insert(0, notice)
    return listing


def list_tree(base: Path, root: Path, drop: Collection[str] = ()) -> Listing:
    """List `base`/CLASS/.../IMAGE without the classes in `drop`; file names are relative to `root`.

    Raises:
        UserError: there are no images, a file is not accessible, a name is not valid UTF-8, a link would make an image
            count twice, or the class folders look like parts.
    """
    walk = FolderWalk(root)
    files_by_class = walk.list_classes(base, drop)
    walk.require_two_classes(base, files_by_class)
    listing = Listing(root, list(files_by_class))
    for label, files in enumerate(files_by_class.values()):
        for file in files:
            listing.add(file, label)
    walk.finish(listing)
    return listing


def list_parts(base: Path, root: Path, folder_by_part: Mapping[str, str]) -> Listing:
    """List `base`/FOLDER/CLASS/.../IMAGE for each FOLDER in `folder_by_part`; some of the folders may be missing.

    Raises:
        UserError: for any reason given in `list_tree`; also if all of the folders are missing.
    """
    present = {part: folder for part, folder in folder_by_part.items() if (base / folder).is_dir()}
    walk = FolderWalk(root)
    for part in ("train", "test"):
        if part not in present:
            subfolders = ", ".join(list_subfolders(base)) or "none"
            walk.refuse_training(f"data.root={base} has no folder {folder_by_part[part]}/ (found: {subfolders})")
    if not present:
        raise UserError(walk.untrainable)
    if list(present) == ["train"]:
        walk.untrainable += (
            f"; to split the training folder into parts, give data=folder data.root={base / present['train']}"
        )
    walk.enter(base)
    walk.count_packed_parts(
        base, {*PARTS.values()}.difference(PARTS.get(folder.lower(), "") for folder in present.values())
    )
    trees = {}
    for part, folder in present.items():
        trees[part] = walk.list_classes(base / folder)
        if part == "train":
            walk.require_two_classes(base / folder, trees[part])
    listing = Listing(root, sorted({name for tree in trees.values() for name in tree}), parts={})
    labels = {name: label for label, name in enumerate(listing.classes)}
    for part, tree in trees.items():
        for name, files in tree.items():
            if name not in trees.get("train", tree):
                walk.refuse_training(
                    f"data.root={root}: class {present[part]}/{name} is not one of the classes in"
                    f" {folder_by_part['train']}/"
                )
            for file in files:
                listing.add(file, labels[name], part)
    walk.finish(listing)
    return listing


def _match_parts(base: Path, folders: Sequence[str]) -> dict[str, str]:
    """The folder of each part, recognised by the part's usual names in upper or lower case."""
    folder_by_part: dict[str, str] = {}
    for folder in folders:
        part = PARTS.get(folder.lower())
        if part is None:
            continue
        first = folder_by_part.setdefault(part, folder)
        if first != folder:
            raise UserError(
                f"data.root={base} holds {first}/ and {folder}/, two folders for one part; keep only one of them"
            )
    return {part: folder_by_part[part] for part in ("train", "val", "test") if part in folder_by_part}


def _holds_images(folder: Path) -> bool:
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_ignored_folder(name)]
        if any(map(has_image_suffix, files)):
            return True
    return False
