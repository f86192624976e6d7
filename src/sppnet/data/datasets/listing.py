"""The list of a data set's files with their labels, and checks of file paths. Does not import torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from sppnet.data.datasets.base import Label
from sppnet.data.datasets.file_names import NOT_IMAGES, SUFFIXES, TO_UNPACK, is_ignored_folder
from sppnet.errors import UserError
from sppnet.storage.paths import expand_path


class FileStat(NamedTuple):
    """A file below the data set's root: its relative path with forward slashes, length in bytes, mtime and ctime in ns.

    `ctime`, the time of the last change to the inode, also reveals that a file was replaced by a different file of the
    same length and `mtime`.
    """

    name: str
    bytes: int
    mtime: int
    ctime: int


@dataclass
class Listing:
    """The image files of a data set, in an order that is the same on every file system.

    Attributes:
        root: the folder that file names are relative to.
        classes: class names.
        files: the file of each image.
        labels: the label of each image.
        parts: image indices of the official train, val and test parts; None if the data set has none.
        untrainable: see `ImageSet.untrainable`.
        notices: see `ImageSet.notices`.
        groups: see `ImageSet.groups`.
    """

    root: Path
    classes: list[str]
    files: list[FileStat] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    parts: dict[str, list[int]] | None = None
    untrainable: str = ""
    notices: list[str] = field(default_factory=list)
    groups: list[int] | None = None

    def add(self, file: FileStat, label: Label, part: str | None = None) -> None:
        if part is not None:
            self.parts = {} if self.parts is None else self.parts
            self.parts.setdefault(part, []).append(len(self.files))
        self.files.append(file)
        self.labels.append(label)


def check_root(root: str | os.PathLike[str] | None, hint: str = "") -> Path:
    """The folder that `data.root` names.

    Args:
        root: the value of `data.root`.
        hint: how to get the data; added to the error message.

    Raises:
        UserError: the key is not set, or its value is not an existing folder.
    """
    if not root:
        raise UserError(f"data.root is not set; give the folder that holds the data as data.root=FOLDER. {hint}")
    path = expand_path("data.root", root)
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"data.root={root} {problem}. {hint}")
    return path


def stat_file(path: Path, root: Path) -> FileStat:
    """Stat one file of a data set.

    Raises:
        UserError: the file does not exist or is not accessible, or its name is not valid UTF-8.
    """
    check_name(path)
    try:
        status = path.stat()
    except OSError as error:
        raise_user_error(error)
    return FileStat(path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def list_subfolders(folder: Path) -> list[str]:
    """The sorted names of the folders in `folder` that may hold data.

    Raises:
        UserError: `folder` cannot be listed, a name is not valid UTF-8, or a broken link may stand for a folder
            (for example on a drive that is not mounted).
    """
    try:
        entries = [path for path in folder.iterdir() if not is_ignored_folder(path.name)]
        folders = [path for path in entries if path.is_dir()]
        for path in entries:
            check_link(path)
    except OSError as error:
        raise_user_error(error)
    for path in folders:
        check_name(path)
    return sorted(path.name for path in folders)


def check_link(entry: Path | os.DirEntry[str]) -> None:
    """Raise OSError for a broken link, unless its suffix shows that it links to a file the caller does not need."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    if entry.is_symlink() and suffix not in NOT_IMAGES | SUFFIXES | TO_UNPACK:
        entry.stat()


def check_name(path: str | Path) -> None:
    """Raise UserError for a name that is not valid UTF-8, which run records and prediction tables cannot hold."""
    try:
        os.path.basename(path).encode()  # noqa: PTH119
    except UnicodeEncodeError:
        raise UserError(
            f"data: the name of {os.fsencode(path)!r} is not valid UTF-8; rename the file or folder"
        ) from None


def raise_user_error(error: OSError) -> NoReturn:
    """Raise a UserError for a file or folder that cannot be accessed; for a link, the message names its target."""
    link = f" (it is a link to {os.readlink(error.filename)})" if os.path.islink(error.filename) else ""  # noqa: PTH114, PTH115
    raise UserError(f"data: {error.filename}: {error.strerror}{link}")
