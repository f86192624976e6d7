"""Atomic writes, JSON files, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from sppnet.errors import UserError, notice

NAME_BYTES = 100  # a temporary file repeats this much of the target's name; all of it could exceed the legal length


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces `path` at the end of the block; text is UTF-8.

    File and folder are synced: after a crash, a power cut or on a full disk, `path` holds all of the new content or all
    of the old. An exception leaves `path` as it was. A killed process leaves a temporary file (`remove_temporary`).
    """
    temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporary(path: Path) -> None:
    """Delete the temporary files of killed writers of `path`. The caller makes sure that no process writes it now."""
    for temporary in path.parent.glob("*.tmp"):
        if temporary.name.startswith(_temporary_prefix(path)):
            temporary.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    beginning = os.fsencode(path.name)[:NAME_BYTES].decode("utf-8", "ignore")  # drops a character cut in half
    return f".{beginning}."


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if the file does not exist, or is not readable JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if there is none."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


class LockHeldError(Exception):
    """Another process holds the lock; the message names that process and its machine."""


@contextlib.contextmanager
def file_lock(path: Path, waiting: str = "", wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` against all processes on all machines; the file and its folder are created.

    A POSIX record lock belongs to this process alone, and the kernel releases it however the process ends. A lock by
    `flock` would live on in DataLoader workers, which outlive a killed run by some seconds, and block its restart.

    Args:
        path: the lock file.
        waiting: a notice for the user if the lock has to be waited for.
        wait: whether to wait for another process. If not, the file names this process while it holds the lock.

    Raises:
        LockHeldError: another process holds the lock, and `wait` is false.
        UserError: the file system has no locks.
        OSError: the folder or the file cannot be created.
    """
    created = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError:
        _remove_empty(created)
        raise
    with file:
        try:
            if wait:
                _lock(file, waiting)
            else:
                _lock_now(file)
        except OSError as error:
            _remove_empty(created)
            raise UserError(
                f"{path.parent} cannot be locked ({error.strerror}), so two processes could write to it at once: choose"
                " paths.runs and paths.cache on a file system with POSIX locks, or mount this one with them (NFS"
                " without nolock, Lustre with flock)"
            ) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file `path`; also True if the file system does not say."""
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lock(file: BinaryIO, waiting: str) -> None:
    if waiting:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            notice(waiting)
        else:
            return
    fcntl.lockf(file, fcntl.LOCK_EX)


def _lock_now(file: BinaryIO, tries: int = 5) -> None:
    for tries_left in reversed(range(tries)):  # `is_locked` in another process holds the lock for an instant
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if not tries_left:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip()
                raise LockHeldError(holder or "another process") from None
            time.sleep(0.02)
        else:
            break
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def _remove_empty(created: Sequence[Path]) -> None:
    """Delete files and folders that are empty, the innermost first."""
    for path in created:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
