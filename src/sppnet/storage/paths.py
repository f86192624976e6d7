"""Expands paths that the user gives as values of configuration keys."""

from __future__ import annotations

import os
from pathlib import Path

from sppnet.errors import UserError


def expand_path(key: str, value: str | os.PathLike[str]) -> Path:
    """Expand `~` in `value`, the path that the user gives for `key`. The caller checks whether a file exists there.

    Raises:
        UserError: the file system cannot tell whether the path exists (no permission, name too long), or the
            path begins with the home directory of an unknown user.
    """
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{key}={value}: {error.strerror if isinstance(error, OSError) else error}") from None
    return path
