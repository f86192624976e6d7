"""What a measurement is, and how two things are measured against each other."""

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
    """One line of the table.

    Attributes:
        group: as in `only`.
        what: is measured.
        against: what it is measured with.
        ours: seconds, or whatever `unit` says.
        theirs: the same; NaN where there is nothing to compare with but the target.
        value: what is held against the target: theirs over ours, unless `what` says otherwise.
        target: to be reached.
        most: whether the target is the most allowed, and not the least.
        limit: how far what bounds it physically is.
        detail: whatever else is worth keeping, plain data.
        unit: of `ours` and `theirs`.
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
        """Whether the target is met."""
        return self.value <= self.target if self.most else self.value >= self.target


@dataclass(frozen=True)
class Setting:
    """Where and on what to measure.

    Attributes:
        device: of torch.
        threads: of torch on the CPU; workers of loaders.
        photographs: folders with JPEGs by class, by their name in the table.
        scratch: a folder for whatever has to be written.
        quick: measure the least that shows that it runs.
    """

    device: torch.device
    threads: int
    photographs: dict[str, Path]
    scratch: Path
    quick: bool = False


@dataclass(frozen=True)
class Timed:
    """Seconds of two things that took turns; `ratio` is the median of theirs over ours, pair by pair."""

    ours: float
    theirs: float
    ratio: float


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float = 0.5, least: int = 5, device: str = "cpu"
) -> Timed:
    """Call both once, then in turns for about `seconds`, at least `least` times each.

    What disturbs the machine for a while disturbs both: ratios are taken of neighbours.
    """
    ours(), theirs()
    pairs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(pairs) < least or (time.perf_counter() - began < seconds and len(pairs) < 1000):
        pairs.append((took(ours, device), took(theirs, device)))
    one, other = zip(*pairs, strict=True)
    return Timed(statistics.median(one), statistics.median(other), statistics.median(b / a for a, b in pairs))


def took(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def geometric(values: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(statistics.fmean(map(math.log, values)))
