"""The GPUs of this machine, dealt out to the jobs of a sweep. Nothing here imports torch.

A process sees the GPUs that `CUDA_VISIBLE_DEVICES` names, and numbers them from 0. So a job with one GPU of its own is
the same job as on a machine with one GPU, and what is dealt out are the entries of that variable.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that a child of this process would see, each as an entry of `CUDA_VISIBLE_DEVICES`."""
    here, named = _of_this_machine(), os.environ.get(VISIBLE)
    if named is None:
        return here
    kept: list[str] = []
    for entry in filter(None, map(str.strip, named.split(","))):
        index = entry.isdecimal()
        if not (index or entry.startswith(("GPU-", "MIG-"))) or (index and here and int(entry) >= len(here)):
            break  # CUDA ignores what is no GPU (-1, or NoDevFiles, as SLURM has it), and all that follows
        kept.append(entry)
    return kept


def _of_this_machine() -> list[str]:
    """By the driver: indexes, or names if a card is cut into several (MIG), which have no indexes of their own."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    cards: list[list[str]] = []  # by card: its own name, then those of its parts
    for line in done.stdout.splitlines():
        name = re.search(r"\(UUID: (\S+)\)", line)
        if name and line.startswith("GPU "):
            cards.append([name[1]])
        elif name and cards:
            cards[-1].append(name[1])
    if any(len(card) > 1 for card in cards):
        return [name for card in cards for name in card[1:] or card]
    return [str(i) for i, _ in enumerate(cards)]


def wanted(trainer: Mapping[str, Any]) -> int | list[int]:
    """How many GPUs a job takes on one machine, or which; 0 where it is told to take none."""
    if trainer["accelerator"] not in {"auto", "gpu", "cuda"}:
        return 0
    devices = trainer["devices"]
    return devices if isinstance(devices, int) else list(devices)


class Gpus:
    """GPUs and how many jobs are on each.

    A job that asks for several, or for certain ones, waits until they are free; those that come after it wait behind
    it, so that it has its turn.

    Args:
        names: entries of `CUDA_VISIBLE_DEVICES`; none on a machine without GPUs, where nothing is dealt out.
        shared: a GPU may have several jobs, and none waits.
    """

    def __init__(self, names: list[str], shared: bool = False) -> None:
        self.names, self.shared = names, shared
        self._jobs = [0] * len(names)
        self._changed, self._turn = threading.Condition(), threading.Lock()

    @contextlib.contextmanager
    def taken(self, what: int | list[int], stopped: Callable[[], bool]) -> Iterator[dict[str, str]]:
        """Hold GPUs for a job; gives what its environment says of them.

        Args:
            what: how many, or the indexes of certain ones (`trainer.devices=[0,2]`): such a job still sees all GPUs, or
                its indexes would mean others. One that asks for more than there are sees all, and says so itself.
            stopped: whether to give up waiting.
        """
        if not self.names or (isinstance(what, int) and what > len(self.names)):
            yield {}
            return
        with self._turn, self._changed:
            while True:
                mine = self._least_busy(what) if isinstance(what, int) else [i for i in what if i < len(self.names)]
                if self.shared or not any(self._jobs[i] for i in mine) or stopped():
                    break
                self._changed.wait(0.5)
            self._add(mine, 1)
        try:
            yield {} if isinstance(what, list) else {VISIBLE: ",".join(self.names[i] for i in sorted(mine))}
        finally:
            with self._changed:
                self._add(mine, -1)
                self._changed.notify_all()

    def _least_busy(self, number: int) -> list[int]:
        return sorted(range(len(self.names)), key=lambda i: self._jobs[i])[:number]

    def _add(self, mine: list[int], one: int) -> None:
        for i in mine:
            self._jobs[i] += one
