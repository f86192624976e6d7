"""Pictures without labels, as somebody points to them: one file, or a folder with folders in it. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.file_names import NotRead, ignored
from sppnet.data.datasets.listing import given_path
from sppnet.data.decode import DataError, decode, shape
from sppnet.errors import UserError


@dataclass(frozen=True)
class Found:
    """The pictures that `input` means.

    Attributes:
        root: the folder that names are relative to.
        names: with forward slashes, sorted.
        folder: whether `input` is a folder.
        not_read: what is to be said of files that are not read; empty if there are none.
    """

    root: Path
    names: list[str]
    folder: bool
    not_read: str = ""


def find_images(given: str) -> Found:
    """List what `input=given` means: a file whatever its name, or all pictures below a folder.

    What is a picture is decided as in a data set (`file_names`). A folder that links make reachable twice is
    entered once.

    Raises:
        UserError: nothing is there or may be looked at, no picture is in the folder, or one of its folders cannot be
            listed.
    """
    path = given_path("input", given)
    if path.is_dir():
        not_read = NotRead()
        names = sorted(_below(path, "", {os.path.realpath(path)}, not_read))
        text = not_read.text()
        if not names:
            problem = f"input={given}: no picture is in this folder (files ending in .jpg, .png and the like)"
            raise UserError("; ".join(filter(None, (problem, text))))
        return Found(path, names, True, f"input={given}: {text}" if text else "")
    if not path.exists():
        raise UserError(f"input={given}: no such file or directory")
    return Found(path.parent, [path.name], False)


def _below(folder: Path, prefix: str, entered: set[str], not_read: NotRead) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"input: {error.filename}: {error.strerror}") from None
    for entry in entries:
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real not in entered and not ignored(entry.name):
                entered.add(real)
                yield from _below(folder / entry.name, f"{prefix}{entry.name}/", entered, not_read)
        elif not_read.is_picture(entry):
            yield prefix + entry.name


class UnlabelledImages(ImageSet):
    """The pictures in `found` for a network that knows `classes`; they stand in for the set it was trained on.

    Args:
        found: what to read.
        classes: of the network.
        multilabel: whether the network was trained on images of several labels.
        fingerprint: of the set that the network was trained on.
    """

    def __init__(self, found: Found, classes: Sequence[str], multilabel: bool, fingerprint: str) -> None:
        self.found, self.classes, self.multilabel = found, list(classes), multilabel
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.found.names)

    def label(self, index: int) -> int | tuple[int, ...]:
        """None is known: the first class, or in a multi-label set none."""
        return () if self.multilabel else 0

    def name(self, index: int) -> str:
        """Where the file is, as a path that can be opened from here."""
        return str(self.found.root / self.found.names[index])

    def read(self, index: int) -> Image.Image:
        return decode(self._path(index))

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels, from the file's header."""
        return shape(self._path(index))

    def fingerprint(self) -> str:
        """That of the set that the network was trained on."""
        return self._fingerprint

    def _path(self, index: int) -> str:
        path = self.name(index)
        try:
            path.encode()
        except UnicodeEncodeError:  # neither a table nor JSON could hold it
            raise DataError(f"the name of {os.fsencode(path)!r} is not valid UTF-8; rename it") from None
        return path
