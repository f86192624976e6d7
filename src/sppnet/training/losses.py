"""Classification losses, one value per image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def softmax_losses(logits_NK: Tensor, target_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the softmax: (N, K) logits and (N,) class indices -> (N,)."""
    return F.cross_entropy(logits_NK, target_N, label_smoothing=smoothing, reduction="none")


def sigmoid_losses(logits_NK: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, averaged over the classes: (N, K) logits -> (N,).

    Args:
        logits_NK: (N, K).
        target: (N,) class indices, or (N, K) of 0 and 1.
        smoothing: moves each target this share of the way to 1/2.
    """
    target_NK = target if target.ndim == 2 else F.one_hot(target, logits_NK.shape[1])
    target_NK = target_NK.to(logits_NK.dtype) * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_NK, target_NK, reduction="none").mean(1)
