"""How sure a difference is: spread over seeds, paired tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]  # scipy.stats takes two seconds to import

CONFIDENCE = 0.95
FEWEST = 3  # seeds below which nothing is called better than anything


@dataclass(frozen=True)
class Spread:
    """Mean of `n` values, their sample deviation, and half of Student's 95 % interval of the mean; None below two."""

    n: int
    mean: float
    deviation: float | None
    half: float | None


@dataclass(frozen=True)
class Difference:
    """A row minus another, paired by seed: the spread, and Holm's corrected p of the paired t-test (None below three
    pairs)."""

    spread: Spread
    p: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of `values`; None of none."""
    n = len(values)
    if not n:
        return None
    mean = float(np.mean(values))
    if n < 2:
        return Spread(n, mean, None, None)
    deviation = float(np.std(values, ddof=1))
    return Spread(n, mean, deviation, float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n))


def differences(values: Mapping[str, Mapping[int, float]], base: str) -> dict[str, Difference | None]:
    """Every other row minus `base`, over the seeds that both have; None where there is no such seed.

    Args:
        values: for each row, a figure by seed.
        base: the row that the others are compared with.
    """
    spreads: dict[str, Spread | None] = {}
    raw: dict[str, float] = {}
    for name, mine in values.items():
        if name == base:
            continue
        both = sorted(mine.keys() & values[base].keys())
        gaps = [mine[seed] - values[base][seed] for seed in both]
        spreads[name] = spread(gaps)
        if len(both) >= FEWEST:
            raw[name] = _p([mine[seed] for seed in both], [values[base][seed] for seed in both])
    corrected = holm(raw)
    return {name: Difference(one, corrected.get(name)) if one else None for name, one in spreads.items()}


def best(values: Mapping[str, Mapping[int, float]], lower: bool) -> str | None:
    """The row with the best mean, if it is better than every other beyond chance; None if there is no such row."""
    first = leader(values, lower)
    if first is None or len(values) < 2:
        return None
    ps = [one.p if one else None for one in differences(values, first).values()]
    return first if all(p is not None and p < 1 - CONFIDENCE for p in ps) else None


def leader(values: Mapping[str, Mapping[int, float]], lower: bool) -> str | None:
    """The row with the best mean, beyond chance or not; of those whose mean is a number."""
    means = {name: float(np.mean(list(mine.values()))) for name, mine in values.items() if mine}
    means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return min(means, key=lambda name: means[name] if lower else -means[name], default=None)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the chance of any false alarm among all of `ps` stays below the level."""
    found: dict[str, float] = {}
    worst = 0.0
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[name]))
        found[name] = worst
    return found


def _p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of the paired t-test. Where all differences are equal (few test images make few values) it would be
    0 however few the pairs, so the sign test says how sure that is."""
    gaps = np.subtract(a, b)
    if np.allclose(gaps, gaps[0], atol=1e-12):
        return 1.0 if abs(gaps[0]) < 1e-12 else 2 * 0.5 ** len(gaps)
    statistic = np.mean(gaps) / (np.std(gaps, ddof=1) / math.sqrt(len(gaps)))
    return float(2 * stdtr(len(gaps) - 1, -abs(statistic)))
