"""Checks before training of the network's parts of the user's own (`_target_` of `backbone`, `pooling` and `head`)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from sppnet.config.instantiate import is_own
from sppnet.config.schema import Config, OpenSection
from sppnet.data.seeding import preserved_generators, seed_generators
from sppnet.errors import UserError, notice
from sppnet.models.network import SPPNet, build_network
from sppnet.models.pooling import check_own_windows, pools_windows
from sppnet.models.probe import deep_copy, default_dtype, tolerance
from sppnet.runs.identity import strategy, world_size
from sppnet.training.preflight import network_dtype
from sppnet.training.unsaved_state import describe, remembers


def has_own_parts(cfg: Config) -> bool:
    """Whether a part of the network is of a class that is not ours."""
    parts = (cfg.backbone, cfg.pooling, cfg.head)
    return any(isinstance(part, OpenSection) and not part.target.startswith("sppnet.") for part in parts)


def check_own_parts(network: SPPNet, size: int, cfg: Config, classes: int) -> None:
    """Check that backbone, pooling and head can be trained, and that a test of them can be repeated.

    They run on the CPU, on two random images, in the dtype of the weights in training. A notice names a part that keeps
    something which a resumed run would not have.

    Args:
        network: the network, which does not change.
        size: side, in pixels, of the square images.
        cfg: the configuration.
        classes: number of logits.

    Raises:
        UserError: in evaluation, a part draws random numbers, changes from one call to the next or lets the images of a
            batch affect each other; it is another one if it is built again and loads its weights; it changes its
            buffers' shapes, passes no gradient on, has parameters without one under DDP, gives values that are not
            finite, or fails; or its `pool_windows` does not give the vectors of `forward`.
    """
    dtype = network_dtype(cfg)
    network = _converted(deep_copy(network), dtype)
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad(), preserved_generators():
        again = _build_again(cfg, classes)
        with default_dtype(dtype):
            for slot, part in network.named_children():
                label = f"{slot}: {type(part).__name__}"
                try:
                    x = _check_part(label, part, again.get_submodule(slot), x, cfg)
                except UserError as error:
                    if "not implemented for 'BFloat16'" in str(error):
                        return  # a GPU may have what the CPU lacks
                    raise


def _check_part(label: str, part: nn.Module, again: nn.Module, x: Tensor, cfg: Config) -> Tensor:
    """Run all checks of a part on its inputs `x`, and return its outputs."""
    slot, frozen = label.partition(":")[0], cfg.backbone.freeze is True
    shapes = _shapes(part)
    output = check_repeatable(label, part, x)
    _check_shapes(label, part, shapes, cfg)
    if _disturb(part, x):
        check_repeatable(label, part, x)
    _check_loaded(label, part, again, x)
    if slot == "pooling" and is_own(part) and pools_windows(part):
        check_own_windows(part, x)
    if not (slot == "backbone" and frozen):
        part.train()
        _check_gradients(label, part, x, cfg, passes_on=slot != "backbone" and not frozen)
        _notice_history(label, part, x)
        _check_shapes(label, part, shapes, cfg)
    return output


def _converted(network: SPPNet, dtype: torch.dtype) -> SPPNet:
    """Convert the network as Lightning does; with 32-true and mixed precision, it leaves float64 buffers alone."""
    return (network if dtype == torch.float32 else network.to(dtype)).eval()


def _build_again(cfg: Config, classes: int) -> SPPNet:
    """Build the network as a later command does: without weights, and with random numbers from another seed."""
    seed_generators(cfg.seed, "again")
    backbone = cfg.backbone.model_copy(update={"weights": None})
    again = build_network(backbone, cfg.pooling, cfg.head, classes, cfg.sizes.train[0])
    return _converted(again, network_dtype(cfg))


def _disturb(part: nn.Module, x: Tensor) -> bool:
    """Change all parameters a little: at their initial values, a scale of 1 or a gate of 0 may have no effect yet.

    Returns:
        Whether the part still works and its outputs are finite; if not, the parameters are those from before.
    """
    before = [parameter.clone() for parameter in part.parameters()]
    for parameter in part.parameters():
        if parameter.is_floating_point():
            spread = float(parameter.float().std()) if parameter.numel() > 1 else 0.0
            scale = spread or float(parameter.float().abs().mean()) or 1.0
            parameter.add_(0.1 * scale * torch.randn_like(parameter))
    with contextlib.suppress(Exception):  # a part may refuse parameters out of its bounds
        if part(x.clone()).isfinite().all():
            return True
    for parameter, value in zip(part.parameters(), before, strict=True):
        parameter.copy_(value)
    return False


def _check_loaded(label: str, part: nn.Module, again: nn.Module, x: Tensor) -> None:
    """Check that a part that is built again gives the same outputs once it has loaded the same weights."""
    try:
        again.load_state_dict(part.state_dict())
        expected, loaded = part(x.clone()), again(x.clone())
    except Exception as error:  # a user's own module may raise any exception
        raise UserError(f"{label} fails if it is built again and loads the same weights: {error}") from error
    if not torch.allclose(expected, loaded, rtol=0, atol=tolerance(expected)):
        raise UserError(
            f"{label} gives other outputs if it is built again and loads the same weights, as in sppnet test; what its"
            " constructor draws, and what depends on its weights argument, belongs in persistent buffers"
        )


def check_repeatable(label: str, part: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of a part in evaluation for two images or maps, and check that it always gives the same ones.

    Raises:
        UserError: the part draws random numbers, changes from one call to the next, lets the images of a batch affect
            each other, gives values that are not finite, or fails.
    """
    state = torch.random.get_rng_state()
    try:
        first, second, alone = part(x.clone()), part(x.clone()), part(x[:1].clone())
    except Exception as error:  # a user's own module may raise any exception
        dtype = str(x.dtype).removeprefix("torch.")
        raise UserError(f"{label} fails for {tuple(x.shape)} of {dtype}: {error}") from error
    if not first.isfinite().all():
        raise UserError(f"{label} gives values that are not finite for ordinary inputs")
    if not torch.equal(torch.random.get_rng_state(), state):
        problem = "draws random numbers"
    elif not torch.equal(first, second):
        problem = "gives different outputs for the same input"
    elif not torch.allclose(first[:1], alone, rtol=0, atol=tolerance(first)):
        problem = "gives an image other outputs beside other images"
    else:
        output: Tensor = first
        return output
    raise UserError(
        f"{label} {problem} in evaluation, so no test could be repeated; only training (self.training) may do so"
    )


