"""Files of tensors, read as data and never as code."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sppnet.errors import UserError
from sppnet.settings import check_layout


def read_tensor_file(path: Path, key: str) -> Any:
    """What `torch.save` wrote to `path`: tensors and plain data, on the CPU.

    Args:
        path: the file.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: there is no such file; it is damaged or was not written by torch; it holds pickled objects (which
            are not executed).
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{key}={path}: {error.strerror}") from None
    except UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) `?([\w.]+)", str(error))
        what = f"holds a pickled object ({named[1]}), which is never executed" if named else "is no file of tensors"
        raise UserError(f"{key}={path} {what}; allowed is what torch.save writes of tensors and plain data") from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{key}={path} cannot be read, is damaged or no file of tensors: {reason}") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU.

    Raises:
        UserError: there is no such file, it is damaged or no checkpoint of sppnet's, it holds pickled objects (which
            are not executed), or the keys of its configuration have other names than today's.
    """
    loaded = read_tensor_file(path, "checkpoint")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("sppnet"), dict) or "state_dict" not in loaded:
        raise UserError(f"checkpoint={path} is not a checkpoint of sppnet's (no configuration in it)")
    check_layout(loaded["sppnet"].get("layout"), f"checkpoint={path}")
    return loaded
