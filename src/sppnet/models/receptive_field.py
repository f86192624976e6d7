"""Computes the receptive field of a backbone: the stride and offset of the cells' centres on the image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

SIDE = 640  # side of the traced image in pixels; gives several cells along each axis for strides up to 64


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive fields of a map's cells: along both axes, cell i is centred at pixel `stride * i + offset`.

    Attributes:
        stride: distance of the centres in pixels.
        offset: centre of the first cell in pixels.
        mixed_by: the first module that lets a cell depend on others at any distance, as attention and means over the
            map do; "" if there is none, so that a cell depends only on the pixels around its centre.
    """

    stride: int
    offset: Fraction
    mixed_by: str = ""

    def centre(self, cell: int) -> Fraction:
        """Return the centre of a cell's receptive field in pixels. With even kernels, it may lie between two pixels."""
        return self.stride * cell + self.offset

    def cells(self, start: int, end: int, length: int) -> tuple[int, int]:
        """Map a window of pixels `[start, end)` to cells `[first, last + 1)`, along an axis of `length` cells.

        A window gets the cells with `start <= centre < end - 1`. This follows Appendix A ("Mapping a window to feature
        maps") with the network's own offset, except that a centre on the first pixel is inside the window. A window
        thus has as many cells as a training image of its size, whatever the network's padding. A window between two
        centres gets the cell whose centre is nearest to the window's middle. Cells outside the map are moved to its
        edge.
        """
        first = ceil((start - self.offset) / self.stride)
        last = ceil((end - 1 - self.offset) / self.stride) - 1
        if first > last:
            middle = Fraction(start + end - 1, 2)
            first = last = floor((middle - self.offset) / self.stride + Fraction(1, 2))
        first, last = (min(max(cell, 0), length - 1) for cell in (first, last))
        return first, last + 1


def receptive_field(backbone: nn.Module) -> ReceptiveField:
    """Compute the stride and offset of `backbone` by tracing an image through it on the meta device.

    Convolution and pooling move the centres according to kernel, stride, dilation and padding. Where paths meet, as in
    a residual block, the centres are averaged. Gates and attention do not move centres.

    Raises:
        UserError: an operation between image and map cannot be traced, the stride or offset differs between the axes
            or depends on the size of the image, or the stride is not an integer.
    """
    shadow = meta_copy(backbone)
    try:
        grid, mixed_by = _trace(shadow, SIDE)
    except Exception as error:  # a network may refuse the size, or what it calls cannot be traced
        raise UserError(
            f"backbone: the receptive field cannot be traced at {SIDE}x{SIDE} ({str(error) or type(error).__name__});"
            " use views.source=image"
        ) from error
    if grid is None or grid.dims != (2, 3):
        through = f" through {mixed_by}, which rearranges the cells, as attention does" if mixed_by else ""
        raise UserError(f"backbone: the receptive field cannot be traced{through}; use views.source=image")
    rows, cols = grid.axes
    if rows != cols or rows.stride.denominator != 1:
        raise UserError(
            f"backbone: cells are {rows.stride} by {cols.stride} pixels apart; views.source=map needs the same integer"
            " stride and the same offset along both axes; use views.source=image"
        )
    try:
        odd, _ = _trace(shadow, SIDE + 1)
    except Exception:  # a network of patches refuses this size
        odd = grid
    if odd != grid:  # as with TensorFlow's padding ("SAME"), which differs between odd and even sides
        raise UserError(
            "backbone: where the cells lie on the image depends on the size of the image; use views.source=image"
        )
    return ReceptiveField(int(rows.stride), rows.offset, mixed_by)


def _trace(shadow: nn.Module, side: int) -> tuple[_Grid | None, str]:
    """Trace a square image through a network on the meta device. Return its map's grid and what mixed the cells."""
    dtype = next((parameter.dtype for parameter in shadow.parameters()), None)
    image = torch.empty(1, 3, side, side, device="meta", dtype=dtype)
    with torch.no_grad(), _GridTracer() as tracer, tracer.naming(shadow):
        tracer.grids[image] = _Grid((2, 3), (_Axis(), _Axis()))
        output = shadow(image)
    return tracer.grids.get(output), tracer.mixed.get(output, "")


