"""Callbacks that end a training before its last epoch: what they wait for exists, and what they did is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.utilities import rank_zero_only

from sppnet.errors import UserError, notice


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
