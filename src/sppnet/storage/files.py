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

# At most this many bytes of a target's name are copied into the name of its temporary file. With all of them, the
# longer name of the temporary file could exceed the file system's limit.
NAME_BYTES = 100


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces `path` at the end of the block. Text is written as UTF-8.

    The file and its folder are synced: after a crash or a power cut, or if the disk is full, `path` holds either all of
    the new content or all of the old. An exception leaves `path` as it was. A killed process leaves a temporary file
    behind (see `remove_temporary`).
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
    """Delete temporary files that killed writers of `path` left behind.

    The caller must make sure that no process is writing `path`.
    """
    for temporary in path.parent.glob("*.tmp"):
        if temporary.name.startswith(_temporary_prefix(path)):
            temporary.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    # The slice may end in the middle of a multi-byte character; "ignore" drops such an incomplete character.
    beginning = os.fsencode(path.name)[:NAME_BYTES].decode("utf-8", "ignore")
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
    """The content of a JSON file; None if the file does not exist or is not readable JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The mapping stored in a JSON file; an empty mapping if the file does not contain one."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


class LockHeldError(Exception):
    """Another process holds the lock; the message names that process and its machine."""


@contextlib.contextmanager
def file_lock(path: Path, waiting: str = "", wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` across processes and machines.

    The file and its folder are created if they do not exist. The lock is a POSIX record lock, which belongs only to
    this process and is released by the kernel however the process ends. A lock taken with `flock` would be inherited by
    DataLoader workers. They outlive a killed run by some seconds, and the run could not be restarted until they ended.

    Args:
        path: the lock file.
        waiting: the notice to print before waiting for another process that holds the lock; empty for no notice.
        wait: whether to wait until the lock is free. If `wait` is false, this process writes its ID and machine to
            the lock file once it holds the lock.

    Raises:
        LockHeldError: another process holds the lock, and `wait` is false.
        UserError: the file system does not support locks.
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
                f"{path.parent} cannot be locked ({error.strerror}), so two processes could write to it at once; set"
                " paths.runs and paths.cache to folders on a file system with POSIX locks, or mount this one with locks"
                " enabled (NFS without nolock, Lustre with flock)"
            ) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on the file `path`; also True if the file system cannot tell."""
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
    # Try several times, because `is_locked` in another process also holds the lock for an instant.
    for tries_left in reversed(range(tries)):
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
    """Delete the file and the folders that `file_lock` created, innermost first. Folders that are not empty stay."""
    for path in created:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
