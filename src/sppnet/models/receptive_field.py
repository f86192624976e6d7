"""Where on the image a cell of a feature map looks: the centre of its receptive field, worked out from the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sppnet.errors import UserError
from sppnet.models.probe import meta_copy

SIDE = 640  # pixels of the image that is traced: some cells along each side for every stride up to 64
Pair = int | Sequence[int]


@dataclass(frozen=True)
class Field:
    """The receptive fields of a map's cells: cell i is centred at pixel `stride * i + offset` (counted from 0)."""

    stride: int
    offset: Fraction

    def centre(self, cell: int) -> Fraction:
        """The pixel at which a cell's receptive field is centred; half of one for kernels of even size."""
        return self.stride * cell + self.offset

    def cells(self, start: int, end: int, length: int) -> tuple[int, int]:
        """The cells `[first, last + 1)` of a window of pixels `[start, end)`, along an axis of `length` cells.

        Those centred in it: from the first pixel on, and before the last. That is Appendix A ("Mapping a window to
        feature maps") with this network's own offset, but that a centre on the very first pixel counts: so a window
        gets as many cells as a training image of its size, whichever way the network pads. A window between two
        centres gets the cell that is nearest to its middle; what lies beyond the map is clamped to it.
        """
        first = ceil((start - self.offset) / self.stride)
        last = ceil((end - 1 - self.offset) / self.stride) - 1
        if first > last:
            middle = Fraction(start + end - 1, 2)
            first = last = floor((middle - self.offset) / self.stride + Fraction(1, 2))
        first, last = (min(max(cell, 0), length - 1) for cell in (first, last))
        return first, last + 1


def receptive_field(backbone: nn.Module) -> Field:
    """Stride and offset of `backbone`, by following one image through it on shapes alone.

    Convolutions and poolings move the centres by what their kernels, strides, dilations and paddings say; where paths
    meet, as in a residual block, the mean of their centres counts; gates and attention leave centres where they were.

    Raises:
        UserError: the way from image to map holds an operation that cannot be followed, or the two axes differ.
    """
    image = torch.empty(1, 3, SIDE, SIDE, device="meta", dtype=next((p.dtype for p in backbone.parameters()), None))
    shadow = meta_copy(backbone)
    with torch.no_grad(), _Follow() as follow:
        follow.grids[image] = _Grid((2, 3), (Axis(), Axis()))
        grid = follow.grids.get(shadow(image))
    if grid is None or grid.dims != (2, 3):
        raise UserError("backbone: where its cells look at cannot be followed through it; use views.source=image")
    rows, cols = grid.axes
    if rows != cols or rows.stride.denominator != 1:
        raise UserError(f"backbone: its cells are {rows.stride} by {cols.stride} pixels apart; use views.source=image")
    return Field(int(rows.stride), rows.offset)


