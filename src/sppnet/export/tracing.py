"""What the exporters of torch have in common: they print much, and raise whatever the network raises."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch

from sppnet.errors import UserError


@contextlib.contextmanager
def exporting(format_name: str, advice: str) -> Iterator[None]:
    """Silence the exporters of torch, and explain their errors in one line, which ends with `advice`.

    Raises:
        UserError: an exporter fails.
    """
    noise = io.StringIO()  # the exporters print, and log, how far they got
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(noise),
            contextlib.redirect_stderr(noise),
            warnings.catch_warnings(action="ignore"),
            torch.no_grad(),
        ):
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the exporters run the network, which may raise any exception
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"format={format_name} cannot express this network: {reason[:300]}; {advice}") from error
    finally:
        logging.disable(before)
