"""Writes the record of a test (`RUN/tests/HASH.json`) and its confusion matrices (`RUN/confusion/HASH_SIZE.csv`).

The matrices have a folder of their own, so that every file in `RUN/tests` is a record.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.runs.run_directory import Run
from sppnet.storage.files import write_json, write_text


def write_test(run: Run, test: str, record: Mapping[str, Any]) -> None:
    """Write the record of a test. Its confusion matrices are written first, so they exist if the record does.

    The record in the file has the sizes of the matrices instead of the matrices.
    """
    run.test_file(test).parent.mkdir(exist_ok=True)
    classes = list(next(iter(record["per_class"].values())))
    for size, matrix in record["confusion"].items():
        path = confusion_file(run, test, size)
        path.parent.mkdir(exist_ok=True)
        write_text(path, _to_csv(classes, matrix))
    write_json(run.test_file(test), {**record, "confusion": list(record["confusion"])})


def _to_csv(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Return a row per true class, and in it the number of images predicted as each class."""
    text = io.StringIO()
    writer = csv.writer(text)  # ends lines with \r\n, and quotes names with either
    writer.writerow(["true class", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, matrix, strict=True))
    return text.getvalue()


def confusion_file(run: Run, test: str, size: str) -> Path:
    return run.path / "confusion" / f"{test}_{size}.csv"


def read_confusion(path: Path) -> tuple[list[str], list[list[int]]]:
    """Return the class names and the rows of a file."""
    with path.open(newline="", encoding="utf-8") as file:
        (_, *classes), *rows = csv.reader(file)
    return classes, [[int(count) for count in row[1:]] for row in rows]
