"""A callback, plugged in from the command line, that ends the process at a step named by the environment; and more that
a user may plug in."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import numpy as np
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sppnet.models import Tiny


class Killed(Exception):  # noqa: N818
    """Stands for `kill -9` where the process must live on: nothing catches it before the command line does."""


class StopAt(Callback):
    """At the `STOP_AT`-th training batch of this process: raise (`STOP_BY=raise`) or send the signal it names."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._count("batch")

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._maybe(f"validation of {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._maybe(f"end of {trainer.current_epoch}")

    def on_test_start(self, trainer: Any, module: Any) -> None:
        self._maybe("test")

    def _count(self, what: str) -> None:
        self.batches += 1
        self._maybe(f"{what} {self.batches}")

    def _maybe(self, now: str) -> None:
        if os.environ.get("STOP_AT") != now:
            return
        how = os.environ.get("STOP_BY", "raise")
        if how == "raise":
            raise Killed(now)
        os.kill(os.getpid(), getattr(signal, how))


class ValidateOften(Callback):
    """Validate in mid-epoch, too, as a user may who has long epochs."""

    def __init__(self, every: int) -> None:
        self.every = every

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.val_check_interval = self.every


class Remembers(Callback):
    """Its state is no plain data."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": np.zeros(3)}


class StatusFile(Remembers):
    """Its name is that of a callback of sppnet's."""


class Draws(Tiny):
    """In training its map is scaled by what Python and numpy draw, as some drop whole layers."""

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = super().forward(images)
        return found * (random.random() + np.random.rand()) if self.training else found


PLUG = ("allow=stop_at", "+callbacks.stop._target_=stop_at.StopAt")
