"""The identities of runs and tests, and their hashes. Does not import torch.

The identity of a run is everything that determines its weights; the identity of a test is everything that determines
its metrics. The keys to leave out are listed by name. Every other key is included, so a key that is added later cannot
be forgotten. Data and weights are identified by their content, never by their path.
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

FORMAT = 2  # increment it when a code change alters the weights that a configuration produces
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
    """Everything that determines the weights of a run on `images`, as plain data.

    Raises:
        UserError: the weights file or the module of a user class does not exist.
    """
    kind = cfg["loss"]["kind"]
    # a key without effect, such as head.bins for a head without a pyramid, must not change the identity
    return _without(cfg, (*NOT_IN_A_RUN, *keys_without_effect(cfg))) | {
        "format": FORMAT,
        "layout": LAYOUT,
        "data.fingerprint": images.fingerprint(),
        "loss": cfg["loss"] | {"kind": ("softmax", "sigmoid")[images.multilabel] if kind == "auto" else kind},
        "code": own_class_digests(cfg),
        "backbone.weights": weights_identity(cfg["backbone"].get("weights")),
        "world_size": world_size(cfg),
    }


def eval_identity(cfg: Mapping[str, Any], weights: str, images: ImageSet) -> dict[str, Any]:
    """Everything that determines the metrics of a test on `images`.

    Args:
        cfg: the configuration.
        weights: the name of the weights, which is `best` or contains a digest (see `TrainedNetwork.name`).
        images: the data set.
    """
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
    """Everything that determines which images a test scores under `trainer.limit_batches`; None without a limit."""
    batches = cfg["trainer"]["limit_batches"]
    if batches is None:
        return None
    return {"batches": batches, "batch_size": cfg["data"]["batch_size"], "processes": world_size(cfg)}


def digest(identity: Mapping[str, Any]) -> str:
    """Return the first ten hex digits of the SHA-256 hash of `identity`.

    `identity` is hashed as JSON text with sorted keys; 1 and 1.0 hash alike.
    """
    return hashlib.sha256(json.dumps(_whole_floats_as_ints(identity), sort_keys=True).encode()).hexdigest()[:10]


def _whole_floats_as_ints(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _whole_floats_as_ints(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_whole_floats_as_ints(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def format_mismatch(number: object) -> str:
    """Return a remark if a result's format `number` differs from `FORMAT`; "" if they are equal or `number` is None."""
    return (
        ""
        if number in (None, FORMAT)
        else f"results in format {number}, from a version of sppnet that trains differently"
    )


def world_size(cfg: Mapping[str, Any]) -> int:
    """The number of processes that train together: devices x nodes."""
    devices = cfg["trainer"]["devices"]
    return (len(devices) if isinstance(devices, list) else int(devices)) * int(cfg["trainer"]["num_nodes"])


def weights_identity(weights: str | None) -> str | None:
    """The SHA-256 digest of a weights file, or the name of torchvision weights.

    Raises:
        UserError: `weights` looks like a path, but no such file exists.
    """
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if path.is_file():
        return file_digest(path)
    if "/" in weights or path.suffix:
        raise UserError(f"backbone.weights={weights}: no such file")
    return weights


def own_class_digests(node: Mapping[str, Any]) -> dict[str, str]:
    """Map each user class that is named by a `_target_` in `node` to the digest of its source file."""
    return {target: file_digest(path) for target, path in user_source_files(node).items()}


def file_digest(path: Path) -> str:
    """The SHA-256 digest of a file, as `sha256:...`; cached until the file's size or modification time changes."""
    return _file_digest(str(path.resolve()), path.stat().st_mtime_ns, path.stat().st_size)


@functools.lru_cache(maxsize=64)
def _file_digest(path: str, _mtime: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _without(cfg: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `cfg` without the dotted `keys`."""
    result = copy.deepcopy(dict(cfg))
    for key in keys:
        node: Any = result
        *parents, last = key.split(".")
        for part in parents:
            node = node.get(part) or {}
        node.pop(last, None)
    return result
