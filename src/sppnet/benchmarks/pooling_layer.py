"""The pyramid pooling layer against torch's adaptive pooling, level by level."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.benchmarks.measurement import Row, Setting, Timed, compare, geometric
from sppnet.pyramid import custom_op, spatial_pyramid_pool2d

BINS = ((6, 3, 2, 1), (4, 2, 1), (4, 3, 2, 1))
MAPS = [(64, 256, 13, 13), (16, 512, 14, 14), (8, 512, 40, 40), (64, 2048, 7, 7)]
SMALL = [(2, 32, 12, 12)]
LARGE = (1024, 256, 13, 13)
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
Pool = Callable[[Tensor], Tensor]


def adaptive(x: Tensor, bins: Sequence[int]) -> Tensor:
    """What one writes: `AdaptiveMaxPool2d` for each level, flattened and concatenated."""
    return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in bins], 1)


def strided(x: Tensor, bins: Sequence[int]) -> Tensor:
    """What many copies of the layer do: a kernel as wide as its stride, with padding on both sides.

    Raises:
        RuntimeError: it cannot pool a map of this size (padding of more than half of the kernel).
    """
    levels = []
    for n in bins:
        kernel = [-(-side // n) for side in x.shape[2:]]
        padding = [(n * k - side + 1) // 2 for k, side in zip(kernel, x.shape[2:], strict=True)]
        levels.append(F.max_pool2d(x, kernel, kernel, padding).flatten(1))
    return torch.cat(levels, 1)


def both_ways(pool: Pool, x: Tensor) -> Callable[[], None]:
    """Forward and backward, with a gradient as the next layer would give it."""
    leaf = x.detach().requires_grad_()
    grad = torch.rand_like(pool(leaf.detach()))

    def run() -> None:
        leaf.grad = None
        pool(leaf).backward(grad)  # type: ignore[no-untyped-call]

    return run


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of the group `layer`."""
    device = setting.device.type
    seconds = 0.3 if device == "cpu" else 0.05  # of a GPU's kernels that is hundreds
    maps = SMALL if setting.quick else [*MAPS, LARGE] if device == "cuda" else MAPS
    named = {"adaptive": adaptive, "strided": strided}
    times: dict[str, dict[str, Timed]] = {"adaptive": {}, "strided": {}, "amax": {}}
    for shape, dtype, (layout, memory_format) in itertools.product(
        maps, (torch.float32, torch.bfloat16), FORMATS.items()
    ):
        x = torch.rand(shape, device=setting.device).sub(0.5).relu().to(dtype).contiguous(memory_format=memory_format)
        for bins in BINS:
            case = f"{'x'.join(map(str, shape))} {str(dtype)[6:]} {layout} {bins}"
            ours = both_ways(lambda x, bins=bins: spatial_pyramid_pool2d(x, bins), x)  # type: ignore[misc]
            for name, theirs in named.items():
                try:
                    run = both_ways(lambda x, bins=bins, theirs=theirs: theirs(x, bins), x)  # type: ignore[misc]
                except RuntimeError:
                    continue
                times[name][case] = compare(ours, run, seconds, device=device)
            if layout == "channels-last" and device == "cpu":
                times["amax"][case] = compare(
                    lambda x=x, bins=bins: spatial_pyramid_pool2d(x, bins),  # type: ignore[misc]
                    lambda x=x: x.amax((2, 3)),  # type: ignore[misc]
                    seconds / 3,
                    device=device,
                )
    kernel = (
        "a kernel of its own" if custom_op.has_kernel(torch.empty(1, 1, 2, 2, device=setting.device), (2,)) else "plain"
    )
    least = 4.0 if device == "cuda" else 2.0
    yield _row(
        "layer, forward + backward, geometric mean", "AdaptiveMaxPool2d per level", times["adaptive"], least, kernel
    )
    worst = min(times["adaptive"], key=lambda case: times["adaptive"][case].ratio)
    one = times["adaptive"][worst]
    yield Row(
        "layer",
        "layer, its slowest case",
        "AdaptiveMaxPool2d per level",
        one.ours,
        one.theirs,
        one.ratio,
        1.0,
        limit=worst,
    )
    yield _row("layer, forward + backward, geometric mean", "kernel = stride", times["strided"], least, kernel)
    if device == "cpu":
        inverse = {case: Timed(t.ours, t.theirs, 1 / t.ratio) for case, t in times["amax"].items()}
        yield _row(
            "layer, forward, channels-last (time of ours over theirs)", "one amax", inverse, 2.0, kernel, most=True
        )
    else:
        yield from _bandwidth(setting)


def _row(what: str, against: str, times: dict[str, Timed], target: float, kernel: str, most: bool = False) -> Row:
    ratios = [t.ratio for t in times.values()]
    return Row(
        "layer",
        what,
        against,
        geometric([t.ours for t in times.values()]),
        geometric([t.theirs for t in times.values()]),
        geometric(ratios),
        target,
        most,
        f"{min(ratios):.2g} to {max(ratios):.2g} over {len(ratios)} cases; {kernel}",
        {case: round(t.ratio, 3) for case, t in times.items()},
    )


def _bandwidth(setting: Setting) -> Iterator[Row]:
    """Bytes that a forward reads and writes in a second, against those of a copy, on a map of more than 64 MB."""
    bins = BINS[0]
    for layout, memory_format in FORMATS.items():
        x = torch.rand(LARGE, device=setting.device).contiguous(memory_format=memory_format)
        time = compare(lambda x=x: spatial_pyramid_pool2d(x, bins), lambda x=x: x.clone(), 0.5, device="cuda")  # type: ignore[misc]
        moved = x.numel() + LARGE[0] * LARGE[1] * sum(n * n for n in bins)
        share = time.ratio * moved / (2 * x.numel())
        yield Row(
            "layer", f"layer, forward, {layout} (share of the bandwidth)", "a copy", time.ours, time.theirs, share, 0.6
        )
