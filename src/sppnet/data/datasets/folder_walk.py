"""Walks through class folders, lists their images, and finds mistakes in the folder layout. Does not import torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path

from sppnet.data.datasets.file_names import PARTS, TO_UNPACK, ImageFilter, has_image_suffix, is_ignored_folder
from sppnet.data.datasets.listing import (
    FileStat,
    Listing,
    check_link,
    check_name,
    list_subfolders,
    raise_user_error,
)
from sppnet.errors import UserError

WRAPPERS = frozenset({"image", "images", "img", "imgs"})  # names that subfolders of different classes may share


class FolderWalk:
    """Lists the images of one data set, and refuses links that would make an image count twice.

    Such an image could have two classes, or be in both the training and the test part.
    """

    def __init__(self, root: Path) -> None:
        self.root = root  # file names are relative to it
        self.entered: dict[str, Path] = {}  # real path of each folder entered -> the path through which it was entered
        self.links: list[Path] = []  # image files that are links
        self.nested: dict[str, list[str]] = {}  # subfolder in the tree listed last -> the classes that have it
        self.loose: list[str] = []  # images beside the class folders
        self.filter = ImageFilter()
        self.untrainable = ""

    def list_classes(self, base: Path, drop: Collection[str] = ()) -> dict[str, list[FileStat]]:
        """The sorted images of each class folder in `base`, without empty classes and without the classes in `drop`."""
        self.enter(base)
        self.nested.clear()
        files_by_class: dict[str, list[FileStat]] = {}
        for folder in list_subfolders(base):
            if folder in drop:
                continue
            # Archives made on a Mac store accented letters in NFD, but all copies of a data set need equal class names.
            name = unicodedata.normalize("NFC", folder)
            if name in files_by_class:
                raise UserError(
                    f"data.root={self.root}: {base} holds two folders called {name}/, in two Unicode spellings that"
                    " look alike; put the images of this class into one folder"
                )
            files_by_class[name] = sorted(self._list_images(base / folder, name))
        loose = self._find_loose(base)
        if not any(files_by_class.values()):
            beside = f"{len(loose)} image(s) are not in a class folder" if loose else ""
            problem = f"data.root={self.root}: no images in {base} (expected one folder per class, with images inside)"
            raise UserError("; ".join(filter(None, (problem, beside, self.filter.describe_skipped()))))
        self.loose += sorted(loose)
        self._refuse_parts(base, files_by_class)
        empty = [str(base / name) for name, files in files_by_class.items() if not files]
        if empty:
            problem = f"data.root={self.root}: class folder(s) without images: {', '.join(empty[:5])}"
            self.refuse_training("; ".join(filter(None, (problem, self.filter.describe_skipped()))))
        return {name: files for name, files in files_by_class.items() if files}

    def refuse_training(self, reason: str) -> None:
        """Record why the data set cannot be used for training. Only the first reason is reported."""
        self.untrainable = self.untrainable or reason

    def require_two_classes(self, base: Path, classes: Collection[str]) -> None:
        """Refuse training if `base` has only one class. `base` must be the folder that `list_classes` listed last."""
        if len(classes) >= 2:
            return
        [name] = classes
        inside = [subfolder for subfolder in self.nested if "/" not in subfolder]
        hint = f"; if {inside[0]}/ and {inside[1]}/ are classes, give data.root={base / name}" if inside[1:] else ""
        self.refuse_training(f"{base} holds only one class ({name}); at least two are needed{hint}")

    def finish(self, listing: Listing) -> None:
        """Check the links in `listing`, then add the notices to it and set its `untrainable`."""
        self._check_links(listing)
        listing.untrainable = self.untrainable
        if skipped := self.filter.describe_skipped():
            listing.notices.append(f"data.root={self.root}: {skipped}")
        if self.loose:
            listing.notices.append(
                f"data.root={self.root}: {len(self.loose)} image(s) beside the class folders have no class and are"
                f" not read (such as {self.loose[0]})"
            )

    def count_packed_parts(self, base: Path, missing: Collection[str]) -> None:
        """Count the archives in `base` as skipped files if they are named like one of the `missing` parts."""
        with os.scandir(base) as entries:
            for entry in entries:
                stem, _, suffixes = entry.name.lower().partition(".")
                if PARTS.get(stem) in missing and f".{suffixes.rpartition('.')[2]}" in TO_UNPACK:
                    self.filter.is_image(entry)

    def enter(self, folder: Path) -> None:
        """Record that `folder` is being listed. Refuse it if it was listed before, as happens in a loop of links."""
        before = self.entered.setdefault(os.path.realpath(folder), folder)
        if before is not folder:
            raise UserError(
                f"data: {folder} and {before} are the same folder, reached through a link; its images would be counted"
                " twice"
            )

    def _list_images(self, folder: Path, class_name: str, subfolder: str = "") -> list[FileStat]:
        check_name(folder)
        self.enter(folder)
        files = []
        prefix = self._name(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        if not is_ignored_folder(entry.name):
                            below = f"{subfolder}/{entry.name}".lstrip("/")
                            files += self._list_images(folder / entry.name, class_name, below)
                    elif self.filter.is_image(entry):
                        check_name(entry.path)
                        status = entry.stat()
                        times = status.st_mtime_ns, status.st_ctime_ns
                        files.append(FileStat(f"{prefix}/{entry.name}", status.st_size, *times))
                        if entry.is_symlink():
                            self.links.append(folder / entry.name)
                    else:
                        check_link(entry)
        except OSError as error:
            raise_user_error(error)
        if files and subfolder:
            self.nested.setdefault(subfolder, []).append(class_name)
        return files

    def _find_loose(self, base: Path) -> list[str]:
        """The images beside the class folders in `base`.

        Archives beside the class folders may hold further classes. They are counted as skipped files, so that a notice
        mentions them.
        """
        with os.scandir(base) as entries:
            files = [entry for entry in entries if not is_ignored_folder(entry.name) and not entry.is_dir()]
        for file in files:
            if os.path.splitext(file.name)[1].lower() in TO_UNPACK:  # noqa: PTH122
                self.filter.is_image(file)
        return [file.path for file in files if has_image_suffix(file.name)]

    def _refuse_parts(self, base: Path, classes: Mapping[str, Collection[FileStat]]) -> None:
        """Refuse parts inside a class, and parts with unknown names, which would be mistaken for classes."""
        for subfolder, holders in self.nested.items():
            if subfolder.rpartition("/")[2].lower() in PARTS:
                part = base / holders[0] / subfolder
                hint = f"; did you mean data.root={part.parent}?" if sum(map(bool, classes.values())) == 1 else ""
                raise UserError(
                    f"data.root={self.root}: {part} is named like a part, but is inside a class; parts hold classes, as"
                    f" in train/CLASS/IMAGE, and a class must not hold a folder called train, val or test{hint}"
                )
        for subfolder, holders in self._classes_by_subfolder().items():
            if len(holders) > 1 and subfolder.lower() not in WRAPPERS:
                raise UserError(
                    f"data.root={self.root}: {base} holds {holders[0]}/ and {holders[1]}/, which both hold"
                    f" {subfolder}/; if the two are parts, call them train/, val/ or test/; if they are classes, give"
                    " the folders inside them different names"
                )

    def _classes_by_subfolder(self) -> dict[str, list[str]]:
        """For each subfolder, the classes that have it.

        Unpacking an archive may put class `a` into another folder `a`, so `a/a/b` counts as subfolder `b` of class `a`.
        """
        shared: dict[str, dict[str, None]] = {}
        for subfolder in sorted(self.nested, key=lambda subfolder: subfolder.count("/")):
            for holder in self.nested[subfolder]:
                first, _, rest = subfolder.partition("/")
                name = rest if first.casefold() == holder.casefold() else subfolder
                if name:
                    shared.setdefault(name, {})[holder] = None
        return {name: list(holders) for name, holders in shared.items()}

    def _check_links(self, listing: Listing) -> None:
        """Refuse an image that is a link to the same file as another image of `listing`.

        `enter` refuses links that repeat a folder, so only links to files are left to check. Hard links and copies are
        allowed, because they count as separate files.
        """
        names = {file.name for file in listing.files} if self.links else set()
        path_by_target: dict[str, Path] = {}
        for link in self.links:
            target = os.path.realpath(link)
            folder, name = os.path.split(target)
            twin = link
            if folder in self.entered and self._name(self.entered[folder] / name) in names:
                twin = self.entered[folder] / name
            twin = path_by_target.setdefault(target, twin)
            if twin is not link:
                raise UserError(f"data: {link} is a link to the same file as {twin}; the image would be counted twice")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
