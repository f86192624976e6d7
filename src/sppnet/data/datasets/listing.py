"""Walks through the image files of a data set and finds what is wrong with its folders, before torch is imported."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from sppnet.data.datasets.base import Label
from sppnet.data.datasets.file_names import NO_PICTURES, PARTS, SUFFIXES, TO_UNPACK, NotRead, has_suffix, ignored
from sppnet.errors import UserError

WRAPPERS = frozenset({"image", "images", "img", "imgs"})  # folders that every class may have, its pictures inside


class File(NamedTuple):
    """A file below the set's root: its name with forward slashes, its length in bytes, its times of change in ns.

    `ctime` is that of its inode: it also shows that a file was replaced by another of the same length and `mtime`.
    """

    name: str
    bytes: int
    mtime: int
    ctime: int


@dataclass
class Listing:
    """The images of a set. Sorted by name, so that it is the same on every file system.

    Attributes:
        root: the folder that names are relative to.
        classes: names of the classes.
        files: one per image.
        labels: one per image.
        parts: positions of the images of the set's own parts; None where it has none.
        untrainable: why no network can be trained on it, though one can be tested on it; empty if one can.
        notices: what a user would not expect of it, a line each.
    """

    root: Path
    classes: list[str]
    files: list[File] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    parts: dict[str, list[int]] | None = None
    untrainable: str = ""
    notices: list[str] = field(default_factory=list)

    def add(self, file: File, label: Label, part: str | None = None) -> None:
        """Append an image, to the set's own `part` if it has parts."""
        if part is not None:
            self.parts = {} if self.parts is None else self.parts
            self.parts.setdefault(part, []).append(len(self.files))
        self.files.append(file)
        self.labels.append(label)


def checked_root(root: str | os.PathLike[str] | None, hint: str = "") -> Path:
    """The folder `data.root`, which must exist.

    Args:
        root: the value of the key.
        hint: how to get the data, for the message.

    Raises:
        UserError: it is not set, not there or no folder.
    """
    if not root:
        raise UserError(f"data.root is not set: give the folder that holds the data, data.root=FOLDER. {hint}")
    path = given_path("data.root", root)
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"data.root={root} {problem}. {hint}")
    return path


def given_path(key: str, given: str | os.PathLike[str]) -> Path:
    """The path that `key` gives, whether or not something is there.

    Raises:
        UserError: that cannot be found out.
    """
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # forbidden, a name too long, or no home of that name
        raise UserError(f"{key}={given}: {error.strerror if isinstance(error, OSError) else error}") from None
    return path


