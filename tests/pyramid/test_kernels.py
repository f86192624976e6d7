"""The CPU and GPU kernels against torch's own operations: the same values and gradients, bit for bit."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from sppnet import SpatialPyramidPool2d, pool_windows, spatial_pyramid_pool2d
from sppnet.pyramid import cpu

LEVELS = ((6, 3, 2, 1), (4, 3, 2, 1), (1, 2, 4), (5,), (3, 3, 7, 1), (8, 4, 2))
FORMATS = (torch.contiguous_format, torch.channels_last)
TYPES = (torch.float32, torch.float64, torch.bfloat16)
needs_compiler = pytest.mark.skipif(cpu.load_library() is None, reason="needs a C compiler")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tied_map(*shape: int) -> Tensor:
    """Few distinct values, signs of zero and infinities among them, so that most bins hold ties."""
    choices = torch.tensor([-torch.inf, -2.0, -1.0, -0.0, 0.0, 0.0, 1.0, 2.0, torch.inf])
    return choices[torch.randint(9, shape, generator=torch.Generator().manual_seed(sum(shape)))]


def weights(like: Tensor) -> Tensor:
    """Gradients of many magnitudes, whose sums depend on the order."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(1))
    return (noise * torch.logspace(-3, 3, like.shape[1])).to(like.dtype)


def both_ways(pool: Callable[[Tensor, str], Tensor], x: Tensor) -> None:
    """Check that kernel and reference give the same values (with and without a gradient) and gradients of `x`."""
    results = []
    for kernel in ("auto", "plain"):
        leaf = x.detach().requires_grad_()
        pooled = pool(leaf, kernel)
        gradient = torch.autograd.grad(pooled, leaf, weights(pooled))[0]
        results.append((pooled.detach(), gradient))
        with torch.no_grad():
            assert torch.equal(pool(leaf, kernel).nan_to_num(7.5), pooled.nan_to_num(7.5))
    for fast, plain in zip(*results, strict=True):
        assert fast.dtype == plain.dtype
        assert torch.equal(fast.nan_to_num(7.5), plain.nan_to_num(7.5)), tuple(x.shape)
    if len(x) and x.is_contiguous(memory_format=torch.channels_last):
        assert results[0][1].is_contiguous(memory_format=torch.channels_last)  # the format of the layers before it


@needs_compiler
@pytest.mark.parametrize("bins", LEVELS)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_maps_of_every_size_pool_bit_for_bit_as_in_torch(
    bins: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    for height, width in {(side, side) for side in range(1, 25)} | set(itertools.product(range(1, 25, 4), repeat=2)):
        x = tied_map(2, 19, height, width).contiguous(memory_format=memory_format)
        both_ways(lambda x, kernel: spatial_pyramid_pool2d(x, bins, kernel=kernel), x)


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 48, 100])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_any_number_of_channels_of_every_dtype_pools_as_in_torch(
    dtype: torch.dtype, channels: int, memory_format: torch.memory_format
) -> None:
    for count in (0, 1, 5):
        x = tied_map(count, channels, 13, 10).to(dtype).contiguous(memory_format=memory_format)
        both_ways(lambda x, kernel: spatial_pyramid_pool2d(x, (6, 3, 2, 1), kernel=kernel), x)


@needs_compiler
def test_the_same_of_several_nan_gets_the_gradient_as_in_torch() -> None:
    x = tied_map(3, 20, 12, 11)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.05] = torch.nan
    for memory_format in FORMATS:
        both_ways(
            lambda x, kernel: spatial_pyramid_pool2d(x, (6, 3, 2, 1), kernel=kernel),
            x.contiguous(memory_format=memory_format),
        )


@needs_compiler
def test_a_map_may_have_any_strides() -> None:
    whole = tied_map(8, 40, 20, 20)
    views = [whole[::2], whole[:, 3:37], whole[:, :, 2:15, 3:], whole[:, ::2, ::2, ::3], whole.transpose(2, 3)]
    views += [whole[:1].expand(5, -1, -1, -1), whole.permute(2, 3, 0, 1), whole.flip(3)]
    for x in views:
        both_ways(lambda x, kernel: spatial_pyramid_pool2d(x, (4, 2, 1), kernel=kernel), x)


@needs_compiler
def test_the_number_of_threads_changes_nothing() -> None:
    x = torch.randn(7, 64, 13, 13, generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3, 16):
        torch.set_num_threads(count)
        leaf = x.clone().requires_grad_()
        pooled = spatial_pyramid_pool2d(leaf, (6, 3, 2, 1))
        results.append((pooled, torch.autograd.grad(pooled, leaf, weights(pooled))[0]))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))


