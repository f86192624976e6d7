"""The metadata of an exported network, as JSON: what a checkpoint says of itself, and what a program needs to use it.

Every format stores the same keys: ONNX as metadata properties, safetensors in its header, `torch.export` as extra
files, and a folder for the Hub in `config.json`. Does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sppnet import __version__
from sppnet.config.schema import Config
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.storage.files import read_record

KEY = "sppnet"  # of what a checkpoint holds under the same key


def describe(trained: TrainedNetwork[Any], checkpoint: Mapping[str, Any], cfg: Config, sigmoid: bool) -> dict[str, Any]:
    """Return the metadata of a trained network as plain data.

    Keys:
        classes: names of the K classes, in the order of the logits.
        activation: `softmax` or `sigmoid`, which turns logits into probabilities.
        mean, std: normalisation of RGB values in [0, 1].
        sizes: sides of the images in pixels, in training and in the tests.
        interpolation: how images are resized.
        origin: the run's directory name, the commit that trained it, and the version of sppnet that exported it.
        sppnet: what a checkpoint holds under this key: everything that is needed to build the network.

    Args:
        trained: the network, as the command resolved it.
        checkpoint: content of its checkpoint.
        cfg: the configuration of its training.
        sigmoid: whether probabilities are the sigmoid of each logit.
    """
    stored = checkpoint[KEY]
    return {
        "classes": list(stored["classes"]),
        "activation": "sigmoid" if sigmoid else "softmax",
        "mean": list(cfg.data.mean),
        "std": list(cfg.data.std),
        "sizes": {"train": list(cfg.sizes.train), "test": list(cfg.sizes.test)},
        "interpolation": cfg.data.interpolation,
        "origin": _origin(trained, checkpoint),
        KEY: dict(stored),
    }


def to_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Encode each value as JSON, for formats whose metadata are text."""
    return {key: json.dumps(value) for key, value in metadata.items()}


def local_paths(node: Any, name: str = "") -> list[str]:
    """Return the absolute paths in a configuration as `key=path`: whoever reads the export sees them."""
    if isinstance(node, Mapping | list):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        return [path for key, value in items for path in local_paths(value, f"{name}.{key}".lstrip("."))]
    is_path = isinstance(node, str) and (node.startswith("~/") or Path(node).is_absolute())
    return [f"{name}={node}"] if is_path else []


def _origin(trained: TrainedNetwork[Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    if trained.run is None:  # an exported file says where it came from
        origin = checkpoint.get("origin")
        known = origin if isinstance(origin, dict) else {}
        return {"run": known.get("run"), "commit": known.get("commit"), "version": __version__}
    starts = read_record(trained.run.path / "provenance.json").get("starts") or [{}]
    code = starts[-1].get("code") or {}
    return {"run": trained.run.path.resolve().name, "commit": code.get("commit"), "version": __version__}
