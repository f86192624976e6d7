"""How far a command is through many images: a bar on a terminal, lines elsewhere; on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

LINES_EVERY = 10.0  # seconds between two lines


@contextlib.contextmanager
def meter(command: str, kind: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far `sppnet COMMAND` is; call what this gives with the number of images that are done since.

    Args:
        command: names the program in lines.
        kind: `trainer.progress`: none; bar; lines, one every ten seconds; auto, a bar on a terminal, else lines.
        total: how many images there are; of one nothing is shown.
    """
    if kind == "none" or total < 2:
        yield lambda _: None
    elif kind == "bar" or (kind == "auto" and sys.stderr.isatty()):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
        console = Console(stderr=True, soft_wrap=True)
        with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
            task = progress.add_task("", total=total)
            yield lambda more: progress.advance(task, more)
    else:
        yield _lines(command, total)


def _lines(command: str, total: int) -> Callable[[int], None]:
    began = shown = time.monotonic()
    done = 0

    def tick(more: int) -> None:
        nonlocal shown, done
        done += more
        now = time.monotonic()
        if now - shown >= LINES_EVERY:
            shown = now
            rate = done / (now - began)
            print(f"sppnet {command}: {done} of {total} images, {rate:.1f} a second", file=sys.stderr, flush=True)

    return tick
