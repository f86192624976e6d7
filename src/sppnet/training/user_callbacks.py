"""Callbacks of the user's: which do their work here; that what they wait for exists; that an early end is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.utilities import rank_zero_only

from sppnet.config.schema import format_value
from sppnet.errors import UserError, notice

ELSEWHERE: dict[type[Callback], str] = {
    BackboneFinetuning: "takes a network of another build; use backbone.freeze",
    BatchSizeFinder: "takes data of another build; use data.batch_size",
    GradientAccumulationScheduler: "is unknown to optim.schedule and to a resumed run; use trainer.accumulate",
    LearningRateFinder: "takes a network of another build; use a sweep of optim.lr",
    ModelPruning: "is lost when a run is resumed",
    StochasticWeightAveraging: "makes averages that no checkpoint holds and no test sees; use trainer.ema",
}
"""Callbacks of Lightning's that fail here, or seem to work and do not."""


class EarlyEnd(Callback):
    """A training that a callback ends before `max_epochs` (EarlyStopping, Timer): why, in one line and for good.

    A run that is resumed after its end, for its test, trains no further. No Checkpoint of Lightning's, as the first of
    those is `trainer.checkpoint_callback`, which is to be ours; so `Checkpoints`, called last of all, asks for `note`.
    """

    def __init__(self) -> None:
        self.why: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Whether training has ended, and why."""
        return {"why": self.why}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self.why = state_dict["why"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once what had ended."""
        trainer.should_stop = trainer.should_stop or self.why is not None

    def note(self, trainer: L.Trainer) -> None:
        """At an epoch's end, when all callbacks have asked for what they want: note why training ends here, if so."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        cut = not trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        if trainer.should_stop and (cut or epoch < epochs):
            messages = ((type(c).__name__, _why_stopped(c)) for c in trainer.callbacks)  # type: ignore[attr-defined]
            why = "; ".join(f"{name}: {message}" for name, message in messages if message)
            where = "within" if cut else "after"
            self.why = f"training ended {where} epoch {epoch} of {epochs}, {why or 'as a callback asked'}"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it."""
        if self.why and trainer.is_global_zero:
            notice(self.why)


def _why_stopped(callback: Callback) -> str:
    if isinstance(callback, Timer):
        return "the time is up" if (callback.time_remaining() or 0) <= 0 else ""
    said = callback.stopping_reason_message if isinstance(callback, EarlyStopping) else None
    return (said or "").removesuffix(" Signaling Trainer to stop.").rstrip(".")


def check_kinds(callbacks: Mapping[str, Callback], ours: Iterable[str]) -> None:
    """Check that callbacks, by name in the configuration, do their work here, and that a resumed run finds its state.

    Args:
        callbacks: the user's.
        ours: the places in a checkpoint that the states of our own have.

    Raises:
        UserError: one does not, two have one place in a checkpoint, or one replaces the run's own files.
    """
    keys = dict.fromkeys(ours, "")
    for name, callback in callbacks.items():
        kind = type(callback).__name__
        if why := next((why for other, why in ELSEWHERE.items() if isinstance(callback, other)), None):
            raise UserError(f"callbacks.{name}: {kind} is not allowed: it {why}")
        twin = keys.setdefault(callback.state_key, name)
        if twin != name and type(callback).state_dict is not Callback.state_dict:
            if not twin:
                raise UserError(
                    f"callbacks.{name}: the place of its state in a checkpoint, {callback.state_key}, is that of one of"
                    " sppnet's own; give the class another name"
                )
            raise UserError(
                f"callbacks.{twin} and callbacks.{name} have one place in a checkpoint, {callback.state_key}; leave one"
                " out, or use a class whose state_key tells them apart"
            )
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # into the run's own folder
            key = "save_last" if callback.save_last else "filename"
            if getattr(callback, key) not in (True, "link", "last", "best"):
                continue
            raise UserError(
                f"callbacks.{name}.{key}={format_value(getattr(callback, key))} would replace last.ckpt or best.ckpt,"
                f" which a run has of itself and goes on from; leave it out, or give callbacks.{name}.dirpath"
            )


def check_monitors(callbacks: Mapping[str, Callback], logged: Sequence[str]) -> None:
    """Check that what a callback monitors is there to be seen, and is waited for to move the right way.

    Args:
        callbacks: by name in the configuration. One of the user's own may log anything, so that nothing can be said.
        logged: what is logged after each validation.

    Raises:
        UserError: there is no such figure.
    """
    own = any(not type(callback).__module__.startswith("lightning.") for callback in callbacks.values())
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        known = [*logged, *(("epoch", "step") if isinstance(callback, ModelCheckpoint) else ())]
        if isinstance(monitor, str) and monitor not in known and not own:
            raise UserError(f"callbacks.{name}.monitor={monitor} is not allowed; it takes one of {', '.join(known)}")
        wanted = "min" if str(monitor).endswith("loss") else "max"
        mode = getattr(callback, "mode", wanted)
        if monitor in logged and mode != wanted:
            rank_zero_only(notice)(
                f"callbacks.{name}.mode={mode}: {monitor} is better the {'lower' if wanted == 'min' else 'higher'}"
                f" it is; callbacks.{name}.mode={wanted} follows that"
            )
