"""What files hold: a digest of each, kept by path, times of change and length: only a changed file is read again.

A file of up to 64 KiB and one of a format that is not compressed are read in full; of a larger compressed one its
head, its tail and two blocks between, 32 KiB together. Imports no torch.

The file of digests (one per root of a data set, by its path and inode): `MAGIC`, SHA-256 of what follows, the number
of files as int64, then for each (length, mtime, ctime) as int64, for each its digest, and the names, separated by zero
bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sppnet.data.datasets.listing import File
from sppnet.errors import UserError, notice
from sppnet.progress import meter
from sppnet.storage.files import atomic_write, file_lock

SIZE = 16  # bytes of a digest
FULL = 64 * 2**10  # bytes; longer compressed files are known by four blocks
BLOCK = FULL // 8
TICK = 2 * 10**9  # ns; a file that changed so shortly before it was read may change again without its times showing it
DAY = 86_400 * 10**9  # ns; the clock of a file server may be ahead of ours
THREADS = 16  # the time goes into waiting for files, on a network drive at least
AT_ONCE = 64  # files that a thread reads before the next one is dealt out
SAVE_EVERY = 10.0  # seconds of reading that a kill may cost
MANY, MANY_BYTES = 1000, 2**27
"""Files, or bytes of them, from which on digests are kept and their reading is announced. Fewer are read in an instant,
and a mistake in the configuration of a small set leaves nothing behind."""
COMPRESSED = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
"""How JPEG, PNG, GIF and JPEG 2000 begin (WebP and AVIF: `_is_compressed`): a change anywhere moves or alters what
follows it, or the checksum at the end."""
LASTING = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENXIO, errno.ELOOP}
"""Errors of a file that is gone, forbidden or none, whoever asks and when."""
MAGIC = b"sppnet digests 1\n"

Digests = npt.NDArray[np.uint8]  # (files, SIZE)
Stamps = npt.NDArray[np.int64]  # (files, 3): length, mtime and ctime in ns; a length of -1 fits no file


class Known(NamedTuple):
    """What is kept of a data set's files."""

    names: list[str]
    stamps: Stamps
    digests: Digests


def digests_of(root: Path, files: Sequence[File], cache: Path | None, progress: str = "none") -> Digests:
    """The digest of each of `files`, which lie below `root`; zeros for those that cannot be read, which is said.

    Args:
        root: the folder that names are relative to.
        files: as they were listed.
        cache: folder for what is kept of `MANY` files; made if need be. None, or one that cannot be written: all are
            read each time.
        progress: `trainer.progress`, for a first reading that takes long.
    """
    stamps = np.empty((len(files), 3), dtype=np.int64)
    for column in range(3):  # five times as fast as one array of all
        stamps[:, column] = np.fromiter((file[column + 1] for file in files), np.int64, len(files))
    wanted = Known([file.name for file in files], stamps, np.zeros((len(files), SIZE), dtype=np.uint8))
    path = None
    if cache is not None and _many(stamps):
        # Copies on the drives of several machines may have one path and one cache, and have times of their own.
        place = os.fsencode(os.path.realpath(root)) + b"\0%d" % root.stat().st_ino
        path = cache / f"digests-{hashlib.sha256(place).hexdigest()[:32]}.bin"
    missing = _fill(wanted, path)
    if not len(missing):
        return wanted.digests
    with contextlib.ExitStack() as stack:
        if path is not None:
            with contextlib.suppress(OSError, UserError):  # without it two may read the same, no more
                said = f"another process reads the files of {root} for the first time; waiting for it"
                stack.enter_context(file_lock(path.with_suffix(".lock"), said))
                missing = _fill(wanted, path)  # what the other has read
                for stale in path.parent.glob(f"{path.stem}.*.tmp"):  # of a process that was killed
                    stale.unlink()
        _read(root, wanted, missing, path, progress)
    return wanted.digests


