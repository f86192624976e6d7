"""Loads a trained network for use outside Lightning's Trainer, and places it on one device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from sppnet.config.load import load, replace
from sppnet.config.schema import Config
from sppnet.data import Splits
from sppnet.errors import UserError
from sppnet.models.network import SPPNet, build_network
from sppnet.training.lit_module import Classifier
from sppnet.training.trainer import build_classifier

Module = TypeVar("Module", bound=nn.Module)


def place_on_device(module: Module, cfg: Config) -> tuple[Fabric, Module]:
    """Move `module` to one device, convert it to the configured precision and set it to evaluation mode.

    Args:
        module: the module, which is converted in place.
        cfg: the configuration; `accelerator`, `precision` and `deterministic` of its section `trainer` are used.

    Returns:
        The Fabric object (for `to_device` and `autocast`) and the module.
    """
    deterministic = cfg.trainer.deterministic
    torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    fabric = Fabric(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        precision=cfg.trainer.precision,
        plugins=[LightningEnvironment()],  # use a single process, even inside a cluster job
    )
    converted = fabric.strategy.precision.convert_module(fabric.to_device(module))
    assert isinstance(converted, type(module))
    return fabric, converted.eval()


def load_classifier(checkpoint: Mapping[str, Any], cfg: Config, sets: Splits, path: Path) -> Classifier:
    """Build the classifier that `cfg` describes and load the checkpoint's weights into it.

    Args:
        checkpoint: content of the checkpoint file.
        cfg: the configuration.
        sets: data with the same classes as the checkpoint (for different classes, see `sppnet.data.relabelling`).
        path: the checkpoint file, used in error messages.

    Raises:
        UserError: the weights do not fit the network.
    """
    assert list(sets.images.classes) == list(checkpoint["sppnet"]["classes"])
    cfg = replace(cfg, {"backbone.weights": None})  # all weights come from the checkpoint
    classifier = build_classifier(cfg, sets, trains=False)
    _load_state(classifier, checkpoint["state_dict"], path)
    return classifier


def load_network(checkpoint: Mapping[str, Any], cfg: Config, path: Path, key: str = "checkpoint") -> SPPNet:
    """Build the network of a checkpoint, without data or a LightningModule, and load its weights.

    Args:
        checkpoint: content of the checkpoint file, which also specifies pooling and head.
        cfg: the configuration; its backbone, training size and precision are used.
        path: the checkpoint file, used in error messages.
        key: the key that gives the path, for messages.

    Raises:
        UserError: the weights do not fit the network.
    """
    metadata = checkpoint["sppnet"]
    trained = load(Config, metadata["config"])
    backbone = cfg.backbone.model_copy(update={"weights": None})
    network = build_network(backbone, trained.pooling, trained.head, len(metadata["classes"]), cfg.sizes.train[0])
    if cfg.trainer.precision == "64-true":
        network.double()  # before loading, which would round the weights to float32
    # The user's own loss may have weights, too.
    of_network = ((key, value) for key, value in checkpoint["state_dict"].items() if key.startswith("network."))
    weights = {key.removeprefix("network."): value for key, value in of_network}
    _load_state(network, weights, path, key)
    return network


def _load_state(module: nn.Module, state_dict: Mapping[str, Any], path: Path, key: str = "checkpoint") -> None:
    try:
        module.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserError(f"{key}={path} holds the weights of a different network: {error}") from None
