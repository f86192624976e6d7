"""What makes two runs the same run: the hash of everything that determines the weights (or a test's figures).

Keys are left out by name and everything else counts, so that a key somebody adds later cannot be forgotten.
Data and weights enter by content, never by path. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppnet.data import fingerprint
from sppnet.errors import UserError
from sppnet.settings import unused

FORMAT = 1  # raised when the code changes what the same configuration trains
NOT_IN_A_RUN = (
    *("study", "name", "force", "paths", "logger", "debug", "views", "checkpoint", "sizes.test"),
    *("data.root", "data.workers", "backbone.weights"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.progress"),
    *("trainer.checkpoint_every_n_steps", "trainer.log_every_n_steps"),
)
NOT_IN_A_TEST = ("data.root", "data.workers", "data.batch_size", "data.fit", "data.crop", "data.flip", "data.color")


def run_identity(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in `cfg` that determines the weights of the run, as plain data.

    Raises:
        UserError: the data set or the weights file is not there, or the data set is not as it must be.
    """
    # what has no effect (head.bins of a head without a pyramid, say) makes no other run
    return _without(cfg, (*NOT_IN_A_RUN, *unused(cfg))) | {
        "format": FORMAT,
        "data.fingerprint": fingerprint(cfg["data"]),
        "backbone.weights": weights_identity(cfg["backbone"].get("weights")),
        "world_size": world_size(cfg),
    }


def check_identity(cfg: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Everything that determines the figures of a test of `weights` (best, last, or a digest of a file)."""
    return {
        "format": FORMAT,
        "weights": weights,
        "views": _without(cfg, tuple(unused(cfg)))["views"],
        "sizes": cfg["sizes"]["test"],
        "data": _without({"data": cfg["data"]}, NOT_IN_A_TEST)["data"],
        "fingerprint": fingerprint(cfg["data"]),
        "precision": cfg["trainer"]["precision"],
        "limit": _limit(cfg),
    }


def _limit(cfg: Mapping[str, Any]) -> dict[str, int] | None:
    """How many images a test cut short sees: the number of batches, and what is in one."""
    batches = cfg["trainer"]["limit_batches"]
    return None if batches is None else {"batches": batches, "batch_size": cfg["data"]["batch_size"]}


def digest(identity: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of SHA-256 over the sorted JSON of `identity`."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def world_size(cfg: Mapping[str, Any]) -> int:
    """Number of processes that train together."""
    devices = cfg["trainer"]["devices"]
    return (len(devices) if isinstance(devices, list) else int(devices)) * int(cfg["trainer"]["num_nodes"])


def weights_identity(weights: str | None) -> str | None:
    """SHA-256 of a weights file; the name of a set of torchvision's weights as it is.

    Raises:
        UserError: it looks like a path and no file is there.
    """
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if path.is_file():
        return file_digest(path)
    if "/" in weights or path.suffix:
        raise UserError(f"backbone.weights={weights}: no such file")
    return weights


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256:...`."""
    return _file_digest(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, _mtime: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _without(cfg: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    kept = copy.deepcopy(dict(cfg))
    for key in keys:
        node: Any = kept
        *parents, last = key.split(".")
        for part in parents:
            node = node.get(part) or {}
        node.pop(last, None)
    return kept
