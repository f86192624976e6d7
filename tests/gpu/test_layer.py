"""The pooling layer on a GPU against float64 on a CPU. Without a GPU the tests run on a CPU, with fewer sizes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from sppnet.pyramid import BIN_RULES, POOLS, SpatialPyramidPool2d, custom_op, pool_windows, spatial_pyramid_pool2d

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
on_gpu = pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])
everywhere = pytest.mark.parametrize("device", ["cpu", on_gpu])
in_every_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
in_every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
BINS = ((6, 3, 2, 1), (4, 2, 1), (5, 4, 3), (8, 4, 2, 1))


@pytest.fixture(params=[False, True], ids=["usual", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def normal_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tied_map(*shape: int) -> Tensor:
    """Few distinct values, so that most bins hold ties, and some NaN."""
    x = normal_map(*shape, seed=sum(shape)).round().clamp(-2, 2)
    return torch.where(normal_map(*shape, seed=1) > 2.5, torch.nan, x)


def with_gradient(pool: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    pooled = pool(leaf)
    return pooled.detach(), torch.autograd.grad(pooled, leaf, grad)[0]


def check(pool: Callable[[Tensor], Tensor], x: Tensor, device: str, layout: torch.memory_format) -> None:
    """Compare `x` pooled on `device` with float64 on the CPU: maxima bit for bit, gradients up to the dtype's rounding.

    The first gradient is of small integers, whose sums are exact in every dtype; the second is of any numbers.
    """
    placed = x.to(device).contiguous(memory_format=layout)
    shape = pool(x.double()).shape
    for grad in (normal_map(*shape).round().clamp(-2, 2), normal_map(*shape)):
        grad = grad.to(x.dtype)
        values, gradient = with_gradient(pool, placed, grad.to(device))
        expected, exact = with_gradient(pool, x.double(), grad.double())
        bound = with_gradient(pool, x.double(), grad.double().abs())[1]
        assert values.dtype == gradient.dtype == x.dtype
        assert torch.equal(values.cpu().double().nan_to_num(7.5), expected.nan_to_num(7.5)), tuple(x.shape)
        exact_sums = bool((grad == grad.round()).all())
        rounded_once = device == "cuda" and x.dtype in (torch.float16, torch.bfloat16)  # others: every addition
        allowed = 0.0 if exact_sums else torch.finfo(x.dtype).eps * (1 if rounded_once else 8)
        assert ((gradient.cpu().double() - exact).abs() <= allowed * bound).all(), tuple(x.shape)
    with torch.no_grad():
        assert torch.equal(pool(placed).cpu().double().nan_to_num(7.5), expected.nan_to_num(7.5))


@everywhere
@in_every_type
@in_every_layout
@pytest.mark.parametrize("bins", BINS, ids=str)
def test_maps_of_every_size_pool_as_in_float64(
    bins: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, device: str
) -> None:
    for side in range(1, 41) if device == "cuda" else (1, 14, 27, 40):
        for x in (tied_map(2, 5, side, 41 - side), normal_map(2, 5, side, 41 - side)):
            check(lambda x: spatial_pyramid_pool2d(x, bins), x.to(dtype), device, layout)
    assert device == "cpu" or custom_op.has_kernel(torch.empty(1, 1, 2, 2, device=device, dtype=dtype), bins)


@everywhere
@in_every_type
@in_every_layout
def test_windows_pool_as_in_float64(layout: torch.memory_format, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = [
        torch.stack([torch.randperm(side + 1, generator=generator)[:2].sort()[0] for _ in range(40)])
        for side in (17, 13)
    ]
    images = torch.randint(3, (40,), generator=generator)
    windows = torch.stack([images, *(pair[:, end] for end in (0, 1) for pair in corners)], 1)
    for x, rows in itertools.product((tied_map(3, 5, 13, 17), normal_map(3, 5, 13, 17)), (windows, windows[:1])):
        check(lambda x, rows=rows: pool_windows(x, rows, (6, 3, 2, 1)), x.to(dtype), device, layout)  # type: ignore[misc]


@everywhere
@in_every_type
def test_twenty_runs_are_equal_bit_for_bit(dtype: torch.dtype, device: str, deterministic: bool) -> None:
    x = normal_map(4, 32, 13, 17).to(device, dtype)
    windows = torch.tensor([[image, left, 0, left + 9, 13] for image in range(4) for left in (0, 3, 8)])
    pools: list[Callable[[Tensor], Tensor]] = [
        lambda x: spatial_pyramid_pool2d(x, (6, 3, 2, 1)),
        lambda x: pool_windows(x, windows, (6, 3, 2, 1)),
    ]
    for pool in pools:
        grad = normal_map(*pool(x).shape, seed=1).to(device, dtype)
        results = [with_gradient(pool, x, grad) for _ in range(20)]
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@everywhere
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rule", BIN_RULES)
def test_with_deterministic_algorithms_the_backward_is_repeatable_bit_for_bit(
    pool: str, rule: str, device: str
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        x = normal_map(8, 32, 12, 12).float()
        layer = SpatialPyramidPool2d((6, 3, 2, 1), pool, rule)
        weight = normal_map(8, 32 * layer.num_bins, seed=1).float()
        grads = [with_gradient(layer, x.to(device), weight.to(device))[1] for _ in range(3)]
        exact = with_gradient(layer, x.double(), weight.double())[1]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(grads[0], grad) for grad in grads[1:])
    torch.testing.assert_close(grads[0].cpu().double(), exact, rtol=1e-5, atol=1e-5)


def network(kernel: str) -> nn.Sequential:
    torch.manual_seed(0)
    layer = SpatialPyramidPool2d((6, 3, 2, 1), kernel=kernel)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), layer, nn.Linear(16 * 50, 10))


@everywhere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_under_autocast_equals_that_of_torch_s_operations(dtype: torch.dtype, device: str) -> None:
    images = normal_map(4, 3, 33, 47).float().to(device)
    steps = []
    for kernel in ("auto", "plain"):
        model = network(kernel).to(device)
        scaler = torch.amp.GradScaler(device, init_scale=128, enabled=dtype == torch.float16)
        with torch.autocast(device, dtype):
            pooled = model[:3](images)
            loss = (model[3](pooled) ** 2).mean()
        assert pooled.dtype == dtype
        scaler.scale(loss).backward()
        gradient = next(model.parameters()).grad
        assert gradient is not None
        steps.append((pooled.detach(), loss.detach(), gradient / scaler.get_scale()))
    assert torch.equal(steps[0][0], steps[1][0])
    # torch's operations round the sums of gradients to `dtype` after every addition
    atol = 0.02 * float(steps[1][2].abs().max())
    torch.testing.assert_close(steps[0][1:], steps[1][1:], rtol=0.02, atol=atol)


@everywhere
def test_one_compiled_graph_serves_six_sizes(device: str) -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    plain, model = network("plain").to(device), network("auto").to(device)
    compiled = torch.compile(
        model, dynamic=True, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager"
    )
    for height, width in [(33, 47), (64, 48), (48, 80), (56, 31), (72, 96), (47, 33)]:
        x = normal_map(2, 3, height, width).float().to(device)
        results = [
            (y := f(x), torch.autograd.grad(y.sum(), list(m.parameters())))
            for f, m in ((compiled, model), (plain, plain))
        ]
        torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("first", ["usual", "inference", "autocast", "deterministic", "backward", "captured"])
def test_the_kernels_check_themselves_at_their_first_use(first: str, caplog: pytest.LogCaptureFixture) -> None:
    from sppnet.pyramid import triton_kernels

    x = tied_map(2, 5, 13, 11).float().cuda()
    expected = spatial_pyramid_pool2d(x, (3, 2, 1), kernel="plain")
    triton_kernels.CHECKED.clear()
    if first == "captured":
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            pooled = spatial_pyramid_pool2d(x, (3, 2, 1))
        assert not triton_kernels.CHECKED
        graph.replay()
    else:
        torch.use_deterministic_algorithms(first == "deterministic")
        with torch.inference_mode(first == "inference"), torch.autocast("cuda", enabled=first == "autocast"):
            pooled = spatial_pyramid_pool2d(x.requires_grad_(first == "backward"), (3, 2, 1))
        if first == "backward":
            triton_kernels.CHECKED.clear()
            pooled.nansum().backward()  # type: ignore[no-untyped-call]
        torch.use_deterministic_algorithms(False)
        assert list(triton_kernels.CHECKED.items()) == [((x.device, x.dtype), True)]
    assert torch.equal(pooled.nan_to_num(7.5), expected.nan_to_num(7.5))
    assert not caplog.records


@pytest.mark.gpu
@needs_gpu
def test_a_kernel_that_differs_from_the_reference_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sppnet.pyramid import triton_kernels

    backward = triton_kernels.backward
    monkeypatch.setattr(triton_kernels, "backward", lambda *arguments: backward(*arguments).mul_(1.5))
    monkeypatch.setattr(triton_kernels, "CHECKED", {})
    x = normal_map(2, 5, 13, 11).float().cuda().requires_grad_()
    with caplog.at_level(logging.WARNING):
        grads = [
            torch.autograd.grad(spatial_pyramid_pool2d(x, (3, 1), kernel=k).sum(), x)[0] for k in ("auto", "plain")
        ]
    assert torch.equal(*grads)
    assert "the kernel's gradients differ" in caplog.text