@dataclass(frozen=True)
class _Axis:
    """An axis of a tensor; index i is centred at pixel `stride * i + offset` of the image."""

    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def windows(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> _Axis:
        """Return the axis after a convolution or pooling with these settings."""
        middle = Fraction(dilation * (kernel - 1), 2) - padding
        return _Axis(self.stride * stride, self.offset + self.stride * middle)

    def sliced(self, start: int, step: int) -> _Axis:
        """Return the axis after slicing with `[start::step]`; a negative `start` means padding."""
        return _Axis(self.stride * step, self.offset + self.stride * start)


@dataclass(frozen=True)
class _Grid:
    """Which two dimensions of a tensor are height and width, and where on the image their indices are centred."""

    dims: tuple[int, int]
    axes: tuple[_Axis, _Axis]

    def map(self, transform: Callable[[_Axis, int], _Axis]) -> _Grid:
        """Apply `transform(axis, dim)` to both axes."""
        rows, cols = (transform(axis, dim) for axis, dim in zip(self.axes, self.dims, strict=True))
        return _Grid(self.dims, (rows, cols))


class _GridTracer(TorchFunctionMode):
    """Records the grid, if known, of each tensor that a torch function returns, and which module mixed its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: Any = WeakTensorKeyDictionary()
        self.mixed: Any = WeakTensorKeyDictionary()
        self.modules: list[str] = []  # those that are running, the innermost last

    @contextlib.contextmanager
    def naming(self, network: nn.Module) -> Iterator[None]:
        """Keep the names of the modules of `network` that are running in `modules`."""
        hooks = []
        for path, module in network.named_modules():
            name = f"{type(module).__name__} {path}".strip()
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: self._leave()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _leave(self) -> None:
        self.modules.pop()

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors([args, list(kwargs.values())])
        inputs = [(x, self.grids[x]) for x in tensors if x in self.grids]
        mixed = next((self.mixed[x] for x in tensors if x in self.mixed), "")
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        handler = _HANDLERS.get(name)
        for output in _tensors(result if isinstance(result, tuple | list) else [result]) if inputs or mixed else ():
            grid = None
            if inputs:
                grid = handler(_Call(*inputs[0], args, kwargs, output)) if handler else _keep_centres(inputs, output)
            if grid is not None:
                self.grids[output] = grid
            else:
                self.grids.pop(output, None)
            if mixed or grid is None or any(_mixes(name, grid, x, args, kwargs) for x, grid in inputs):
                inner = len(self.modules) > 1  # the outermost one says nothing
                self.mixed[output] = mixed or (self.modules[-1] if inner else f"the function {name}")
        return result


@dataclass(frozen=True)
class _Call:
    """A call of a torch function; `x` is the first input tensor with a known grid."""

    x: Tensor
    grid: _Grid
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Tensor

    def arguments(self, *names: str) -> dict[str, Any]:
        """Return the arguments by name. `names` are the names of the positional parameters."""
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}


def _mixes(name: str, grid: _Grid, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a torch function that keeps height and width of `x` lets cells depend on others all over the map."""
    if name == "layer_norm":
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        return any(dim >= x.ndim - len(shape) for dim in grid.dims)
    if name in ("linear", "matmul", "__matmul__", "softmax", "einsum", "bmm"):
        return x.ndim - 1 in grid.dims
    return name in ("group_norm", "instance_norm", "roll", "flip")


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [x for value in values for x in _tensors(value)] if isinstance(values, tuple | list) else []


def _keep_centres(inputs: Sequence[tuple[Tensor, _Grid]], output: Tensor) -> _Grid | None:
    """Return the grid after an operation without a handler.

    The operation keeps the centres if it keeps height and width. If several inputs have that height and width, their
    centres are averaged. Inputs of a different size are ignored: gates and global means (1 x 1), and reshaped inputs
    (attention windows).
    """
    grids = [
        grid for x, grid in inputs if x.ndim == output.ndim and all(x.shape[d] == output.shape[d] for d in grid.dims)
    ]
    if len({(grid.dims, *(axis.stride for axis in grid.axes)) for grid in grids}) != 1:
        return None

    def mean(axis: int) -> _Axis:
        return _Axis(grids[0].axes[axis].stride, sum((g.axes[axis].offset for g in grids), Fraction(0)) / len(grids))

    return _Grid(grids[0].dims, (mean(0), mean(1)))


def _along(value: int | Sequence[int], axis: int) -> int:
    """Return a layer's setting along `axis` (0 or 1). Torch accepts an integer or a sequence of one or two integers."""
    return int(value) if isinstance(value, int) else int(value[axis if len(value) > 1 else 0])


def _convolution(call: _Call) -> _Grid | None:
    arguments: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1}
    arguments |= call.arguments("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    kernel, padding = arguments["weight"].shape[2:], arguments["padding"]

    def transform(axis: _Axis, dim: int) -> _Axis:
        side = dim - 2
        dilation = _along(arguments["dilation"], side)
        same = dilation * (kernel[side] - 1) // 2
        pad = {"same": same, "valid": 0}[padding] if isinstance(padding, str) else _along(padding, side)
        return axis.windows(kernel[side], _along(arguments["stride"], side), pad, dilation)

    return call.grid.map(transform) if call.grid.dims == (2, 3) else None


def _pooling(*names: str) -> Callable[[_Call], _Grid | None]:
    def handler(call: _Call) -> _Grid | None:
        arguments = {"stride": None, "padding": 0, "dilation": 1} | call.arguments("input", *names)
        kernel, dims = arguments["kernel_size"], call.grid.dims
        settings = (kernel, arguments["stride"] or kernel, arguments["padding"], arguments["dilation"])
        return call.grid.map(lambda axis, dim: axis.windows(*(_along(value, dims.index(dim)) for value in settings)))

    return handler


def _pad(call: _Call) -> _Grid:
    pads = call.arguments("input", "pad")["pad"]  # (before, after) pairs, starting with the last dimension
    before = {call.output.ndim - 1 - i // 2: int(pads[i]) for i in range(0, len(pads), 2)}
    return call.grid.map(lambda axis, dim: axis.sliced(-before.get(dim, 0), 1))


def _permute(call: _Call) -> _Grid:
    dims = call.args[1:] or (call.kwargs["dims"],)
    order = [dim % call.x.ndim for dim in (dims[0] if len(dims) == 1 else dims)]
    rows, cols = (order.index(dim) for dim in call.grid.dims)
    return _Grid((rows, cols), call.grid.axes)


def _transpose(call: _Call) -> _Grid:
    dim0, dim1 = (dim % call.x.ndim for dim in (*call.args[1:], *call.kwargs.values()))
    rows, cols = ({dim0: dim1, dim1: dim0}.get(dim, dim) for dim in call.grid.dims)
    return _Grid((rows, cols), call.grid.axes)


def _reshape(call: _Call) -> _Grid | None:
    ndim = call.output.ndim
    # The grid is known only if height and width come last and keep their sizes, as in a channel shuffle.
    trailing = call.grid.dims == (call.x.ndim - 2, call.x.ndim - 1)
    unchanged = trailing and call.x.shape[-2:] == call.output.shape[-2:]
    return _Grid((ndim - 2, ndim - 1), call.grid.axes) if unchanged else None


def _getitem(call: _Call) -> _Grid | None:
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if Ellipsis in index:
        position = index.index(Ellipsis)
        index = (*index[:position], *[slice(None)] * (call.x.ndim - len(index) + 1), *index[position + 1 :])
    if not all(isinstance(part, slice) for part in index):
        return None
    start_and_step = {dim: part.indices(call.x.shape[dim])[::2] for dim, part in enumerate(index)}
    return call.grid.map(lambda axis, dim: axis.sliced(*start_and_step.get(dim, (0, 1))))


# Handlers by the `__name__` of the torch function.
_HANDLERS: dict[str, Callable[[_Call], _Grid | None]] = {
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
