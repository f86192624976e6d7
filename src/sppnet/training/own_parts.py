"""Checks before training of the network's parts of the user's own (`_target_` of `backbone`, `pooling` and `head`)."""

from __future__ import annotations

import contextlib

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sppnet.config.schema import Config, OpenSection
from sppnet.errors import UserError, notice
from sppnet.models.network import SPPNet
from sppnet.models.pooling import check_own_windows, pools_windows
from sppnet.models.probe import deep_copy
from sppnet.runs.identity import strategy, world_size
from sppnet.training.preflight import network_dtype
from sppnet.training.unsaved_state import describe, remembers


def has_own_parts(cfg: Config) -> bool:
    """Whether a part of the network is of a class that is not ours."""
    parts = (cfg.backbone, cfg.pooling, cfg.head)
    return any(isinstance(part, OpenSection) and not part.target.startswith("sppnet.") for part in parts)


def check_own_parts(network: SPPNet, size: int, cfg: Config) -> None:
    """Check that backbone, pooling and head can be trained, and that a test of them can be repeated.

    They run on the CPU, on two random images, in the precision of the training. A part that keeps something which a
    resumed run would not have is named in a notice.

    Args:
        network: the network, which does not change.
        size: side, in pixels, of the square images.
        cfg: the configuration.

    Raises:
        UserError: in evaluation, a part draws random numbers, changes from one call to the next or lets the images of a
            batch affect each other; it changes its buffers' shapes, passes no gradient on, has parameters without one
            under DDP, or fails; or its `pool_windows` does not give the vectors of `forward`.
    """
    network = deep_copy(network).to(network_dtype(cfg)).eval()
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(network_dtype(cfg))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for slot, part in network.named_children():
            label = f"{slot}: {type(part).__name__}"
            shapes = _shapes(part)
            output = _run_twice(label, part, x)
            _check_shapes(label, part, shapes, cfg)
            if slot == "pooling" and type(part).__module__.split(".")[0] != "sppnet" and pools_windows(part):
                check_own_windows(part, x)
            if not (slot == "backbone" and network.freeze):
                part.train()
                _check_gradients(label, part, x, cfg, passes_on=slot != "backbone" and not network.freeze)
                _notice_history(label, part, x)
            x = output


def _run_twice(label: str, part: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of a part for `x`, and check that it always gives the same ones."""
    state = torch.random.get_rng_state()
    try:
        first, second, alone = part(x.clone()), part(x.clone()), part(x[:1].clone())
    except Exception as error:  # a user's own module may raise any exception
        dtype = str(x.dtype).removeprefix("torch.")
        raise UserError(f"{label} fails for {tuple(x.shape)} of {dtype}: {error}") from error
    tolerance = max(0.01, 8 * torch.finfo(x.dtype).eps) * float(first.abs().max())
    if not torch.equal(torch.random.get_rng_state(), state):
        problem = "draws random numbers"
    elif not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
        problem = "gives different outputs for the same input"
    elif not torch.allclose(first[:1], alone, rtol=0, atol=tolerance, equal_nan=True):
        problem = "gives an image other outputs beside other images"
    else:
        output: Tensor = first
        return output
    raise UserError(
        f"{label} {problem} in evaluation, so no test could be repeated; only training (self.training) may do so"
    )


def _shapes(part: nn.Module) -> dict[str, torch.Size]:
    buffers = {name: buffer.shape for name, buffer in part.named_buffers()}
    return buffers | {name: value.shape for name, value in part.state_dict().items() if isinstance(value, Tensor)}


def _check_shapes(label: str, part: nn.Module, before: dict[str, torch.Size], cfg: Config) -> None:
    """Raise a UserError if buffers have changed their shapes, so that checkpoints or averages do not fit."""
    after, saved = _shapes(part), part.state_dict()
    for name in {**before, **after}:
        if before.get(name) == after.get(name):
            continue
        change = f"{label}.{name} appears or changes its shape when the module is called"
        if name in saved:
            raise UserError(
                f"{change}, so a checkpoint could not be loaded; register it in the constructor with persistent=False"
            )
        if cfg.optim.ema is not None:
            raise UserError(f"{change}, but optim.ema averages all buffers; keep it as a plain attribute")


def _check_gradients(label: str, part: nn.Module, x: Tensor, cfg: Config, passes_on: bool) -> None:
    """Check that the outputs of a part depend differentiably on its inputs and, under DDP, on its parameters."""
    parameters = {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}
    gradients: tuple[Tensor | None, ...] = (None,) * (1 + len(parameters))
    with torch.enable_grad():
        leaf = torch.rand_like(x).requires_grad_()
        try:
            output = part(leaf.relu())  # its backward needs its output, which the part must not change in place
            if output.requires_grad:
                gradients = torch.autograd.grad(output.sum(), (leaf, *parameters.values()), allow_unused=True)
        except Exception as error:  # a user's own module may raise any exception
            raise UserError(f"{label} fails in its backward pass: {error}") from error
    if passes_on and gradients[0] is None:
        raise UserError(f"{label} passes no gradient on to its input, so the backbone could not be trained")
    unused = next((name for name, each in zip(parameters, gradients[1:], strict=True) if each is None), None)
    if unused is not None and world_size(cfg) > 1 and strategy(cfg) == "ddp":
        raise UserError(
            f"{label}.{unused} gets no gradient, for which the processes of DDP would wait;"
            " trainer.strategy=ddp_find_unused_parameters_true allows it, or set its requires_grad to False"
        )


def _notice_history(label: str, part: nn.Module, x: Tensor) -> None:
    """Say which attribute of a part depends on earlier batches, although no checkpoint holds it."""
    with contextlib.suppress(Exception):  # it may not take other values
        if changed := remembers(part, part, (x,), (2 * x,)):
            rank_zero_only(notice)(describe(label, changed))
