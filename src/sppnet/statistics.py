"""Statistics for result tables: Student's t intervals over seeds, paired t-tests between rows, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]  # importing scipy.stats takes two seconds

CONFIDENCE = 0.95
MIN_PAIRS = 3  # the fewest pairs for a t-test; with fewer, no row is called better than another


@dataclass(frozen=True)
class Spread:
    """Mean and variation of a sample.

    Attributes:
        n: the number of values.
        mean: the mean of the values.
        deviation: the sample standard deviation (`n - 1` degrees of freedom); None for a single value.
        half: half the width of Student's 95 % confidence interval for the mean,
            `t(0.975, n - 1) * deviation / sqrt(n)`; None for a single value.
    """

    n: int
    mean: float
    deviation: float | None
    half: float | None


@dataclass(frozen=True)
class Difference:
    """The metric of a row minus that of a baseline row, paired by seed.

    Attributes:
        spread: the mean and variation of the paired differences.
        p: the two-sided p-value of the paired t-test with Holm's correction; None if there are fewer than `MIN_PAIRS`
            pairs, or one of them has a NaN.
    """

    spread: Spread
    p: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """Compute the mean, sample standard deviation and Student's 95 % confidence interval of `values`.

    Args:
        values: one value per seed (or per split).

    Returns:
        The spread; None if there are no values.
    """
    n = len(values)
    if not n:
        return None
    mean = float(np.mean(values))
    if n < 2:
        return Spread(n, mean, None, None)
    deviation = float(np.std(values, ddof=1))
    return Spread(n, mean, deviation, float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n))


def differences(values: Mapping[str, Mapping[int, float]], base: str) -> dict[str, Difference | None]:
    """Compare each row except the baseline with the baseline in a paired t-test; Holm's correction covers all tests.

    Args:
        values: the metric of each row for each seed.
        base: the baseline row.

    Returns:
        For each row except `base`, its difference from `base` over the seeds that both have; None if there are no such
        seeds.
    """
    spreads: dict[str, Spread | None] = {}
    p_values: dict[str, float] = {}
    for name, by_seed in values.items():
        if name == base:
            continue
        seeds = sorted(by_seed.keys() & values[base].keys())
        gaps = [by_seed[seed] - values[base][seed] for seed in seeds]
        spreads[name] = spread(gaps)
        if len(seeds) >= MIN_PAIRS and not any(map(math.isnan, gaps)):  # a NaN would become the p-value of other rows
            p_values[name] = _paired_p([by_seed[seed] for seed in seeds], [values[base][seed] for seed in seeds])
    corrected = holm(p_values)
    return {
        name: Difference(row_spread, corrected.get(name)) if row_spread else None
        for name, row_spread in spreads.items()
    }


def best(values: Mapping[str, Mapping[int, float]], lower: bool) -> str | None:
    """Find the row that is significantly better than every other row.

    Args:
        values: the metric of each row for each seed.
        lower: whether lower values are better.

    Returns:
        The row with the best mean if its corrected p-value against every other row is less than 0.05; otherwise None.
        Rows with a NaN are ignored.
    """
    values = {name: by_seed for name, by_seed in values.items() if not any(map(math.isnan, by_seed.values()))}
    first = leader(values, lower)
    if first is None or len(values) < 2:
        return None
    p_values = [gap.p if gap else None for gap in differences(values, first).values()]
    return first if all(p is not None and p < 1 - CONFIDENCE for p in p_values) else None


def leader(values: Mapping[str, Mapping[int, float]], lower: bool) -> str | None:
    """Find the row with the best mean, whether or not it is significantly better than the others.

    Args:
        values: the metric of each row for each seed.
        lower: whether lower values are better.

    Returns:
        The row, or None if no row has values. Rows whose mean is NaN are ignored.
    """
    means = {name: float(np.mean(list(by_seed.values()))) for name, by_seed in values.items() if by_seed}
    means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return min(means, key=lambda name: means[name] if lower else -means[name], default=None)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values by Holm's step-down correction, which bounds the family-wise error rate.

    The k-th smallest of m p-values is multiplied by `m - k + 1`. The results are capped at 1 and made monotonic.

    Args:
        ps: the p-value of each test, by name.

    Returns:
        The adjusted p-value of each test, by name.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[name]))
        adjusted[name] = largest
    return adjusted


def _paired_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test.

    If all differences are equal but not 0, t is infinite and p would be 0 for any number of pairs. In this case, which
    is likely on a small test set because its metrics can take only a few values, the two-sided sign test is used
    instead. If all differences are 0, p is 1.
    """
    gaps = np.subtract(a, b)
    if np.allclose(gaps, gaps[0], atol=1e-12):
        return 1.0 if abs(gaps[0]) < 1e-12 else 2 * 0.5 ** len(gaps)
    statistic = np.mean(gaps) / (np.std(gaps, ddof=1) / math.sqrt(len(gaps)))
    return float(2 * stdtr(len(gaps) - 1, -abs(statistic)))
