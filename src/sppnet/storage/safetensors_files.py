"""Reads the header of safetensors files, which hold tensors and text and never code. Does not import torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppnet.errors import UserError

SUFFIX = ".safetensors"
OURS = "sppnet"  # the entry of the header that every file of sppnet has
DIGEST = "sha256"  # the entry with `content_digest`: the format itself has no checksums
TEXTS = ("format", DIGEST)  # entries that are text; sppnet writes all others as JSON


def is_safetensors(path: Path) -> bool:
    """Whether a file has the name of a safetensors file, or begins with the length and the start of a JSON header."""
    if path.suffix.lower() == SUFFIX:
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(10)
        return start[8:] == b'{"' and 0 < int.from_bytes(start[:8], "little") < path.stat().st_size
    return False


def content_digest(entries: Mapping[str, str], header: Mapping[str, Any], tensors: bytes) -> str:
    """Return the SHA-256 of everything in a file: its entries but for `DIGEST`, the table of its tensors, and these.

    Args:
        entries: the text in the header, by name.
        header: dtype, shape and position of each tensor, by name.
        tensors: the bytes behind the header.
    """
    text = {name: entry for name, entry in entries.items() if name != DIGEST}
    digest = hashlib.sha256(json.dumps([text, dict(header)], sort_keys=True).encode())
    digest.update(tensors)
    return digest.hexdigest()


def read_metadata(path: Path, key: str) -> dict[str, Any]:
    """Read and decode what sppnet wrote into the header of a file; empty if another program wrote the file.

    Args:
        path: the file.
        key: the configuration key that names the file, used in messages.

    Raises:
        UserError: the file does not exist or is damaged, an entry is not JSON, or the package safetensors is missing.
    """
    entries = read_entries(path, key)
    if OURS not in entries:
        return {}
    metadata = {}
    for name, text in entries.items():
        if name not in TEXTS:
            try:
                metadata[name] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{key}={path}: {name} in its header is not JSON ({error})") from None
    return metadata


def read_entries(path: Path, key: str) -> dict[str, str]:
    """Read the text in the header of a file, by name.

    Raises:
        UserError: see `read_metadata`.
    """
    try:
        from safetensors import safe_open  # of an optional package
    except ModuleNotFoundError:
        raise UserError(
            f"{key}={path}: to read this format, the package safetensors is missing; run uv sync --extra export (the"
            " extra timm brings it, too), or use uv run --extra export sppnet ..."
        ) from None
    try:
        with path.open("rb"), safe_open(str(path), framework="np") as file:  # open: its error names the reason
            return dict(file.metadata() or {})
    except OSError as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except Exception as error:  # a damaged file can cause any error in the reader
        raise UserError(f"{key}={path} cannot be read; it is damaged or not a safetensors file: {error}") from error
