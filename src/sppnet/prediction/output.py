"""Write predictions as a table and as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from sppnet.storage.files import atomic_write

ClassProbabilities = Sequence[tuple[str, float]]  # the likeliest class first


class Table:
    """The table on standard output; each image's line is printed as soon as the image is classified.

    The columns are path, width and height, then the name and probability of each listed class. They are aligned on a
    terminal, and separated by tabs in a pipe or a file. Tabs, line breaks and characters that the output's encoding
    lacks are escaped as in JSON.

    Args:
        names: the names of all images.
        classes: the network's class names.
    """

    def __init__(self, names: Sequence[str], classes: Sequence[str]) -> None:
        self.aligned = sys.stdout.isatty()
        self.name_width = min(48, max(len(_escape(name)) for name in names))
        self.class_width = min(24, max(len(name) for name in classes))

    def write(self, name: str, shape: tuple[int, int], classes: ClassProbabilities) -> None:
        """Print the line for an image of `shape` (height, width)."""
        height, width = shape
        if self.aligned:
            shown = "  ".join(f"{_escape(label):<{self.class_width}} {p:.4f}" for label, p in classes)
            line = f"{_escape(name):<{self.name_width}}  {f'{width}x{height}':>9}  {shown}"
        else:
            pairs = [part for label, p in classes for part in (_escape(label), f"{p:.6f}")]
            line = "\t".join([_escape(name), str(width), str(height), *pairs])
        say(line)


class JsonLines:
    """One JSON object per image.

    Keys: `file`, `size` ([width, height] of the image), `input` ([width, height] of the network's input, at the first
    scale if `views` has several) and `classes` (each a `class` and a `probability`).

    Args:
        output: a file, which is written atomically; `-` to print each line as soon as it is ready, None for no output.
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

    def write(
        self, name: str, shape: tuple[int, int], input_shape: tuple[int, int], classes: ClassProbabilities
    ) -> None:
        """Write the line for an image of `shape` (height, width), which the network saw at `input_shape`."""
        pairs = [{"class": label, "probability": round(p, 8)} for label, p in classes]
        line = {"file": name, "size": [*shape[::-1]], "input": [*input_shape[::-1]], "classes": pairs}
        if self.instead_of_table:
            say(_dump(line))
        elif self.path is not None:
            if self._file is None:  # opened at the first line, so a command that fails earlier leaves no file
                # resolve: if the path is a link, the link's target is replaced, not the link
                self._file = self._stack.enter_context(atomic_write(self.path.resolve()))
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


def say(line: str) -> None:
    """Print `line` and flush; exit quietly if the reader has closed the pipe (`| head`)."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # The interpreter flushes stdout at exit, which would fail again if stdout were still the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # 128 + SIGPIPE, as a shell reports it


def _escape(name: str) -> str:
    """Escape `name` as in JSON unless it is printable in the output's encoding."""
    return name if name.isprintable() and _encodable(name) else _dump(name)[1:-1]


def _dump(value: Any) -> str:
    line = json.dumps(value, ensure_ascii=False)
    return line if _encodable(line) else json.dumps(value)


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
