"""The table of a study's comparable rows, with confidence intervals for the differences between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from sppnet.statistics import spread
from sppnet.storage.files import read_json


def load_comparable_rows(folder: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Load the rows in `folder` that use the same images and splits as `row`, best first."""
    stored = (read_json(path) for path in sorted(folder.glob("*.json")))
    rows = [other for other in stored if isinstance(other, dict) and other.get("compare") == row["compare"]]
    return sorted(rows, key=lambda other: (-_score(other), other["hash"]))


def format_rows(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines to print: the scores of `row`, the table of `rows`, and the difference for each pair of rows."""
    yield "  ".join(f"transfer/{name} {value:.4f}" for name, value in row["figures"].items())
    yield ""
    yield from _table(rows)
    if len(rows) > 1 and len(row["splits"]) > 1:
        yield ""
        yield f"difference of the mean accuracies over {len(row['splits'])} paired splits, with its 95 % interval, in %"
        for (i, a), (j, b) in combinations(enumerate(rows, start=1), 2):
            difference = spread([x - y for x, y in zip(_split_accuracies(a), _split_accuracies(b), strict=True)])
            assert difference is not None
            assert difference.half is not None
            low, high = difference.mean - difference.half, difference.mean + difference.half
            verdict = _verdict(a, b, low, high)
            yield f"  {i} - {j}   {100 * difference.mean:+6.2f}  [{100 * low:+.2f}, {100 * high:+.2f}]{verdict}"
    elif len(rows) > 1:
        yield "(one split: no intervals)"
        for (i, a), (j, b) in combinations(enumerate(rows, start=1), 2):
            if _same_features(a, b):
                yield f"  {i} - {j}   the same features"


def _verdict(a: Mapping[str, Any], b: Mapping[str, Any], low: float, high: float) -> str:
    if _same_features(a, b):
        return "  (the same features)"
    if _split_accuracies(a) == _split_accuracies(b):
        return "  (equal in every split)"
    if math.isclose(low, high, abs_tol=1e-12):  # the interval has no width
        return "  (the same difference in every split)"
    return "" if low > 0 or high < 0 else "  (may be zero)"


def _same_features(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two rows have the same C and identical features (on square images, views=warp and views=full do)."""
    return bool(a["features"] == b["features"] and a["row"]["C"] == b["row"]["C"])


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    multilabel = "map" in rows[0]["figures"]
    heads = ("mAP, 11 points", "all points") if multilabel else ("per class", "overall")
    lines = [["", "network", "layer", "view", "px", "length", "C", *(f"{head} %" for head in heads), "row"]]
    for number, row in enumerate(rows, start=1):
        columns = row["row"]
        figures = (
            [f"{100 * row['figures'][name]:.2f}" for name in ("map", "map_all")]
            if multilabel
            else [_with_deviation(row["figures"], name) for name in ("accuracy", "overall")]
        )
        alike = [other for other in rows if _columns(other) == _columns(row)]
        names = [str(columns[key]) for key in ("network", "layer", "view", "size", "length")]
        names[2] += "".join(f" {key}={value}" for key, value in distinguishing_settings(row, alike))
        lines.append([str(number), *names, f"{columns['C']:g}", *figures, row["hash"]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    yield f"{rows[0]['row']['data']}: {rows[0]['row']['protocol']}"
    for line in lines:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def distinguishing_settings(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that no column shows and that distinguish `row` from the other rows."""
    alike = [other["identity"] for other in rows]
    for section in ("layer", "view", "mean", "std", "precision") if len(alike) > 1 else ():
        values, *others = [_flat(section, identity.get(section)) for identity in (row["identity"], *alike)]
        yield from ((key, value) for key, value in values.items() if any(other.get(key) != value for other in others))


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a setting, or the settings of a section and of the sections in it, by name."""
    if not isinstance(value, Mapping):
        return {} if value is None else {name: value}
    return {key: item for inner, node in value.items() for key, item in _flat(inner, node).items()}


def _columns(row: Mapping[str, Any]) -> list[Any]:
    return [row["row"][key] for key in ("network", "layer", "view", "size", "length", "C")]


def _with_deviation(figures: Mapping[str, float], name: str) -> str:
    deviation = figures.get(f"{name}_std")
    return f"{100 * figures[name]:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _split_accuracies(row: Mapping[str, Any]) -> list[float]:
    return [float(split["accuracy"]) for split in row["splits"]]


def _score(row: Mapping[str, Any]) -> float:
    figures = row["figures"]
    return float(figures["map"] if "map" in figures else figures["accuracy"])