def look_at(path: Path, root: Path) -> File:
    """The entry of one file.

    Raises:
        UserError: it is not there, cannot be looked at, or its name is no UTF-8.
    """
    _check_name(path)
    try:
        status = path.stat()
    except OSError as error:
        _refuse(error)
    return File(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder` that may hold data, sorted.

    Raises:
        UserError: `folder` cannot be listed, one of the names is no UTF-8, or a link leads nowhere that by its name
            may be a folder, of a drive that is not there at the moment.
    """
    try:
        entries = [path for path in folder.iterdir() if not ignored(path.name)]
        found = [path for path in entries if path.is_dir()]
        for path in entries:
            _check_link(path)
    except OSError as error:
        _refuse(error)
    for path in found:
        _check_name(path)
    return sorted(path.name for path in found)


class Walk:
    """Finds the pictures of one set, and refuses links that would make one of them count twice.

    Such a picture would end up in two classes, or in training and test alike.
    """

    def __init__(self, root: Path) -> None:
        self.root = root  # names are relative to it
        self.folders: dict[str, Path] = {}  # those entered, by the real path of each
        self.links: list[Path] = []  # pictures that are links
        self.nested: dict[str, list[str]] = {}  # folders below the classes of a tree -> the classes that have them
        self.loose: list[str] = []  # pictures beside class folders
        self.not_read = NotRead()
        self.untrainable = ""

    def classes(self, base: Path, drop: Collection[str] = ()) -> dict[str, list[File]]:
        """The pictures of each class folder in `base`, sorted, but for the classes in `drop` and those without any."""
        self.enter(base)
        self.nested.clear()
        names = [name for name in subfolders(base) if name not in drop]
        found: dict[str, list[File]] = {}
        for folder in names:
            name = unicodedata.normalize("NFC", folder)  # archives made on a Mac spell accents another way
            if name in found:
                raise UserError(
                    f"data.root={self.root}: {base} holds two folders called {name}/, in two spellings of Unicode that"
                    " look alike; they are one class, put their images into one folder"
                )
            found[name] = sorted(self._pictures(base / folder, name))
        loose = self._beside(base)
        if not any(found.values()):
            beside = f"{len(loose)} picture(s) lie in no class folder" if loose else ""
            problem = f"data.root={self.root}: no images in {base} (expected one folder per class, images inside)"
            raise UserError("; ".join(filter(None, (problem, beside, self.not_read.text()))))
        self.loose += sorted(loose)
        self._refuse_parts(base, found)
        empty = [str(base / name) for name, files in found.items() if not files]
        if empty:
            problem = f"data.root={self.root}: class folder without images: {', '.join(empty[:5])}"
            self.refuse_training("; ".join(filter(None, (problem, self.not_read.text()))))
        return {name: files for name, files in found.items() if files}

    def refuse_training(self, why: str) -> None:
        """Note why no network can be trained on the set; the first reason is the one that is told."""
        self.untrainable = self.untrainable or why

    def needs_classes(self, base: Path, classes: Collection[str]) -> None:
        """Refuse training if there is one class only in `base`, the tree that was walked through last."""
        if len(classes) >= 2:
            return
        [name] = classes
        inside = [below for below in self.nested if "/" not in below]
        hint = f"; if {inside[0]}/ and {inside[1]}/ are classes, give data.root={base / name}" if inside[1:] else ""
        self.refuse_training(f"{base} holds one class only ({name}); at least two are needed{hint}")

    def finish(self, listing: Listing) -> None:
        """Check the links of the `listing`, and hand it what was noted."""
        self._check_links(listing)
        listing.untrainable = self.untrainable
        if text := self.not_read.text():
            listing.notices.append(f"data.root={self.root}: {text}")
        if self.loose:
            listing.notices.append(
                f"data.root={self.root}: {len(self.loose)} picture(s) beside the class folders are in no class and are"
                f" not read (such as {self.loose[0]})"
            )

    def _beside(self, base: Path) -> list[str]:
        """The pictures beside the class folders in `base`; archives, each a class perhaps, are counted as not read."""
        with os.scandir(base) as entries:
            files = [entry for entry in entries if not ignored(entry.name) and not entry.is_dir()]
        for file in files:
            if os.path.splitext(file.name)[1].lower() in TO_UNPACK:  # noqa: PTH122
                self.not_read.is_picture(file)
        return [file.path for file in files if has_suffix(file.name)]

    def packed(self, base: Path, missing: Collection[str]) -> None:
        """Count as not read the archives in `base` that are called like a part, if that is among the `missing`."""
        with os.scandir(base) as entries:
            for entry in entries:
                stem, _, suffixes = entry.name.lower().partition(".")
                if PARTS.get(stem) in missing and f".{suffixes.rpartition('.')[2]}" in TO_UNPACK:
                    self.not_read.is_picture(entry)

    def _refuse_parts(self, base: Path, classes: Mapping[str, Collection[File]]) -> None:
        """Refuse classes that hold parts, and parts of unknown names that would pass for classes."""
        for below, holders in self.nested.items():
            if below.rpartition("/")[2].lower() in PARTS:
                part = base / holders[0] / below
                hint = f"; data.root={part.parent} may be meant" if sum(map(bool, classes.values())) == 1 else ""
                raise UserError(
                    f"data.root={self.root}: {part} is a part inside a class; parts hold classes, as in"
                    f" train/CLASS/IMAGE, and classes hold no folder called train, val or test{hint}"
                )
        for below, holders in self._holders().items():
            if len(holders) > 1 and below.lower() not in WRAPPERS:
                raise UserError(
                    f"data.root={self.root}: {base} holds {holders[0]}/ and {holders[1]}/, which both hold {below}/; if"
                    " they are parts, call them train/, val/ or test/, and if they are classes, give the folders inside"
                    " them different names"
                )

    def _holders(self) -> dict[str, list[str]]:
        """The classes that have each folder below them; `a/a/b`, as unpacking leaves it, is `b` of class `a`."""
        shared: dict[str, dict[str, None]] = {}
        for below in sorted(self.nested, key=lambda below: below.count("/")):
            for holder in self.nested[below]:
                first, _, rest = below.partition("/")
                name = rest if first.casefold() == holder.casefold() else below
                if name:
                    shared.setdefault(name, {})[holder] = None
        return {name: list(holders) for name, holders in shared.items()}

    def enter(self, folder: Path) -> None:
        """Note that `folder` is being looked through; a loop of links would enter one again."""
        before = self.folders.setdefault(os.path.realpath(folder), folder)
        if before is not folder:
            raise UserError(f"data: {folder} and {before} are one folder, by a link; its images would count twice")

    def _check_links(self, listing: Listing) -> None:
        """Refuse pictures that are links to others of the `listing`; as no folder was entered twice, no others can be.

        Hard links and copies are let be: they are files of their own.
        """
        names = {file.name for file in listing.files} if self.links else set()
        targets: dict[str, Path] = {}
        for link in self.links:
            target = os.path.realpath(link)
            folder, name = os.path.split(target)
            twin = link
            if folder in self.folders and self._name(self.folders[folder] / name) in names:
                twin = self.folders[folder] / name
            twin = targets.setdefault(target, twin)
            if twin is not link:
                raise UserError(f"data: {link} and {twin} are one file, by a link; it would count twice")

    def _pictures(self, folder: Path, in_class: str, below: str = "") -> list[File]:
        _check_name(folder)
        self.enter(folder)
        found = []
        prefix = self._name(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        if not ignored(entry.name):
                            found += self._pictures(folder / entry.name, in_class, f"{below}/{entry.name}".lstrip("/"))
                    elif self.not_read.is_picture(entry):
                        _check_name(entry.path)
                        status = entry.stat()
                        times = status.st_mtime_ns, status.st_ctime_ns
                        found.append(File(f"{prefix}/{entry.name}", status.st_size, *times))
                        if entry.is_symlink():
                            self.links.append(folder / entry.name)
                    else:
                        _check_link(entry)
        except OSError as error:
            _refuse(error)
        if found and below:
            self.nested.setdefault(below, []).append(in_class)
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _check_link(entry: Path | os.DirEntry[str]) -> None:
    """Raise OSError for a link that leads nowhere, unless its name is a file's that is not read for data here."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    if entry.is_symlink() and suffix not in NO_PICTURES | SUFFIXES | TO_UNPACK:
        entry.stat()


def _check_name(path: str | Path) -> None:
    """Refuse a name that is no UTF-8: neither a run's records nor a table of predictions could hold it."""
    try:
        os.path.basename(path).encode()  # noqa: PTH119
    except UnicodeEncodeError:
        raise UserError(f"data: the name of {os.fsencode(path)!r} is not valid UTF-8; rename it") from None


def _refuse(error: OSError) -> NoReturn:
    link = f" (it is a link to {os.readlink(error.filename)})" if os.path.islink(error.filename) else ""  # noqa: PTH114, PTH115
    raise UserError(f"data: {error.filename}: {error.strerror}{link}")
