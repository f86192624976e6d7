"""Times the pyramid pooling layer against torch's adaptive pooling, called once per level (group `layer`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.benchmarks.measurement import Row, Setting, Timing, compare, compare_on_gpu, geometric_mean
from sppnet.pyramid import custom_op, spatial_pyramid_pool2d

BINS = ((6, 3, 2, 1), (4, 2, 1), (4, 3, 2, 1))
MAPS = [(64, 256, 13, 13), (16, 512, 14, 14), (8, 512, 40, 40), (64, 2048, 7, 7)]
SMALL = [(2, 32, 12, 12)]
LARGE = (1024, 256, 13, 13)
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
Pool = Callable[[Tensor], Tensor]


def pool_adaptive(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Pool with the usual code: adaptive max pooling per level, flattened and concatenated."""
    return torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in bins], 1)


def pool_strided(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Pool the way many implementations of the layer do: kernel = stride, with padding on both sides.

    Raises:
        RuntimeError: the padding would exceed half of the kernel, so torch cannot pool a map of this size.
    """
    levels = []
    for n in bins:
        kernel = [-(-side // n) for side in x.shape[2:]]
        padding = [(n * k - side + 1) // 2 for k, side in zip(kernel, x.shape[2:], strict=True)]
        levels.append(F.max_pool2d(x, kernel, kernel, padding).flatten(1))
    return torch.cat(levels, 1)


def forward_and_backward(pool: Pool, x: Tensor) -> Callable[[], object]:
    """Return a function that runs `pool` forward and backward, with a random gradient for its output."""
    leaf = x.detach().requires_grad_()
    grad = torch.rand_like(pool(leaf.detach()))

    return lambda: torch.autograd.grad(pool(leaf), leaf, grad)


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `layer`."""
    device = setting.device.type
    times = _time_cases(setting)
    has_kernel = custom_op.has_kernel(torch.empty(1, 1, 2, 2, device=setting.device), (2,))
    kernel = "a kernel of its own" if has_kernel else "plain"
    work = ", the GPU's work alone" if device == "cuda" else ""
    what, target = f"layer, forward + backward{work}, geometric mean", 4.0 if device == "cuda" else 2.0
    yield _row(what, "AdaptiveMaxPool2d per level", times["adaptive"], target, kernel)
    worst = min(times["adaptive"], key=lambda case: times["adaptive"][case].ratio)
    timing = times["adaptive"][worst]
    yield Row(
        "layer",
        f"layer, its slowest case{work}",
        "AdaptiveMaxPool2d per level",
        timing.ours,
        timing.theirs,
        timing.ratio,
        1.0,
        limit=worst,
    )
    yield _row(what, "kernel = stride", times["strided"], target, kernel)
    if device == "cpu":
        inverse = {case: Timing(t.ours, t.theirs, 1 / t.ratio) for case, t in times["amax"].items()}
        what = "layer, forward, channels-last (time of ours over theirs)"
        yield _row(what, "one amax", inverse, 2.0, kernel, most=True)
    else:
        what = "layer, forward + backward, with the host's work, geometric mean"
        yield _row(what, "AdaptiveMaxPool2d per level", times["called"], 1.0, kernel)
        yield from _bandwidth(setting)


def _time_cases(setting: Setting) -> dict[str, dict[str, Timing]]:
    """Time the layer against each alternative, for each shape, dtype, memory format and pyramid.

    On a GPU, only the GPU's work is timed, because in a training step the host launches this work ahead of time. The
    times under "called" also include the launches, because there the host waits for the GPU after every call.
    """
    device = setting.device.type
    maps = SMALL if setting.quick else MAPS
    alternatives = {"adaptive": pool_adaptive, "strided": pool_strided}
    times: dict[str, dict[str, Timing]] = {"adaptive": {}, "strided": {}, "amax": {}, "called": {}}
    for shape, dtype, (layout, memory_format) in itertools.product(
        maps, (torch.float32, torch.bfloat16), FORMATS.items()
    ):
        x = torch.rand(shape, device=setting.device).sub(0.5).relu().to(dtype).contiguous(memory_format=memory_format)
        for bins in BINS:
            case = f"{'x'.join(map(str, shape))} {str(dtype)[6:]} {layout} {bins}"
            ours = forward_and_backward(lambda x, bins=bins: spatial_pyramid_pool2d(x, bins), x)  # type: ignore[misc]
            for name, pool in alternatives.items():
                try:
                    theirs = forward_and_backward(lambda x, bins=bins, pool=pool: pool(x, bins), x)  # type: ignore[misc]
                except RuntimeError:
                    continue
                times[name][case] = compare(ours, theirs, 0.3) if device == "cpu" else compare_on_gpu(ours, theirs)
                if device == "cuda" and name == "adaptive":
                    times["called"][case] = compare(ours, theirs, 0.03, device=device)
            if layout == "channels-last" and device == "cpu":
                times["amax"][case] = compare(
                    lambda x=x, bins=bins: spatial_pyramid_pool2d(x, bins),  # type: ignore[misc]
                    lambda x=x: x.amax((2, 3)),  # type: ignore[misc]
                    0.1,
                )
    return times


def _row(what: str, against: str, times: dict[str, Timing], target: float, kernel: str, most: bool = False) -> Row:
    ratios = [t.ratio for t in times.values()]
    return Row(
        "layer",
        what,
        against,
        geometric_mean([t.ours for t in times.values()]),
        geometric_mean([t.theirs for t in times.values()]),
        geometric_mean(ratios),
        target,
        most,
        f"{min(ratios):.2g} to {max(ratios):.2g} over {len(ratios)} cases; {kernel}",
        {case: round(t.ratio, 3) for case, t in times.items()},
    )


def _bandwidth(setting: Setting) -> Iterator[Row]:
    """Compare the memory bandwidth of a forward pass with that of a copy. The map (177 MB) exceeds a GPU's cache."""
    bins = BINS[0]
    for layout, memory_format in FORMATS.items():
        x = torch.rand(LARGE, device=setting.device).contiguous(memory_format=memory_format)
        time = compare_on_gpu(lambda x=x: spatial_pyramid_pool2d(x, bins), lambda x=x: x.clone())  # type: ignore[misc]
        moved = x.numel() + LARGE[0] * LARGE[1] * sum(n * n for n in bins)
        share = time.ratio * moved / (2 * x.numel())
        yield Row(
            "layer", f"layer, forward, {layout} (share of the bandwidth)", "a copy", time.ours, time.theirs, share, 0.6
        )
