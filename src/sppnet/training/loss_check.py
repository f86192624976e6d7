"""Checks before training that the user's own loss (`loss._target_`) can be trained with."""

from __future__ import annotations

import contextlib
import copy

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sppnet.config.schema import OwnLoss
from sppnet.errors import UserError, notice
from sppnet.models.probe import default_dtype
from sppnet.training.losses import shares
from sppnet.training.unsaved_state import describe, remembers


def check_own_loss(
    cfg: OwnLoss, loss: nn.Module, classes: int, multilabel: bool, soft: bool, dtype: torch.dtype
) -> None:
    """Check that the user's loss can be trained with, on the logits of a few images.

    Args:
        cfg: the configuration `loss`.
        loss: the user's loss, on the CPU.
        classes: number of logits K.
        multilabel: whether the targets are labels (N, K) of 0 and 1.
        soft: whether the targets in training are the shares of the classes (N, K).
        dtype: dtype of the logits.

    Print a notice if the loss keeps a number that a resumed run would not have.

    Raises:
        UserError: the loss raises an exception, or its result is not one finite value per image with a gradient.
    """
    count = 5 if classes == 4 else 4  # not K, because a value per class would look like a value per image
    generator = torch.Generator().manual_seed(0)
    logits_NK = torch.randn(count, classes, generator=generator, dtype=dtype)
    # Half of the images are classified correctly, because a loss may be constant on such images or on the others.
    target = torch.cat([logits_NK[:2].argmin(1), logits_NK[2:].argmax(1)])
    if multilabel:
        target = (torch.rand(count, classes, generator=generator) < 0.5).float()
    mode, original = loss.training, loss
    with contextlib.suppress(Exception):  # what cannot be copied, such as a tensor with a history, is used itself
        loss = copy.deepcopy(loss)  # it may count the images that it sees
    with torch.random.fork_rng(devices=[]), default_dtype(dtype):  # the loss may draw random numbers, as dropout does
        for training in (True, False):
            loss.train(training)
            given = shares(target, logits_NK.float()) if training and soft else target
            if problem := _find_problem(loss, logits_NK, given, training):
                mode_name = "training" if training else "evaluation"
                raise UserError(f"loss: {cfg.target} {problem} (in {mode_name} mode)")
            with contextlib.suppress(Exception), torch.set_grad_enabled(training):  # it may not take other values
                given_logits = logits_NK.clone().requires_grad_(training)
                if changed := remembers(loss, loss, (given_logits, given), (2 * given_logits, given)):
                    rank_zero_only(notice)(describe(f"loss: {cfg.target}", changed))
    original.train(mode)


def _find_problem(loss: nn.Module, logits_NK: Tensor, target: Tensor, training: bool) -> str:
    """Say what is wrong with the loss of these images; "" if nothing is."""
    given_NK, given = logits_NK, target
    logits_NK, target = logits_NK.clone().requires_grad_(training), target.clone()
    shape = (len(logits_NK),)
    kind = f"targets {tuple(target.shape)} of {str(target.dtype).removeprefix('torch.')}"
    with torch.set_grad_enabled(training):
        try:
            losses = loss(logits_NK, target)
        except Exception as error:  # a user's class may raise any exception
            message = " ".join(str(error).split())
            inputs = f"logits {tuple(logits_NK.shape)} and {kind}"
            return f"raises {type(error).__name__} for {inputs}: {message}".rstrip(": ")
        if not (torch.equal(logits_NK, given_NK) and torch.equal(target, given)):
            return "changes its logits or targets in place, but the metrics need them as they were"
        if not isinstance(losses, Tensor):
            return f"returns {type(losses).__name__}; it must return a tensor (N,) with one value per image"
        if losses.ndim == 0:
            return "returns a scalar; it must return one value per image (N,), as with reduction: none"
        if losses.shape != shape:
            got, images = tuple(losses.shape), len(logits_NK)
            return f"returns the shape {got} for {images} images; it must return one value per image, {shape}"
        if not losses.is_floating_point():
            return f"returns {losses.dtype}; it must return floating-point numbers"
        if not losses.isfinite().all():
            return f"returns {losses.tolist()} for ordinary logits; it must return finite numbers"
        if not training and not torch.equal(losses, loss(logits_NK, target)):
            return "returns other values for the same images, so no test could be repeated"
        return _find_gradient_problem(losses, logits_NK) if training else ""


def _find_gradient_problem(losses: Tensor, logits_NK: Tensor) -> str:
    gradient = None
    if losses.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(losses.sum(), logits_NK, allow_unused=True)
        except Exception as error:  # of the user's own backward
            return f"raises {type(error).__name__} in its backward pass: {' '.join(str(error).split())}"
    if gradient is None or not gradient.any():
        return "has no gradient: its values do not depend on the logits"
    return "" if gradient.isfinite().all() else "has a gradient that is not finite for ordinary logits"
