"""One process at a time, over all machines that share a file system."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from sppnet.errors import UserError, notice


@contextlib.contextmanager
def alone(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path`, which is made with its folder if need be; wait for whoever holds it.

    Where there is somebody to wait for, `waiting` is said.

    Raises:
        UserError: the file system has no locks.
    """
    made = missing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            _take(file, waiting)
        except OSError as error:
            raise no_lock(path, error, made) from None
        yield


def _take(file: IO[str], waiting: str) -> None:
    if waiting:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            notice(waiting)
        else:
            return
    fcntl.lockf(file, fcntl.LOCK_EX)


def missing(path: Path) -> list[Path]:
    """What is not there yet of a file and its folders, the innermost first."""
    return [each for each in (path, *path.parents) if not each.exists()]


def no_lock(path: Path, error: OSError, made: Sequence[Path]) -> UserError:
    """Take away what was `made` for the lock file `path`; the error to raise."""
    for each in made:
        with contextlib.suppress(OSError):
            each.unlink() if each == path else each.rmdir()
    return UserError(
        f"{path.parent} cannot be locked ({error.strerror}), so two processes could write to it at once: choose"
        " paths.runs and paths.cache on a file system with POSIX locks, or have this one mounted with them (NFS without"
        " nolock, Lustre with flock)"
    )
