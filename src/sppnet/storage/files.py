"""Files that are whole or not there: the one atomic write, JSON, and the one lock."""

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

NAME_BYTES = 100  # of the name of a file that its temporary file repeats: the longest legal name leaves no room


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces it at the end of the block; text is UTF-8.

    File and folder are synced, so after a crash, a power cut or on a full disk `path` is whole or as it was before. An
    exception leaves `path` alone. A process that is killed leaves a file that `remove_temporary` takes away.
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
    """Remove what killed writers of `path` have left; only for who knows that nobody writes it now."""
    for left in path.parent.glob("*.tmp"):
        if left.name.startswith(_temporary_prefix(path)):
            left.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    begin = os.fsencode(path.name)[:NAME_BYTES].decode("utf-8", "ignore")  # no half a character
    return f".{begin}."


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`; None where no file can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


class LockHeldError(Exception):
    """Another process holds a lock; the message names the process and its machine."""


@contextlib.contextmanager
def file_lock(path: Path, waiting: str = "", wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, created with its folder, against every process on every machine.

    A POSIX record lock belongs to this process alone, and the kernel releases it however the process ends. (A lock of
    flock would live on in DataLoader workers that outlive a killed run by some seconds, and refuse its restart.)

    Args:
        path: the lock file.
        waiting: a notice for the user, if another process holds the lock and has to be waited for.
        wait: whether to wait; otherwise the file names this process while it holds the lock.

    Raises:
        LockHeldError: another process holds the lock, and `wait` is false.
        UserError: the file system has no locks.
        OSError: folder or file cannot be created.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError:
        _remove(missing)
        raise
    with file:
        try:
            if wait:
                _lock(file, waiting)
            else:
                _lock_now(file)
        except OSError as error:
            _remove(missing)
            raise UserError(
                f"{path.parent} cannot be locked ({error.strerror}), so two processes could write to it at once: choose"
                " paths.runs and paths.cache on a file system with POSIX locks, or have this one mounted with them (NFS"
                " without nolock, Lustre with flock)"
            ) from None
        yield


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock file `path`; True also where that cannot be told."""
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
    for left in reversed(range(tries)):  # `is_locked` holds the lock for an instant
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if not left:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip()
                raise LockHeldError(holder or "another process") from None
            time.sleep(0.02)
        else:
            break
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def _remove(created: Sequence[Path]) -> None:
    """Remove files and empty folders, the innermost first."""
    for path in created:
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
