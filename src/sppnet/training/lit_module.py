"""The LightningModule: its steps, its optimizer, and the training state that checkpoints need for an exact resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sppnet.config.schema import LAYOUT, Config, Cosine, OwnLoss, Plateau
from sppnet.data.batch_samplers import used_batches
from sppnet.data.loader import Batch
from sppnet.data.seeding import seed_generators
from sppnet.data.views import Views
from sppnet.errors import RunFailed
from sppnet.models.network import SPPNet
from sppnet.models.normalise import Normalise
from sppnet.runs.identity import network_code
from sppnet.training.losses import build_loss, uses_sigmoid
from sppnet.training.metrics import Phase, SizeMetrics
from sppnet.training.mix import build_mix, main_labels
from sppnet.training.multi_view import Scorer, average_views
from sppnet.training.optim import build_optimizer, cosine, plateau, undecayed
from sppnet.training.own_metrics import build_metrics


class Classifier(L.LightningModule):
    """A network with its loss, optimizer and metrics.

    Every image of an epoch has the same weight in the gradient, no matter which batch and accumulation window it is in.
    The gradient of an optimizer step is the sum of grad(loss) / C over the images of the step, where C is the mean
    number of images per step (`DataModule.images_per_step`). There are exceptions: batch normalisation takes its
    statistics from each batch, and Adam rescales the gradient of each step (see docs/decisions/0021).

    Args:
        network: module that maps normalised images (N, 3, H, W) to logits (N, K).
        cfg: the configuration, stored in every checkpoint as plain data.
        classes: names of the K classes.
        multilabel: whether an image may have several labels.
        fingerprint: identifies the training data set; a later test compares it with the fingerprint of its own data.
        class_weights: weights (K,) of the classes in training, from `sppnet.training.losses.class_weights`.

    Attributes:
        sigmoid: whether probabilities are the sigmoid of each logit; otherwise, they are the softmax over the classes.
        loss: module that maps logits (N, K) and targets to losses (N,). Targets are class indices (N,), labels (N, K)
            of 0 and 1 or, with `mix`, the shares of the classes (N, K).
        undecayed: names of the parameters without weight decay.
    """

    network: SPPNet

    def __init__(
        self,
        network: SPPNet,
        cfg: Config,
        classes: Sequence[str],
        multilabel: bool,
        fingerprint: str = "",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.cfg, self.classes, self.multilabel = cfg, list(classes), multilabel
        self.fingerprint = fingerprint
        self.code = network_code(cfg)
        self.sigmoid = uses_sigmoid(cfg.loss, cfg.data.name, multilabel)
        self.loss = build_loss(cfg.loss, self.sigmoid, class_weights)
        self.mix = build_mix(cfg.mix, len(classes), cfg.data.name, multilabel)
        self.undecayed = undecayed(cfg.optim, self, network.pooling)
        own = build_metrics(cfg.metrics, len(classes), multilabel)
        phases: tuple[Phase, ...] = ("train", "val", "test")
        self.metrics = {phase: SizeMetrics(phase, len(classes), multilabel, self.sigmoid, own) for phase in phases}
        self.monitor = cfg.checkpointing.monitor or f"val/{self.metrics['val'].score}"
        self.normalise = Normalise(cfg.data.mean, cfg.data.std, cfg.compute.channels_last)
        self.val_score: float | None = None  # `monitor` in the last validation
        self._score_is_new = False  # whether it was computed in this epoch
        self.test_metrics: dict[str, float] = {}
        self.test_per_class: dict[str, list[float]] = {}  # keyed by input size
        self.test_images: dict[str, int] = {}  # number of test images, keyed by input size
        self.test_confusion: dict[str, list[list[int]]] = {}  # keyed by input size
        self.views = Views.build(cfg.views)
        self.scorers: dict[int, Scorer] = {}  # for multi-view testing, keyed by input size
        self.displayed: dict[str, float] = {}  # values for the progress display
        self._unchecked_loss: tuple[Tensor, str] | None = None  # loss of the last training batch, and where it is from
        self._plateau: ReduceLROnPlateau | None = None
        self._resumed_state: dict[str, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (N, K) of normalised images (N, 3, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def prepare(self, batch: Batch) -> Tensor:
        """Apply colour offsets, normalisation and memory format to the uint8 images (N, 3, H, W) of a batch."""
        normalised: Tensor = self.normalise(batch["image"], batch.get("offset"))
        return normalised

    # Training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Seed the generators from the batch's number, so that a resumed run draws the same dropout masks as an
        # uninterrupted one. Python's and NumPy's generators are seeded too, as a user's network may draw from them.
        seed = seed_generators(self.cfg.seed, self._batches_begun(), self.global_rank)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the batch's losses, scaled as the class docstring describes, and log their mean."""
        inputs, target, label = self.prepare(batch), batch["target"], batch["target"]
        if self.mix is not None:
            inputs, target = self.mix(inputs, batch)
            label = main_labels(target, label)
        logits, valid = self(inputs), batch["valid"]
        losses = self._losses(logits, target)
        total: Tensor = (losses * valid).sum()
        loss = total.detach() / valid.sum().clamp(min=1)
        self.check_loss()
        position = f"step {self.global_step} (epoch {self.current_epoch + 1}, input size {batch['size']})"
        self._unchecked_loss = (loss, f"{position} with learning rate {self._learning_rate():g}")
        if loss.device.type == "cpu":
            self.check_loss()
        self.metrics["train"].update(batch["size"], logits, label, losses, None if batch["all_valid"] else valid)
        due = self._batches_begun() % self.cfg.trainer.log_every_n_steps == 0
        if due or batch_idx == 0:
            self.displayed |= {"size": batch["size"], "loss": loss.item()}
        if due:
            self.record(
                {"train/step_loss": loss.item(), "train/size": batch["size"], "train/lr": self._learning_rate()}
            )
        images: float = self.trainer.datamodule.images_per_step()  # type: ignore[attr-defined]
        return total * self.trainer.accumulate_grad_batches / images  # Lightning divides by accumulate_grad_batches

    def check_loss(self) -> None:
        """Check that the loss of the last training batch is finite.

        On a GPU, this check is one batch late, because it would otherwise wait for the network of each batch and leave
        the GPU idle meanwhile. Nothing is saved or validated before the check.

        Raises:
            RunFailed: the loss is not finite.
        """
        if self._unchecked_loss is None:
            return
        (loss, position), self._unchecked_loss = self._unchecked_loss, None
        if not torch.isfinite(loss):
            raise RunFailed(f"the loss is {loss.item()} at {position}; lower optim.lr or set trainer.gradient_clip_val")

    def on_validation_start(self) -> None:
        self.check_loss()

    def on_train_epoch_end(self) -> None:
        """Record the epoch's training metrics, then step the plateau schedule if there is a new validation score.

        This method steps the schedule itself, because Lightning would not do so in an epoch that was resumed midway.
        """
        self.check_loss()
        values = self.metrics["train"].compute()
        self.metrics["train"].reset()
        self.record(values | {"train/lr": self._learning_rate()})
        if self._plateau is not None and self._score_is_new and self.val_score is not None:
            self._plateau.step(self.val_score)
        self._score_is_new = False

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.cfg.optim, self.named_parameters(), self.undecayed)
        schedule = self.cfg.optim.schedule
        if isinstance(schedule, Cosine):
            scheduler = cosine(optimizer, schedule, self._total_steps())
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if isinstance(schedule, Plateau):
            # Other metrics may be negative.
            relative = (self.monitor, self.monitor_mode) == (f"val/{self.metrics['val'].score}", "max")
            self._plateau = plateau(optimizer, schedule, self.monitor_mode, relative)  # see `on_train_epoch_end`
        return optimizer

    @property
    def monitor_mode(self) -> Literal["max", "min"]:
        """Whether a higher or a lower value of `monitor` is better."""
        cfg = self.cfg.checkpointing
        mode = cfg.mode if cfg.monitor is not None else None  # without a monitor, the mode has no effect
        return mode or self.metrics["val"].mode(self.monitor) or "max"

    def is_better(self, score: float, best: float | None) -> bool:
        """Whether the value `score` of `monitor` is better than `best`; NaN never is, and None always is worse."""
        if best is None:
            return score == score
        return score < best if self.monitor_mode == "min" else score > best

    # Validation and test

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._update_metrics("val", batch, self._check_finite(batch, self(self.prepare(batch))))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._update_metrics("test", batch, self.scores(batch))

    def scores(self, batch: Batch) -> Tensor:
        """Compute the logits (N, K) of a batch under the test protocol `views`, averaged over the views.

        Raises:
            RunFailed: the logits are not finite.
        """
        return self._check_finite(batch, self._scores(batch))

    def _scores(self, batch: Batch) -> Tensor:
        if self.views is None:
            return self.forward(self.prepare(batch))
        size = batch["size"]
        if size not in self.scorers:
            self.scorers[size] = Scorer(self.network, self.views, size)
        logits_NVK = torch.cat(self.scorers[size]([self.normalise(x) for x in (batch["image"], *batch["more"])]), 1)
        return average_views(logits_NVK, self.sigmoid)

    def on_validation_epoch_end(self) -> None:
        """Record the validation metrics; best.ckpt and the plateau schedule depend on `monitor`."""
        metrics = self.metrics["val"]
        values = metrics.compute()
        metrics.reset()
        self.val_score, self._score_is_new = values[self.monitor], True
        self.displayed |= {self.monitor: self.val_score}
        self.log_dict(values, logger=False)  # for the user's callbacks that monitor a metric
        self.record(values)

    def on_test_epoch_end(self) -> None:
        metrics = self.metrics["test"]
        self.test_metrics, self.test_per_class = metrics.compute(), metrics.per_class()
        self.test_images, self.test_confusion = metrics.images(), metrics.confusion()
        metrics.reset()

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the losses (N,). `check_own_loss` has tried the user's own loss on other images.

        Raises:
            RunFailed: the user's own loss fails, or does not return a value per image.
        """
        own = self.cfg.loss.target if isinstance(self.cfg.loss, OwnLoss) else None
        try:
            losses: Tensor = self.loss(logits, target)
        except Exception as error:
            if own is None or isinstance(error, torch.OutOfMemoryError):
                raise
            raise RunFailed(f"loss: {own} raises {type(error).__name__} for {len(logits)} images: {error}") from error
        if own is not None and (not isinstance(losses, Tensor) or losses.shape != (len(logits),)):
            returned = f"the shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise RunFailed(f"loss: {own} returns {returned} for {len(logits)} images")
        return losses

    def _check_finite(self, batch: Batch, logits: Tensor) -> Tensor:
        # Without this check, the first class would be predicted for an image whose logits are NaN.
        if not (torch.isfinite(logits).all(1) | ~batch["valid"]).all():
            raise RunFailed(
                f"the network's scores at input size {batch['size']} are not finite: the weights have diverged, or"
                f" values overflow with trainer.precision={self.cfg.trainer.precision}; train with a lower"
                " optim.lr, or set trainer.gradient_clip_val"
            )
        return logits

    def _update_metrics(self, phase: Phase, batch: Batch, logits: Tensor) -> None:
        losses = self._losses(logits, batch["target"])
        valid = None if batch["all_valid"] else batch["valid"]
        self.metrics[phase].update(batch["size"], logits, batch["target"], losses, valid)

    # Records and checkpoints

    def record(self, values: dict[str, float]) -> None:
        """Write one record to every logger immediately.

        `self.log` would hold back epoch metrics until after the checkpoint of that epoch is saved, and a run resumed
        from that checkpoint would lack them.
        """
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **values}, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the data needed to rebuild the network, and the training state that Lightning does not save."""
        self.check_loss()
        logged: dict[str, Any] = self.trainer.callback_metrics  # a callback may put more than tensors there
        checkpoint["sppnet"] = {
            "layout": LAYOUT,
            "config": self.cfg.plain(),
            "code": self.code,
            "fingerprint": self.fingerprint,
            "classes": self.classes,
            "multilabel": self.multilabel,
        }
        checkpoint["sppnet_state"] = {
            "metrics": self.metrics["train"].state(),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
            "val_score": self.val_score,
            "score_is_new": self._score_is_new,
            "logged": {
                name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
                for name, value in logged.items()
                if isinstance(value, Tensor) or type(value) in (bool, int, float, str)
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed_state = checkpoint["sppnet_state"]  # used in `on_train_start`, once device and optimizer are set

    def on_train_start(self) -> None:
        if self._resumed_state:
            self.metrics["train"].load(self._resumed_state["metrics"], self.device, self.global_rank)
            self.val_score = self._resumed_state["val_score"]
            self._score_is_new = self._resumed_state["score_is_new"]
            # a callback may read what an earlier epoch has logged (rank 0, as with the states of callbacks)
            for name, value in self._resumed_state.get("logged", {}).items():
                logged = value.to(self.device) if isinstance(value, Tensor) else value
                self.trainer.callback_metrics[name] = logged
            if self._plateau is not None and self._resumed_state["plateau"] is not None:
                self._plateau.load_state_dict(self._resumed_state["plateau"])
            self._resumed_state = {}

    def _batches_begun(self) -> int:
        """Count the training batches before this one, over all epochs."""
        return int(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def _total_steps(self) -> int:
        """Compute the number of optimizer steps in the whole run.

        `trainer.estimated_stepping_batches` cannot be used. Reading it creates the iterator of the first epoch before
        the position of a resumed run is restored, so a resumed epoch would start at batch 0.
        """
        trainer = self.trainer
        batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        batches = used_batches(batches, trainer.limit_train_batches)  # trainer.overfit_batches sets this limit, too
        steps = self.cfg.trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches)
        return steps if self.cfg.trainer.max_steps < 0 else min(steps, self.cfg.trainer.max_steps)

    def _learning_rate(self) -> float:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        return float(optimizer.param_groups[0]["lr"])