@dataclass(frozen=True)
class Axis:
    """Index i along an axis of a tensor is centred at pixel `stride * i + offset`."""

    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def windows(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """The axis after windows of `kernel` slid along it."""
        middle = Fraction(dilation * (kernel - 1), 2) - padding
        return Axis(self.stride * stride, self.offset + self.stride * middle)

    def sliced(self, start: int, step: int) -> Axis:
        """The axis after `[start::step]`; a negative start is padding."""
        return Axis(self.stride * step, self.offset + self.stride * start)


@dataclass(frozen=True)
class _Grid:
    """Which dimensions of a tensor are height and width, and where on the image their indices lie."""

    dims: tuple[int, int]
    axes: tuple[Axis, Axis]

    def map(self, change: Callable[[Axis, int], Axis]) -> _Grid:
        """`change(axis, dimension)` of both axes."""
        rows, cols = (change(axis, dim) for axis, dim in zip(self.axes, self.dims, strict=True))
        return _Grid(self.dims, (rows, cols))


class _Follow(TorchFunctionMode):
    """Notes for every tensor that is made where on the image its elements lie, as far as that can be said."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: Any = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = [(x, self.grids[x]) for x in _tensors([args, list(kwargs.values())]) if x in self.grids]
        made = func(*args, **kwargs)
        rule = RULES.get(getattr(func, "__name__", ""))
        for output in _tensors(made if isinstance(made, tuple | list) else [made]) if before else ():
            grid = rule(_Call(*before[0], args, kwargs, output)) if rule else _unmoved(before, output)
            if grid is not None:
                self.grids[output] = grid
            else:
                self.grids.pop(output, None)
        return made


@dataclass(frozen=True)
class _Call:
    """A call of torch, of whose first tensor it is known where it lies."""

    x: Tensor
    grid: _Grid
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Tensor

    def given(self, *names: str) -> dict[str, Any]:
        """The arguments by name."""
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [x for value in values for x in _tensors(value)] if isinstance(values, tuple | list) else []


def _unmoved(before: Sequence[tuple[Tensor, _Grid]], output: Tensor) -> _Grid | None:
    """Of any other operation: what keeps height and width in place keeps the centres, their mean if there are several.

    A gate or a global mean (height and width 1) has no say, nor has what was reshaped (windows of attention).
    """
    same = [
        grid for x, grid in before if x.ndim == output.ndim and all(x.shape[d] == output.shape[d] for d in grid.dims)
    ]
    if len({(grid.dims, *(axis.stride for axis in grid.axes)) for grid in same}) != 1:
        return None

    def mean(axis: int) -> Axis:
        return Axis(same[0].axes[axis].stride, sum((g.axes[axis].offset for g in same), Fraction(0)) / len(same))

    return _Grid(same[0].dims, (mean(0), mean(1)))


def _of(value: Pair, axis: int) -> int:
    return int(value) if isinstance(value, int) else int(value[axis if len(value) > 1 else 0])


def _convolution(call: _Call) -> _Grid | None:
    given: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1}
    given |= call.given("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    kernel, padding = given["weight"].shape[2:], given["padding"]

    def change(axis: Axis, dim: int) -> Axis:
        side = dim - 2
        dilation = _of(given["dilation"], side)
        same = dilation * (kernel[side] - 1) // 2
        pad = {"same": same, "valid": 0}[padding] if isinstance(padding, str) else _of(padding, side)
        return axis.windows(kernel[side], _of(given["stride"], side), pad, dilation)

    return call.grid.map(change) if call.grid.dims == (2, 3) else None


def _pooling(*names: str) -> Callable[[_Call], _Grid | None]:
    def rule(call: _Call) -> _Grid | None:
        given = {"stride": None, "padding": 0, "dilation": 1} | call.given("input", *names)
        kernel, dims = given["kernel_size"], call.grid.dims
        steps = (kernel, given["stride"] or kernel, given["padding"], given["dilation"])
        return call.grid.map(lambda axis, dim: axis.windows(*(_of(step, dims.index(dim)) for step in steps)))

    return rule


def _pad(call: _Call) -> _Grid:
    pads = call.given("input", "pad")["pad"]  # of the last dimension first: before, behind, ...
    before = {call.output.ndim - 1 - i // 2: int(pads[i]) for i in range(0, len(pads), 2)}
    return call.grid.map(lambda axis, dim: axis.sliced(-before.get(dim, 0), 1))


def _permute(call: _Call) -> _Grid:
    dims = call.args[1:] or (call.kwargs["dims"],)
    order = [dim % call.x.ndim for dim in (dims[0] if len(dims) == 1 else dims)]
    rows, cols = (order.index(dim) for dim in call.grid.dims)
    return _Grid((rows, cols), call.grid.axes)


def _transpose(call: _Call) -> _Grid:
    one, two = (dim % call.x.ndim for dim in (*call.args[1:], *call.kwargs.values()))
    rows, cols = ({one: two, two: one}.get(dim, dim) for dim in call.grid.dims)
    return _Grid((rows, cols), call.grid.axes)


def _reshape(call: _Call) -> _Grid | None:
    ndim = call.output.ndim
    last = call.grid.dims == (call.x.ndim - 2, call.x.ndim - 1)  # what is behind a shuffle of channels stays in place
    kept = last and call.x.shape[-2:] == call.output.shape[-2:]
    return _Grid((ndim - 2, ndim - 1), call.grid.axes) if kept else None


def _getitem(call: _Call) -> _Grid | None:
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (call.x.ndim - len(index) + 1), *index[at + 1 :])
    if not all(isinstance(part, slice) for part in index):
        return None
    starts = {dim: part.indices(call.x.shape[dim])[::2] for dim, part in enumerate(index)}
    return call.grid.map(lambda axis, dim: axis.sliced(*starts.get(dim, (0, 1))))


RULES: dict[str, Callable[[_Call], _Grid | None]] = {
    "conv2d": _convolution,
    "max_pool2d": _pooling("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": _pooling("kernel_size", "stride", "padding", "ceil_mode"),
    "pad": _pad,
    "permute": _permute,
    "transpose": _transpose,
    "view": _reshape,
    "reshape": _reshape,
    "__getitem__": _getitem,
}
