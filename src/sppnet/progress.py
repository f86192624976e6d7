"""Shows on standard error how many images are done, as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

LINES_EVERY = 10.0  # minimum number of seconds between two lines


@contextlib.contextmanager
def meter(command: str, kind: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of `sppnet COMMAND`. Yield a function that adds to the number of images done.

    Args:
        command: the name of the command, which each printed line begins with.
        kind: the value of `progress`: `none`, `bar`, `lines`, or `auto` (a bar on a terminal, lines elsewhere).
        total: the number of images; nothing is shown for a single image.
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
            yield lambda count: progress.advance(task, count)
    else:
        yield _print_lines(command, total)


def _print_lines(command: str, total: int) -> Callable[[int], None]:
    began = printed = time.monotonic()
    done = 0

    def tick(count: int) -> None:
        nonlocal printed, done
        done += count
        now = time.monotonic()
        if now - printed >= LINES_EVERY:
            printed = now
            rate = done / (now - began)
            print(f"sppnet {command}: {done} of {total} images, {rate:.1f} per second", file=sys.stderr, flush=True)

    return tick