def digest_of(path: str) -> tuple[bytes, tuple[int, int, int]]:
    """The digest of a file's content and its (length, mtime, ctime) as it was read; a length of -1 where these do not
    show whether it has changed since.

    Raises:
        OSError: it cannot be read.
    """
    now = time.time_ns()
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not to wait for the writer of a named pipe
    try:
        status = os.fstat(handle)
        length = status.st_size
        head = os.read(handle, FULL if length <= FULL else BLOCK)
        total = hashlib.blake2b(b"%d\n" % length, digest_size=SIZE)
        total.update(head)
        if length > FULL and _is_compressed(head):
            for offset in (length // 3, 2 * length // 3, length - BLOCK):
                total.update(os.pread(handle, BLOCK, offset))
        else:
            while head:
                head = os.read(handle, 2**20)
                total.update(head)
    finally:
        os.close(handle)
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    racy = now - TICK < ctime < now + DAY or abs(now - mtime) < TICK
    return total.digest(), (-1 if racy else length, mtime, ctime)


def _many(stamps: Stamps) -> bool:
    return len(stamps) >= MANY or int(stamps[:, 0].sum()) >= MANY_BYTES


def _is_compressed(head: bytes) -> bool:
    return head.startswith(COMPRESSED) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


def _fill(wanted: Known, path: Path | None) -> npt.NDArray[np.int64]:
    """Put what is kept in `path` into `wanted.digests`; returns the positions of the files that are not among it."""
    kept = None if path is None else _load(path)
    if kept is None:
        return np.arange(len(wanted.names))
    if kept.names == wanted.names:
        positions = np.arange(len(wanted.names))
    else:
        where = {name: position for position, name in enumerate(kept.names)}
        positions = np.array([where.get(name, -1) for name in wanted.names], dtype=np.int64)
    known = positions >= 0
    known[known] = (kept.stamps[positions[known]] == wanted.stamps[known]).all(1)
    wanted.digests[known] = kept.digests[positions[known]]
    return np.flatnonzero(~known)


def _read(root: Path, wanted: Known, missing: npt.NDArray[np.int64], path: Path | None, progress: str) -> None:
    """Read the files at the positions `missing` into `wanted.digests` and keep all in `path`, also when interrupted."""
    stamps = wanted.stamps.copy()  # as they are kept: what is not read yet fits no file
    stamps[missing, 0] = -1
    kept = Known(wanted.names, stamps, wanted.digests)
    if not _many(wanted.stamps[missing]):
        progress = "none"
    if progress != "none":
        notice(f"reading {len(missing)} files of {root}, once, to know the data by content")
    began = time.monotonic()
    due, errors, why = began + SAVE_EVERY, [], None
    try:
        with (
            meter("data", progress, len(missing)) as tick,
            contextlib.closing(_in_threads(str(root), wanted.names, missing.tolist(), tick)) as every,
        ):
            for position, found in every:
                if isinstance(found, OSError):
                    found = _once_more(f"{root}/{wanted.names[position]}", found)
                if isinstance(found, OSError):
                    errors.append(f"{wanted.names[position]}: {found.strerror}")
                    continue
                wanted.digests[position] = np.frombuffer(found[0], dtype=np.uint8)
                stamps[position] = found[1]
                if path is not None and (now := time.monotonic()) > due:
                    why = _save(path, kept)
                    due = time.monotonic() + max(SAVE_EVERY, 20 * (time.monotonic() - now))
    finally:
        if path is not None:
            why = _save(path, kept)
    if errors:
        notice(f"{len(errors)} files of {root} cannot be read ({errors[0]}); the data are known without their content")
    if why and time.monotonic() - began > 2:
        notice(f"paths.cache: digests cannot be kept ({why}); the files are read at every start")


def _once_more(path: str, error: OSError) -> tuple[bytes, tuple[int, int, int]] | OSError:
    """Read a file again that could not be read; a drive that fails now and then must not make other data of the same.

    Raises:
        UserError: it fails again, and not because the file is gone or forbidden.
    """
    try:
        return digest_of(path)
    except OSError as again:
        if again.errno in LASTING:
            return error
        raise UserError(f"{path}: {again.strerror}; without its content it is not known which data these are") from None


Found = tuple[int, tuple[bytes, tuple[int, int, int]] | OSError]


def _in_threads(
    root: str, names: Sequence[str], positions: Sequence[int], tick: Callable[[int], None]
) -> Generator[Found]:
    """`digest_of` for the files at `positions`, or why one cannot be read, in any order."""

    def some(chunk: Sequence[int]) -> list[Found]:
        out: list[Found] = []
        for position in chunk:
            try:
                out.append((position, digest_of(f"{root}/{names[position]}")))
            except OSError as error:
                out.append((position, error))
        return out

    pool = ThreadPoolExecutor(THREADS)
    try:
        chunks = [positions[start : start + AT_ONCE] for start in range(0, len(positions), AT_ONCE)]
        futures: list[Future[list[Found]]] = [pool.submit(some, chunk) for chunk in chunks]
        for future in as_completed(futures):
            yield from future.result()
            tick(len(future.result()))
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: Path) -> Known | None:
    """What `path` holds; None where it is not there or damaged."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + 32
    body = memoryview(blob)[start:]
    if blob[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != blob[len(MAGIC) : start]:
        return None
    count = int.from_bytes(body[:8], "little")
    middle = 8 + count * 24
    names = bytes(body[middle + count * SIZE :]).decode("utf-8", "surrogateescape").split("\0") if count else []
    return Known(
        names,
        np.frombuffer(body[8:middle], dtype="<i8").reshape(count, 3),
        np.frombuffer(body[middle : middle + count * SIZE], dtype=np.uint8).reshape(count, SIZE),
    )


def _save(path: Path, known: Known) -> str | None:
    """Write `known` whole or not at all; returns why it cannot be written."""
    names = "\0".join(known.names).encode("utf-8", "surrogateescape")
    body = [
        len(known.names).to_bytes(8, "little"),
        known.stamps.astype("<i8").tobytes(),
        known.digests.tobytes(),
        names,
    ]
    total = hashlib.sha256()
    for part in body:
        total.update(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            file.writelines([MAGIC, total.digest(), *body])
    except OSError as error:
        return f"{path.parent}: {error.strerror}"
    return None
