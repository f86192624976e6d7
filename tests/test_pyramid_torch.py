"""The layer among torch's own machinery: determinism, compilation, export, vmap, autocast."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.export import Dim, export

from sppnet.pyramid import POOLS, RULES, SpatialPyramidPool2d, bin_edges, spatial_pyramid_pool2d
from sppnet.pyramid.plain import _average_of_slices

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def normal_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def backward_operations(node: Node | None) -> set[str]:
    """Names of the operations in the graph from `node` on."""
    if node is None:
        return set()
    return {node.name()}.union(*(backward_operations(parent) for parent, _ in node.next_functions))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("deterministic")
def test_with_deterministic_algorithms_the_backward_is_repeatable_bit_for_bit(
    pool: str, rule: str, device: str
) -> None:
    x = normal_map(8, 32, 12, 12).float().to(device).requires_grad_()
    layer = SpatialPyramidPool2d((6, 3, 2, 1), pool, rule)
    weight = normal_map(8, 32 * layer.num_bins, seed=1).float().to(device)
    grads = [torch.autograd.grad(layer(x), x, weight)[0] for _ in range(3)]
    assert all(torch.equal(grads[0], grad) for grad in grads[1:])
    on_cpu = x.detach().cpu().double().requires_grad_()
    exact = torch.autograd.grad(layer(on_cpu), on_cpu, weight.cpu().double())[0]
    torch.testing.assert_close(grads[0].cpu().double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_no_pooling_kernel_whose_cuda_backward_adds_in_any_order_is_differentiated(rule: str) -> None:
    x = normal_map(1, 1, 12, 12).requires_grad_()
    edges = bin_edges(12, 6, rule)
    for pooled in (spatial_pyramid_pool2d(x, [6, 1], "max", rule), _average_of_slices(x, edges, edges)):
        assert not [name for name in backward_operations(pooled.grad_fn) if "Pool" in name]


def test_the_average_that_cuda_takes_when_deterministic_equals_the_usual_one() -> None:
    for height, width, n in itertools.product((1, 2, 5, 10, 13), (1, 3, 13, 18), range(1, 9)):
        x = normal_map(2, 2, height, width).requires_grad_()
        usual = spatial_pyramid_pool2d(x, [n], "avg")
        other = _average_of_slices(x, bin_edges(height, n), bin_edges(width, n)).flatten(1)
        torch.testing.assert_close(other, usual)
        grads = [torch.autograd.grad((y * y.detach()).sum(), x)[0] for y in (usual, other)]
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_without_a_graph_break_and_keeps_values_and_gradients(pool: str, backend: str) -> None:
    torch.compiler.reset()
    layer = SpatialPyramidPool2d((3, 2, 1), pool)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for height, width in [(13, 10), (10, 10), (2, 7)]:
        x = normal_map(2, 3, height, width).requires_grad_()
        results = [(y := f(x), torch.autograd.grad(y.sum(), x)[0]) for f in (layer, compiled)]
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("pool", POOLS)
def test_an_exported_program_takes_maps_of_any_size(pool: str) -> None:
    layer = SpatialPyramidPool2d((3, 2, 1), pool)
    shape = {0: Dim("batch"), 2: Dim("height", max=512), 3: Dim("width", max=512)}
    program = export(layer, (torch.randn(2, 3, 13, 10),), dynamic_shapes={"x": shape}).module()
    for size in [(4, 3, 33, 47), (2, 3, 10, 10), (3, 3, 2, 5)]:
        x = torch.randn(*size)
        torch.testing.assert_close(program(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_it_works_under_vmap_and_autocast(rule: str) -> None:
    x = normal_map(3, 2, 4, 12, 12).float()
    for pool in POOLS:
        layer = SpatialPyramidPool2d((6, 3, 2, 1), pool, rule)
        torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(each) for each in x]))
        for dtype in (torch.bfloat16, torch.float32):
            plain = layer(x[0].to(dtype))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                pooled = layer(x[0].to(dtype))
            assert pooled.dtype == dtype
            assert torch.equal(pooled, plain)
