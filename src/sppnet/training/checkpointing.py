"""Writes checkpoints atomically, at points from which a run can resume exactly, and handles stop signals."""

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
from sppnet.runs.run_directory import Run
from sppnet.slurm import job
from sppnet.storage.files import atomic_write
from sppnet.training.lit_module import Classifier
from sppnet.training.user_callbacks import EarlyEnd

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):  # noqa: N818  (not an error)
    """Raised after a signal has stopped training and last.ckpt has been saved.

    Args:
        number: the signal's number.
        position: where training stopped, for example "at step 9".
    """

    def __init__(self, number: int, position: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {position}")
        self.number = number


class DurableIO(TorchCheckpointIO):
    """Writes checkpoints atomically.

    A power cut or a full disk leaves either the complete old file or the complete new one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save `checkpoint` at `path`.

        Raises:
            RunFailed: `checkpoint` holds an object that `read_checkpoint` would refuse.
            OSError: the file cannot be written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(file.name):
                    raise RunFailed(
                        f"{path} would hold {', '.join(sorted(foreign))}, which sppnet refuses to load; the"
                        " state_dict() of a callback or optimizer may return only tensors and plain data"
                    )
        except RuntimeError as error:
            # torch's zip writer hides the OSError of a failed write behind a RuntimeError ("unexpected pos")
            raise OSError(f"cannot write {path} (is the disk full?): {str(error).splitlines()[0]}") from error


class Checkpoints(Checkpoint):
    """Saves last.ckpt every n steps and at the end of each epoch, and best.ckpt at each new best validation score.

    Lightning's ModelCheckpoint does not allow an exact resume. It may save at the last step of an epoch, before the
    validation of that epoch, and a resumed run then skips that validation. Its state also includes the directory, so a
    run that is copied elsewhere loses its best score.

    A run can resume exactly, bit for bit, from either file, because both are saved only when all other work of the step
    or epoch is done. After a validation within an epoch, the save therefore waits for the start of the next batch. The
    exception is a best.ckpt saved within an accumulation window: a run cannot resume from it.

    A stop signal (SIGTERM, SIGINT) takes effect at the end of the optimizer step: last.ckpt is saved, then `Preempted`
    is raised. A second SIGINT stops the run at once.

    Args:
        folder: directory for the checkpoints.
        every_n_steps: optimizer steps between two saves within an epoch; None to save only at the end of each epoch.
        early_end: records why training ends early; `record_reason` is called before each save at the end of an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int | None, early_end: EarlyEnd) -> None:
        self.folder, self.every_n_steps, self.early_end = folder, every_n_steps, early_end
        self.best_score: float | None = None
        # False within an accumulation window. A checkpoint does not hold the gradients accumulated so far, so a run
        # cannot resume from a checkpoint saved there.
        self._whole = True
        self._due: list[str] = []  # checkpoints to save at the start of the next batch or at the end of the epoch
        self._step = 0  # number of optimizer steps taken by the end of the previous batch
        self._signal = 0  # number of the stop signal received; 0 if none
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far, whether a run can resume from this checkpoint, and the hash of the run."""
        return {"best_score": self.best_score, "whole": self._whole, "run": Run(self.folder.parent).hash}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._signal = max(job.pending_signals, default=0)
        for number in (*SIGNALS, job.WARNING) if job.inside_slurm() else SIGNALS:
            with contextlib.suppress(ValueError):  # handlers can be set only in the main thread
                self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save last.ckpt if it is due.

        It is never due within an accumulation window. At the last step of an epoch, the save waits for the validation
        and the end of the epoch.
        """
        stop_signal = self._stop_signal(trainer)
        step, before = trainer.global_step, self._step
        self._step, self._whole = step, step != before
        if trainer.is_last_batch or not self._whole:
            return
        if not stop_signal and (self.every_n_steps is None or step % self.every_n_steps):
            return
        epoch_loop = trainer.fit_loop.epoch_loop
        if epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._due.append("last")  # saved after the validation that follows this batch
            return
        self._save(trainer, "last")
        if stop_signal:
            self._stop(trainer, stop_signal, f"at step {step}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Schedule a save of best.ckpt if the score is a new best; if it equals the best, keep the earlier weights."""
        assert isinstance(pl_module, Classifier)
        score = pl_module.val_score
        if score is not None and pl_module.is_better(score, self.best_score):
            self.best_score = score
            self._due.append("best")
        elif self.best_score is None:
            self._due.append("best")  # the score is NaN (no class has validation images), but the test needs weights

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Save the checkpoints that became due at a validation within the epoch.

        Lightning has already counted the batch that is about to run. During the save, Lightning's counters are
        therefore set back to their values before this batch.
        """
        if not self._due:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        progress.total.ready, progress.current.ready = progress.total.ready - 1, progress.current.ready - 1
        is_last, progress.is_last_batch = progress.is_last_batch, False  # True would make a resumed epoch skip a batch
        saves_last = "last" in self._due
        self._save_due(trainer)
        progress.increment_ready()
        progress.is_last_batch = is_last
        if saves_last and (stop_signal := self._stop_signal(trainer)):
            self._stop(trainer, stop_signal, f"at step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save all checkpoints that are due.

        Lightning calls checkpoint callbacks last, so all other work of the epoch is already done.
        """
        self._whole = True
        self.early_end.record_reason(trainer)
        self._due.append("last")
        self._save_due(trainer)
        if stop_signal := self._stop_signal(trainer):
            self._stop(trainer, stop_signal, f"after epoch {trainer.current_epoch + 1}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._signal == job.WARNING:  # it came after the last step; the test will ask for the requeue
            job.pending_signals.append(self._signal)
            self._signal = 0

    def _stop(self, trainer: L.Trainer, stop_signal: int, position: str) -> None:
        """Raise `Preempted`, unless the signal is SIGTERM and SLURM is preempting the job.

        SLURM requeues a preempted job only if it keeps running until SLURM kills it (see `sppnet.slurm.job`).
        """
        may_continue = stop_signal == signal.SIGTERM and job.inside_slurm()
        if may_continue and trainer.strategy.broadcast(trainer.is_global_zero and job.still_running()):
            self._signal = 0
            return
        raise Preempted(stop_signal, position)

    def _save_due(self, trainer: L.Trainer) -> None:
        for name in sorted(self._due):  # best.ckpt first, so that it exists whenever last.ckpt holds a best score
            self._save(trainer, name)
        self._due = []

    def _save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._signal = number

    def _stop_signal(self, trainer: L.Trainer) -> int:
        """Return the stop signal that any rank has received, or 0 if no rank has received one.

        All ranks must get the same answer, because they save a checkpoint together.
        """
        if trainer.world_size == 1:
            return self._signal
        number = torch.tensor(self._signal, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        return int(number)
