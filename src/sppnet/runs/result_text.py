"""Formats and prints a test result: the run directory and one line per test size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppnet.runs.run_directory import Run

NOT_PRINTED = ("macro_f1", "calibration_error")  # they are in the record, and the lines would get long


def result_lines(record: Mapping[str, Any]) -> list[str]:
    """One line with the metrics at the first test size, followed by one line per size if there are several."""
    sizes: dict[str, list[str]] = {}
    for key, value in record["metrics"].items():
        *_, size, name = key.split("/")
        if name in NOT_PRINTED:
            continue
        label = "" if key.count("/") == 1 else size
        sizes.setdefault(label, []).append(f"{key} {value:.4f}" if not label else f"{name} {value:.4f}")
    counts: Mapping[str, int] = record["images_per_size"]
    for size, values in sizes.items():
        values.append(f"images {counts[size] if size else record['images']}")
    first = "  ".join(sizes.pop("", []))
    lines = [f"  {size:>5} px  " + "  ".join(values) for size, values in sizes.items()]
    return [first, *(lines if len(lines) > 1 else [])]


def print_result(run: Run | None, record: Mapping[str, Any]) -> None:
    """Print the run directory, if there is one, and the metrics of a test."""
    if limit := record["identity"]["limit"]:  # the metrics alone do not show that not all images may have been scored
        print(f"trainer.limit_test_batches={limit['batches']} limits the test")
    if run is not None:
        print(f"run directory: {run.path}")
    print(*result_lines(record), sep="\n")
    for size, sides in record["views"].items():
        for side, cost in sides.items():
            views = f"{int(cost['views'])} views of the image at {side} px"
            print(f"  {size:>5} px  {views}: {cost['seconds']:.4f} s per image")
