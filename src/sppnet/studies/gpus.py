"""Assigns the GPUs of this machine to the jobs of a sweep. Does not import torch.

A process numbers the GPUs in `CUDA_VISIBLE_DEVICES` from 0. A job with a single entry in that variable therefore runs
as it would on a machine with one GPU. The pool assigns entries of the variable to jobs.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs that a child process would see, as entries of `CUDA_VISIBLE_DEVICES`."""
    installed, variable = _installed_gpus(), os.environ.get(VISIBLE)
    if variable is None:
        return installed
    entries: list[str] = []
    for entry in filter(None, map(str.strip, variable.split(","))):
        is_index = entry.isdecimal()
        is_uuid = entry.startswith(("GPU-", "MIG-"))
        if not (is_index or is_uuid) or (is_index and installed and int(entry) >= len(installed)):
            break  # CUDA ignores the first invalid entry (-1, or SLURM's NoDevFiles) and all entries after it
        entries.append(entry)
    return entries


def _installed_gpus() -> list[str]:
    """The indexes of the GPUs that the driver lists; UUIDs if MIG splits a card, because MIG devices have no index."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    cards: list[list[str]] = []  # per card: its own UUID, then the UUIDs of its MIG devices
    for line in listing.stdout.splitlines():
        uuid = re.search(r"\(UUID: (\S+)\)", line)
        if uuid and line.startswith("GPU "):
            cards.append([uuid[1]])
        elif uuid and cards:
            cards[-1].append(uuid[1])
    if any(len(card) > 1 for card in cards):
        return [uuid for card in cards for uuid in card[1:] or card]
    return [str(i) for i, _ in enumerate(cards)]


def requested_gpus(accelerator: str, devices: int | list[int]) -> int | list[int]:
    """The number of GPUs that a job needs on one machine, or their indexes; 0 if its accelerator is not a GPU."""
    return devices if accelerator in {"auto", "gpu", "cuda"} else 0


class GpuPool:
    """A pool of GPUs that counts the jobs on each GPU.

    A job waits until the GPUs that it needs are free. Later jobs wait behind it, so that a job that needs several GPUs,
    or specific ones, gets its turn.

    Args:
        entries: the entries of `CUDA_VISIBLE_DEVICES`; if there are none, no job waits.
        shared: if true, several jobs may share a GPU, and no job waits.
    """

    def __init__(self, entries: list[str], shared: bool = False) -> None:
        self.entries, self.shared = entries, shared
        self._jobs = [0] * len(entries)
        self._changed, self._turn = threading.Condition(), threading.Lock()

    @contextlib.contextmanager
    def reserve(self, request: int | list[int], stopped: Callable[[], bool]) -> Iterator[dict[str, str]]:
        """Reserve GPUs for a job and yield the environment variables for its process.

        A job that requests indexes (`trainer.devices=[0,2]`) still sees all GPUs, because hiding some would shift the
        indexes. A job that requests more GPUs than exist sees all of them and reports the error itself.

        Args:
            request: the number of GPUs, or their indexes.
            stopped: a function that returns whether to stop waiting.
        """
        if not self.entries or (isinstance(request, int) and request > len(self.entries)):
            yield {}
            return
        with self._turn, self._changed:
            while True:
                indexes = (
                    self._least_busy(request)
                    if isinstance(request, int)
                    else [i for i in request if i < len(self.entries)]
                )
                if self.shared or not any(self._jobs[i] for i in indexes) or stopped():
                    break
                self._changed.wait(0.5)
            self._count(indexes, 1)
        try:
            yield {} if isinstance(request, list) else {VISIBLE: ",".join(self.entries[i] for i in sorted(indexes))}
        finally:
            with self._changed:
                self._count(indexes, -1)
                self._changed.notify_all()

    def _least_busy(self, number: int) -> list[int]:
        return sorted(range(len(self.entries)), key=lambda i: self._jobs[i])[:number]

    def _count(self, indexes: list[int], change: int) -> None:
        for i in indexes:
            self._jobs[i] += change
