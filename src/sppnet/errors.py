"""What is said in one line: a mistake of the user's, and a failure that was foreseen; a fact worth knowing."""

import sys

show_traceback = False  # `debug.traceback`: a mistake and a foreseen failure show theirs, too


class UserError(ValueError):
    """A user's mistake. Its text is one line that says what is wrong, where, and what is allowed.

    The command line prints that line and exits with code 2; nothing is left behind.
    """

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class RunFailed(Exception):  # noqa: N818  (reads as what happened)
    """A run that began cannot go on, for a reason that one line says (exit code 1)."""


def notice(text: str) -> None:
    """Say in one line, on standard error, what the user would not expect and what stops nothing."""
    print(f"sppnet: {' '.join(text.split())}", file=sys.stderr, flush=True)
