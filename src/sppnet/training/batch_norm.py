"""Estimates the statistics of batch normalisation anew before training (`backbone.update_bn`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sppnet.errors import RunFailed, notice
from sppnet.models.freezing import batch_norms


class BatchNormUpdate(Callback):
    """Estimates the running statistics of the backbone before the first step, on the images of the first epoch.

    A network that is trained or tested at another size than before needs other statistics (Touvron et al., 2019,
    "Fixing the train-test resolution discrepancy"). A run that resumes has them in its checkpoint.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None:
            return
        backbone, count = pl_module.network.backbone, int(trainer.num_training_batches)
        layers = batch_norms(backbone)
        if trainer.is_global_zero:
            notice(f"backbone.update_bn: estimating the statistics of {len(layers)} layers on {count} batches")
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            estimate_statistics(backbone, layers, _images(loader, count, trainer, pl_module))
        for layer in layers:
            _average_over_ranks(layer, trainer)
        pl_module.network.train()


@torch.no_grad()
def estimate_statistics(backbone: nn.Module, layers: list[_BatchNorm], batches: Iterable[Tensor]) -> None:
    """Set the running statistics of `layers` to their means over `batches` of images (N, 3, H, W).

    As `torch.optim.swa_utils.update_bn`, but everything else is in evaluation mode, so that dropout and drop path do
    not change the statistics.

    Raises:
        RunFailed: there are no batches.
    """
    backbone.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    estimated = False
    for images in batches:
        backbone.forward(images)  # not compiled, as a mean over batches would be compiled again and again
        estimated = True
    if not estimated:
        raise RunFailed("backbone.update_bn=true needs a batch of at least two images; increase data.batch_size")
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _images(loader: Iterable[Any], count: int, trainer: L.Trainer, pl_module: Any) -> Iterable[Tensor]:
    """The normalised images of the first `count` batches, without those that cannot be read.

    A single image is left out, because a small one gives a layer only one value per channel.
    """
    for batch in itertools.islice(loader, count):
        on_device = trainer.strategy.batch_to_device(batch)
        images = pl_module.prepare(on_device)[on_device["valid"]]
        if len(images) > 1:
            yield images


@torch.no_grad()
def _average_over_ranks(layer: _BatchNorm, trainer: L.Trainer) -> None:
    """Combine the statistics of all ranks as if their images were in as many batches."""
    if trainer.world_size == 1:
        return
    assert layer.running_mean is not None
    assert layer.running_var is not None
    for statistic in (layer.running_mean, layer.running_var):
        statistic.copy_(trainer.strategy.reduce(statistic.clone(), reduce_op="mean"))
