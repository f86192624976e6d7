"""Finds a backbone's channels, stride, map sizes and smallest input by running it on the meta device."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedParameter

from sppnet.errors import UserError

# Input sizes of the two probing runs. A network that accepts only one size fails in one of them. Every integer stride
# up to 108 is found exactly: no two of these strides can give the same number of additional cells.
FIRST, SECOND = 224, 224 + 20160
LARGEST = 4096  # largest side in pixels that `smallest_input` tries; no backbone here needs more

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Trunk:
    """The channels of a backbone's feature map, and the backbone's total stride in pixels."""

    out_channels: int
    stride: int


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Put the parameters and buffers of modules built in this context on the meta device, to save time and memory.

    Each tensor is moved when it is registered. Using `torch.device("meta")` instead would break constructors that
    compute with small tensors, such as torchvision's regnet.
    """

    def move(_module: nn.Module, _name: str, value: torch.Tensor | None) -> Any:
        return None if value is None else _to_meta(value)

    handles = (register_module_parameter_registration_hook(move), register_module_buffer_registration_hook(move))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def meta_copy(module: nn.Module) -> nn.Module:
    """Return `module` on the meta device in evaluation mode: a copy, or `module` itself if it needs no change.

    Raises:
        UserError: the module cannot be copied.
    """
    tensors = (*module.parameters(), *module.buffers())
    if not module.training and all(tensor.is_meta for tensor in tensors):
        return module
    # With this memo, deepcopy uses the meta tensors instead of copying the weights.
    return deep_copy(module, {id(tensor): _to_meta(tensor) for tensor in tensors}).eval()


def deep_copy(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """Return a copy of `module`.

    Raises:
        UserError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # of a user's own module, such as one with the older torch.nn.utils.weight_norm
        raise UserError(f"{type(module).__name__} cannot be copied: {error}") from error


def run_on_meta(module: nn.Module, height: int, width: int) -> torch.Tensor:
    """Run a `meta_copy` on one image of `height` x `width` pixels, and return its output on the meta device.

    Raises:
        UserError: the module does not accept that size (the message quotes the module's own error), or its output is
            not a tensor.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            output = module(torch.empty(1, 3, height, width, device="meta", dtype=dtype))
    except Exception as error:  # a user's own network may raise any exception for a size that it rejects
        raise UserError(f"input {height}x{width}: {str(error).rstrip('.') or type(error).__name__}") from error
    if not isinstance(output, torch.Tensor):
        raise UserError(f"the output must be a feature map (N, C, h, w), but has type {type(output).__name__}")
    return output


def tolerance(values: torch.Tensor) -> float:
    """The difference that a module's outputs may have if they are computed in another order."""
    return max(0.01, 8 * torch.finfo(values.dtype).eps) * float(values.abs().max())


def check_initialised(module: nn.Module, slot: str) -> None:
    """Raise a UserError if a parameter of the configuration's section `slot` has no shape yet, as in `LazyLinear`."""
    lazy = (name for name, parameter in module.named_parameters() if isinstance(parameter, UninitializedParameter))
    if (name := next(lazy, None)) is not None:
        raise UserError(
            f"{slot}: {type(module).__name__}.{name} has no shape until the first batch, but the optimizer needs it"
            " before; give the layer its input's size"
        )


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` that of new tensors, as Lightning does in each step with `bf16-true` and `64-true`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def try_out(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Run `module` on an input of `shape`, in evaluation mode and without changing it, and return its output.

    It runs on the meta device or, if it fails there (for example because it makes tensors on the CPU), on random
    positive numbers on the CPU.

    Raises:
        Exception: whatever the module raises.
    """
    with torch.no_grad(), default_dtype(dtype):
        try:
            return meta_copy(module)(torch.empty(shape, device="meta", dtype=dtype))
        except Exception:
            if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
                raise
        with torch.random.fork_rng(devices=[]):
            return copy.deepcopy(module).eval()(
                torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
            )


def map_size(backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Return the height and width, in cells, of the feature map for an image of `height` x `width` pixels.

    Raises:
        UserError: the backbone does not accept the size, or its output is not a feature map.
    """
    output = run_on_meta(meta_copy(backbone), height, width)
    if output.ndim != 4 or 0 in output.shape:
        raise UserError(f"input {height}x{width}: the output {tuple(output.shape)} is not a feature map (N, C, h, w)")
    return output.shape[2], output.shape[3]


def probe(backbone: nn.Module) -> Trunk:
    """Find the channels and total stride of `backbone` with two runs at different sizes.

    Raises:
        UserError: the backbone accepts only one input size, its map does not grow with the image, or its stride is not
            an integer or differs between the axes.
    """
    shadow = meta_copy(backbone)
    try:
        first, second = (run_on_meta(shadow, size, size) for size in (FIRST, SECOND))
    except UserError as error:
        raise UserError(f"backbone: the network does not accept images of every size ({error})") from error
    if not grows(first, second):
        shapes = f"{tuple(first.shape)} at {FIRST}x{FIRST} and {tuple(second.shape)} at {SECOND}x{SECOND}"
        raise UserError(f"backbone: the output must be a map (N, C, h, w) that grows with the image, not {shapes}")
    growth = {second.shape[axis] - first.shape[axis] for axis in (2, 3)}
    stride = round((SECOND - FIRST) / max(growth))
    remainder = abs(SECOND - FIRST - stride * max(growth))  # pixels; less than one stride if the stride is an integer
    if len(growth) > 1 or remainder >= stride:
        raise UserError(
            f"backbone: if the image grows by {SECOND - FIRST} pixels along both axes, the feature map grows by"
            f" {' and '.join(map(str, sorted(growth)))} cells; the stride must be an integer and the same along both"
            " axes"
        )
    return Trunk(out_channels=first.shape[1], stride=stride)


def grows(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether `small` and `large` are 4-D maps with equal channels, and `large` is larger along both axes."""
    if small.ndim != 4 or large.ndim != 4:
        return False
    return small.shape[1] == large.shape[1] and all(small.shape[axis] < large.shape[axis] for axis in (2, 3))


def smallest_input(backbone: nn.Module, cells: int = 1) -> int:
    """Return the side in pixels of the smallest square image whose map has at least `cells` x `cells` cells.

    Raises:
        UserError: no size up to 4096 pixels suffices.
    """
    shadow = meta_copy(backbone)

    def suffices(side: int) -> bool:
        try:
            return min(map_size(shadow, side, side)) >= cells
        except UserError:
            return False

    # some networks take only multiples of a patch or window, whose side is often 7 or 14
    sides: list[int] = sorted(base * 2**power for base in (1, 7) for power in range(13) if base * 2**power <= LARGEST)
    number = next((i for i, side in enumerate(sides) if suffices(side)), None)
    if number is None:
        raise UserError(f"backbone: no square image up to {LARGEST} pixels gives a {cells}x{cells} feature map")
    too_small, large_enough = (0, *sides)[number], sides[number]
    while large_enough - too_small > 1:
        middle = (too_small + large_enough) // 2
        too_small, large_enough = (too_small, middle) if suffices(middle) else (middle, large_enough)
    return large_enough


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
