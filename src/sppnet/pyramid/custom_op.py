"""The torch operator `sppnet::pyramid_max`: differentiable pyramid max pooling with the fastest available kernel.

`torch.compile` sees the operator as a single node, so it builds one graph for maps of every size. With
`adaptive_max_pool2d`, it would build a separate graph for each size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import cpu, reference

PLAIN_KEYS = functools.reduce(  # the dispatch keys of an ordinary tensor on a CPU or a CUDA device, as bits
    int.__or__,
    (
        torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)).raw_repr()
        for key in ("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")
    ),
)


def pool_max(x: Tensor, windows: Tensor | None, bins: Sequence[int], rule: str = "adaptive") -> Tensor:
    """Return the maximum of each bin. The cells of the maxima are found only if `x` needs a gradient."""
    with_cells = torch.is_grad_enabled() and x.requires_grad
    if not _is_plain(x):
        call: Callable[..., tuple[Tensor, Tensor]] = pyramid_max
    else:
        call = _PyramidMax.apply if with_cells else _max_pool
    values: Tensor = call(x, windows, bins, rule, with_cells)[0]
    return values


def _is_plain(x: Tensor) -> bool:
    """Whether a call on `x` can bypass the operator, which halves the host's time per call.

    The dispatcher is needed while a program is traced or compiled, in dispatch modes, and for tensors whose memory does
    not hold their values as they are: subclasses, lazily negated tensors (`x.mH.imag`) and batched gradients. The last
    two are recognised by dispatch keys that are not in `PLAIN_KEYS`.
    """
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._ops._len_torch_dispatch_stack_pre_dispatch():  # type: ignore[no-untyped-call]
        return False
    return not torch._C._dispatch_keys(x).raw_repr() & ~PLAIN_KEYS


def _max_pool(
    x: Tensor, windows: Tensor | None, bins: Sequence[int], rule: str, with_cells: bool
) -> tuple[Tensor, Tensor]:
    """Max-pool windows of `x` `(N, C, H, W)` to `(R, C * M)`.

    `windows` is an int32 tensor `(R, 5)`, or None to pool every map as a whole.

    Returns:
        The maxima, and the row-major index of each maximum's cell in its map, which the gradient needs: int32
        `(R, C * M)`, or `(R, 0)` without `with_cells`.
    """
    x = x.detach()
    if rule == "adaptive" and cpu.can_pool(x, bins):
        return cpu.forward(x, windows, bins, with_cells)
    if rule == "adaptive" and _on_gpu(x, bins):
        from . import triton_kernels

        return triton_kernels.forward(x, windows, bins, with_cells)
    assert windows is None, "reference.pool_windows pools windows if there is no kernel"
    cells = reference.argmax_cells(x, bins, rule)
    kept_cells = cells if with_cells else cells.new_empty(len(x), 0)
    return reference.take(x, cells, bins), kept_cells.to(torch.int32)


def _max_pool_backward(
    grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], shape: Sequence[int], channels_last: bool
) -> Tensor:
    """Compute the gradient of maps of `shape` (N, C, H, W) from `grad`, the gradient of the maxima.

    For `images`, see `cpu.backward`.
    """
    out = _empty(grad, shape, channels_last)
    if cpu.can_pool(out, bins):
        return cpu.backward(grad, cells, images, bins, out)
    if _on_gpu(out, bins):
        from . import triton_kernels

        return triton_kernels.backward(grad, cells, images, bins, out)
    return reference.scatter(grad, cells, bins, out)


def has_kernel(x: Tensor, bins: Sequence[int]) -> bool:
    """Whether a kernel faster than torch's own operations supports maps like `x`."""
    return cpu.can_pool(x, bins) or _on_gpu(x, bins)


def _on_gpu(x: Tensor, bins: Sequence[int]) -> bool:
    if not x.is_cuda or not _has_triton():
        return False
    from . import triton_kernels

    return triton_kernels.can_pool(x, bins)


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=layout)


pyramid_max = torch.library.custom_op("sppnet::pyramid_max", _max_pool, mutates_args=())
pyramid_max_backward = torch.library.custom_op("sppnet::pyramid_max_backward", _max_pool_backward, mutates_args=())


@pyramid_max.register_fake
def _(x: Tensor, windows: Tensor | None, bins: Sequence[int], _rule: str, with_cells: bool) -> tuple[Tensor, Tensor]:
    rows, length = (x if windows is None else windows).shape[0], x.shape[1] * sum(n * n for n in bins)
    return x.new_empty(rows, length), x.new_empty(rows, length if with_cells else 0, dtype=torch.int32)


@pyramid_max_backward.register_fake
def _(grad: Tensor, _cells: Tensor, _images: Any, _bins: Any, shape: Sequence[int], channels_last: bool) -> Tensor:
    return _empty(grad, shape, channels_last)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, windows, ctx.bins, _, with_cells = inputs
    assert with_cells or not x.requires_grad, "the gradient needs the cells"
    ctx.shape, ctx.channels_last = x.shape, _is_channels_last(x)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # otherwise torch fills a tensor with zeros as the gradient of the cells
    ctx.save_for_backward(output[1], None if windows is None else windows[:, 0].long())


def _backward(ctx: Any, grad: Tensor | None, _cells: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    cells, images = ctx.saved_tensors
    call = _PyramidMaxBackward.apply if _is_plain(grad) else pyramid_max_backward
    return call(grad, cells, images, ctx.bins, ctx.shape, ctx.channels_last), None, None, None, None


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, cells, images, ctx.bins, _, _ = inputs
    ctx.save_for_backward(cells, images)


def _double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cells, images = ctx.saved_tensors
    return reference.take(grad, cells, ctx.bins, images), None, None, None, None, None


class _PyramidMax(torch.autograd.Function):
    """`pyramid_max` without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _max_pool(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


class _PyramidMaxBackward(torch.autograd.Function):
    """`pyramid_max_backward` without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        gradient = _max_pool_backward(*inputs)
        _save_for_double_backward(ctx, inputs, gradient)
        return gradient

    backward = staticmethod(_double_backward)


pyramid_max.register_autograd(_backward, setup_context=_save_for_backward)
pyramid_max_backward.register_autograd(_double_backward, setup_context=_save_for_double_backward)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
