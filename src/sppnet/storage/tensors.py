"""Reads tensor files without executing anything in them, and verifies their checksums."""

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

FOLDER = 0x10  # zip attribute; torch reads such a record as empty, whatever its checksum


def read_tensor_file(path: Path, key: str) -> Any:
    """Load the tensors and plain data that `torch.save` wrote to `path`, on the CPU.

    Args:
        path: the file.
        key: the configuration key that names the file, for messages.

    Raises:
        UserError: the file does not exist, is damaged (a checksum differs, for example) or was not written by torch; or
            it holds pickled objects, which are not executed.
    """
    try:
        checked = _matches_checksums(path)
        with warnings.catch_warnings(action="ignore"):  # torch's guesses about foreign files
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        problem = f"holds a pickled object ({named[1]}), which is never executed" if named else "is not a tensor file"
        raise UserError(f"{key}={path} {problem}; allowed are tensors and plain data from torch.save") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise UserError(f"{key}={path} {_reason(error)}") from error
    if not checked:
        _warn_unchecked(path, key)
    return loaded


def check_download(path: Path, key: str) -> None:
    """Verify a downloaded weights file by its checksums, or by the beginning of its SHA-256 in its name.

    Torchvision names its files like `vgg16-397923af.pth`; torch compares the name only right after the download.

    Raises:
        UserError: the file is not what was downloaded.
    """
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        whole = _matches_checksums(path) or not named or _sha256(path).startswith(named[1])
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise UserError(f"{key}: {path} is damaged; remove it to download it again")


def _matches_checksums(path: Path) -> bool:
    """Verify the CRC-32 of every record of a zip archive; torch writes them but does not compare them.

    Returns:
        False if there is nothing to compare with: files from before torch 1.6 are not archives, and
        `torch.serialization.set_crc32_options(False)` writes zeros.

    Raises:
        zipfile.BadZipFile: a record differs from its checksum, or the archive is truncated.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # how torch tells the two formats apart
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
def _warn_unchecked(path: Path, key: str) -> None:
    notice(f"{key}={path} was written without checksums: damage to its values cannot be detected")


def _reason(error: Exception) -> str:
    """The message of torch's reader up to its advice; a message that is a bare byte number is dropped."""
    message = re.split(r"\n|\. This is an internal|\. In PyTorch|\.\s+\(Could this", str(error))[0]
    return f"cannot be read, is damaged or not a tensor file{f': {message}' if ' ' in message else ''}"
