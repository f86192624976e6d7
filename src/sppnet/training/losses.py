"""The loss: a module (logits (N, K), targets) -> (N,), one of sppnet's own or the user's (`loss` in the configuration).

Label smoothing and class weights act in training mode only, so validation and test report the plain loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import AnyLoss, OwnLoss
from sppnet.data import Splits
from sppnet.data.splits import all_labels
from sppnet.errors import UserError


class ClassificationLoss(nn.Module):
    """Softmax or sigmoid cross-entropy, or its focal form, one value per image.

    Args:
        sigmoid: whether each class has a sigmoid of its own; otherwise, there is a softmax over the classes.
        smoothing: label smoothing in training.
        class_weights: the weights (K,) of the classes in training; None for equal weights.
        gamma: exponent of the focal loss; None for the cross-entropy.
    """

    def __init__(
        self,
        sigmoid: bool,
        smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.sigmoid, self.smoothing, self.gamma, self.class_weights = sigmoid, smoothing, gamma, class_weights
        self._weights_K: Tensor | None = None  # no buffer, because trainer.precision=bf16-true would round it

    def forward(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        """Compute the losses (N,). Targets are class indices (N,), or the shares of the classes (N, K)."""
        smoothing, weights = (self.smoothing, self.class_weights) if self.training else (0.0, None)
        # In 16 bits, targets, products with a weight and probabilities near 1 would be rounded.
        logits_NK = logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32))
        weights_K = None if weights is None else self._weights_like(weights, logits_NK)
        losses = sigmoid_losses if self.sigmoid else softmax_losses
        return losses(logits_NK, target, smoothing, weights_K, self.gamma)

    def _weights_like(self, weights: Sequence[float], logits_NK: Tensor) -> Tensor:
        """The class weights (K,) on the device and in the dtype of the logits, made once for each."""
        kept = self._weights_K
        if kept is None or (kept.device, kept.dtype) != (logits_NK.device, logits_NK.dtype):
            self._weights_K = kept = torch.tensor(weights, dtype=logits_NK.dtype, device=logits_NK.device)
        return kept


def softmax_losses(
    logits_NK: Tensor,
    target: Tensor,
    smoothing: float = 0.0,
    weights_K: Tensor | None = None,
    gamma: float | None = None,
) -> Tensor:
    """Compute the softmax cross-entropy (N,), weighted as in `F.cross_entropy`.

    The focal form (Lin et al., 2017, equation 4) multiplies the term of each class by (1 - p)^gamma, where p is the
    probability of the class.

    Args:
        logits_NK: logits (N, K).
        target: class indices (N,), or the shares of the classes (N, K), whose sum is 1.
        smoothing: label smoothing; this fraction of each target is spread evenly over all classes.
        weights_K: the weights (K,) of the classes.
        gamma: exponent of the focal loss; None for the cross-entropy.
    """
    if gamma is None:
        return F.cross_entropy(logits_NK, target, weights_K, label_smoothing=smoothing, reduction="none")
    log_p_NK = logits_NK.log_softmax(1)
    shares_NK = shares(target, log_p_NK) * (1 - smoothing) + smoothing / logits_NK.shape[1]
    if weights_K is not None:
        shares_NK = shares_NK * weights_K
    return -(shares_NK * _power(1 - log_p_NK.exp(), gamma) * log_p_NK).sum(1)


def sigmoid_losses(
    logits_NK: Tensor,
    target: Tensor,
    smoothing: float = 0.0,
    weights_K: Tensor | None = None,
    gamma: float | None = None,
) -> Tensor:
    """Compute the binary cross-entropy (N,), averaged over the classes.

    The focal form is that of `torchvision.ops.sigmoid_focal_loss` without its alpha.

    Args:
        logits_NK: logits (N, K).
        target: class indices (N,), or labels (N, K) from 0 to 1.
        smoothing: label smoothing; each target moves this fraction of the way to 1/2.
        weights_K: the weights (K,) of the classes.
        gamma: exponent of the focal loss; None for the cross-entropy.
    """
    target_NK = shares(target, logits_NK) * (1 - smoothing) + smoothing / 2
    losses_NK = F.binary_cross_entropy_with_logits(logits_NK, target_NK, weights_K, reduction="none")
    if gamma is not None:
        p_NK = logits_NK.sigmoid()
        losses_NK = losses_NK * _power(p_NK + target_NK - 2 * p_NK * target_NK, gamma)
    return losses_NK.mean(1)


def shares(target: Tensor, logits_NK: Tensor) -> Tensor:
    """Return targets as the shares of the classes (N, K), in the dtype of the logits."""
    return (target if target.ndim == 2 else F.one_hot(target, logits_NK.shape[1])).to(logits_NK.dtype)


def _power(error: Tensor, gamma: float) -> Tensor:
    """Compute error^gamma. The limit keeps the gradient finite at an error of 0, where it is infinite for gamma < 1."""
    return error.clamp(min=torch.finfo(error.dtype).eps) ** gamma


def uses_sigmoid(cfg: AnyLoss, data: str, multilabel: bool) -> bool:
    """Whether probabilities are the sigmoid of each logit; otherwise, they are the softmax over the classes.

    Args:
        cfg: the configuration `loss`.
        data: name of the data set, used in messages.
        multilabel: whether an image may have several labels.

    Raises:
        UserError: the loss is for images with one label, but they have several.
    """
    if isinstance(cfg, OwnLoss):
        sigmoid = multilabel if cfg.activation == "auto" else cfg.activation == "sigmoid"
        if multilabel and not sigmoid:
            raise UserError(
                f"loss.activation=softmax: images of {data} have several labels; use loss.activation=sigmoid or auto"
            )
        return sigmoid
    if multilabel and cfg.name == "cross_entropy":
        raise UserError(f"loss={cfg.name}: images of {data} have several labels; use bce, focal or auto")
    return multilabel or cfg.name == "bce"


def build_loss(cfg: AnyLoss, sigmoid: bool, class_weights: Sequence[float] | None) -> nn.Module:
    """Build the loss that `cfg` describes.

    Args:
        cfg: the configuration `loss`.
        sigmoid: see `uses_sigmoid`.
        class_weights: the result of `class_weights`.

    Raises:
        UserError: the user's class is not allowed or refuses its arguments.
    """
    if isinstance(cfg, OwnLoss):
        return instantiate(cfg.node(), nn.Module, "loss")
    gamma = cfg.gamma if cfg.name == "focal" else None
    return ClassificationLoss(sigmoid, cfg.label_smoothing, class_weights, gamma)


def class_weights(cfg: AnyLoss, sets: Splits) -> list[float] | None:
    """Compute the weights of the K classes in training; None if all classes have the same weight.

    `balanced` stands for n / (K * n_k), where n_k is the number of training images with the label k and n is the sum of
    all n_k. For images with one label, this is the formula of scikit-learn's `compute_class_weight`.

    Raises:
        UserError: the number of weights is not K, the weights of all classes that occur are 0, or `balanced` has no
            weight for a class without training images.
    """
    if isinstance(cfg, OwnLoss) or cfg.class_weights is None:
        return None
    classes = sets.images.classes
    labels = [label for index in sets.train for label in all_labels(sets.images.label(int(index)))]
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(classes))
    if cfg.class_weights == "balanced":
        return _balanced(classes, counts.tolist())
    weights = [float(weight) for weight in cfg.class_weights]
    if len(weights) != len(classes):
        raise UserError(
            f"loss.class_weights has {len(weights)} weights, but the data set has {len(classes)} classes; give one"
            " weight per class"
        )
    if not any(np.float32(weight) * count for weight, count in zip(weights, counts, strict=True)):
        raise UserError("loss.class_weights is 0 for every class that occurs in the training images")
    return weights


def _balanced(classes: Sequence[str], counts: Sequence[int]) -> list[float]:
    if 0 in counts:
        raise UserError(
            f"loss.class_weights=balanced: the class {classes[counts.index(0)]} has no training images; list the"
            " weights instead"
        )
    return [sum(counts) / (len(counts) * count) for count in counts]
