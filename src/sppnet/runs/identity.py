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
from typing import TYPE_CHECKING, Any

from sppnet.config.instantiate import user_source_files
from sppnet.config.schema import LAYOUT, keys_without_effect
from sppnet.errors import UserError

if TYPE_CHECKING:
    from sppnet.data import ImageSet

FORMAT = 2  # raised when the code changes what the same configuration trains
NOT_IN_A_RUN = (
    *("study", "name", "report", "force", "retry", "paths", "logger", "debug", "views", "checkpoint", "sizes.test"),
    *("data.root", "data.workers", "data.name", "data.cache", "data.duplicates"),
    *("backbone.weights", "backbone.name", "head.kernel"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.progress"),
    *("trainer.checkpoint_every_n_steps", "trainer.log_every_n_steps"),
)
NOT_IN_A_TEST = (
    *("data.root", "data.workers", "data.name", "data.batch_size", "data.cache", "data.duplicates"),
    *("data.fit", "data.crop", "data.flip", "data.color", "data.aspect_step"),
)


def run_identity(cfg: Mapping[str, Any], images: ImageSet) -> dict[str, Any]:
    """Everything in `cfg` that determines the weights of a run on `images`, as plain data.

    Raises:
        UserError: the weights file, or a module of the user's own, is not there.
    """
    kind = cfg["loss"]["kind"]
    # what has no effect (head.bins of a head without a pyramid, say) makes no other run
    return _without(cfg, (*NOT_IN_A_RUN, *keys_without_effect(cfg))) | {
        "format": FORMAT,
        "layout": LAYOUT,
        "data.fingerprint": images.fingerprint(),
        "loss": cfg["loss"] | {"kind": ("softmax", "sigmoid")[images.multilabel] if kind == "auto" else kind},
        "code": own_code(cfg),
        "backbone.weights": weights_identity(cfg["backbone"].get("weights")),
        "world_size": world_size(cfg),
    }


def eval_identity(cfg: Mapping[str, Any], weights: str, images: ImageSet) -> dict[str, Any]:
    """Everything that determines the figures of a test of `weights` (best, last, or a digest of a file) on `images`."""
    return {
        "format": FORMAT,
        "weights": weights,
        "views": _without(cfg, tuple(keys_without_effect(cfg)))["views"],
        "sizes": cfg["sizes"]["test"],
        "data": _without({"data": cfg["data"]}, NOT_IN_A_TEST)["data"],
        "fingerprint": images.fingerprint(),
        "precision": cfg["trainer"]["precision"],
        "limit": _limit(cfg),
    }


def _limit(cfg: Mapping[str, Any]) -> dict[str, int] | None:
    """How many images a test cut short sees: the number of batches of each process, and what is in one."""
    batches = cfg["trainer"]["limit_batches"]
    if batches is None:
        return None
    return {"batches": batches, "batch_size": cfg["data"]["batch_size"], "processes": world_size(cfg)}


def digest(identity: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of SHA-256 over the sorted JSON of `identity`, in which 1 and 1.0 are the same."""
    return hashlib.sha256(json.dumps(_numbers(identity), sort_keys=True).encode()).hexdigest()[:10]


def _numbers(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _numbers(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_numbers(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def other_format(number: object) -> str:
    """What is to be said of a result of format `number`: "" of today's, or where nothing says which it is."""
    return (
        "" if number in (None, FORMAT) else f"of format {number}, made by a version of sppnet that trains differently"
    )


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


def own_code(node: Mapping[str, Any]) -> dict[str, str]:
    """The contents of the files in which the user's own classes in `node` are written, by each `_target_`."""
    return {target: file_digest(path) for target, path in user_source_files(node).items()}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256:...`."""
    return _file_digest(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, _mtime: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _without(cfg: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `cfg` without `keys`."""
    kept = copy.deepcopy(dict(cfg))
    for key in keys:
        node: Any = kept
        *parents, last = key.split(".")
        for part in parents:
            node = node.get(part) or {}
        node.pop(last, None)
    return kept
