"""All rows of a study that can be compared, and how sure it is that one is better than another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from sppnet.statistics import spread
from sppnet.storage.files import read_json


def comparable(folder: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows in `folder` with the images and splits of `row`, the best one first."""
    found = (read_json(path) for path in sorted(folder.glob("*.json")))
    same = [one for one in found if isinstance(one, dict) and one.get("compare") == row["compare"]]
    return sorted(same, key=lambda one: (-_score(one), one["hash"]))


def lines(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is printed: the figures of `row`, the table of `rows`, the intervals of every pair."""
    yield "  ".join(f"transfer/{name} {value:.4f}" for name, value in row["figures"].items())
    yield ""
    yield from _table(rows)
    several = len(row["splits"]) > 1
    if len(rows) > 1 and several:
        yield ""
        yield f"difference of the mean accuracies over {len(row['splits'])} paired splits and its 95 % interval, in %"
        for (i, one), (j, other) in combinations(enumerate(rows, start=1), 2):
            gap = spread([a - b for a, b in zip(_per_split(one), _per_split(other), strict=True)])
            assert gap is not None
            assert gap.half is not None
            low, high = gap.mean - gap.half, gap.mean + gap.half
            verdict = _verdict(one, other, low, high)
            yield f"  {i} - {j}   {100 * gap.mean:+6.2f}  [{100 * low:+.2f}, {100 * high:+.2f}]{verdict}"
    elif len(rows) > 1:
        yield "(one split: no intervals)"
        for (i, one), (j, other) in combinations(enumerate(rows, start=1), 2):
            if _same_features(one, other):
                yield f"  {i} - {j}   the same features"


def _verdict(one: Mapping[str, Any], other: Mapping[str, Any], low: float, high: float) -> str:
    """What is to be said of a difference beside its interval."""
    if _same_features(one, other):
        return "  (the same features)"
    if _per_split(one) == _per_split(other):
        return "  (the same in every split)"
    if math.isclose(low, high, abs_tol=1e-12):  # which says nothing of the spread
        return "  (as much in every split)"
    return "" if low > 0 or high < 0 else "  (may be none)"


def _same_features(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows are of the same numbers, as of two views of square pictures, and of the same C."""
    same_features = one.get("features") is not None and one.get("features") == other.get("features")
    return same_features and one["row"]["C"] == other["row"]["C"]


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    multilabel = "map" in rows[0]["figures"]
    heads = ("mAP, 11 points", "all points") if multilabel else ("per class", "overall")
    cells = [["", "network", "layer", "view", "px", "length", "C", *(f"{head} %" for head in heads), "row"]]
    for number, one in enumerate(rows, start=1):
        what = one["row"]
        figures = (
            [f"{100 * one['figures'][name]:.2f}" for name in ("map", "map_all")]
            if multilabel
            else [_with_deviation(one["figures"], name) for name in ("accuracy", "overall")]
        )
        named = [str(what[key]) for key in ("network", "layer", "view", "size", "length")]
        named[2] += "".join(f" {key}={value}" for key, value in _apart(one, rows))
        cells.append([str(number), *named, f"{what['C']:g}", *figures, one["hash"]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    yield f"{rows[0]['row']['data']}: {rows[0]['row']['protocol']}"
    for line in cells:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _apart(one: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """What tells a row from those that are called the same: settings that have no column."""
    alike = [other["identity"] for other in rows if _named(other) == _named(one)]
    for section in ({"view", "mean", "std", "precision"} & one["identity"].keys()) if len(alike) > 1 else ():
        values = one["identity"][section]
        for key, value in values.items() if isinstance(values, Mapping) else [(section, values)]:
            others = [other[section][key] if isinstance(values, Mapping) else other[section] for other in alike]
            if any(other != value for other in others):
                yield key, value


def _named(row: Mapping[str, Any]) -> list[Any]:
    return [row["row"][key] for key in ("network", "layer", "view", "size", "length", "C")]


def _with_deviation(figures: Mapping[str, float], name: str) -> str:
    deviation = figures.get(f"{name}_std")
    return f"{100 * figures[name]:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _per_split(row: Mapping[str, Any]) -> list[float]:
    return [float(split["accuracy"]) for split in row["splits"]]


def _score(row: Mapping[str, Any]) -> float:
    figures = row["figures"]
    return float(figures["map"] if "map" in figures else figures["accuracy"])
