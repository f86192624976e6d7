"""Classification losses, one value per image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def softmax_losses(logits_NK: Tensor, target_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute the softmax cross-entropy (N,) of logits (N, K) and class indices (N,)."""
    return F.cross_entropy(logits_NK, target_N, label_smoothing=smoothing, reduction="none")


def sigmoid_losses(logits_NK: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Compute the binary cross-entropy (N,), averaged over the classes.

    Args:
        logits_NK: logits (N, K).
        target: class indices (N,), or labels (N, K) of 0 and 1.
        smoothing: label smoothing; each target moves this fraction of the way to 1/2.
    """
    target_NK = target if target.ndim == 2 else F.one_hot(target, logits_NK.shape[1])
    target_NK = target_NK.to(logits_NK.dtype) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_NK, target_NK, reduction="none").mean(1)
