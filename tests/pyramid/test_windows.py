"""`pool_windows`: every window pools as its crop does."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sppnet import pool_windows, spatial_pyramid_pool2d
from sppnet.pyramid import POOLS, reference
from sppnet.pyramid.bins import EXPONENTS

BINS = (6, 3, 2, 1)
HEIGHT, WIDTH = 5, 7
TOLERANCE = {torch.bfloat16: 2**-7, torch.float32: 1e-6, torch.float64: 1e-12}


def maps(count: int = 2, dtype: torch.dtype = torch.float64, pool: str = "max") -> Tensor:
    """Negative maps, so that zeros of an image's edge would win; positive ones for gem, which tells no others apart."""
    generator = torch.Generator().manual_seed(0)
    negative = torch.randint(-4, 0, (count, 3, HEIGHT, WIDTH), generator=generator).to(dtype)
    return -negative if pool == "gem" else negative


def every_window(count: int = 2) -> Tensor:
    """Every possible window of `maps(count)`, shuffled."""
    tops = itertools.combinations(range(HEIGHT + 1), 2)
    sides = itertools.product(range(count), itertools.combinations(range(WIDTH + 1), 2), tops)
    windows = torch.tensor([[image, left, top, right, bottom] for image, (left, right), (top, bottom) in sides])
    return windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(1))]


def one_by_one(x: Tensor, windows: Tensor, pool: str) -> Tensor:
    crops = (x[i : i + 1, :, top:bottom, left:right] for i, left, top, right, bottom in windows.tolist())
    return torch.cat([spatial_pyramid_pool2d(crop, BINS, pool) for crop in crops])


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.bfloat16, torch.channels_last),
        (torch.float32, torch.contiguous_format),
        (torch.float32, torch.channels_last),
        (torch.float64, torch.contiguous_format),
    ],
)
@pytest.mark.parametrize("pool", POOLS)
def test_every_window_pools_as_its_crop(pool: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x, windows = maps(dtype=dtype, pool=pool).contiguous(memory_format=memory_format), every_window()
    windows = windows[:: 3 if pool in EXPONENTS else 1]  # pooling one by one takes long
    pooled = pool_windows(x, windows, BINS, pool)
    expected = one_by_one(x, windows, pool)
    assert torch.equal(pooled, expected) if pool == "max" else torch.allclose(pooled, expected, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("pool", POOLS)
def test_gradients_are_those_of_the_crops(pool: str) -> None:
    x, windows = maps(pool=pool).requires_grad_(), every_window()[:: 6 if pool in EXPONENTS else 1]
    pooled = [pool_windows(x, windows, BINS, pool), one_by_one(x, windows, pool)]
    grad = torch.randint(1, 9, pooled[0].shape, generator=torch.Generator().manual_seed(2)).double()
    grads = [torch.autograd.grad(output, x, grad)[0] for output in pooled]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("pool", POOLS)
def test_the_whole_map_as_a_window_is_the_layer(pool: str) -> None:
    x = torch.randn(3, 4, 13, 10, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor([[i, 0, 0, 10, 13] for i in range(3)])
    torch.testing.assert_close(pool_windows(x, windows, BINS, pool), spatial_pyramid_pool2d(x, BINS, pool))


def test_nan_outside_a_window_does_not_reach_it() -> None:
    x = maps()
    x[0, :, 2, 3] = torch.nan
    windows = every_window()
    image, left, top, right, bottom = windows.unbind(1)
    inside = (image == 0) & (left <= 3) & (right > 3) & (top <= 2) & (bottom > 2)
    for pool in POOLS:
        assert torch.equal(pool_windows(x, windows, BINS, pool).isnan().any(1), inside)


def test_the_bound_on_memory_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x, windows = maps(), every_window()
    usual = pool_windows(x, windows, BINS)
    monkeypatch.setattr(reference, "CROP_VALUES", 100)
    assert torch.equal(pool_windows(x, windows, BINS, kernel="plain"), usual)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_windows_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    x, windows = maps(), every_window()
    assert torch.equal(pool_windows(x, windows.to(dtype), BINS), pool_windows(x, windows, BINS))


def test_no_windows_give_no_rows() -> None:
    for count in (0, 2):
        assert pool_windows(maps(count), torch.zeros(0, 5, dtype=torch.int64), BINS).shape == (0, 3 * 50)


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        ([0, 3, 1, 3, 2], "is empty"),
        ([0, 3, 1, 2, 2], "is empty"),
        ([0, 1, 4, 2, 4], "is empty"),
        ([0, -1, 0, 2, 2], "extends beyond the 5x7 map"),
        ([0, 0, -1, 2, 2], "extends beyond the 5x7 map"),
        ([0, 0, 0, 8, 2], "extends beyond the 5x7 map"),
        ([0, 0, 0, 2, 6], "extends beyond the 5x7 map"),
        ([2, 0, 0, 1, 1], "has an invalid image index: there are 2 images"),
        ([-1, 0, 0, 1, 1], "has an invalid image index"),
    ],
)
def test_an_invalid_window_is_refused_by_its_row(window: list[int], reason: str) -> None:
    windows = torch.tensor([[0, 0, 0, WIDTH, HEIGHT], window])
    values = ", ".join(map(str, window))
    with pytest.raises(ValueError, match=rf"windows\[1\]=\[{values}\] .*{reason}"):
        pool_windows(maps(), windows, BINS)


@pytest.mark.parametrize(
    "windows", [torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 4).long(), torch.zeros(5).long()]
)
def test_windows_of_an_invalid_shape_or_dtype_are_refused(windows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"windows must be integers of shape \(R, 5\), got torch\."):
        pool_windows(maps(), windows, BINS)
