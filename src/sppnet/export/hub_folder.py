"""Writes a folder for the Hugging Face Hub: the weights, their configuration, a model card and its figure."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppnet.errors import UserError, notice
from sppnet.runs.checkpoint_files import CONFIG, LIBRARY, WEIGHTS
from sppnet.storage.files import atomic_write, read_record

CARD, FIGURE = "README.md", "figure.svg"
FILES = (WEIGHTS, CONFIG, CARD, FIGURE)


def build_config(metadata: Mapping[str, Any]) -> str:
    """Return `config.json`: the metadata in the header of the weights, and the library that reads them."""
    return json.dumps({LIBRARY: "sppnet", **metadata}, indent=2, ensure_ascii=False) + "\n"


def check_folder(output: Path, force: bool) -> None:
    """Check that a folder can be written, or replaced.

    Raises:
        UserError: it exists without `force`, holds anything but an earlier export, or cannot be written.
    """
    target = output.resolve()
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise UserError(f"output={output}: there is no folder {target.parent} that can be written to")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir():
        raise UserError(f"output={output} is not a folder")
    if not any(output.iterdir()):
        return
    if not force:
        raise UserError(f"output={output} exists; force=true replaces an earlier export")
    others = sorted(path.name for path in output.iterdir() if path.name not in FILES or not path.is_file())
    if others:
        raise UserError(
            f"output={output} holds other files than an earlier export, such as {others[0]}; nothing is replaced"
        )
    if read_record(output / CONFIG).get(LIBRARY) != "sppnet":
        raise UserError(f"output={output} is not an earlier export of sppnet; nothing is replaced")


def write_folder(output: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Write a folder that is complete whenever it has its name; with `force`, it replaces an earlier export.

    Raises:
        UserError: see `check_folder`, which looks again: the folder may have been made since the export began.
    """
    target = output.resolve()  # that of a link, which stays
    name = f".sppnet-{secrets.token_hex(8)}"
    new, old = target.with_name(f"{name}.new.tmp"), target.with_name(f"{name}.old.tmp")
    new.mkdir()
    try:
        for file, content in files.items():
            with atomic_write(new / file, "wb") as stream:
                stream.write(content)
        check_folder(output, force)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if old.exists():
        for file in FILES:
            (old / file).unlink(missing_ok=True)
        try:
            old.rmdir()
        except OSError:
            notice(f"{old} has the files that were put into output={output} during the export")