def _shapes(part: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    tensors = dict(part.named_buffers()) | part.state_dict()
    return {name: (value.shape, value.dtype) for name, value in tensors.items() if isinstance(value, Tensor)}


def _check_shapes(label: str, part: nn.Module, before: Mapping[str, object], cfg: Config) -> None:
    """Raise a UserError if buffers have other shapes or dtypes now, so that checkpoints or averages do not fit."""
    after, saved = _shapes(part), part.state_dict()
    for name in {**before, **after}:
        if before.get(name) == after.get(name):
            continue
        change = f"{label}.{name} appears or changes its shape or dtype when the module is called"
        if name in saved:
            raise UserError(
                f"{change}, so a checkpoint could not be loaded; register it in the constructor as it will be, or, if"
                " it depends on the last input alone, with persistent=False"
            )
        if cfg.optim.ema is not None:
            raise UserError(f"{change}, but optim.ema averages all buffers; keep it as a plain attribute")


def _check_gradients(label: str, part: nn.Module, x: Tensor, cfg: Config, passes_on: bool) -> None:
    """Check that the outputs of a part depend differentiably on its inputs and, under DDP, on its parameters."""
    parameters = {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}
    with torch.enable_grad():
        leaf = torch.rand_like(x).requires_grad_()
        phase = "in training mode"
        try:
            output = part(leaf.relu())  # its backward needs its output, which the part must not change in place
            if output.requires_grad:
                phase = "in its backward pass"
                output.sum().backward()
        except Exception as error:  # a user's own module may raise any exception
            raise UserError(f"{label} fails {phase}: {error}") from error
    if passes_on and leaf.grad is None:
        raise UserError(f"{label} passes no gradient on to its input, so the backbone could not be trained")
    unused = next((name for name, parameter in parameters.items() if parameter.grad is None), None)
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
