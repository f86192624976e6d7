"""Errors that the command line prints as one line, and one-line notices."""

import sys

show_traceback = False  # `debug.traceback`: print the traceback of a UserError and a RunFailed as well


class UserError(ValueError):
    """A mistake of the user's. The message is one line: what is wrong, where, and what is allowed.

    The command line prints that line and exits with code 2; the command has left nothing behind.
    """

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class RunFailed(Exception):  # noqa: N818  (reads as what happened)
    """A run that has begun cannot continue, for a reason that fits in one line (exit code 1)."""


def notice(text: str) -> None:
    """Print one line on standard error: a fact that the user may not expect and that stops nothing."""
    print(f"sppnet: {' '.join(text.split())}", file=sys.stderr, flush=True)
