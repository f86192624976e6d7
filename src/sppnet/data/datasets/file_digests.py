"""The content digests of a data set's files, cached by path, length, mtime and ctime. Does not import torch.

Files of up to 64 KiB and files in uncompressed formats are read in full. Of a larger compressed file, only four blocks
are read: the first, the last and two in between, 32 KiB in total.
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

import numpy as np
import numpy.typing as npt

from sppnet.data.datasets.digest_cache import SIZE, Digests, DigestTable, Stamps, load_table, save_table
from sppnet.data.datasets.listing import FileStat
from sppnet.errors import UserError, notice
from sppnet.progress import meter
from sppnet.storage.files import file_lock, remove_temporary

FULL = 64 * 2**10  # bytes; of larger compressed files, only four blocks are read
BLOCK = FULL // 8
TICK = 2 * 10**9  # ns; a file that has just changed may change again within this time and keep the same mtime and ctime
DAY = 86_400 * 10**9  # ns; how far a file server's clock may be ahead of the local clock
THREADS = 16  # may exceed the number of cores, because on a network drive, the threads mostly wait for the files
AT_ONCE = 64  # files per thread-pool task
SAVE_EVERY = 10.0  # minimum seconds between two saves; a killed process loses the digests computed since its last save
MANY, MANY_BYTES = 1000, 2**27
"""Digests are cached, and reading the files is announced, if there are at least this many files or bytes. A smaller
data set is read in an instant and is not cached, so a run that stops with a configuration error leaves no files."""
COMPRESSED = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
"""First bytes of JPEG, PNG, GIF and JPEG 2000 files; `_is_compressed` also recognises WebP and AVIF. In all these
formats, a change anywhere also alters or moves the data after it, or alters the checksum at the end, so a few blocks
are enough to detect an edited image."""
LASTING = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENXIO, errno.ELOOP}
"""Errors for files that are missing, forbidden to this user or not regular; a second attempt gives the same error."""
Digest = tuple[bytes, tuple[int, int, int]]  # the digest and the stamp of one file


def digest_files(root: Path, files: Sequence[FileStat], cache: Path | None, progress: str = "none") -> Digests:
    """The digest of each file; zeros for a file that cannot be read. A notice gives the number of such files.

    Args:
        root: the folder that file names are relative to.
        files: the files, with the lengths and times that they had when they were listed.
        cache: the folder where digests are saved if there are at least `MANY` files or `MANY_BYTES` bytes. It is
            created if necessary. If it is None or not writable, all files are read each time.
        progress: the value of `progress`; progress is shown only if there are many files to read.
    """
    stamps = np.empty((len(files), 3), dtype=np.int64)
    for column in range(3):  # five times as fast as np.array on the list of tuples
        stamps[:, column] = np.fromiter((file[column + 1] for file in files), np.int64, len(files))
    table = DigestTable([file.name for file in files], stamps, np.zeros((len(files), SIZE), dtype=np.uint8))
    path = None
    if cache is not None and _are_many(stamps):
        # Copies of a data set on the local drives of several machines may have the same path and share one cache
        # folder, but the times of their files differ, so each copy needs its own cache file. The inode of the root
        # tells the copies apart.
        key = os.fsencode(os.path.realpath(root)) + b"\0%d" % root.stat().st_ino
        path = cache / f"digests-{hashlib.sha256(key).hexdigest()[:32]}.bin"
    missing = _fill_from_cache(table, path)
    if not len(missing):
        return table.digests
    with contextlib.ExitStack() as stack:
        if path is not None:
            with contextlib.suppress(OSError, UserError):  # without the lock, two processes may both read the files
                waiting = f"another process is reading the files in {root} for the first time; waiting until it is done"
                stack.enter_context(file_lock(path.with_suffix(".lock"), waiting))
                missing = _fill_from_cache(table, path)  # another process may have cached digests during the wait
                remove_temporary(path)
        _read_missing(root, table, missing, path, progress)
    return table.digests


def digest_file(path: str) -> Digest:
    """The digest of a file's content, and the file's (length, mtime, ctime) when it was read.

    The length is -1 if the file changed so recently that another change might leave its length and times unchanged.

    Raises:
        OSError: the file cannot be read.
    """
    now = time.time_ns()
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        length = status.st_size
        head = os.read(handle, FULL if length <= FULL else BLOCK)
        blake = hashlib.blake2b(b"%d\n" % length, digest_size=SIZE)
        blake.update(head)
        if length > FULL and _is_compressed(head):
            for offset in (length // 3, 2 * length // 3, length - BLOCK):
                blake.update(os.pread(handle, BLOCK, offset))
        else:
            while head:
                head = os.read(handle, 2**20)
                blake.update(head)
    finally:
        os.close(handle)
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    racy = now - TICK < ctime < now + DAY or abs(now - mtime) < TICK
    return blake.digest(), (-1 if racy else length, mtime, ctime)


def _are_many(stamps: Stamps) -> bool:
    return len(stamps) >= MANY or int(stamps[:, 0].sum()) >= MANY_BYTES


def _is_compressed(head: bytes) -> bool:
    return head.startswith(COMPRESSED) or head[8:12] == b"WEBP" or head[4:12] in (b"ftypavif", b"ftypavis")


def _fill_from_cache(table: DigestTable, path: Path | None) -> npt.NDArray[np.int64]:
    """Copy the digests cached in `path` into `table`. Return the indices of the files without a valid cached digest."""
    cached = None if path is None else load_table(path)
    if cached is None:
        return np.arange(len(table.names))
    if cached.names == table.names:
        positions = np.arange(len(table.names))
    else:
        position_by_name = {name: position for position, name in enumerate(cached.names)}
        positions = np.array([position_by_name.get(name, -1) for name in table.names], dtype=np.int64)
    valid = positions >= 0
    valid[valid] = (cached.stamps[positions[valid]] == table.stamps[valid]).all(1)
    table.digests[valid] = cached.digests[positions[valid]]
    return np.flatnonzero(~valid)


def _read_missing(
    root: Path, table: DigestTable, missing: npt.NDArray[np.int64], path: Path | None, progress: str
) -> None:
    """Compute the digests of the files at indices `missing`. Save all digests to `path`, even after an interruption."""
    stamps = table.stamps.copy()  # the stamps to save; until a file is read, its length is -1, which matches no file
    stamps[missing, 0] = -1
    to_save = DigestTable(table.names, stamps, table.digests)
    if not _are_many(table.stamps[missing]):
        progress = "none"
    if progress != "none":
        notice(f"reading {len(missing)} file(s) in {root} once, to identify the data set by its content")
    start = time.monotonic()
    save_at, errors, save_error = start + SAVE_EVERY, [], None
    try:
        with (
            meter("data", progress, len(missing)) as tick,
            contextlib.closing(_digest_in_threads(str(root), table.names, missing.tolist(), tick)) as results,
        ):
            for index, result in results:
                if isinstance(result, OSError):
                    result = _retry(f"{root}/{table.names[index]}", result)
                if isinstance(result, OSError):
                    errors.append(f"{table.names[index]}: {result.strerror}")
                    continue
                table.digests[index] = np.frombuffer(result[0], dtype=np.uint8)
                stamps[index] = result[1]
                if path is not None and (now := time.monotonic()) > save_at:
                    save_error = save_table(path, to_save)
                    save_at = time.monotonic() + max(SAVE_EVERY, 20 * (time.monotonic() - now))
    finally:
        if path is not None:
            save_error = save_table(path, to_save)
    if errors:
        notice(
            f"{len(errors)} file(s) in {root} cannot be read (such as {errors[0]}); the fingerprint does not cover"
            " their content"
        )
    if save_error and time.monotonic() - start > 2:
        notice(
            f"paths.cache: the digests of the data files cannot be saved ({save_error}); the files will be read again"
            " each time a run starts"
        )


def _retry(path: str, error: OSError) -> Digest | OSError:
    """Read a file again after `error`, so that a transient error of the drive does not change the fingerprint.

    Returns:
        The digest; `error` if the second attempt fails with an error in `LASTING`.

    Raises:
        UserError: the second attempt fails with a different error.
    """
    try:
        return digest_file(path)
    except OSError as second:
        if second.errno in LASTING:
            return error
        raise UserError(
            f"{path}: {second.strerror}; without this file's content, the data set cannot be identified"
        ) from None


def _digest_in_threads(
    root: str, names: Sequence[str], indices: Sequence[int], tick: Callable[[int], None]
) -> Generator[tuple[int, Digest | OSError]]:
    """Yield the index and the digest (or error) of each file at `indices`, in any order."""

    def digest_chunk(chunk: Sequence[int]) -> list[tuple[int, Digest | OSError]]:
        results: list[tuple[int, Digest | OSError]] = []
        for index in chunk:
            try:
                results.append((index, digest_file(f"{root}/{names[index]}")))
            except OSError as error:
                results.append((index, error))
        return results

    pool = ThreadPoolExecutor(THREADS)
    try:
        chunks = [indices[start : start + AT_ONCE] for start in range(0, len(indices), AT_ONCE)]
        futures: list[Future[list[tuple[int, Digest | OSError]]]] = [
            pool.submit(digest_chunk, chunk) for chunk in chunks
        ]
        for future in as_completed(futures):
            yield from future.result()
            tick(len(future.result()))
    finally:
        pool.shutdown(cancel_futures=True)
