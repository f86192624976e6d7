"""Checks the user's callbacks (`callbacks` in the configuration), and records why one of them has ended training early.

- `check_kinds` refuses Lightning callbacks that do not work here, and callbacks whose states collide in a checkpoint.
- `check_monitors` refuses a `monitor` that nothing logs.
- `EarlyEnd` records why a callback such as EarlyStopping has ended training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

from sppnet.config.schema import Checkpointing
from sppnet.errors import UserError, format_value, notice

UNSUPPORTED: dict[type[Callback], str] = {
    BackboneFinetuning: "needs a LightningModule with a different structure; use backbone.freeze",
    BatchSizeFinder: "needs a different kind of DataModule; use data.batch_size",
    GradientAccumulationScheduler: (
        "is not accounted for by optim.schedule or a resumed run; use trainer.accumulate_grad_batches"
    ),
    LearningRateFinder: "needs a LightningModule with a different structure; use a sweep over optim.lr",
    ModelPruning: "is lost when a run is resumed",
    StochasticWeightAveraging: "computes averages that no checkpoint stores and no test uses; use optim.ema",
}
"""Lightning callbacks that fail here or only appear to work, and why."""


class EarlyEnd(Callback):
    """Records why a callback (EarlyStopping, Timer) has ended training before `max_epochs`.

    The reason is part of the checkpoint, so a run that is resumed only to be tested does not train further.

    The reason must be recorded after all other callbacks have run. Lightning runs only `Checkpoint` callbacks last, and
    the first of those becomes `trainer.checkpoint_callback`, which must be `Checkpoints`. This class is therefore an
    ordinary callback, and `Checkpoints` calls `record_reason`.
    """

    def __init__(self, max_steps: int = -1) -> None:
        self.max_steps = max_steps  # `trainer.max_steps`; a run that reaches it does not end early
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"why": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reason = state_dict["why"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def record_reason(self, trainer: L.Trainer) -> None:
        """If training ends early here, record why; called at the end of each epoch, after all other callbacks."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        within_epoch = not trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        planned = 0 < self.max_steps <= trainer.global_step
        if trainer.should_stop and not planned and (within_epoch or epoch < epochs):
            messages = ((type(c).__name__, _stop_message(c)) for c in trainer.callbacks)  # type: ignore[attr-defined]
            reasons = "; ".join(f"{name}: {message}" for name, message in messages if message)
            position = "within" if within_epoch else "after"
            self.reason = f"training ended {position} epoch {epoch} of {epochs}, {reasons or 'stopped by a callback'}"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.reason and trainer.is_global_zero:
            notice(self.reason)


def _stop_message(callback: Callback) -> str:
    if isinstance(callback, Timer):
        return "the time is up" if (callback.time_remaining() or 0) <= 0 else ""
    message = callback.stopping_reason_message if isinstance(callback, EarlyStopping) else None
    return (message or "").removesuffix(" Signaling Trainer to stop.").rstrip(".")


def check_kinds(callbacks: Mapping[str, Callback], reserved_keys: Iterable[str]) -> None:
    """Check that the user's callbacks work here and that a resumed run can find the state of each one.

    Args:
        callbacks: the user's callbacks, keyed by their names in the configuration.
        reserved_keys: the `state_key`s of sppnet's own callbacks.

    Raises:
        UserError: a callback is unsupported, two have the same `state_key`, or one overwrites the run's checkpoints.
    """
    names = dict.fromkeys(reserved_keys, "")  # state_key -> name; "" for sppnet's own callbacks
    for name, callback in callbacks.items():
        kind = type(callback).__name__
        if reason := next((reason for cls, reason in UNSUPPORTED.items() if isinstance(callback, cls)), None):
            raise UserError(f"callbacks.{name}: {kind} is not allowed, because it {reason}")
        twin = names.setdefault(callback.state_key, name)
        if twin != name and type(callback).state_dict is not Callback.state_dict:
            if not twin:
                raise UserError(
                    f"callbacks.{name} has the same state_key as one of sppnet's own callbacks, {callback.state_key};"
                    " rename its class"
                )
            raise UserError(
                f"callbacks.{twin} and callbacks.{name} have the same state_key, {callback.state_key}; remove one, or"
                " use a class whose state_key tells them apart"
            )
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:  # writes to the run's checkpoint folder
            key = "save_last" if callback.save_last else "filename"
            if getattr(callback, key) not in (True, "link", "last", "best"):
                continue
            raise UserError(
                f"callbacks.{name}.{key}={format_value(getattr(callback, key))} would replace last.ckpt or best.ckpt,"
                f" which the run itself writes and resumes from; remove this setting, or set callbacks.{name}.dirpath"
            )


def check_monitored(cfg: Checkpointing, logged: Mapping[str, str | None]) -> None:
    """Check that a validation logs the metric that `checkpointing.monitor` names, and that its direction is known.

    Print a notice for a `mode` in the wrong direction.

    Args:
        cfg: the configuration `checkpointing`.
        logged: the metrics logged after each validation, and which values are better: `max`, `min` or None (unknown).

    Raises:
        UserError: one of the two is not so.
    """
    if cfg.monitor is None:
        return
    if cfg.monitor not in logged:
        raise UserError(f"checkpointing.monitor={cfg.monitor} is not allowed; it must be one of {', '.join(logged)}")
    if cfg.mode is None and logged[cfg.monitor] is None:
        raise UserError(
            f"checkpointing.monitor={cfg.monitor}: the metric does not say whether a higher or a lower value is better;"
            " use checkpointing.mode=max or min"
        )
    better = logged[cfg.monitor]
    if better is not None and cfg.mode not in (None, better):
        _notice_direction("checkpointing", cfg.mode, cfg.monitor, better)


def check_monitors(callbacks: Mapping[str, Callback], logged: Mapping[str, str | None], every: int | None) -> None:
    """Check that every monitored metric is logged, and print a notice for a `mode` in the wrong direction.

    Args:
        callbacks: the user's callbacks, keyed by their names in the configuration. If one has a user-defined class,
            which may log any metric, no `monitor` is refused.
        logged: the metrics logged after each validation, and which values are better: `max`, `min` or None (unknown).
        every: the number of epochs from one validation to the next; None if validations do not follow epochs.

    Raises:
        UserError: a callback monitors a metric that nothing logs, or looks for it where nothing has logged it.
    """
    has_own_class = any(not type(callback).__module__.startswith("lightning.") for callback in callbacks.values())
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        allowed = [*logged, *(("epoch", "step") if isinstance(callback, ModelCheckpoint) else ())]
        if isinstance(monitor, str) and monitor not in allowed and not has_own_class:
            raise UserError(
                f"callbacks.{name}.monitor={monitor} is not allowed; it must be one of {', '.join(allowed)}"
            )
        if monitor in logged and every != 1 and getattr(callback, "_check_on_train_epoch_end", False):
            raise UserError(
                f"callbacks.{name}.check_on_train_epoch_end=true is not allowed with trainer.check_val_every_n_epoch="
                f"{format_value(every)}: not every epoch ends with a new {monitor}"
            )
        better = logged.get(str(monitor))
        mode = getattr(callback, "mode", better)
        if better is not None and mode != better:
            _notice_direction(f"callbacks.{name}", mode, monitor, better)


def _notice_direction(section: str, mode: object, monitor: object, better: str) -> None:
    rank_zero_only(notice)(
        f"{section}.mode={mode}: a {'lower' if better == 'min' else 'higher'} {monitor} is better; use"
        f" {section}.mode={better}"
    )
