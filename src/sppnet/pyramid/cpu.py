"""Maximum pooling on the CPU by `native.c`, which is compiled where there is a C compiler, once per machine and user.

One pass over the map serves all levels, whatever its memory format. Results are those of `plain`, bit for bit; work is
shared out by image, so the number of threads (torch's, of the OpenMP that torch has loaded) changes nothing.
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
SMALL = 2**15  # elements of a map below which a second thread costs more than it saves


class Plan(ctypes.Structure):
    """What `native.c` must know of a map and its pyramid; steps are in elements."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("image_step", "channel_step", "row_step", "col_step", "levels", "bins")),
        *((name, ctypes.c_int64 * MAX_LEVELS) for name in ("side", "parent", "order", "start")),
    ]


def can_pool(x: Tensor, bins: Sequence[int]) -> bool:
    """Whether `forward` takes this map; compiles the library on the first call."""
    fits = x.device.type == "cpu" and x.dtype in TYPES and len(bins) <= MAX_LEVELS
    return fits and x.shape[2] * x.shape[3] <= MAX_CELLS and library() is not None


def forward(x: Tensor, windows: Tensor | None, bins: Sequence[int], with_cells: bool) -> tuple[Tensor, Tensor]:
    """Windows of `x` pooled to `(R, C * M)`, and the row-major cell of each maximum in its map (int32, or empty).

    Args:
        x: maps `(N, C, H, W)`, of any strides.
        windows: int32 `(R, 5)` on the CPU, within the maps; None for every map as a whole.
        bins: the levels.
        with_cells: whether the cells are wanted.
    """
    count, channels, height, width = x.shape
    if windows is not None:
        windows = windows.contiguous()
        count = len(windows)
    plan = _plan(x.shape, x.stride(), tuple(bins))
    out = x.new_empty(count, channels * plan.bins)
    cells = torch.empty(count, channels * plan.bins if with_cells else 0, dtype=torch.int32)
    pool = getattr(library(), f"forward_{TYPES[x.dtype]}")
    threads = _threads(count * channels * height * width, count)
    boxes, where = (None if found is None else found.data_ptr() for found in (windows, cells if with_cells else None))
    if pool(plan, x.data_ptr(), boxes, count, threads, out.data_ptr(), where):
        raise MemoryError(f"no memory for pooling maps of {height}x{width} cells over {bins}")
    return out, cells


def backward(grad: Tensor, cells: Tensor, images: Tensor | None, bins: Sequence[int], out: Tensor) -> Tensor:
    """Fill `out` `(N, C, H, W)`, dense and contiguous or channels-last, with the gradient of the maps.

    Args:
        grad: of what was pooled, `(R, C * M)`.
        cells: from `forward`.
        images: int64 `(R,)`, the image of each row, not decreasing; None if row r is of image r.
        bins: the levels.
        out: of the dtype of `grad`; every element is written.
    """
    grad, count = grad.contiguous(), len(out)
    rows = torch.arange(count + 1) if images is None else torch.searchsorted(images, torch.arange(count + 1))
    scatter = getattr(library(), f"backward_{TYPES[out.dtype]}")
    threads = _threads(out.numel(), count)
    addresses = (grad.data_ptr(), cells.data_ptr(), rows.data_ptr())
    if scatter(_plan(out.shape, out.stride(), tuple(bins)), *addresses, count, threads, out.data_ptr()):
        raise MemoryError(f"no memory for the gradient of maps of {out.shape[2]}x{out.shape[3]} cells")
    return out


def levels_in_order(bins: Sequence[int]) -> list[tuple[int, int]]:
    """(level, the level it is merged from or -1), as positions in `bins`, each after the one that it needs.

    Where n divides m, a bin of level n is exactly k x k bins of level m (k = m / n): floor(i L / n) = floor(ik L / m).
    """
    order = sorted(range(len(bins)), key=lambda level: -bins[level])
    pairs = []
    for step, level in enumerate(order):
        finer = [other for other in order[:step] if bins[other] % bins[level] == 0]
        pairs.append((level, min(finer, key=lambda other: bins[other], default=-1)))
    return pairs


@functools.lru_cache(maxsize=256)
def _plan(shape: tuple[int, ...], strides: tuple[int, ...], bins: tuple[int, ...]) -> Plan:
    plan = Plan(*shape[1:], *strides, len(bins), sum(n * n for n in bins))
    for step, (level, parent) in enumerate(levels_in_order(bins)):
        plan.order[step], plan.parent[level] = level, parent
    start = 0
    for level, n in enumerate(bins):
        plan.side[level], plan.start[level] = n, start
        start += n * n
    return plan


def _threads(elements: int, portions: int) -> int:
    """Those of torch, but no more than there are portions, and one for little work."""
    return 1 if elements < SMALL else max(1, min(torch.get_num_threads(), portions))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None (the log says why) where it cannot be had."""
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
    except (OSError, RuntimeError):  # no home, a full disk, one that may not hold programs
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix="sppnet-") as folder_name:
            return _load(Path(folder_name) / "pool.so", compiler)
    return None


def _load(path: Path, compiler: str) -> ctypes.CDLL | None:
    if not path.exists() and not _compile(path, compiler):
        return None
    loaded = ctypes.CDLL(str(path))
    address, number = ctypes.c_void_p, ctypes.c_int64
    for kind in TYPES.values():
        getattr(loaded, f"forward_{kind}").argtypes = [
            *(ctypes.POINTER(Plan), address, address, number, number, address, address)
        ]
        getattr(loaded, f"backward_{kind}").argtypes = [
            *(ctypes.POINTER(Plan), address, address, address, number, number, address)
        ]
    return loaded


def _compile(path: Path, compiler: str) -> bool:
    """Make the library at `path`: whole or not at all, whoever else makes it at the same time."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        # some compilers know no native machine, others no OpenMP (then one thread pools)
        for more in (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ()):
            command = [*compiler.split(), *FLAGS, *more, "-o", name, str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                os.fsync(handle)  # or a power cut may leave a file of zeros under the final name
                Path(name).replace(path)
                return True
        log.warning("%s cannot compile %s (%s)", compiler, SOURCE.name, done.stderr.strip().partition("\n")[0])
        return False
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _machine() -> str:
    """What `-march=native` depends on: a home directory may be shared by machines that differ."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor() + platform.machine()
