"""What is shown and recorded while a run trains: metrics.jsonl, status.json, a progress bar or lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

from sppnet.data.jpeg import notice_remarks
from sppnet.runs.run_directory import Run
from sppnet.training.lit_module import Classifier

STATUS_EVERY = 5.0  # seconds between two writes of status.json


class BadFiles(Callback):
    """Images that could not be read and were left out (`data.bad_files=skip`): counted, and listed in a file.

    Files that the decoder warns of and reads all the same are said in one line after an epoch that has new ones.

    Args:
        path: the list, one name per line; every rank appends its own. None: count only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.names: set[str] = set()
        self._remarks: dict[str, str] = {}
        self._told = 0
        self.read()  # a resumed run knows those of before

    def read(self) -> None:
        """Take up what is in the file, by other ranks too."""
        if self.path is not None and self.path.exists():
            self.names |= {*self.path.read_text(encoding="utf-8").split("\n")} - {""}  # U+2028 is no end of a line here

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note what a training batch lacks."""
        self._note(batch)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Note what a validation batch lacks."""
        self._note(batch)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Note what a test batch lacks."""
        self._note(batch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say what is new, validation included."""
        self._tell()

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Say what is new."""
        self._tell()

    def _tell(self) -> None:
        if len(self._remarks) > self._told:
            notice_remarks(self._remarks)
        self._told = len(self._remarks)

    def _note(self, batch: Mapping[str, Any]) -> None:
        self._remarks |= batch["remarks"]
        if not self.names.issuperset(batch["bad"]):
            self.read()
        new = [name for name in batch["bad"] if name not in self.names]
        self.names |= set(new)
        if new and self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in new)


class StatusFile(Callback):
    """Keep `status.json` up to date; rank 0 only."""

    def __init__(self, run: Run, bad_files: BadFiles) -> None:
        self.run, self.bad_files = run, bad_files
        self.seconds = 0.0  # spent in training, over all starts
        self._clock = self._written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Time spent so far."""
        self._tick()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that it runs."""
        self._clock = time.monotonic()
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Say how far it is, every few seconds."""
        if time.monotonic() - self._written > STATUS_EVERY:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that the last step is done."""
        self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say which step it stopped at; the command then says why."""
        if trainer.training:
            with contextlib.suppress(Exception):  # before the first step Lightning may not know how many there are
                self._write(trainer)

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    @rank_zero_only
    def _write(self, trainer: L.Trainer) -> None:
        self._tick()
        self._written = time.monotonic()
        self.run.write_status(
            "running",
            step=trainer.global_step,
            steps=int(trainer.estimated_stepping_batches),
            epoch=trainer.current_epoch,
            epochs=trainer.max_epochs,
            seconds=round(self.seconds, 1),
            bad_files=len(self.bad_files.names),
        )


class Bar(RichProgressBar):
    """Lightning's rich bar with our figures: input size, loss, validation score; epochs count from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = super()._get_train_description(current_epoch)
        return text.replace(
            f"Epoch {current_epoch}/{(self.trainer.max_epochs or 0) - 1}",
            f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}",
        )

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        assert isinstance(pl_module, Classifier)
        return {name: f"{value:.4g}" for name, value in pl_module.shown.items()}


class Lines(ProgressBar):
    """One plain line per epoch, for logs and where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._began = time.monotonic()

    def disable(self) -> None:
        """Print nothing (ranks above 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where a resumed run goes on."""
        if self._enabled and trainer.is_global_zero and trainer.global_step:
            print(f"resumed at step {trainer.global_step}", flush=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the time."""
        self._began = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line."""
        assert isinstance(pl_module, Classifier)
        if self._enabled and trainer.is_global_zero:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in pl_module.shown.items())
            took = time.monotonic() - self._began
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {figures}  ({took:.1f} s)", flush=True)


def progress_display(kind: str) -> list[Callback]:
    """The display that `trainer.progress` asks for: a bar on a terminal, lines elsewhere."""
    if kind == "none":
        return []
    if kind == "bar" or (kind == "auto" and sys.stdout.isatty()):
        return [Bar()]
    return [Lines()]
