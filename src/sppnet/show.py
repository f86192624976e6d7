"""How a result is printed: the run directory and one line per test size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppnet.runs import Run


def result_lines(metrics: Mapping[str, float]) -> list[str]:
    """The figures at the first test size, then, if there are several, those of each size."""
    sizes: dict[str, list[str]] = {}
    for key, value in metrics.items():
        *_, size, name = key.split("/")
        label = "" if key.count("/") == 1 else size
        sizes.setdefault(label, []).append(f"{key} {value:.4f}" if not label else f"{name} {value:.4f}")
    first = "  ".join(sizes.pop("", []))
    rows = [f"  {size:>5} px  " + "  ".join(values) for size, values in sizes.items()]
    return [first, *(rows if len(rows) > 1 else [])]


def print_result(run: Run | None, found: Mapping[str, Any]) -> None:
    """Print the run directory (if there is one) and the test's figures."""
    if limit := found["identity"]["limit"]:  # the figures do not show it
        print(f"trainer.limit_batches={limit['batches']}: {found['images']} images of the test part were scored")
    if run is not None:
        print(f"run directory: {run.path}")
    for line in [*result_lines(found["metrics"]), *_view_lines(found.get("views", {}))]:
        print(line)


def _view_lines(views: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """What the views of each scale cost, for each test size."""
    return [
        f"  {size:>5} px  {int(cost['views'])} views of the image at {side} px: {cost['seconds']:.4f} s per image"
        for size, sides in views.items()
        for side, cost in sides.items()
    ]
