"""Reads tensor files without executing anything in them, and verifies their checksums where they have any."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sppnet.errors import UserError, notice
from sppnet.storage.safetensors_files import DIGEST, content_digest, is_safetensors, read_entries, read_metadata

FOLDER = 0x10  # the zip attribute that marks a folder; torch reads such a record as empty, whatever its checksum is


def read_tensor_file(path: Path, key: str) -> Any:
    """Load the tensors and plain data that `torch.save` wrote to `path`; the tensors are loaded onto the CPU.

    A file in the format safetensors, which holds nothing but tensors and text, is recognised by its name or its first
    bytes. One that sppnet exported is returned as a checkpoint: its metadata, and the tensors under `state_dict`.

    Args:
        path: the file.
        key: the configuration key that names the file, used in messages.

    Raises:
        UserError: the file does not exist, is damaged (for example, a checksum differs), was not written by torch, or
            holds pickled objects, which are never executed; or the package safetensors is not installed.
    """
    if is_safetensors(path):
        return _read_safetensors(path, key)
    try:
        checked = _matches_checksums(path)
        with warnings.catch_warnings(action="ignore"):  # hides warnings in which torch guesses what the file is
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        problem = f"holds a pickled object ({named[1]}), which is never executed" if named else "is not a tensor file"
        raise UserError(f"{key}={path} {problem}; only tensors and plain data from torch.save are allowed") from error
    except Exception as error:  # a damaged file can cause any error in torch's reader
        raise UserError(f"{key}={path} {_reason(error)}") from error
    if not checked:
        _warn_unchecked(path, key)
    return loaded


def _read_safetensors(path: Path, key: str) -> dict[str, Any]:
    entries, metadata = read_entries(path, key), read_metadata(path, key)
    from safetensors.torch import load  # of an optional package

    try:
        content = path.read_bytes()
        tensors: dict[str, torch.Tensor] = load(content)
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except Exception as error:  # a damaged file can cause any error in the reader
        raise UserError(f"{key}={path} cannot be read; it is damaged or not a safetensors file: {error}") from error
    if metadata and DIGEST in entries:
        start = 8 + int.from_bytes(content[:8], "little")
        table = {name: value for name, value in json.loads(content[8:start]).items() if name != "__metadata__"}
        if entries[DIGEST] != content_digest(entries, table, content[start:]):
            raise UserError(f"{key}={path} is damaged: it does not match the checksum in its header")
    elif not _is_named_by_digest(path):
        _warn_unchecked(path, key)
    return {**metadata, "state_dict": tensors} if metadata else tensors


def check_download(path: Path, key: str) -> None:
    """Verify a downloaded weights file by its checksums or, if it has none, by the hash in its name.

    Torchvision's file names, such as `vgg16-397923af.pth`, contain the beginning of the file's SHA-256. Torch checks
    this hash only right after the download. In the cache of timm's files, links lead to files named by their SHA-256.

    Raises:
        UserError: the file does not match its checksums or, if it has none, the hash in its name.
    """
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    digest = path.resolve().name if _is_named_by_digest(path) else named[1] if named else ""
    try:
        whole = _matches_checksums(path) or _sha256(path).startswith(digest)
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise UserError(f"{key}: {path} is damaged; remove it to download it again")


def _matches_checksums(path: Path) -> bool:
    """Verify the CRC-32 of every record in a zip archive. Torch writes these checksums but does not check them.

    Returns:
        True if all checksums match; False if there are none. Versions of torch before 1.6 do not write zip archives,
        and after `torch.serialization.set_crc32_options(False)`, torch writes zeros instead of checksums.

    Raises:
        zipfile.BadZipFile: a record does not match its checksum, or the archive is truncated.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # not a zip archive; torch checks the same four bytes
            return False
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            if not any(record.CRC for record in records):
                return False
            damaged = next((record.filename for record in records if record.external_attr & FOLDER), None)
            if damaged := damaged or archive.testzip():
                raise zipfile.BadZipFile(f"record {damaged} does not match its checksum")
    return True


def _is_named_by_digest(path: Path) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", path.resolve().name) is not None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _warn_unchecked(path: Path, key: str) -> None:
    notice(f"{key}={path} was written without checksums, so damage to its values cannot be detected")


def _reason(error: Exception) -> str:
    """The reason why torch cannot read a file, followed by torch's message unless the message is a single word.

    The advice at the end of the message is left out.
    """
    message = re.split(r"\n|\. This is an internal|\. In PyTorch|\.\s+\(Could this", str(error))[0]
    return f"cannot be read; it is damaged or not a tensor file{f': {message}' if ' ' in message else ''}"
