"""Errors that the command line prints as one line, and one-line notices."""

import sys

show_traceback = False  # set by `debug.traceback`; if true, UserError and RunFailed are printed with a traceback


class UserError(ValueError):
    """A mistake by the user. The message is one line that says what is wrong, where, and what is allowed.

    The command line prints that line and exits with code 2. The failed command leaves no files behind.
    """

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class RunFailed(Exception):  # noqa: N818  (the name says what happened)
    """A command that has started its work cannot continue; the message gives the reason in one line (exit code 1)."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


def format_value(value: object) -> str:
    """Format the value of a key as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {format_value(item)}' for key, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def notice(text: str) -> None:
    """Print one line to standard error about something that the user may not expect but that is not an error."""
    print(f"sppnet: {' '.join(text.split())}", file=sys.stderr, flush=True)
