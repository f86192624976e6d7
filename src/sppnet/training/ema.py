"""Exponential moving average of the weights (`optim.ema`), exact even if weights and averages differ in precision."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn


class Averages(EMAWeightAveraging):
    """Lightning's moving average of the weights, with four changes.

    - Integers, such as a buffer of indices, and extra state are copied. Lightning would average and truncate the
      integers, and save the extra state of the start.
    - The average of a tensor that equals it, such as a frozen one, stays the same. Computed, the average of two equal
      numbers may differ from them in its last digit.
    - The averages are float32 even if the weights have 16 bits. In 16 bits, an update scaled by (1 - decay) would be
      rounded away.
    - To validate the averages, Lightning swaps them with the weights and later swaps them back. If the two differ in
      precision, the swaps round values. This class instead saves a copy of the weights, copies the averages into the
      network and restores the weights after the validation, so neither the weights nor the averages change.
    """

    _weights: list[Tensor]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning creates the averages in this hook, before it moves the weights to the device. Setting `_device`
        # makes it create the averages on that device.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is None:
            return
        for tensor in _tensors(self._average_model):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        average = self._average_model.avg_fn
        assert average is not None

        def average_changed(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():
                return current
            # the host does not wait for a GPU, as it would with torch.equal
            return torch.where((averaged == current).all(), averaged, average(averaged, current, count))

        self._average_model.avg_fn = average_changed

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        # `get_extra_state` may return anything, so it is not averaged either.
        current = checkpoint.get("current_model_state", {})
        checkpoint["state_dict"] |= {name: value for name, value in current.items() if name.endswith("_extra_state")}

    @torch.no_grad()
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:
            self._weights = [tensor.clone() for tensor in _tensors(pl_module)]
            _copy(_tensors(self._average_model.module), pl_module)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:
            _copy(self._weights, pl_module)
            self._weights = []


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def _copy(values: Iterator[Tensor] | list[Tensor], module: nn.Module) -> None:
    for tensor, value in zip(_tensors(module), values, strict=True):
        tensor.copy_(value)
