"""Finds a backbone's channels, stride, map sizes and smallest input by running it on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from sppnet.errors import UserError

# Input sizes of the two probing runs. A network for one input size fails at one of them. Their difference is a multiple
# of every stride up to 10 and of 12, 16, 18, 20, 24, 32, 36, 48 and 64, so it gives the stride without rounding.
FIRST, SECOND = 224, 224 + 2880
LARGEST = 4096  # pixels up to which `smallest_input` searches; no backbone here needs more


@dataclass(frozen=True)
class Trunk:
    """Channels of a backbone's feature map, and its total stride in pixels."""

    out_channels: int
    stride: int


@contextmanager
def on_meta() -> Iterator[None]:
    """Put the parameters and buffers of modules built inside on the meta device: fast, and without memory.

    Each tensor moves when it is registered. `torch.device("meta")` would break constructors that compute with small
    tensors (torchvision's regnet).
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
    """A copy of `module` on the meta device in evaluation mode, or `module` itself if it is that already."""
    tensors = (*module.parameters(), *module.buffers())
    if not module.training and all(tensor.is_meta for tensor in tensors):
        return module
    # With this memo deepcopy uses the meta tensors instead of copying the weights.
    memo: dict[int, Any] = {id(tensor): _to_meta(tensor) for tensor in tensors}
    return copy.deepcopy(module, memo).eval()


def run_on_meta(module: nn.Module, height: int, width: int) -> torch.Tensor:
    """The output, on the meta device, of a `meta_copy` for one image of `height` x `width` pixels.

    Raises:
        UserError: the module cannot take that size, with the module's own message.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            output = module(torch.empty(1, 3, height, width, device="meta", dtype=dtype))
    except Exception as error:  # a user's own network may raise anything for a size that it cannot take
        raise UserError(f"input {height}x{width}: {str(error).rstrip('.') or type(error).__name__}") from error
    if not isinstance(output, torch.Tensor):
        raise UserError(f"the output is a {type(output).__name__}, not a feature map (N, C, h, w)")
    return output


def map_size(backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Height and width, in cells, of the feature map of an image of `height` x `width` pixels.

    Raises:
        UserError: the backbone cannot take the size, or its output is not a feature map.
    """
    output = run_on_meta(meta_copy(backbone), height, width)
    if output.ndim != 4 or 0 in output.shape:
        raise UserError(f"input {height}x{width}: the output is {tuple(output.shape)}, not a feature map (N, C, h, w)")
    return output.shape[2], output.shape[3]


def probe(backbone: nn.Module) -> Trunk:
    """Channels and total stride of `backbone`, from two runs at different sizes.

    Raises:
        UserError: it takes a single input size, its map does not grow with the image, or its stride is not an integer
            or differs between the axes.
    """
    shadow = meta_copy(backbone)
    try:
        first, second = (run_on_meta(shadow, size, size) for size in (FIRST, SECOND))
    except UserError as error:
        raise UserError(f"backbone: does not take images of any size ({error})") from error
    if not grows(first, second):
        shapes = f"{tuple(first.shape)} at {FIRST}x{FIRST} and {tuple(second.shape)} at {SECOND}x{SECOND}"
        raise UserError(f"backbone: the output must be a map (N, C, h, w) that grows with the image, not {shapes}")
    growth = {second.shape[axis] - first.shape[axis] for axis in (2, 3)}
    stride, remainder = divmod(SECOND - FIRST, max(growth))
    if len(growth) > 1 or remainder:
        raise UserError(
            f"backbone: {SECOND - FIRST} more pixels give {sorted(growth)} more cells; the stride must be an integer,"
            " the same along both axes"
        )
    return Trunk(out_channels=first.shape[1], stride=stride)


def grows(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether the outputs at two sizes are feature maps: 4-D, with equal channels, and larger along both axes."""
    if small.ndim != 4 or large.ndim != 4:
        return False
    return small.shape[1] == large.shape[1] and all(small.shape[axis] < large.shape[axis] for axis in (2, 3))


def smallest_input(backbone: nn.Module, cells: int = 1) -> int:
    """Side in pixels of the smallest square image whose map has at least `cells` x `cells` cells.

    Raises:
        UserError: no size up to 4096 pixels suffices.
    """
    shadow = meta_copy(backbone)

    def suffices(side: int) -> bool:
        try:
            return min(map_size(shadow, side, side)) >= cells
        except UserError:
            return False

    too_small, large_enough = 0, 1
    while not suffices(large_enough):
        too_small, large_enough = large_enough, 2 * large_enough
        if large_enough > LARGEST:
            raise UserError(f"backbone: no square image up to {LARGEST} pixels leaves {cells}x{cells} cells")
    while large_enough - too_small > 1:
        middle = (too_small + large_enough) // 2
        too_small, large_enough = (too_small, middle) if suffices(middle) else (middle, large_enough)
    return large_enough


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
