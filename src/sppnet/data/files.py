"""Lists the image files of a data set and finds what is wrong with its folders, before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from sppnet.data.images import Label
from sppnet.errors import UserError

SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".bw", ".cur", ".dds", ".dib", ".fits", ".gif", ".icb", ".icns", ".ico", ".im", ".j2c",
    ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcx", ".pfm",
    ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff",
    ".vda", ".vst", ".webp", ".xbm", ".xpm",
})  # fmt: skip


class File(NamedTuple):
    """A file below the set's root: its name with forward slashes, its length in bytes, its time of change in ns."""

    name: str
    bytes: int
    mtime: int


@dataclass
class Listing:
    """The images of a set. Sorted by name, so that it is the same on every file system.

    Attributes:
        root: the folder that names are relative to.
        classes: names of the classes.
        files: one per image.
        labels: one per image.
        parts: positions of the images of the set's own parts; None where it has none.
    """

    root: Path
    classes: list[str]
    files: list[File] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    parts: dict[str, list[int]] | None = None

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
    path = Path(root).expanduser()
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"data.root={root} {problem}. {hint}")
    return path


def one_tree(base: Path, root: Path, drop: Collection[str] = ()) -> Listing:
    """List `base`/CLASS/.../IMAGE, without the classes in `drop`; names are relative to `root`.

    Raises:
        UserError: there is no class, one class only, a class without images, a file that cannot be looked at, a name
            that is no UTF-8, or a link that makes an image count twice.
    """
    walk = _Walk(root)
    by_class = walk.classes(base, drop)
    _refuse_one_class(base, by_class)
    listing = Listing(root, list(by_class))
    for label, files in enumerate(by_class.values()):
        for file in files:
            listing.add(file, label)
    walk.check_links(listing)
    return listing


def part_trees(base: Path, root: Path, parts: Mapping[str, str]) -> Listing:
    """List `base`/FOLDER/CLASS/.../IMAGE for each part and its folder; the classes are those of `parts["train"]`.

    Raises:
        UserError: as `one_tree`, and if a folder is missing or holds a class that training does not know.
    """
    for folder in parts.values():
        if not (base / folder).is_dir():
            raise UserError(
                f"data.root={root}: {base} has no folder {folder}/ (found: {', '.join(subfolders(base)) or 'none'})"
            )
    walk = _Walk(root)
    walk.enter(base)
    trees = {part: walk.classes(base / folder) for part, folder in parts.items()}
    by_class = trees["train"]
    _refuse_one_class(base / parts["train"], by_class)
    listing = Listing(root, list(by_class))
    labels = {name: label for label, name in enumerate(by_class)}
    for part, folder in parts.items():
        for name, files in trees[part].items():
            if name not in labels:
                raise UserError(f"data.root={root}: class {folder}/{name} is not among those of {parts['train']}/")
            for file in files:
                listing.add(file, labels[name], part)
    walk.check_links(listing)
    return listing


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
    return File(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder` that are not hidden, sorted.

    Raises:
        UserError: `folder` cannot be listed, or one of the names is no UTF-8.
    """
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        _refuse(error)
    for path in found:
        _check_name(path)
    return sorted(path.name for path in found)


class _Walk:
    """Finds the pictures of one set, and refuses links that would make one of them count twice.

    Such a picture would end up in two classes, or in training and test alike.
    """

    def __init__(self, root: Path) -> None:
        self.root = root  # names are relative to it
        self.folders: dict[str, Path] = {}  # those entered, by the real path of each
        self.links: list[Path] = []  # pictures that are links

    def classes(self, base: Path, drop: Collection[str] = ()) -> dict[str, list[File]]:
        """The pictures of each class folder in `base`, sorted, but for the classes in `drop`."""
        self.enter(base)
        found = {name: sorted(self._pictures(base / name)) for name in subfolders(base) if name not in drop}
        if not any(found.values()):
            raise UserError(
                f"data.root={self.root}: no images in {base} (expected one folder per class, images inside)"
            )
        empty = [str(base / name) for name, files in found.items() if not files]
        if empty:
            raise UserError(f"data.root={self.root}: class folder without images: {', '.join(empty[:5])}")
        return found

    def enter(self, folder: Path) -> None:
        """Note that `folder` is being looked through; a loop of links would enter one again."""
        before = self.folders.setdefault(os.path.realpath(folder), folder)
        if before is not folder:
            raise UserError(f"data: {folder} and {before} are one folder, by a link; its images would count twice")

    def check_links(self, listing: Listing) -> None:
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

    def _pictures(self, folder: Path) -> list[File]:
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
                        found += self._pictures(folder / entry.name)
                    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122
                        _check_name(entry.path)
                        status = entry.stat()
                        found.append(File(f"{prefix}/{entry.name}", status.st_size, status.st_mtime_ns))
                        if entry.is_symlink():
                            self.links.append(folder / entry.name)
        except OSError as error:
            _refuse(error)
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _refuse_one_class(base: Path, classes: Collection[str]) -> None:
    if len(classes) < 2:
        raise UserError(f"{base} holds one class only ({', '.join(classes) or 'none'}); at least two are needed")


def _check_name(path: str | Path) -> None:
    """Refuse a name that is no UTF-8: neither a run's records nor a table of predictions could hold it."""
    try:
        os.path.basename(path).encode()  # noqa: PTH119
    except UnicodeEncodeError:
        raise UserError(f"data: the name of {os.fsencode(path)!r} is not valid UTF-8; rename it") from None


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"data: {error.filename}: {error.strerror}")
