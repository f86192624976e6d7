"""Max pooling on a CPU: compiles `native.c` once per user and kind of processor, and calls it through ctypes.

One pass over the map pools all levels, in any memory format. Values and gradients equal those of `reference.py` bit for
bit. Threads (torch's number, of the OpenMP runtime that torch has loaded) share the work by image, so their number does
not change the result.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCE, HEADER = (Path(__file__).with_name(name) for name in ("native.c", "lanes.h"))
FLAGS = ("-O3", "-shared", "-fPIC", "-fno-trapping-math", "-fno-strict-aliasing", "-Wno-psabi")
TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
MAX_LEVELS = 64  # as in native.c
MAX_CELLS = 2**31 - 1
SMALL = 2**15  # elements in the maps below which a second thread costs more than it saves


class Plan(ctypes.Structure):
    """The struct `Plan` of `native.c`: shape and strides (in elements) of the map, and the levels of the pyramid."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("image_step", "channel_step", "row_step", "col_step", "levels", "bins")),
        *((name, ctypes.c_int64 * MAX_LEVELS) for name in ("side", "parent", "order", "start")),
    ]


def can_pool(x: Tensor, bins: Sequence[int]) -> bool:
    """Whether `forward` supports `x` and `bins`. Compiles the library on the first call."""
    supported = x.device.type == "cpu" and x.dtype in TYPES and len(bins) <= MAX_LEVELS
    return supported and x.shape[2] * x.shape[3] <= MAX_CELLS and load_library() is not None


def forward(x: Tensor, windows: Tensor | None, bins: Sequence[int], with_cells: bool) -> tuple[Tensor, Tensor]:
    """Max-pool windows of `x` to `(R, C * M)`, and find the cell of each maximum.

    Args:
        x: maps `(N, C, H, W)`, with any strides.
        windows: int32 `(R, 5)` on the CPU, inside the maps; None pools every map as a whole.
        bins: number of bins along one side, per level.
        with_cells: whether to find the cells.

    Returns:
        The maxima, and the row-major index in its map of each maximum's cell, int32 `(R, C * M)`; `(R, 0)` without
        `with_cells`.
    """
    count, channels, height, width = x.shape
    if windows is not None:
        windows = windows.contiguous()
        count = len(windows)
    plan = _plan(x.shape, x.stride(), tuple(bins))
    out = x.new_empty(count, channels * plan.bins)
    cells = torch.empty(count, channels * plan.bins if with_cells else 0, dtype=torch.int32)
    kernel = getattr(load_library(), f"forward_{TYPES[x.dtype]}")
    threads = _count_threads(count * channels * height * width, count)
    window_pointer = None if windows is None else windows.data_ptr()
    cell_pointer = cells.data_ptr() if with_cells else None
    if kernel(plan, x.data_ptr(), window_pointer, count, threads, out.data_ptr(), cell_pointer):
        raise MemoryError(f"no memory to pool maps of {height}x{width} cells to bins={bins}")
    return out, cells


def backward(grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` with the gradient of the maps.

    Args:
        grad: gradient of the maxima, `(R, C * M)`.
        cells: from `forward`.
        images: int64 `(R,)`, the image of each window, ascending; None if window r is all of image r.
        bins: number of bins along one side, per level.
        out: `(N, C, H, W)`, contiguous or channels-last, in the dtype of `grad`. Every element is written.
    """
    grad, count = grad.contiguous(), len(out)
    first_windows = torch.arange(count + 1)  # of each image
    if images is not None:
        first_windows = torch.searchsorted(images, first_windows)
    kernel = getattr(load_library(), f"backward_{TYPES[out.dtype]}")
    threads = _count_threads(out.numel(), count)
    pointers = (grad.data_ptr(), cells.data_ptr(), first_windows.data_ptr())
    if kernel(_plan(out.shape, out.stride(), tuple(bins)), *pointers, count, threads, out.data_ptr()):
        raise MemoryError(f"no memory for the gradient of maps of {out.shape[2]}x{out.shape[3]} cells")
    return out


def order_levels(bins: Sequence[int]) -> list[tuple[int, int]]:
    """The order in which to pool the levels: pairs (level, parent) of positions in `bins`, parents first.

    A level is merged from the bins of its parent, or read from the map if its parent is -1. Where n divides m, a bin of
    level n is exactly k x k bins of level m, with k = m / n, because floor(i L / n) = floor(i k L / m).
    """
    order = sorted(range(len(bins)), key=lambda level: -bins[level])
    pairs = []
    for step, level in enumerate(order):
        parents = [finer for finer in order[:step] if bins[finer] % bins[level] == 0]
        pairs.append((level, min(parents, key=lambda parent: bins[parent], default=-1)))
    return pairs


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], strides: tuple[int, ...], bins: tuple[int, ...]) -> Plan:
    plan = Plan(*shape[1:], *strides, len(bins), sum(n * n for n in bins))
    for step, (level, parent) in enumerate(order_levels(bins)):
        plan.order[step], plan.parent[level] = level, parent
    start = 0
    for level, n in enumerate(bins):
        plan.side[level], plan.start[level] = n, start
        start += n * n
    return plan


def _count_threads(elements: int, images: int) -> int:
    return 1 if elements < SMALL else max(1, min(torch.get_num_threads(), images))


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library compiled from `native.c`, or None where it cannot be compiled or loaded."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.info("no C compiler: the pyramid is pooled by torch's own operations")
        return None
    source = SOURCE.read_bytes() + HEADER.read_bytes()
    key = hashlib.sha256(source + repr((compiler, FLAGS, _machine())).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sppnet"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _load(folder / f"pool-{key}.so", compiler)
    except (OSError, RuntimeError):  # no home directory, a full disk, a file system mounted noexec
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix="sppnet-") as folder_name:
            return _load(Path(folder_name) / "pool.so", compiler)
    return None


def _load(path: Path, compiler: str) -> ctypes.CDLL | None:
    if not path.exists() and not _compile(path, compiler):
        return None
    library = ctypes.CDLL(str(path))
    plan, pointer, integer = ctypes.POINTER(Plan), ctypes.c_void_p, ctypes.c_int64
    for dtype in TYPES.values():
        forward_kernel, backward_kernel = (getattr(library, f"{name}_{dtype}") for name in ("forward", "backward"))
        forward_kernel.argtypes = [plan, pointer, pointer, integer, integer, pointer, pointer]
        backward_kernel.argtypes = [plan, pointer, pointer, pointer, integer, integer, pointer]
    return library


def _compile(path: Path, compiler: str) -> bool:
    """Compile the library to `path`, atomically: several processes may do so at the same time."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        # some compilers lack -march=native, others OpenMP (then a single thread pools)
        for options in (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ()):
            command = [*compiler.split(), *FLAGS, *options, "-o", name, str(SOURCE)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode == 0:
                os.fsync(handle)  # or a power cut may leave a file of zeros under the final name
                Path(name).replace(path)
                return True
        log.warning("%s cannot compile %s (%s)", compiler, SOURCE.name, process.stderr.strip().partition("\n")[0])
        return False
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _machine() -> str:
    """The processor's features, on which `-march=native` depends: different machines may share a home directory."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor() + platform.machine()
