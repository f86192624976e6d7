"""The LightningModule: loss, metrics by size, optimiser, and all the state that an exact resume needs."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sppnet.config.schema import LAYOUT
from sppnet.data.loader import Batch
from sppnet.data.views import Views
from sppnet.errors import RunFailed, UserError
from sppnet.models.network import SPPNet
from sppnet.models.normalise import Normalise
from sppnet.runs.identity import own_code
from sppnet.training.metrics import SizeMetrics
from sppnet.training.multi_view import Scorer
from sppnet.training.optim import build_optimizer, cosine, plateau


class Classifier(L.LightningModule):
    """A network with its training.

    Every image of an epoch weighs the same in the gradient, whatever its batch and accumulation window: that of an
    optimiser step is the sum over its images of grad(loss) / C, with C from `DataModule.images_per_step`.
    Not covered are batch normalisation's statistics and Adam's scaling, of a batch and a step (docs/decisions/0021).

    Args:
        network: images (N, 3, H, W), normalised -> logits (N, K).
        cfg: the resolved configuration, plain data; it goes into every checkpoint.
        classes: names of the K classes.
        multilabel: whether an image may have several labels.
        overrides: what was typed to compose `cfg`; a later test starts from the same choices.
        fingerprint: of the data set trained on; a later test compares it with its own.
    """

    network: SPPNet

    def __init__(
        self,
        network: SPPNet,
        cfg: Mapping[str, Any],
        classes: Sequence[str],
        multilabel: bool,
        overrides: Sequence[str] = (),
        fingerprint: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.cfg, self.classes, self.multilabel = dict(cfg), list(classes), multilabel
        self.overrides, self.fingerprint = list(overrides), fingerprint
        self.code = own_code(cfg["backbone"])
        kind = cfg["loss"]["kind"]
        self.sigmoid = multilabel if kind == "auto" else kind == "sigmoid"
        if multilabel and not self.sigmoid:
            raise UserError(
                f"loss.kind={kind}: images of {cfg['data']['name']} have several labels; use sigmoid or auto"
            )
        self.metrics = {phase: SizeMetrics(phase, len(classes), multilabel) for phase in ("train", "val", "test")}
        self.normalise = Normalise(cfg["data"]["mean"], cfg["data"]["std"], cfg["trainer"]["channels_last"])
        self.val_score: float | None = None  # of the last validation, at the first validation size
        self.tested: dict[str, float] = {}  # figures of the last test
        self.tested_by_class: dict[str, list[float]] = {}
        self.tested_images: dict[str, int] = {}  # by input size
        self.views = Views.build(cfg["views"])
        self.scorers: dict[int, Scorer] = {}  # of a test in several views, by input size
        self.shown: dict[str, float] = {}  # what a progress display shows
        self._plateau: ReduceLROnPlateau | None = None
        self._loaded: dict[str, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images -> (N, K) logits."""
        logits: Tensor = self.network(images)
        return logits

    def prepare(self, batch: Batch) -> Tensor:
        """Images of a batch on the device: uint8 (N, 3, h, w) -> colour change, normalisation, memory format."""
        normalised: Tensor = self.normalise(batch["image"], batch.get("offset"))
        return normalised

    def losses(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """(N, K) logits and targets ((N,) indices or (N, K) of 0 and 1) -> (N,) losses."""
        if not self.sigmoid:
            return F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        wanted = target if target.ndim == 2 else F.one_hot(target, logits.shape[1])
        wanted = wanted.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)

    # Training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout from the step alone: a resumed run draws the masks that the unbroken one drew; a network of one's own
        may draw by Python or numpy."""
        word = repr((self.cfg["seed"], self._batches(), self.global_rank)).encode()
        number = int.from_bytes(blake2b(word, digest_size=8).digest(), "little")
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The share of the batch in the loss of its optimiser step (see the class); recorded is the batch's mean."""
        logits = self(self.prepare(batch))
        losses, valid = self.losses(logits, batch["target"], self.cfg["loss"]["label_smoothing"]), batch["valid"]
        total: Tensor = (losses * valid).sum()
        loss = total.detach() / valid.sum().clamp(min=1)
        if not torch.isfinite(loss):
            raise RunFailed(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch + 1}, input size"
                f" {batch['size']}) with learning rate {self._rate():g}; lower optim.lr or set trainer.gradient_clip"
            )
        self.metrics["train"].update(batch["size"], logits, batch["target"], losses, valid)
        due = self._batches() % self.cfg["trainer"]["log_every_n_steps"] == 0
        if due or batch_idx == 0:
            self.shown |= {"size": batch["size"], "loss": loss.item()}
        if due:
            self.record({"train/step_loss": loss.item(), "train/size": batch["size"], "train/lr": self._rate()})
        images: float = self.trainer.datamodule.images_per_step()  # type: ignore[attr-defined]
        return total * self.trainer.accumulate_grad_batches / images  # Lightning divides by `accumulate` again

    def on_train_epoch_end(self) -> None:
        """Record the epoch, then let the plateau schedule look at the validation before it (not through Lightning,
        which skips the step when an epoch was resumed half-way)."""
        found = self.metrics["train"].compute()
        self.metrics["train"].reset()
        self.record(found | {"train/lr": self._rate()})
        if self._plateau is not None and self.val_score is not None:
            self._plateau.step(self.val_score)

    def configure_optimizers(self) -> Any:
        """The optimiser, and the cosine schedule where that is asked for; the plateau schedule stays with us."""
        optimizer = build_optimizer(self.cfg["optim"], self.parameters())
        schedule = self.cfg["optim"]["schedule"]
        if schedule["kind"] == "cosine":
            rate = cosine(optimizer, schedule, self._steps())
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}
        if schedule["kind"] == "plateau":
            self._plateau = plateau(optimizer, schedule)
        return optimizer

    # Validation and test

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one batch of one validation size."""
        self._count("val", batch, self._finite(batch, self(self.prepare(batch))))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count one batch of one test size."""
        self._count("test", batch, self.scores(batch))

    def scores(self, batch: Batch) -> Tensor:
        """Logits (N, K) of a batch as `views` shows it; of several views those whose probabilities are the mean of
        the views' (section 3.1.1: scores are averaged after the softmax).

        Raises:
            RunFailed: they are no numbers.
        """
        return self._finite(batch, self._scores(batch))

    def _scores(self, batch: Batch) -> Tensor:
        if self.views is None:
            return self.forward(self.prepare(batch))
        size = batch["size"]
        if size not in self.scorers:
            self.scorers[size] = Scorer(self.network, self.views, size)
        logits_NVK = torch.cat(self.scorers[size]([self.normalise(x) for x in (batch["image"], *batch["more"])]), 1)
        if not self.sigmoid:
            return logits_NVK.float().log_softmax(2).logsumexp(1) - math.log(logits_NVK.shape[1])
        return logits_NVK.cpu().double().sigmoid().mean(1).logit(eps=1e-15).to(logits_NVK.device, torch.float32)

    def on_validation_epoch_end(self) -> None:
        """Record the validation; `val/<score>` is what `best.ckpt` and the plateau schedule follow."""
        metrics = self.metrics["val"]
        found = metrics.compute()
        metrics.reset()
        self.val_score = found[f"val/{metrics.score}"]
        self.shown |= {f"val/{metrics.score}": self.val_score}
        self.log_dict(found, logger=False)  # for callbacks of the user's that monitor one
        self.record(found)

    def on_test_epoch_end(self) -> None:
        """Leave the figures in `tested`, `tested_by_class` and `tested_images`."""
        metrics = self.metrics["test"]
        self.tested, self.tested_by_class, self.tested_images = metrics.compute(), metrics.per_class(), metrics.images()
        metrics.reset()

    def _finite(self, batch: Batch, logits: Tensor) -> Tensor:
        """`logits`; of which the likeliest class would be the first, if they were no numbers."""
        if not (torch.isfinite(logits).all(1) | ~batch["valid"]).all():
            raise RunFailed(
                f"the network's scores (input size {batch['size']}) are not finite: its weights, or these images at"
                f" trainer.precision={self.cfg['trainer']['precision']}, are beyond what can be computed; train with a"
                " lower optim.lr or trainer.gradient_clip"
            )
        return logits

    def _count(self, phase: str, batch: Batch, logits: Tensor) -> None:
        losses = self.losses(logits, batch["target"])
        self.metrics[phase].update(batch["size"], logits, batch["target"], losses, batch["valid"])

    # Records and checkpoints

    def record(self, values: dict[str, float]) -> None:
        """Write one record to every logger, now: what `self.log` holds back until the epoch has ended would be missing
        from a checkpoint written at that end."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **values}, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the network (configuration, classes) and what Lightning does not save."""
        checkpoint["sppnet"] = {
            "layout": LAYOUT,
            "config": self.cfg,
            "overrides": self.overrides,
            "code": self.code,
            "fingerprint": self.fingerprint,
            "classes": self.classes,
            "multilabel": self.multilabel,
        }
        checkpoint["sppnet_state"] = {
            "metrics": self.metrics["train"].state(),
            "plateau": None if self._plateau is None else self._plateau.state_dict(),
            "val_score": self.val_score,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep our state until training starts: device and optimiser are not ready before."""
        self._loaded = checkpoint["sppnet_state"]

    def on_train_start(self) -> None:
        """Take up the state of a resumed run."""
        if self._loaded:
            self.metrics["train"].load(self._loaded["metrics"], self.device, self.global_rank)
            self.val_score = self._loaded["val_score"]
            if self._plateau is not None and self._loaded["plateau"] is not None:
                self._plateau.load_state_dict(self._loaded["plateau"])
            self._loaded = {}

    def _batches(self) -> int:
        """Training batches begun before this one, over all epochs."""
        return int(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def _steps(self) -> int:
        """Optimiser steps of the whole run. Not `trainer.estimated_stepping_batches`: asked for here, before a resumed
        run's position is restored, that makes the first epoch's iterator, which would then start at batch 0."""
        data, settings = self.trainer.datamodule, self.cfg["trainer"]  # type: ignore[attr-defined]
        batches = min(len(data.train_dataloader()), settings["limit_batches"] or 2**62)
        steps: int = settings["max_epochs"] * math.ceil(batches / settings["accumulate"])
        return steps

    def _rate(self) -> float:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        return float(optimizer.param_groups[0]["lr"])
