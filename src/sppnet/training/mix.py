"""Mixes the images of a training batch and their labels: mixup and CutMix (`mix` in the configuration)."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from sppnet.config.schema import AnyMix, Cutmix, Mixup, MixupOrCutmix, NoMix
from sppnet.data.loader import Batch
from sppnet.errors import UserError


class Mix:
    """Mixes each image of a batch with the one before it, in a share `p` of the batches.

    All draws come from the generators of Python and torch on the CPU, which `Classifier.on_train_batch_start` seeds for
    each batch. The mixes of a run are therefore the same on every device.

    Args:
        cfg: the configuration `mix`, other than `none`.
        classes: number of classes K.
    """

    def __init__(self, cfg: Mixup | Cutmix | MixupOrCutmix, classes: int) -> None:
        self.p, self.classes = cfg.p, classes
        self.transforms: list[v2.Transform] = []
        if not isinstance(cfg, Cutmix):
            alpha = cfg.alpha if isinstance(cfg, Mixup) else cfg.mixup_alpha
            self.transforms.append(v2.MixUp(alpha=alpha, num_classes=classes))
        if not isinstance(cfg, Mixup):
            alpha = cfg.alpha if isinstance(cfg, Cutmix) else cfg.cutmix_alpha
            self.transforms.append(v2.CutMix(alpha=alpha, num_classes=classes))

    def __call__(self, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mixed images and the shares of the classes in each.

        Images that are not valid stay as they are, and no other image is mixed with them. A valid image without
        another one is mixed with itself.

        Args:
            images: the normalised images (N, 3, H, W) of the batch.
            batch: the batch, with class indices as targets.

        Returns:
            Images (N, 3, H, W) and shares, float32 (N, K).
        """
        if random.random() >= self.p:
            return images, F.one_hot(batch["target"], self.classes).float()
        transform = random.choice(self.transforms)
        if batch["all_valid"]:
            mixed, shares_NK = transform(images, batch["target"])
        else:  # selecting the valid images waits for the device
            valid = batch["valid"]
            mixed, shares_NK = images.clone(), F.one_hot(batch["target"], self.classes).float()
            mixed[valid], shares_NK[valid] = transform(images[valid], batch["target"][valid])
        is_last = images.is_contiguous(memory_format=torch.channels_last)  # torch.roll does not keep it on a GPU
        return mixed.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format), shares_NK


def build_mix(cfg: AnyMix, classes: int, data: str, multilabel: bool) -> Mix | None:
    """Build what `cfg` describes; None for `none`.

    Raises:
        UserError: the images of the data set, called `data`, have several labels.
    """
    if isinstance(cfg, NoMix):
        return None
    if multilabel:
        raise UserError(f"mix={cfg.name}: images of {data} have several labels, which cannot be mixed; use mix=none")
    return Mix(cfg, classes)


def main_labels(shares_NK: Tensor, target_N: Tensor) -> Tensor:
    """Return the class (N,) with the largest share of each image; for equal shares, the image's own label."""
    own_share_N = shares_NK.gather(1, target_N[:, None])[:, 0]
    largest_N, label_N = shares_NK.max(1)
    return torch.where(largest_N > own_share_N, label_N, target_N)
