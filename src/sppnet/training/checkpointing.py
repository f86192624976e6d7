"""Checkpoints: written durably, read without executing anything, saved at moments from which resuming is exact."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sppnet.errors import RunFailed
from sppnet.runs.from_checkpoint import read_checkpoint as read_checkpoint
from sppnet.runs.run_directory import Run
from sppnet.slurm import job
from sppnet.storage.files import atomic_write
from sppnet.training.lit_module import Classifier
from sppnet.training.user_callbacks import EarlyEnd

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):  # noqa: N818  (it is no error)
    """The process was asked to stop; `last.ckpt` holds the step it was at.

    Args:
        number: the signal that asked.
        where: how far it was, in words.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number = number


class DurableIO(TorchCheckpointIO):
    """Writes checkpoints atomically: after a power cut or on a full disk the file is whole or the old one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`.

        Raises:
            RunFailed: it holds what `read_checkpoint` would refuse.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(file.name):
                    raise RunFailed(
                        f"{path} would hold {', '.join(sorted(foreign))}, which is never read again; what is kept of a"
                        " run is tensors and plain data: let no callback's or optimiser's state_dict() return anything"
                        " else"
                    )
        except RuntimeError as error:
            # torch's zip writer hides the cause of a failed write ("unexpected pos"); OSError is what it was
            raise OSError(f"cannot write {path} (is the disk full?): {str(error).splitlines()[0]}") from error


class Checkpoints(Checkpoint):
    """`last.ckpt` every n steps and at the end of each epoch, `best.ckpt` when the validation score rises.

    Not Lightning's ModelCheckpoint: that one also saves at an epoch's last step, before the validation that belongs to
    it, and a run resumed from there never makes up for it; and its state names the directory, so that a run copied to
    another place forgets its best score.

    A run can go on from both, to the bit: they are written where nothing of the step or the epoch is left to do. After
    a validation in mid-epoch that is the start of the next batch.

    A stop signal (SIGTERM, SIGINT) is noted and acted on at the end of the step: save, then `Preempted`. A second
    SIGINT stops at once.

    Args:
        folder: where the files go.
        every_n_steps: optimiser steps between two saves within an epoch; None for none.
        early: notes, before an epoch's end is saved, whether training ends with it.
    """

    def __init__(self, folder: Path, every_n_steps: int | None, early: EarlyEnd) -> None:
        self.folder, self.every_n_steps, self.early = folder, every_n_steps, early
        self.best_score: float | None = None
        self._whole = True  # whether no gradients are summed that the next step will use: they are in no checkpoint
        self._due: list[str] = []  # what is to be saved as soon as the state is whole
        self._step = 0  # optimiser steps up to the last batch
        self._stop: int = 0
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: the score that is to be beaten, whether it can go on from here, and whose this
        is."""
        return {"best_score": self.best_score, "whole": self._whole, "run": Run(self.folder.parent).hash}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up `state_dict`."""
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note stop signals from here on."""
        self._step = trainer.global_step
        self._stop = max(job.noted, default=0)
        for number in (*SIGNALS, job.WARNING) if job.inside() else SIGNALS:
            with contextlib.suppress(ValueError):  # not in the main thread: somebody else's handlers stay
                self._handlers[number] = signal.signal(number, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time, but neither at the epoch's last step (validation and the epoch's end belong before it)
        nor between two batches whose gradients are summed."""
        stop = self._stopped(trainer)
        step, before = trainer.global_step, self._step
        self._step, self._whole = step, step != before
        if trainer.is_last_batch or not self._whole:
            return
        if not stop and (self.every_n_steps is None or step % self.every_n_steps):
            return
        epoch_loop = trainer.fit_loop.epoch_loop
        if epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._due.append("last")
            return
        self._save(trainer, "last")
        if stop:
            self._end(trainer, stop, f"at step {step}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that the weights are the best so far; at equal scores the earlier ones stay."""
        assert isinstance(pl_module, Classifier)
        score = pl_module.val_score
        if score is not None and score == score and (self.best_score is None or score > self.best_score):
            self.best_score = score
            self._due.append("best")
        elif self.best_score is None:
            self._due.append("best")  # a score that is not a number (no class in the data): keep something to test

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Save what a validation in mid-epoch has held up, as if this batch had not been fetched."""
        if not self._due:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        progress.total.ready, progress.current.ready = progress.total.ready - 1, progress.current.ready - 1
        is_last, progress.is_last_batch = progress.is_last_batch, False  # a resumed epoch would end without its last
        asked = "last" in self._due
        self._save_due(trainer)
        progress.increment_ready()
        progress.is_last_batch = is_last
        if asked and (stop := self._stopped(trainer)):
            self._end(trainer, stop, f"at step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after everything else of the epoch; Lightning calls checkpoint callbacks last."""
        self._whole = True
        self.early.note(trainer)
        self._due.append("last")
        self._save_due(trainer)
        if stop := self._stopped(trainer):
            self._end(trainer, stop, f"after epoch {trainer.current_epoch + 1}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        job.trained = job.trained or stage == "fit"
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _end(self, trainer: L.Trainer, stop: int, where: str) -> None:
        """Stop, or go on: a job that SLURM preempts has to last until it is killed (see `sppnet.slurm.job`)."""
        may = stop == signal.SIGTERM and job.inside()
        if may and trainer.strategy.broadcast(trainer.is_global_zero and job.goes_on()):
            self._stop = 0
            return
        raise Preempted(stop, where)

    def _save_due(self, trainer: L.Trainer) -> None:
        for name in sorted(self._due):  # best.ckpt first: last.ckpt says that it is there
            self._save(trainer, name)
        self._due = []

    def _save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._stop == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._stop = number

    def _stopped(self, trainer: L.Trainer) -> int:
        """The signal that was noted, on any rank: all ranks must save together."""
        if trainer.world_size == 1:
            return self._stop
        noted = torch.tensor(self._stop, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
        return int(noted)
