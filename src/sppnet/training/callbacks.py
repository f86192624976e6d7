"""Callbacks that write status.json, list unreadable images, and show progress."""

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

STATUS_INTERVAL = 5.0  # seconds between two writes of status.json


class BadFiles(Callback):
    """Counts and lists the images that could not be read and were skipped (`data.bad_files=skip`).

    Images that the decoder reads with a warning are still used. At the end of each epoch or test in which new images
    caused warnings, one line reports the total number of such images so far.

    Args:
        path: text file with one image name per line, to which every rank appends. None to count without writing a file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.names: set[str] = set()
        self._remarks: dict[str, str] = {}
        self._reported = 0
        self.read()  # a resumed run continues the list

    def read(self) -> None:
        """Add the names listed in the file to `names`, including those written by other ranks."""
        if self.path is not None and self.path.exists():
            # Not splitlines(), which also splits at U+2028, a character that a file name may contain.
            names = self.path.read_text(encoding="utf-8").split("\n")
            self.names |= set(names) - {""}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._collect(batch)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._collect(batch)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._collect(batch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._report_remarks()

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._report_remarks()

    def _report_remarks(self) -> None:
        if len(self._remarks) > self._reported:
            notice_remarks(self._remarks)
        self._reported = len(self._remarks)

    def _collect(self, batch: Mapping[str, Any]) -> None:
        self._remarks |= batch["remarks"]
        if not self.names.issuperset(batch["bad"]):
            self.read()
        new = [name for name in batch["bad"] if name not in self.names]
        self.names |= set(new)
        if new and self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in new)


class StatusFile(Callback):
    """Keeps status.json up to date; only rank 0 writes it."""

    def __init__(self, run: Run, bad_files: BadFiles, max_steps: int = -1) -> None:
        self.run, self.bad_files, self.max_steps = run, bad_files, max_steps
        self.seconds = 0.0  # training time so far, including the time before the run was resumed
        self._clock = self._written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        self._tick()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock = time.monotonic()
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._written > STATUS_INTERVAL:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Record the step at which training stopped; `sppnet train` adds the reason.
        if trainer.training:
            with contextlib.suppress(Exception):  # Lightning may not know the number of steps yet
                self._write(trainer)

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    @rank_zero_only
    def _write(self, trainer: L.Trainer) -> None:
        self._tick()
        self._written = time.monotonic()
        steps = int(trainer.estimated_stepping_batches)
        self.run.write_status(
            "running",
            step=trainer.global_step,
            steps=steps if self.max_steps < 0 else min(steps, self.max_steps),
            epoch=trainer.current_epoch,
            epochs=trainer.max_epochs,
            seconds=round(self.seconds, 1),
            bad_files=len(self.bad_files.names),
        )


class FinalValidation(Callback):
    """Ends a run after `trainer.max_steps`, and makes Lightning validate after the last step of every run.

    Without this validation, the steps after the last one would never be selected, and a run that ends before its first
    validation would have no best.ckpt. The callback must come after those that may end the training.

    The Trainer does not get `max_steps` itself: with it, Lightning counts the epochs wrongly in a run that is resumed
    at the end of an epoch.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps  # -1 for no limit

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or 0 < self.max_steps <= trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        last_step = 0 < self.max_steps <= trainer.global_step
        last_batch = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        stops = trainer.should_stop and loop._can_stop_early
        if not (last_step or last_batch or stops):
            return
        if last_step or not epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            trainer.check_val_every_n_epoch = 1
            loop.min_epochs = epoch_loop.min_steps = None
            trainer.should_stop = True  # also makes Lightning validate now


class EpochBar(RichProgressBar):
    """Lightning's rich progress bar with input size, loss and validation score; epochs count from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = super()._get_train_description(current_epoch)
        return text.replace(
            f"Epoch {current_epoch}/{(self.trainer.max_epochs or 0) - 1}",
            f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}",
        )

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        assert isinstance(pl_module, Classifier)
        return {name: f"{value:.4g}" for name, value in pl_module.displayed.items()}


class EpochLines(ProgressBar):
    """Prints one line per epoch, for log files and other output that is not a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._epoch_start = time.monotonic()

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled and trainer.is_global_zero and trainer.global_step:
            print(f"resumed at step {trainer.global_step}", flush=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self._enabled and trainer.is_global_zero:
            values = "  ".join(f"{name} {value:.4g}" for name, value in pl_module.displayed.items())
            seconds = time.monotonic() - self._epoch_start
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {values}  ({seconds:.1f} s)", flush=True)


def progress_display(kind: str) -> list[Callback]:
    """Build the callbacks for `progress`; `auto` shows a bar on a terminal and prints lines elsewhere."""
    if kind == "none":
        return []
    if kind == "bar" or (kind == "auto" and sys.stdout.isatty()):
        return [EpochBar()]
    return [EpochLines()]
