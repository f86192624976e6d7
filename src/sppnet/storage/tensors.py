"""Files of tensors, read as data and never as code, and checked against the sums that they hold of themselves."""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sppnet.errors import UserError, notice

FOLDER = 0x10  # attribute of a record that torch then reads as empty, whatever its checksum


def read_tensor_file(path: Path, key: str) -> Any:
    """What `torch.save` wrote to `path`: tensors and plain data, on the CPU.

    Args:
        path: the file.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: there is no such file; it is damaged (its content does not agree with its checksums, say) or was not
            written by torch; it holds pickled objects (which are not executed).
    """
    try:
        checked = _matches_checksums(path)
        with warnings.catch_warnings(action="ignore"):  # torch's guesses at a foreign file; the line below is enough
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        what = f"holds a pickled object ({named[1]}), which is never executed" if named else "is no file of tensors"
        raise UserError(f"{key}={path} {what}; allowed is what torch.save writes of tensors and plain data") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(f"{key}={path} {_reason(error)}") from error
    if not checked:
        _say_unchecked(path, key)
    return loaded


def check_download(path: Path, key: str) -> None:
    """Compare a file with its checksums; without any, with the beginning of its SHA-256 in its name, as torchvision has
    it (`vgg16-397923af.pth`), which torch compares when it downloads the file and never again.

    Raises:
        UserError: it is not what was downloaded.
    """
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        whole = _matches_checksums(path) or not named or _sha256(path).startswith(named[1])
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise UserError(f"{key}: {path} is damaged; remove it, and it is downloaded again")


def _matches_checksums(path: Path) -> bool:
    """Check the CRC-32 of every record of an archive, which torch writes and does not compare.

    Returns:
        False if there is nothing to compare with: a file from before torch 1.6 is no archive, and
        `torch.serialization.set_crc32_options(False)` writes zeros.

    Raises:
        zipfile.BadZipFile: a record differs from its checksum, or the archive is torn.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as torch decides it
            return False
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if not any(record.CRC for record in records):
                return False
            damaged = next((record.filename for record in records if record.external_attr & FOLDER), None)
            if damaged := damaged or archive.testzip():
                raise zipfile.BadZipFile(f"record {damaged} differs from its checksum")
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _say_unchecked(path: Path, key: str) -> None:
    notice(f"{key}={path} was written without checksums: damage to its numbers cannot be noticed")


def _reason(error: Exception) -> str:
    """What torch's reader says in words; the number of a byte that it trips over is left out."""
    said = re.split(r"\n|\. This is an internal|\. In PyTorch|\.\s+\(Could this", str(error))[0]
    return f"cannot be read, is damaged or no file of tensors{f': {said}' if ' ' in said else ''}"
