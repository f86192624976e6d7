"""Times two calls (`compare`, `compare_on_gpu`), and defines the settings (`Setting`) and the table rows (`Row`)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One row of the table. The field names are the keys of the JSON file.

    Attributes:
        group: name of the group, as in the option `only`.
        what: what is measured.
        against: the alternative.
        ours: the time or count measured for sppnet, in `unit`.
        theirs: the time or count measured for the alternative, in `unit`; NaN if there is only a target.
        value: the number that is compared with the target; theirs / ours unless `what` says otherwise.
        target: the bound on `value`.
        most: whether the target is an upper bound; otherwise it is a lower bound.
        limit: a note on the spread, the physical limit or the worst case.
        detail: further results as plain data.
        unit: the unit of `ours` and `theirs`.
    """

    group: str
    what: str
    against: str
    ours: float
    theirs: float
    value: float
    target: float
    most: bool = False
    limit: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    unit: str = "s"

    @property
    def reached(self) -> bool:
        return self.value <= self.target if self.most else self.value >= self.target


@dataclass(frozen=True)
class Setting:
    """Device, data and extent of the measurements.

    Attributes:
        device: the torch device.
        threads: number of torch's CPU threads, and of data loader workers.
        photographs: folders of CLASS/IMAGE.jpg, keyed by their name in the table.
        scratch: folder for temporary files.
        quick: whether to measure as little as possible, to test that the benchmarks run.
    """

    device: torch.device
    threads: int
    photographs: dict[str, Path]
    scratch: Path
    quick: bool = False


@dataclass(frozen=True)
class Timing:
    """The seconds per call for sppnet (`ours`) and for the alternative (`theirs`); `ratio` is theirs / ours."""

    ours: float
    theirs: float
    ratio: float


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float = 0.5, least: int = 5, device: str = "cpu"
) -> Timing:
    """Call each function once to warm up, then both alternately for about `seconds`, but at least `least` times each.

    The results are the median times, and the median ratio over pairs of consecutive calls. Alternating makes this ratio
    robust, because other load on the machine slows consecutive calls equally.
    """
    ours(), theirs()
    pairs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(pairs) < least or (time.perf_counter() - began < seconds and len(pairs) < 1000):
        pairs.append((time_call(ours, device), time_call(theirs, device)))
    our_times, their_times = zip(*pairs, strict=True)
    ratio = statistics.median(b / a for a, b in pairs)
    return Timing(statistics.median(our_times), statistics.median(their_times), ratio)


def time_call(call: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds that one call takes, including the GPU's work."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare_on_gpu(ours: Callable[[], object], theirs: Callable[[], object]) -> Timing:
    """Time the GPU's work without that of the host: each call is recorded as a CUDA graph and then replayed.

    The times are means over the replays, which use the same tensors. Small maps therefore stay in the GPU's cache.
    """
    from triton.testing import do_bench_cudagraph

    our_time, their_time = (do_bench_cudagraph(call, rep=5) / 1000 for call in (ours, theirs))
    return Timing(our_time, their_time, their_time / our_time)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
