"""Classes that tests plug in from the command line, among them a callback that ends the process at a given point."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sppnet.models import Tiny


class Killed(Exception):  # noqa: N818
    """Stands for `kill -9` in a test's own process: nothing catches it before the command line."""


class StopAt(Callback):
    """Raise (`STOP_BY=raise`) or send the signal `STOP_BY` at the points `STOP_AT` (with commas between them).

    With `STOP_GROUP`, the signal goes to the whole process group.

    A point is `batch N` (counted from 1 over all epochs), `validation of EPOCH`, `validation batch N` (from 0 in each
    validation), `end of EPOCH` or `test`.
    """

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stop_if_at(f"batch {trainer.fit_loop.epoch_loop.total_batch_idx + 1}")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._stop_if_at(f"validation of {trainer.current_epoch}")

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_if_at(f"validation batch {batch_idx}")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._stop_if_at(f"end of {trainer.current_epoch}")

    def on_test_start(self, trainer: Any, module: Any) -> None:
        self._stop_if_at("test")

    def _stop_if_at(self, point: str) -> None:
        if point not in os.environ.get("STOP_AT", "").split(", "):
            return
        stop_by = os.environ.get("STOP_BY", "raise")
        if stop_by == "raise":
            raise Killed(point)
        os.kill(0 if "STOP_GROUP" in os.environ else os.getpid(), getattr(signal, stop_by))


class Follows(Callback):
    """Changes the weights in the last batch of an epoch by what was logged in the validation before it, also by it."""

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        trainer.callback_metrics["share"] = float(trainer.callback_metrics["val/loss"]) / 50  # no tensor

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 5:
            logged = trainer.callback_metrics
            with torch.no_grad():
                for parameter in module.network.parameters():
                    parameter.mul_(1 - 0.01 * logged.get("val/loss", torch.zeros(())) - logged.get("share", 0.0))


class Remembers(Callback):
    """A callback whose state is not plain data."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": np.zeros(3)}


class StatusFile(Remembers):
    """Has the name of one of sppnet's own callbacks."""


class Draws(Tiny):
    """A backbone that uses the random generators of Python and numpy in training, as stochastic depth may."""

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = super().forward(images)
        return features * (random.random() + np.random.rand()) if self.training else features


PLUG = ("allow=stop_at", "+callbacks.stop._target_=stop_at.StopAt")
