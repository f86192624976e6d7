"""The pooling layer against a NumPy reference, over every size that a feature map usually has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sppnet.models.pooling import GlobalAvgPool2d
from sppnet.pyramid import (
    BIN_RULES,
    MAX_LEVEL,
    POOLS,
    SpatialPyramidPool2d,
    bin_edges,
    check_bins,
    spatial_pyramid_pool2d,
)

SIDES = range(1, 41)
LEVELS = range(1, 9)
Array = NDArray[np.float64]
Cells = list[list[int]]  # the cells of each bin along one axis


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Pool on one thread: with thousands of tiny maps a second one only spins, for minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference_cells(length: int, n: int, rule: str) -> Cells | None:
    """The real cells of each bin, from first principles; None where the rule does not make n bins with real cells."""
    if rule == "adaptive":  # the cells that overlap the open interval (i, i + 1) * length / n
        return [[c for c in range(length) if c * n < (i + 1) * length and (c + 1) * n > i * length] for i in range(n)]
    kernel = int(np.ceil(length / n))
    if rule == "sliding":
        stride, pad = length // n, 0
    else:
        stride, pad = kernel, (n * kernel - length + 1) // 2
    starts = range(-pad, length + pad - kernel + 1, stride) if stride else range(0)
    bins = [[c for c in range(start, start + kernel) if 0 <= c < length] for start in starts]
    return bins if len(bins) == n and all(bins) else None


REDUCE: dict[str, Callable[[Array], Array]] = {  # (N, C, cells) -> (N, C)
    "max": lambda x: x.max(-1),
    "avg": lambda x: x.mean(-1),
    "avgmax": lambda x: (x.max(-1) + x.mean(-1)) / 2,
    "gem": lambda x: (np.maximum(x, 1e-12) ** 3).mean(-1) ** (1 / 3),
    "lse": lambda x: np.log(np.exp(10 * x).mean(-1)) / 10,
}


def reference(x: Array, rows: Cells, cols: Cells, pool: str) -> Array:
    """One level of `x` `(N, C, H, W)`, flattened per image."""
    cells = [x[:, :, r[0] : r[-1] + 1, c[0] : c[-1] + 1] for r in rows for c in cols]
    bins = [REDUCE[pool](bin_.reshape(*bin_.shape[:2], -1)) for bin_ in cells]
    return np.stack(bins, -1).reshape(len(x), -1)


def reference_max_gradient(x: Array, rows: Cells, cols: Cells, grad: Array) -> Array:
    """Gradient of one level: a bin passes all of it to its first largest cell in row-major order."""
    out = np.zeros_like(x)
    for image, channel in np.ndindex(*x.shape[:2]):
        bins = grad[image].reshape(x.shape[1], -1)[channel]
        for value, (r, c) in zip(bins, itertools.product(rows, cols), strict=True):
            best = np.argmax(x[image, channel, r[0] : r[-1] + 1, c[0] : c[-1] + 1])
            row, col = divmod(int(best), len(c))
            out[image, channel, r[0] + row, c[0] + col] += value
    return out


def tied_negative_map(*shape: int, seed: int = 0) -> Tensor:
    """Few distinct values, so that most bins hold ties; all negative, so that zero padding would win."""
    return -torch.randint(1, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def normal_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled_map(pool: str, *shape: int, seed: int) -> Tensor:
    """Values far from zero, so that zero padding would dilute them; negative, so that it would win, but not for gem,
    to which all values below 1e-12 are the same."""
    return normal_map(*shape, seed=seed).abs() + 5.0 if pool == "gem" else normal_map(*shape, seed=seed) - 5.0


def poolable(rule: str) -> Iterator[tuple[int, int]]:
    yield from ((length, n) for length in SIDES for n in LEVELS if reference_cells(length, n, rule))


@pytest.mark.parametrize("rule", BIN_RULES)
def test_every_length_has_the_edges_of_its_rule_or_is_refused_by_name(rule: str) -> None:
    for length, n in itertools.product(SIDES, LEVELS):
        cells = reference_cells(length, n, rule)
        if cells is None:
            with pytest.raises(ValueError, match=rf"'{rule}' cannot pool {length} cells to {n} bins"):
                bin_edges(length, n, rule)
        else:
            assert bin_edges(length, n, rule) == [(bin_[0], bin_[-1] + 1) for bin_ in cells]


def test_adaptive_bins_cover_every_cell_and_are_less_than_two_cells_longer_than_their_share() -> None:
    for length, n in itertools.product(range(1, 200), range(1, 20)):
        edges = bin_edges(length, n)
        assert len(edges) == n
        assert set().union(*(range(a, b) for a, b in edges)) == set(range(length))
        assert all(length / n <= b - a < length / n + 2 for a, b in edges)


@pytest.mark.parametrize("pool", POOLS)
def test_maps_of_every_side_square_and_oblong_pool_like_numpy_at_every_level(pool: str) -> None:
    cells = {(side, n): reference_cells(side, n, "adaptive") or [] for side in SIDES for n in LEVELS}
    shapes = {(side, side) for side in SIDES} | set(itertools.product(SIDES, SIDES[::8]))
    for height, width in sorted(shapes):
        x = filled_map(pool, 2, 2, height, width, seed=height)
        expected = np.concatenate([reference(x.numpy(), cells[height, n], cells[width, n], pool) for n in LEVELS], 1)
        pooled = spatial_pyramid_pool2d(x, LEVELS, pool).numpy()
        np.testing.assert_allclose(pooled, expected, rtol=0 if pool == "max" else 1e-12, err_msg=f"{height}x{width}")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rule", ["sliding", "padded"])
def test_the_other_rules_pool_every_map_they_accept_like_numpy(rule: str, pool: str) -> None:
    for n in LEVELS:
        sides = [length for length, level in poolable(rule) if level == n]
        for height, width in zip(sides, [*sides[::-2], *sides[::2]], strict=False):
            rows, cols = reference_cells(height, n, rule), reference_cells(width, n, rule)
            assert rows
            assert cols
            x = filled_map(pool, 2, 2, height, width, seed=width)
            expected = reference(x.numpy(), rows, cols, pool)
            pooled = spatial_pyramid_pool2d(x, [n], pool, rule).numpy()
            np.testing.assert_allclose(
                pooled, expected, rtol=0 if pool == "max" else 1e-12, err_msg=f"{height}x{width}"
            )


@pytest.mark.parametrize("rule", BIN_RULES)
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equal_cells(rule: str) -> None:
    for length, n in poolable(rule):
        x = tied_negative_map(1, 1, length, length, seed=length).requires_grad_()
        pooled = spatial_pyramid_pool2d(x, [n], "max", rule)
        grad = torch.arange(1.0, pooled.numel() + 1, dtype=torch.float64).view_as(pooled)
        gradient = torch.autograd.grad(pooled, x, grad)[0]
        cells = reference_cells(length, n, rule)
        assert cells
        expected = reference_max_gradient(x.detach().numpy(), cells, cells, grad.numpy())
        np.testing.assert_array_equal(gradient.numpy(), expected, err_msg=f"{length} cells, level {n}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_ties_break_alike_in_every_dtype_and_memory_format(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    plain = tied_negative_map(3, 5, 13, 10).requires_grad_()
    converted = plain.detach().to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    grads = []
    for x in (plain, converted):
        pooled = spatial_pyramid_pool2d(x, (6, 3, 2, 1))
        assert pooled.dtype == x.dtype
        grads.append(torch.autograd.grad(pooled.sum(), x)[0].double())
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("rule", BIN_RULES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_averages_of_bfloat16_are_rounded_once(rule: str, memory_format: torch.memory_format) -> None:
    x = normal_map(2, 3, 12, 12).bfloat16().contiguous(memory_format=memory_format)
    pooled = spatial_pyramid_pool2d(x, (6, 3, 2, 1), "avg", rule)
    exact = spatial_pyramid_pool2d(x.double(), (6, 3, 2, 1), "avg", rule)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.double(), exact, rtol=2.0**-8, atol=1e-6)


@pytest.mark.parametrize("rule", BIN_RULES)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_are_those_of_finite_differences(pool: str, rule: str) -> None:
    x = normal_map(1, 1, 6, 4)
    x = (x.abs() if pool == "gem" else x).requires_grad_()
    layer = SpatialPyramidPool2d((3, 1), pool, rule)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True, check_backward_ad=False)
    if rule == "adaptive":
        assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_generalised_means_are_those_of_the_formula_between_mean_and_maximum(scale: float, dtype: torch.dtype) -> None:
    """For small and large maps, written out in float64; at an exponent of 1, gem is the mean."""
    rtol = 16 * torch.finfo(dtype).eps if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    x = (scale * (normal_map(2, 3, 7, 5).abs() + 0.1)).to(dtype)
    cells = x.double().flatten(2)
    mean, top = cells.mean(2), cells.amax(2)
    for exponent in (1.0, 3.0, 100.0, 1e4):
        pooled = SpatialPyramidPool2d((1,), "gem", p=exponent)(x).detach()
        assert pooled.dtype == dtype
        expected = top * ((cells / top[..., None]) ** exponent).mean(2) ** (1 / exponent)
        torch.testing.assert_close(pooled.double(), expected, rtol=rtol, atol=0.0)
    torch.testing.assert_close(pooled.double(), top, rtol=2e-3 + rtol, atol=0.0)
    torch.testing.assert_close(SpatialPyramidPool2d((1,), "gem", p=1.0)(x).double(), mean, rtol=rtol, atol=0.0)
    for exponent in (1e-4 / scale, 10.0 / scale, 1e4 / scale):
        if 1e-6 <= exponent <= 1e6:  # the exponents that are allowed
            pooled = SpatialPyramidPool2d((1,), "lse", r=exponent)(x)
            expected = top + ((exponent * (cells - top[..., None])).exp().mean(2)).log() / exponent
            torch.testing.assert_close(pooled.double(), expected, rtol=1e-4 + rtol, atol=0.0)
            if exponent == 1e-4 / scale:
                torch.testing.assert_close(pooled.double(), mean, rtol=1e-3 + rtol, atol=0.0)
    one_bin = SpatialPyramidPool2d((1,), "avg")(x)
    torch.testing.assert_close(GlobalAvgPool2d()(x), one_bin, rtol=rtol, atol=0.0)


def test_each_channel_may_have_an_exponent_of_its_own_which_is_trained() -> None:
    x, exponents = normal_map(2, 3, 4, 3).abs() + 0.1, torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
    layer = SpatialPyramidPool2d((2, 1), "gem", channels=3).double()

    def pool(x: Tensor, p: Tensor) -> Tensor:
        pooled: Tensor = torch.func.functional_call(layer, {"p": p}, (x,))
        return pooled

    alone = [SpatialPyramidPool2d((2, 1), "gem", p=float(p)).double()(x[:, [i]]) for i, p in enumerate(exponents)]
    levels = [pooled.split((4, 1), 1) for pooled in alone]
    expected = torch.cat([torch.cat(level, 1) for level in zip(*levels, strict=True)], 1)
    torch.testing.assert_close(pool(x, exponents), expected)
    assert torch.autograd.gradcheck(pool, (x.requires_grad_(), exponents.requires_grad_()))


@pytest.mark.parametrize("rule", BIN_RULES)
@pytest.mark.parametrize("pool", POOLS)
def test_nan_reaches_exactly_the_bins_that_hold_it(pool: str, rule: str) -> None:
    x = tied_negative_map(144, 1, 12, 12)
    x.flatten(1).fill_diagonal_(torch.nan)  # image i has a NaN in cell i
    edges = bin_edges(12, 6, rule)
    holds = [
        [top <= row < bottom and left <= col < right for top, bottom in edges for left, right in edges]
        for row, col in itertools.product(range(12), range(12))
    ]
    assert spatial_pyramid_pool2d(x, [6], pool, rule).isnan().tolist() == holds


@pytest.mark.parametrize("rule", BIN_RULES)
def test_a_map_of_minus_infinity_pools_to_itself(rule: str) -> None:
    pooled = spatial_pyramid_pool2d(torch.full((1, 1, 12, 12), -torch.inf), (6, 3), "max", rule)
    assert pooled.isneginf().all()


@pytest.mark.parametrize("rule", BIN_RULES)
@pytest.mark.parametrize("pool", POOLS)
def test_an_empty_batch_gives_an_empty_result_and_gradient(pool: str, rule: str) -> None:
    x = torch.zeros(0, 3, 12, 12, requires_grad=True)
    pooled = spatial_pyramid_pool2d(x, (6, 3, 2, 1), pool, rule)
    assert pooled.shape == (0, 150)
    assert torch.autograd.grad(pooled.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("rule", BIN_RULES)
@pytest.mark.parametrize("pool", POOLS)
def test_an_image_pools_the_same_alone_and_in_a_batch(pool: str, rule: str) -> None:
    x = normal_map(4, 3, 12, 18)
    layer = SpatialPyramidPool2d((6, 3, 2, 1), pool, rule)
    assert torch.equal(layer(x), torch.cat([layer(image[None]) for image in x]))


def test_the_vector_is_ordered_by_level_then_channel_then_row() -> None:
    x = torch.arange(2.0 * 2 * 2).view(1, 2, 2, 2)
    assert spatial_pyramid_pool2d(x, (1, 2)).tolist() == [[3, 7, 0, 1, 2, 3, 4, 5, 6, 7]]
    assert spatial_pyramid_pool2d(x, (2, 1)).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 3, 7]]


def test_the_length_of_the_vector_is_num_bins_per_channel_at_any_size() -> None:
    for bins in [(6, 3, 2, 1), (4, 3, 2, 1), (4, 2, 1), (1,), (8,)]:
        layer = SpatialPyramidPool2d(bins)
        assert layer.num_bins == sum(n * n for n in bins)
        assert all(layer(torch.zeros(2, 5, h, w)).shape == (2, 5 * layer.num_bins) for h, w in [(1, 1), (3, 40)])


@pytest.mark.parametrize("bins", [[], [0], [-1], [2.5], [True], ["2"], "321", 3, [3, None], [MAX_LEVEL + 1], [10**9]])
def test_invalid_bins_are_refused_with_what_is_allowed(bins: Any) -> None:
    for call in (SpatialPyramidPool2d, check_bins, lambda bins: spatial_pyramid_pool2d(torch.zeros(1, 1, 4, 4), bins)):
        with pytest.raises(ValueError, match=r"^bins=.* integers from 1 to 1024$"):
            call(bins)


def test_other_invalid_arguments_are_refused_with_what_is_allowed() -> None:
    invalid: list[tuple[dict[str, Any], str]] = [
        ({"pool": "mean"}, "pool='mean' must be one of max, avg"),
        ({"rule": "x"}, "adaptive, sliding"),
        ({"pool": "gem", "p": 0}, "p=0 must be a number from"),
        ({"pool": "gem", "channels": 0}, "channels=0 must be at least 1"),
        ({"pool": "lse", "r": math.inf}, "r=inf must be a number from"),
        ({"pool": "gem", "p": "3"}, "p='3' must be a number from"),
    ]
    for keys, text in invalid:
        with pytest.raises(ValueError, match=text):
            SpatialPyramidPool2d((2, 1), **keys)
    x = torch.ones(1, 3, 4, 4)
    with pytest.raises(ValueError, match="pool='max' takes no exponent"):
        spatial_pyramid_pool2d(x, (1,), "max", exponent=2.0)
    with pytest.raises(ValueError, match=r"shape \(4,\), but the map has 3 channels"):
        spatial_pyramid_pool2d(x, (1,), "gem", exponent=torch.ones(4))
    for x, text in [
        (torch.zeros(3, 4, 4), r"\(N, C, H, W\), got \(3, 4, 4\)"),
        (torch.zeros(1, 3, 0, 4), r"\(1, 3, 0, 4\) has nothing to pool"),
        (torch.zeros(1, 3, 4, 0), "nothing to pool"),
        (torch.zeros(1, 0, 4, 4), "nothing to pool"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "floating-point values, got torch.uint8"),
    ]:
        with pytest.raises(ValueError, match=text):
            spatial_pyramid_pool2d(x, (2, 1))
