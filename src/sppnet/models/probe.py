"""What a backbone makes of an input, found by running it on shapes alone (PyTorch's meta device): no table to keep."""

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

# Two sizes tell a network of one size from a convolutional one, and their distance, a multiple of every stride up to
# 10 and of 12, 16, 18, 20, 24, 32, 36, 48 and 64, gives the stride without rounding.
FIRST, SECOND = 224, 224 + 2880
LARGEST = 4096  # no network here needs more pixels than this to leave a map


@dataclass(frozen=True)
class Trunk:
    """What the rest needs to know of a backbone: channels of its map, and pixels per cell (total stride)."""

    out_channels: int
    stride: int


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built inside have shapes but no values: quick, and without memory.

    Each tensor moves when it is registered. Under `torch.device("meta")` instead, constructors that compute with
    small tensors on the way (torchvision's regnet) fail.
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
    """The same module in evaluation mode, with shapes in place of values; `module` itself is left alone."""
    tensors = (*module.parameters(), *module.buffers())
    if not module.training and all(tensor.is_meta for tensor in tensors):
        return module
    # deepcopy takes these in place of the real tensors, so that no weight is copied on the way
    memo: dict[int, Any] = {id(tensor): _to_meta(tensor) for tensor in tensors}
    return copy.deepcopy(module, memo).eval()


def run_on_meta(module: nn.Module, height: int, width: int) -> torch.Tensor:
    """The output of a `meta_copy` for one image of that size, as a shape.

    Raises:
        UserError: the module cannot take that size; says why in the module's own words.
    """
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            output = module(torch.empty(1, 3, height, width, device="meta", dtype=dtype))
    except Exception as error:  # whatever a plugged-in network raises, a size it cannot take is what it means
        raise UserError(f"input {height}x{width}: {str(error).rstrip('.') or type(error).__name__}") from error
    if not isinstance(output, torch.Tensor):
        raise UserError(f"the output is a {type(output).__name__}, not a feature map (N, C, h, w)")
    return output


def map_size(backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Height and width, in cells, of the map of an image of `height` x `width` pixels.

    Raises:
        UserError: the image leaves no map, or is of a size that the backbone cannot take; says why.
    """
    output = run_on_meta(meta_copy(backbone), height, width)
    if output.ndim != 4 or 0 in output.shape:
        raise UserError(f"input {height}x{width}: the output is {tuple(output.shape)}, not a feature map (N, C, h, w)")
    return output.shape[2], output.shape[3]


def probe(backbone: nn.Module) -> Trunk:
    """Channels and total stride of `backbone`, from two runs at different sizes.

    Raises:
        UserError: it takes one input size only, its map does not grow with the image, or the stride is not a whole
            number and the same along both axes.
    """
    shadow = meta_copy(backbone)
    try:
        first, second = (run_on_meta(shadow, size, size) for size in (FIRST, SECOND))
    except UserError as error:
        raise UserError(f"backbone: it does not take images of any size ({error})") from error
    if not grows(first, second):
        shapes = f"{tuple(first.shape)} at {FIRST}x{FIRST} and {tuple(second.shape)} at {SECOND}x{SECOND}"
        raise UserError(f"backbone: it gives no feature map (N, C, h, w) that grows with the image, but {shapes}")
    growth = {second.shape[axis] - first.shape[axis] for axis in (2, 3)}
    stride, rest = divmod(SECOND - FIRST, max(growth))
    if len(growth) > 1 or rest:
        raise UserError(f"backbone: {SECOND - FIRST} more pixels give {sorted(growth)} more cells: no whole stride")
    return Trunk(out_channels=first.shape[1], stride=stride)


def grows(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether the outputs at two sizes are feature maps: 4-D, of the same channels, and larger along both axes."""
    if small.ndim != 4 or large.ndim != 4:
        return False
    return small.shape[1] == large.shape[1] and all(small.shape[axis] < large.shape[axis] for axis in (2, 3))


def smallest_input(backbone: nn.Module, cells: int = 1) -> int:
    """Side in pixels of the smallest square image whose map has at least `cells` x `cells` cells.

    Raises:
        UserError: there is none up to 4096 pixels.
    """
    shadow = meta_copy(backbone)

    def enough(side: int) -> bool:
        try:
            return min(map_size(shadow, side, side)) >= cells
        except UserError:
            return False

    too_small, works = 0, 1
    while not enough(works):
        too_small, works = works, 2 * works
        if works > LARGEST:
            raise UserError(f"backbone: no square image up to {LARGEST} pixels leaves {cells}x{cells} cells")
    while works - too_small > 1:
        middle = (too_small + works) // 2
        too_small, works = (too_small, middle) if enough(middle) else (middle, works)
    return works


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    moved = tensor.detach().to("meta")
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
