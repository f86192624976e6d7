"""Max pooling on a CPU: compiles `native.c` once per user and processor type, and calls it through ctypes.

For most pyramids, one pass over the map suffices, whatever its memory format. Values and gradients equal those of
`reference.py` bit for bit. Whole images or windows are shared out among as many threads as torch uses, in the OpenMP
runtime that torch has loaded. The number of threads does not change the result.
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
SMALL = 2**15  # with fewer elements in the maps, a second thread costs more than it saves


class Plan(ctypes.Structure):
    """The struct `Plan` of `native.c`: the map's shape and strides (in elements), and the pyramid's levels."""

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
        windows: windows inside the maps, an int32 tensor `(R, 5)` on the CPU; or None to pool every map as a whole.
        bins: number of bins along each side, one entry per level.
        with_cells: whether to find the cells.

    Returns:
        The maxima, and the row-major index of each maximum's cell in its map: int32 `(R, C * M)`, or `(R, 0)` without
        `with_cells`.
    """
    count, channels, height, width = x.shape
    if windows is not None:
        windows = windows.contiguous()
        count = len(windows)
    plan = _plan(x.shape, x.stride(), tuple(bins))
    out = x.new_empty(count, channels * plan.bins)
    cells = torch.empty(count, channels * plan.bins if with_cells else 0, dtype=torch.int32, device="cpu")
    kernel = getattr(load_library(), f"forward_{TYPES[x.dtype]}")
    threads = _count_threads(count * channels * height * width, count)
    window_pointer = None if windows is None else windows.data_ptr()
    cell_pointer = cells.data_ptr() if with_cells else None
    if kernel(plan, x.data_ptr(), window_pointer, count, threads, out.data_ptr(), cell_pointer):
        raise MemoryError(f"not enough memory to pool maps of {height}x{width} cells to bins={bins}")
    return out, cells


def backward(grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` with the gradient of the maps.

    Args:
        grad: gradient of the maxima, `(R, C * M)`.
        cells: the cells that `forward` returned.
        images: image index of each window in ascending order, int64 `(R,)`, or None if window r is all of image r.
        bins: number of bins along each side, one entry per level.
        out: tensor `(N, C, H, W)`, contiguous or channels-last, in the dtype of `grad`. Every element is written.
    """
    grad, count = grad.contiguous(), len(out)
    first_windows = torch.arange(count + 1, device="cpu")  # index of each image's first window
    if images is not None:
        first_windows = torch.searchsorted(images, first_windows)
    kernel = getattr(load_library(), f"backward_{TYPES[out.dtype]}")
    threads = _count_threads(out.numel(), count)
    pointers = (grad.data_ptr(), cells.data_ptr(), first_windows.data_ptr())
    if kernel(_plan(out.shape, out.stride(), tuple(bins)), *pointers, count, threads, out.data_ptr()):
        raise MemoryError(f"not enough memory for the gradient of maps of {out.shape[2]}x{out.shape[3]} cells")
    return out


def order_levels(bins: Sequence[int]) -> list[tuple[int, int]]:
    """Return the order in which to pool the levels: pairs (level, parent) of indices into `bins`, parents first.

    A level is merged from the bins of its parent, or read from the map if its parent is -1. If n divides m, a bin of
    level n consists of exactly k x k bins of level m, with k = m / n, because floor(i L / n) = floor(i k L / m) for an
    axis of L cells.
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
    """Return the library compiled from `native.c`, or None if it cannot be compiled or loaded."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.info("no C compiler found: the pyramid is pooled with torch's operations")
        return None
    source = SOURCE.read_bytes() + HEADER.read_bytes()
    key = hashlib.sha256(source + repr((compiler, FLAGS, _machine())).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sppnet"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _load(folder / f"pool-{key}.so", compiler)
    except (OSError, RuntimeError):  # for example, no home directory, a full disk or a noexec file system
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
    """Compile the library to `path` atomically, because several processes may do so at the same time."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        # Some compilers lack -march=native or OpenMP. Without OpenMP, pooling uses a single thread.
        for options in (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ()):
            command = [*compiler.split(), *FLAGS, *options, "-o", name, str(SOURCE)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode == 0:
                os.fsync(handle)  # otherwise a power cut may leave a file of zeros under the final name
                Path(name).replace(path)
                return True
        log.warning("%s cannot compile %s (%s)", compiler, SOURCE.name, process.stderr.strip().partition("\n")[0])
        return False
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _machine() -> str:
    """Return the processor's features.

    `-march=native` compiles for these features, so machines that share a cache folder may need different libraries.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor() + platform.machine()
