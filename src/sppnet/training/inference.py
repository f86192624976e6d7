"""A trained network outside Lightning's Trainer: loaded, on one device, at the precision of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from sppnet.data import Splits
from sppnet.errors import UserError
from sppnet.training.lit_module import Classifier
from sppnet.training.trainer import build_classifier

Module = TypeVar("Module", bound=nn.Module)


def on_device(module: Module, trainer: Mapping[str, Any]) -> tuple[Fabric, Module]:
    """`module` in evaluation mode on one device, and the Fabric whose `to_device` and `autocast` belong to it.

    Args:
        module: converted in place.
        trainer: `accelerator`, `precision` and `deterministic` of the configuration.
    """
    torch.use_deterministic_algorithms(trainer["deterministic"])
    fabric = Fabric(
        accelerator=trainer["accelerator"],
        devices=1,
        precision=trainer["precision"],
        plugins=[LightningEnvironment()],  # one process, whatever cluster it runs on
    )
    converted = fabric.strategy.precision.convert_module(fabric.to_device(module))
    assert isinstance(converted, type(module))
    return fabric, converted.eval()


def load_trained(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any], sets: Splits, where: Path) -> Classifier:
    """The classifier of a checkpoint, with its weights, on the data of `sets`.

    Raises:
        UserError: the weights do not fit the network.
    """
    assert list(sets.images.classes) == list(checkpoint["sppnet"]["classes"])  # see sppnet.data.relabelling
    node = {**cfg["backbone"], "weights": None}  # all weights come from the checkpoint
    classifier = build_classifier({**cfg, "backbone": node}, sets)
    try:
        classifier.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(f"checkpoint={where} is of another network: {error}") from None
    return classifier