@needs_compiler
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_windows_pool_as_torch_pools_their_crops(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x = tied_map(3, 35, 14, 17).clamp(-9, 9).to(dtype).contiguous(memory_format=memory_format)
    corners = [torch.stack([torch.randperm(side + 1, generator=generator)[:2].sort()[0] for _ in range(200)])
               for side in (17, 14)]  # fmt: skip
    images = torch.randint(3, (200,), generator=generator)
    windows = torch.stack([images, *(pair[:, end] for end in (0, 1) for pair in corners)], 1)
    for rows in (windows, windows[images.argsort(stable=True)], windows[:1]):
        leaves = [x.detach().requires_grad_() for _ in range(2)]
        pooled = [
            pool_windows(leaf, rows, (6, 3, 2, 1), kernel=k) for leaf, k in zip(leaves, ("auto", "plain"), strict=True)
        ]
        assert torch.equal(*pooled)
        grad = torch.randint(1, 3, pooled[0].shape, generator=generator).to(dtype)  # integers: exact sums in any order
        gradients = [torch.autograd.grad(p, leaf, grad)[0] for p, leaf in zip(pooled, leaves, strict=True)]
        torch.testing.assert_close(*gradients, rtol=0 if dtype != torch.bfloat16 else 0.05, atol=0)
        with torch.no_grad():
            assert torch.equal(pool_windows(x, rows, (6, 3, 2, 1)), pooled[0])


@needs_compiler
def test_gradients_go_through_the_kernels_unless_plain() -> None:
    x = tied_map(2, 16, 13, 13).requires_grad_()
    names = [type(spatial_pyramid_pool2d(x, (3, 1), kernel=kernel).grad_fn).__name__ for kernel in ("auto", "plain")]
    assert "PyramidMax" in names[0]
    assert "PyramidMax" not in names[1]


class SeenOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


class OwnTensor(Tensor):
    """A subclass without any behaviour of its own."""


@needs_compiler
def test_only_ordinary_tensors_bypass_the_operator() -> None:
    auto, plain = (SpatialPyramidPool2d((3, 1), kernel=kernel) for kernel in ("auto", "plain"))
    x = torch.arange(180.0).sin().view(2, 3, 6, 5)
    negated = torch.fft.fft2(x).mH.imag
    assert negated.is_neg()
    for special in (negated, torch._efficientzerotensor((2, 3, 5, 6))):
        assert torch.equal(auto(special), plain(special))
    leaf = x.clone().requires_grad_()
    for grads, batched in ((torch._neg_view(torch.ones(2, 30)), False), (torch.eye(60).view(60, 2, 30), True)):
        gradients = [
            torch.autograd.grad(pool(leaf), leaf, grads, is_grads_batched=batched)[0] for pool in (auto, plain)
        ]
        assert torch.equal(*gradients)
    with SeenOperators() as seen:
        auto(leaf).sum().backward()
    assert {"sppnet.pyramid_max.default", "sppnet.pyramid_max_backward.default"} <= seen.names
    assert isinstance(auto(x.as_subclass(OwnTensor)), OwnTensor)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(auto(x), FakeTensor)
    graph = make_fx(auto, pre_dispatch=True)(x)
    assert torch.equal(graph(x.flip(3)), plain(x.flip(3)))
    windows = torch.tensor([[0, 0, 0, 5, 6], [1, 1, 2, 4, 3]])
    with torch.device("meta"):  # a default device must not reach the kernels' own tensors
        for pool in (auto, lambda y: pool_windows(y, windows, (3, 1))):
            assert torch.autograd.grad(pool(leaf).sum(), leaf)[0].device.type == "cpu"


def test_every_torch_func_transform_equals_that_of_torch_s_operations() -> None:
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    auto, plain = (SpatialPyramidPool2d((3, 2, 1), kernel=kernel) for kernel in ("auto", "plain"))
    tangent = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    transforms: list[Callable[[Any], Any]] = [
        lambda f: torch.func.jvp(f, (x,), (tangent,))[1],
        lambda f: torch.func.jacrev(f)(x),
        lambda f: torch.func.jacfwd(f)(x),
        lambda f: torch.func.hessian(lambda y: (f(y) ** 3).sum())(x),
        lambda f: torch.vmap(torch.func.grad(lambda y: (f(y[None]) ** 2).sum()))(x),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(auto), transform(plain))
    assert torch.autograd.gradgradcheck(auto, (x.requires_grad_(),))
    arguments = (x, None, [3, 2, 1], "adaptive", True)
    torch.library.opcheck(torch.ops.sppnet.pyramid_max, arguments)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(torch.ops.sppnet.pyramid_max, (last, *arguments[1:]))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_one_compiled_graph_serves_maps_of_every_size(pool: str, memory_format: torch.memory_format) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    layer = torch.compile(SpatialPyramidPool2d((6, 3, 2, 1), pool), fullgraph=True, dynamic=True, backend=count)
    for height, width in [(13, 10), (10, 13), (12, 12), (6, 7), (40, 31), (3, 5), (18, 18), (9, 9), (31, 40), (7, 7)]:
        x = torch.randn(2, 16, height, width).contiguous(memory_format=memory_format).requires_grad_()
        layer(x).sum().backward()
    assert len(graphs) == 1


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


POOL_ONCE = """
import torch
from sppnet import spatial_pyramid_pool2d as pool
x = torch.randn(4, 20, 13, 13)
assert torch.equal(pool(x, (6, 3, 2, 1)), pool(x, (6, 3, 2, 1), kernel="plain"))
from sppnet.pyramid import KERNELS, cpu
print(cpu.load_library() is not None)
"""


@pytest.mark.slow
def test_without_a_compiler_torch_s_operations_pool(tmp_path: Path) -> None:
    for compiler, message in (("/nonexistent/cc", ""), ("false", "cannot compile native.c")):
        printed = run(POOL_ONCE, CC=compiler, XDG_CACHE_HOME=str(tmp_path))
        assert "False" in printed
        assert message in printed


@pytest.mark.slow
@needs_compiler
def test_processes_that_compile_at_once_all_get_a_whole_library(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", POOL_ONCE], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["True"] * 3
    assert len(list((tmp_path / "sppnet").iterdir())) == 1


@pytest.mark.slow
@needs_compiler
def test_the_library_compiles_without_a_writable_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "True" in run(POOL_ONCE, XDG_CACHE_HOME=str(tmp_path / "file"))


ON_INTERPRETER = """
import itertools, torch
from sppnet.pyramid import reference, triton_kernels
for dtype, last in itertools.product((torch.float32, torch.bfloat16), (False, True)):
    for bins, (count, channels, height, width) in (
        ((6, 3, 2, 1), (2, 5, 13, 10)), ((4, 3, 2, 1), (1, 3, 7, 7)), ((8, 4, 2, 1), (1, 37, 9, 8)),
        ((2, 4), (1, 1, 3, 2)), ((3, 5, 1), (0, 2, 6, 6)),
    ):
        x = torch.randint(-2, 3, (count, channels, height, width)).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        leaf = x.clone().requires_grad_()
        expected = reference.pool_maps(leaf, bins, "max", "adaptive")
        cells = reference.argmax_cells(x, bins, "adaptive")
        values, kernel_cells = triton_kernels.forward(x, None, bins, True)
        assert torch.equal(values, expected) and torch.equal(kernel_cells.long(), cells), (bins, x.shape)
        assert torch.equal(triton_kernels.forward(x, None, bins, False)[0], expected)
        grad = torch.randint(-4, 5, expected.shape).to(dtype)
        gradient = triton_kernels.backward(grad, kernel_cells, None, bins, torch.empty_like(x))
        assert torch.equal(gradient, torch.autograd.grad(expected, leaf, grad)[0])
nan = torch.randn(1, 2, 6, 6)
nan[0, 0, 1, 1] = nan[0, 0, 4, 4] = torch.nan
cells = triton_kernels.forward(nan, None, (3, 1), True)[1].long()
assert torch.equal(cells, reference.argmax_cells(nan, (3, 1), "adaptive"))
x = torch.randint(-2, 3, (2, 3, 8, 9)).float().contiguous(memory_format=torch.channels_last)
windows = torch.tensor([[0, 0, 0, 9, 8], [0, 2, 3, 5, 8], [1, 4, 0, 5, 1], [1, 0, 2, 7, 7]])
leaf = x.clone().requires_grad_()
expected = reference.pool_windows(leaf, windows, (3, 2, 1), "max")
values, cells = triton_kernels.forward(x, windows, (3, 2, 1), True)
assert torch.equal(values, expected)
grad = torch.randint(1, 5, expected.shape).float()
gradient = triton_kernels.backward(grad, cells, windows[:, 0], (3, 2, 1), torch.empty_like(x))
assert torch.equal(gradient, torch.autograd.grad(expected, leaf, grad)[0])
"""


@pytest.mark.slow
def test_the_gpu_kernels_pool_as_the_reference_in_triton_s_interpreter() -> None:
    pytest.importorskip("triton")
    run(ON_INTERPRETER, TRITON_INTERPRET="1")


WRONG = [  # the source of the kernels, a mistake in its place, and what the check then reports
    ("take = (value > best)", "take = (value >= best)", "the kernel's cells differ"),  # the last of equal cells
    ("((i + 1) * window_height + n - 1) // n", "((i + 1) * window_height) // n", "the kernel's maxima differ"),
    ("(nan & ((best_nan == 0) | (cell > best_cell)))", "(nan & (best_nan == 0))", "the kernel's cells differ"),
    (
        "total += tl.load(to, inside, 0.0)",
        "tl.load(to, inside, 0.0)",
        "the kernel's gradients differ",
    ),  # not all windows
    ("first, last = tl.load(first_windows", "first, last = 1 + tl.load(first_windows", "the kernel's gradients differ"),
    (
        "image = tl.program_id(0).to(tl.int64)\n    channel",
        "image = tl.nothing(0)\n    channel",
        "Triton does not work",
    ),
]
CHECK_ITSELF = """
import importlib.util, logging, pathlib, sys, torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from sppnet.pyramid import triton_kernels

cpu, messages = torch.device("cpu"), []
keep = logging.Handler()
keep.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("sppnet.pyramid").addHandler(keep)
source = pathlib.Path(triton_kernels.__file__).read_text()

def wrong(before, after):
    assert source.count(before) == 1, before
    path = pathlib.Path(sys.argv[1], f"wrong{len(messages)}.py")
    path.write_text(source.replace(before, after))
    spec = importlib.util.spec_from_file_location(f"sppnet.pyramid.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

for before, after, message in WRONG:
    module = wrong(before, after)
    assert not module.matches_reference(cpu, torch.float32) and not module.matches_reference(cpu, torch.float32)
    assert message in messages[-1] and "torch.float32 is pooled with torch's operations" in messages[-1], messages[-1]
assert len(messages) == len(WRONG)  # each once

state = torch.get_rng_state()
class Counts(torch.utils._python_dispatch.TorchDispatchMode):
    count = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))
packed = []
counts = Counts()
torch.use_deterministic_algorithms(True)
torch.set_default_dtype(torch.float16)
with (
    torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"), counts, FakeTensorMode(),
    torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x),
):
    assert all(triton_kernels.matches_reference(cpu, dtype) for dtype in (torch.bfloat16, torch.float16)), messages
assert counts.count == 0 and not packed and torch.equal(state, torch.get_rng_state()) and len(messages) == len(WRONG)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [WRONG[::2], WRONG[1::2]], ids=["some", "more"])
def test_the_gpu_kernels_are_checked_once_and_replaced_with_a_warning_where_they_differ(
    wrong: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    code = CHECK_ITSELF.replace("WRONG", repr(wrong)).replace("sys.argv[1]", repr(str(tmp_path)))
    run(code, TRITON_INTERPRET="1")


COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sppnet.pyramid import triton_kernels

levels = triton_kernels._level_table((6, 3, 2, 1))
sizes = ("channels", "height", "width", "image_step", "channel_step", "row_step", "col_step", "length")

def ptx(kernel, signature, constants, warps):
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]

for kind in TYPES:
    for (whole, last, lanes, warps), with_cells in itertools.product(
        ((True, False, 7, 2), (True, True, 14, 4), (False, True, 14, 4)), (True, False)
    ):
        tensors = {"x": f"*{kind}", "windows": "*i32", "out": f"*{kind}", "cells": "*i32"}
        signature = tensors | dict.fromkeys(sizes, "i32")
        constants = {"whole": whole, "with_cells": with_cells, "channels_last": last, "lanes": lanes, "levels": levels}
        assert "ld.global" in ptx(triton_kernels._forward_kernel, signature, constants, warps)
    wide = kind if kind == "fp64" else "fp32"
    for whole, lanes, warps, out in ((True, 8, 2, kind), (True, 32, 4, kind), (False, 1, 1, wide)):
        tensors = {"grad": f"*{kind}", "cells": "*i32", "first_windows": "*i64", "out": f"*{out}"}
        signature = tensors | dict.fromkeys(sizes, "i32")
        del signature["height"]
        constants = {"whole": whole, "lanes": lanes, "own": 64, "total_bins": 50, "levels": levels}
        code = ptx(triton_kernels._backward_kernel, signature, constants, warps)
        assert "st.global" in code and "atom" not in code  # sums run in one order
"""


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("fp32",), ("bf16", "fp16", "fp64")], ids=["float32", "others"])
def test_the_gpu_kernels_compile_without_a_gpu(kinds: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run(COMPILE.replace("TYPES", repr(kinds)), TRITON_CACHE_DIR=str(tmp_path))


def test_torch_func_transforms_are_right_under_torch_compile() -> None:
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    auto, plain = (SpatialPyramidPool2d((3, 2, 1), kernel=kernel) for kernel in ("auto", "plain"))
    transforms: list[Callable[[Any], Any]] = [
        lambda f: torch.func.jvp(f, (x,), (x.sin(),))[1],
        lambda f: torch.func.grad(lambda y: (f(y) ** 2).sum())(x),
    ]
    for transform in transforms:
        torch.compiler.reset()
        compiled = torch.compile(lambda transform=transform: transform(auto), backend="eager")
        assert torch.equal(compiled(), transform(plain))
