"""The pooling layer under torch's determinism, compilation, export, vmap and autocast."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import Node
from torch.export import Dim, export

from sppnet.pyramid import BIN_RULES, POOLS, SpatialPyramidPool2d, bin_edges, pool_windows, spatial_pyramid_pool2d
from sppnet.pyramid.bins import EXPONENTS
from sppnet.pyramid.reference import _average_of_slices
from tiers import some_quick


def normal_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def backward_operations(node: Node | None) -> set[str]:
    """Names of the operations in the graph from `node` on."""
    if node is None:
        return set()
    return {node.name()}.union(*(backward_operations(parent) for parent, _ in node.next_functions))


@pytest.mark.parametrize("rule", BIN_RULES)
def test_the_backward_uses_no_pooling_kernel_that_is_nondeterministic_on_cuda(rule: str) -> None:
    x = normal_map(1, 1, 12, 12).requires_grad_()
    edges = bin_edges(12, 6, rule)
    for pooled in (spatial_pyramid_pool2d(x, [6, 1], "max", rule), _average_of_slices(x, edges, edges)):
        assert not [name for name in backward_operations(pooled.grad_fn) if "Pool" in name]


def test_the_deterministic_average_of_cuda_equals_the_usual_one() -> None:
    for height, width, n in itertools.product((1, 2, 5, 10, 13), (1, 3, 13, 18), range(1, 9)):
        x = normal_map(2, 2, height, width).requires_grad_()
        usual = spatial_pyramid_pool2d(x, [n], "avg")
        by_slices = _average_of_slices(x, bin_edges(height, n), bin_edges(width, n)).flatten(1)
        torch.testing.assert_close(by_slices, usual)
        grads = [torch.autograd.grad((y * y.detach()).sum(), x)[0] for y in (usual, by_slices)]
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    "pool", ["max", *(pytest.param(p, marks=pytest.mark.slow) for p in ("gem", "avg", "avgmax", "lse"))]
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_without_a_graph_break_and_keeps_values_and_gradients(pool: str, backend: str) -> None:
    torch.compiler.reset()
    layer = SpatialPyramidPool2d((3, 1), pool)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for height, width in [(13, 10), (2, 7)]:
        x = normal_map(2, 3, height, width).requires_grad_()
        results = [(y := f(x), torch.autograd.grad(y.sum(), x)[0]) for f in (layer, compiled)]
        torch.testing.assert_close(results[0], results[1])


ANY_SIZE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
SIZES = [(1, 3, 12, 12), (4, 3, 33, 47), (2, 3, 10, 10), (3, 3, 2, 5), (2, 3, 13, 9), (1, 3, 1, 1), (2, 3, 5, 17)]


def result(pool: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """`pool(x)`, or None if `pool` refuses the size of `x`."""
    try:
        return pool(x)
    except (ValueError, AssertionError) as error:
        assert re.search("cannot pool|Guard failed", str(error)), error  # noqa: PT017  (from the layer or from the program)
        return None


def agrees(program: Callable[[Tensor], Tensor], layer: SpatialPyramidPool2d, atol: float = 0.0) -> None:
    """Check `program` against `layer` at every size. It may refuse more sizes, except with the adaptive rule."""
    pooled = 0
    for x in (normal_map(*size).float() for size in SIZES):
        expected, actual = result(layer, x), result(program, x)
        if actual is None:
            assert expected is None or layer.rule != "adaptive"
            continue
        assert expected is not None, f"{tuple(x.shape)} is pooled by the program, but not by the layer"
        torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
        pooled += 1
    assert pooled >= (len(SIZES) if layer.rule == "adaptive" else 2)


@pytest.mark.parametrize(("pool", "rule"), some_quick(itertools.product(POOLS, BIN_RULES), every=4))
def test_an_exported_program_pools_maps_of_any_size_or_refuses_them(pool: str, rule: str) -> None:
    # torch cannot export several sliding levels
    layer = SpatialPyramidPool2d((4,) if rule == "sliding" else (4, 2, 1), pool, rule)
    for strict in (False, True)[: 2 if rule == "adaptive" and pool != "lse" else 1]:  # lse is a part of gem
        program = export(layer, (torch.randn(2, 3, 16, 20),), dynamic_shapes={"x": ANY_SIZE}, strict=strict)
        agrees(program.module(), layer, atol=1e-6 if pool in EXPONENTS else 0)


@pytest.mark.parametrize("pool", POOLS)
def test_a_traced_layer_pools_maps_of_any_size(pool: str) -> None:
    layer = SpatialPyramidPool2d((4, 2, 1), pool)
    traced = torch.jit.trace(layer, torch.randn(2, 3, 16, 20))  # type: ignore[no-untyped-call]
    agrees(traced, layer)


def to_onnx(module: torch.nn.Module, inputs: tuple[Tensor, ...], path: Path, **keys: object) -> None:
    torch.onnx.export(module, inputs, path, verbose=False, **keys)  # type: ignore[arg-type]


class Windows(torch.nn.Module):
    def forward(self, x: Tensor, windows: Tensor) -> Tensor:
        return pool_windows(x, windows, (2, 1))


@pytest.mark.parametrize("strict", some_quick([False, True]))
def test_exports_that_would_pool_wrongly_are_refused_in_one_line(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, windows = torch.randn(2, 3, 16, 20), torch.tensor([[0, 1, 2, 9, 9], [1, 0, 0, 20, 16]])
    refused: list[tuple[str, Callable[[], object]]] = []
    for pool, rule in itertools.product(POOLS, BIN_RULES):
        layer = SpatialPyramidPool2d((4, 2, 1), pool, rule)
        refused.append(
            (r"dynamo=False\) would .*: use dynamo=True", partial(to_onnx, layer, (x,), tmp_path / "x", dynamo=False))
        )
        if rule != "adaptive":
            refused.append((f"rule='{rule}' .* by torch.jit.trace", partial(torch.jit.trace, layer, x)))
    no_windows = "pool_windows cannot be exported or traced"
    refused.append((no_windows, partial(torch.jit.trace, Windows(), (x, windows))))
    refused.append((no_windows, partial(export, Windows(), (x, windows), strict=False)))
    refused.append((no_windows, partial(to_onnx, Windows(), (x, windows), tmp_path / "x", dynamo=False)))
    for message, export_it in refused if not strict else ():
        with pytest.raises(ValueError, match=message) as error:
            export_it()
        assert "\n" not in str(error.value)
    # as in torch.onnx.export(dynamo=True), without the translation to ONNX
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    for pool, rule in itertools.product(POOLS, BIN_RULES):
        shapes = {"x": {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
        layer = SpatialPyramidPool2d((4, 2, 1), pool, rule)
        export_layer = partial(export, layer, (x,), strict=strict, dynamic_shapes=shapes)
        if rule == "adaptive":
            assert "adaptive" not in str(export_layer().graph)  # in ONNX the adaptive operators would fit one size
            continue
        with pytest.raises(Exception, match=f"rule='{rule}' cannot be exported by torch.onnx.export"):
            export_layer()


def onnx_session(path: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_onnx_pools_maps_of_any_size(pool: str, tmp_path: Path) -> None:
    layer, x = SpatialPyramidPool2d((4, 2, 1), pool).eval(), torch.randn(2, 3, 16, 20)
    to_onnx(layer, (x,), tmp_path / "layer.onnx", dynamo=True, dynamic_shapes={"x": ANY_SIZE})
    agrees(onnx_session(tmp_path / "layer.onnx"), layer, atol=1e-6)


@pytest.mark.parametrize("opset", some_quick([None, 18, 20, 22]))
def test_a_network_of_ones_own_is_exported_to_onnx_as_it_stands(opset: int | None, tmp_path: Path) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.pooling = torch.nn.Conv2d(3, 4, 3, stride=2), SpatialPyramidPool2d((3, 1))
            self.head = torch.nn.Linear(40, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.pooling(self.trunk(x).relu()))
            return logits

    network, path = Own().eval(), tmp_path / "own.onnx"
    # torch's default opset if it is None
    to_onnx(network, (torch.randn(2, 3, 32, 40),), path, dynamo=True, dynamic_shapes=[ANY_SIZE], opset_version=opset)
    run = onnx_session(path)
    for size in [(1, 3, 3, 3), (5, 3, 33, 47), (2, 3, 200, 11), (3, 3, 8, 64)]:
        x = normal_map(*size).float()
        torch.testing.assert_close(run(x), network(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sliding", "padded"])
def test_onnx_takes_the_other_rules_for_maps_of_one_size(rule: str, tmp_path: Path) -> None:
    layer, path = SpatialPyramidPool2d((4, 2, 1), "max", rule).eval(), tmp_path / "layer.onnx"
    to_onnx(layer, (torch.randn(2, 3, 16, 20),), path, dynamo=True, dynamic_shapes={"x": {0: Dim.DYNAMIC}})
    run, x = onnx_session(path), normal_map(5, 3, 16, 20).float()
    assert torch.equal(run(x), layer(x))
    with pytest.raises(Exception, match="invalid dimensions"):
        run(normal_map(5, 3, 20, 20).float())


@pytest.fixture(scope="module")
def exported_levels(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SpatialPyramidPool2d, Callable[[Tensor], Tensor]]:
    """The layer with all levels from 1 to 8, and its program in ONNX Runtime."""
    layer, path = SpatialPyramidPool2d(tuple(range(1, 9))), tmp_path_factory.mktemp("onnx") / "levels.onnx"
    to_onnx(layer, (torch.randn(2, 2, 30, 40),), path, dynamo=True, dynamic_shapes={"x": ANY_SIZE})
    return layer, onnx_session(path)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 3), height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 99))
def test_onnx_equals_the_layer_to_the_bit(
    exported_levels: tuple[SpatialPyramidPool2d, Callable[[Tensor], Tensor]],
    count: int,
    height: int,
    width: int,
    seed: int,
) -> None:
    layer, run = exported_levels
    x = normal_map(count, 2, height, width, seed=seed).float()
    assert torch.equal(run(x), layer(x))


@pytest.mark.parametrize("rule", BIN_RULES)
def test_it_works_under_vmap_and_autocast(rule: str) -> None:
    x = normal_map(3, 2, 4, 12, 12).float()
    for pool in POOLS:
        layer = SpatialPyramidPool2d((6, 3, 2, 1), pool, rule)
        torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(batch) for batch in x]))
        for dtype in (torch.bfloat16, torch.float32):
            plain = layer(x[0].to(dtype))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                pooled = layer(x[0].to(dtype))
            assert pooled.dtype == dtype
            assert torch.equal(pooled, plain)
