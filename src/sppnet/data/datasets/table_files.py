"""Finds the image files that the rows of a table name. Does not import torch."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Sequence
from pathlib import Path

from sppnet.data.datasets.listing import FileStat
from sppnet.data.datasets.table_rows import Row, TableFile, show

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".bmp", ".webp")  # to look for if a path lacks its suffix


def stat_files(table: TableFile, rows: Sequence[Row], root: Path) -> list[FileStat]:
    """Stat the file of each row; names are relative to `root`, without `.` and repeated slashes.

    Raises:
        UserError: a path is empty, leaves `root`, is not that of a file, or leads to the same file as another one.
    """
    base, files = os.path.abspath(root), []  # noqa: PTH100
    prefixes = {f"{folder.rstrip('/')}/" for folder in (base, os.path.realpath(root))}
    row_by_name: dict[str, int] = {}
    row_by_target: dict[str, int] = {}
    real_folders: dict[str, str] = {}
    missing: list[tuple[Row, str]] = []
    for row in rows:
        name = _relative(table, row, prefixes)
        if (first := row_by_name.setdefault(name, row.number)) != row.number:
            table.refuse(row.number, f"{show(row.path)} is listed in row {first}, too; an image may be listed once")
        try:
            status = os.lstat(path := f"{base}/{name}")
            if is_link := stat.S_ISLNK(status.st_mode):
                status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            missing.append((row, str(error.strerror)))
            continue
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            table.refuse(row.number, f"{show(row.path)} is {kind}; a path must be that of an image file")
        folder, _, last = path.rpartition("/")
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        target = os.path.realpath(path) if is_link else f"{real_folders[folder]}/{last}"
        if (first := row_by_target.setdefault(target, row.number)) != row.number:
            table.refuse(
                row.number,
                f"{show(row.path)} leads to the same file as row {first}, through a link; the image would be counted"
                " twice",
            )
        files.append(FileStat(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    if missing:
        _refuse_missing(table, missing, root, len(rows))
    return files


def _relative(table: TableFile, row: Row, prefixes: set[str]) -> str:
    """The path of a row relative to the root; `prefixes` are absolute paths of the root that end in a slash."""
    path = row.path
    if not path.strip():
        table.refuse(row.number, f"the path is empty (column {show(str(table.columns['path']))})")
    if path.startswith("/"):
        prefix = next((prefix for prefix in prefixes if path.startswith(prefix)), None)
        if prefix is None:
            table.refuse(
                row.number, f"{show(path)} is not inside data.root={min(prefixes)}; set data.root to its folder"
            )
        path = path[len(prefix) :].lstrip("/")
    if ".." in path.split("/"):
        table.refuse(row.number, f"{show(row.path)} leaves data.root; paths must not have .. in them")
    return posixpath.normpath(path)


def _refuse_missing(table: TableFile, missing: Sequence[tuple[Row, str]], root: Path, count: int) -> None:
    row, reason = missing[0]
    hints = [f"{reason} (paths are relative to data.root, which is {root})"]
    with_suffix = (row.path + suffix for suffix in SUFFIXES)
    if "\\" in row.path:
        hints.append("paths need / instead of \\")
    elif found := next((path for path in with_suffix if os.path.isfile(root / path)), None):  # noqa: PTH113
        hints.append(f"there is {show(found)}: paths need the suffix of the file")
    if others := len(missing) - 1:
        hints.append(f"{others} more of the {count} images cannot be found")
    table.refuse(row.number, f"{show(row.path)}: {'; '.join(hints)}")
