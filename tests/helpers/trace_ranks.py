"""A callback that records the batches and the final weights of each rank."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback


class Trace(Callback):
    """Writes a line per batch, and a digest of the final weights, to `trace-<rank>.jsonl` in the run directory."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self._write(trainer, "train", batch)

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._write(trainer, "val", batch)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        total = hashlib.sha256()
        for value in module.state_dict().values():
            total.update(value.cpu().numpy().tobytes())
        self._line(trainer, {"weights": total.hexdigest()})

    def _write(self, trainer: Any, phase: str, batch: Any) -> None:
        index = batch["index"][batch["valid"]].tolist()
        shape = list(batch["image"].shape)
        self._line(trainer, {"phase": phase, "epoch": trainer.current_epoch, "shape": shape, "index": index})

    def _line(self, trainer: Any, values: dict[str, Any]) -> None:
        folder = Path(trainer.checkpoint_callback.folder).parent
        with (folder / f"trace-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")


PLUG = ("allow=trace_ranks", "+callbacks.trace._target_=trace_ranks.Trace")
