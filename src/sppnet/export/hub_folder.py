"""Writes a folder for the Hugging Face Hub: the weights, their configuration, a model card and its figure."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppnet.errors import UserError
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
    if not output.exists() and not output.is_symlink():
        if not (output.parent.is_dir() and os.access(output.parent, os.W_OK)):
            raise UserError(f"output={output}: there is no folder {output.parent} that can be written to")
        return
    if not output.is_dir():
        raise UserError(f"output={output} is not a folder")
    if not os.access(output, os.W_OK):
        raise UserError(f"output={output}: this folder cannot be written to")
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
    """Write the files of a folder; with `force`, they replace those of an earlier export.

    All files are written before the first one gets its name. If a killed process leaves files of two exports, loading
    them is refused, because `config.json` must say what the header of the weights says.

    Raises:
        UserError: see `check_folder`, which looks again: the folder may have been made since the export began.
    """
    check_folder(output, force)
    is_new = not output.exists()
    if is_new:
        output.mkdir()
    try:
        with contextlib.ExitStack() as stack:  # of which the end names all files, unless one cannot be written
            for name, content in files.items():
                stack.enter_context(atomic_write(output / name, "wb")).write(content)
        for name in set(FILES) - files.keys():
            (output / name).unlink(missing_ok=True)
    except BaseException:
        if is_new:
            for name in files:
                (output / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another program has put a file into it
                output.rmdir()
        raise
