"""Writes a folder for the Hugging Face Hub: the weights, their configuration, a model card and its figure."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sppnet.errors import UserError
from sppnet.runs.checkpoint_files import CONFIG, LIBRARY, WEIGHTS
from sppnet.storage.files import atomic_write, read_record

CARD, FIGURE = "README.md", "figure.svg"
FILES = (WEIGHTS, CONFIG, CARD, FIGURE)
STAGING = ".sppnet-{}.tmp"  # a folder inside, in which the files are written first; a killed export leaves it


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
    if not os.access(output, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"output={output}: this folder cannot be read and written to")
    entries = list(output.iterdir())
    if not entries:
        return
    if staging := next(output.glob(STAGING.format("*")), None):
        raise UserError(f"output={output}: another export is writing {staging}; if it was killed, delete this folder")
    if not force:
        raise UserError(f"output={output} exists; force=true replaces an earlier export")
    others = sorted(path.name for path in entries if path.name not in FILES or not path.is_file())
    if others:
        raise UserError(
            f"output={output} holds other files than an earlier export, such as {others[0]}; nothing is replaced"
        )
    if read_record(output / CONFIG).get(LIBRARY) != "sppnet":
        raise UserError(f"output={output} is not an earlier export of sppnet; nothing is replaced")


def write_folder(output: Path, files: Mapping[str, bytes], force: bool) -> None:
    """Write the files of a folder; with `force`, they replace those of an earlier export.

    They get their names once all of them are on the disk, and SIGINT and SIGTERM cannot come between. An exception
    leaves the folder as it was.

    Raises:
        UserError: see `check_folder`, which looks again: the folder may have been made since the export began.
    """
    check_folder(output, force)
    is_new = not output.exists()
    staging = output / STAGING.format(secrets.token_hex(8))
    try:
        staging.mkdir(parents=is_new)
        for name, content in files.items():
            with atomic_write(staging / name, "wb") as file:
                file.write(content)
        with _uninterrupted():
            for name in FILES:
                if name in files:
                    (staging / name).replace(output / name)
                else:
                    (output / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # it has files, or never came to be
                output.rmdir()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM inside the block."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
