"""How predictions are shown and written: a table and JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from sppnet.storage.files import atomic_write

Named = Sequence[tuple[str, float]]  # classes and their probabilities, the likeliest first


class Table:
    """The table on standard output, a line per picture as soon as it is predicted.

    On a terminal the columns are aligned; on a pipe they are separated by tabs: path, width, height, then class and
    probability, as many times as classes are shown. In names, tabs, line ends and what the encoding of the output lacks
    are escaped as in JSON.

    Args:
        names: of all pictures.
        classes: of the network.
    """

    def __init__(self, names: Sequence[str], classes: Sequence[str]) -> None:
        self.aligned = sys.stdout.isatty()
        self.name_width = min(48, max(len(_plain(name)) for name in names))
        self.class_width = min(24, max(len(name) for name in classes))

    def write(self, name: str, shape: tuple[int, int], classes: Named) -> None:
        """Print the line of one picture of `shape` (height, width)."""
        height, width = shape
        if self.aligned:
            shown = "  ".join(f"{_plain(label):<{self.class_width}} {p:.4f}" for label, p in classes)
            line = f"{_plain(name):<{self.name_width}}  {f'{width}x{height}':>9}  {shown}"
        else:
            pairs = [part for label, p in classes for part in (_plain(label), f"{p:.6f}")]
            line = "\t".join([_plain(name), str(width), str(height), *pairs])
        say(line)


class JsonLines:
    """`output`: one JSON object per picture, `file`, `size` ([width, height]) and `classes` (`class`, `probability`).

    The file is written atomically. `-` prints every line on standard output as soon as it is known.

    Args:
        output: a file, `-`, or None for nothing.
    """

    def __init__(self, output: str | None) -> None:
        self.instead_of_table = output == "-"
        self.path = None if output is None or self.instead_of_table else Path(output).expanduser()
        self._file: IO[str] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, name: str, shape: tuple[int, int], classes: Named) -> None:
        """Add the line of one picture of `shape` (height, width)."""
        height, width = shape
        pairs = [{"class": label, "probability": round(p, 8)} for label, p in classes]
        line = {"file": name, "size": [width, height], "classes": pairs}
        if self.instead_of_table:
            say(_json(line))
        elif self.path is not None:
            if self._file is None:  # not before there is a line to write: a mistake leaves nothing behind
                self._file = self._stack.enter_context(atomic_write(self.path.resolve()))  # of a link, its target
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


def say(line: str) -> None:
    """Print `line` at once; where nobody reads any more (`| head`), end quietly as other programs do."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would stumble at its end
        raise SystemExit(141) from None  # 128 + SIGPIPE, what a shell says of a program that this signal has ended


def _plain(name: str) -> str:
    """A name in one line and one column, in characters that the output has."""
    return name if name.isprintable() and _has(name) else _json(name)[1:-1]


def _json(value: Any) -> str:
    line = json.dumps(value, ensure_ascii=False)
    return line if _has(line) else json.dumps(value)


def _has(text: str) -> bool:
    """Whether the encoding of standard output has all characters of `text`."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
