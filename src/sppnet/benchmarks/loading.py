"""Times data loading from JPEG files to batches of crops, against torchvision's ImageFolder (group `loading`)."""

from __future__ import annotations

import contextlib
import time
import timeit
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from sppnet.benchmarks.measurement import Row, Setting, geometric_mean
from sppnet.config.compose import compose_config
from sppnet.data import build_sizes, jpeg, load_splits
from sppnet.data.datamodule import DataModule

SIZES, SMALL_SIZES = (224, 180), (128, 112)
BATCH = 16  # small enough that every worker gets several batches
SCALED = {  # name: width, height and number of scaled photographs
    "500x375": (500, 375, 128),
    "2000x1500": (2000, 1500, 128),
}
SCALED_QUICK = {"500x375": (500, 375, 16)}

# torchvision's defaults
RESIZED = ("data/crop=random_resized", "data.crop.scale=[0.08,1.0]", f"data.crop.ratio=[{3 / 4},{4 / 3}]")
DECODING = ("data.resampler=torch", *RESIZED)
REDUCED = (*DECODING, "data.decode=scaled")
CACHED = ("data.resampler=torch", "data.short_side=256", "data.cache=true")


@dataclass(frozen=True)
class Variant:
    """A way to load photographs.

    Attributes:
        name: its name in the table.
        target: how many times as fast as ImageFolder it should be.
        overrides: the overrides that select it.
        sizes: the sizes of the crops, in pixels.
        photographs: the name of the photographs for which it is measured; None for all.
    """

    name: str
    target: float
    overrides: tuple[str, ...]
    sizes: tuple[int, int] = SIZES
    photographs: str | None = None


def _variants(workers: int) -> list[Variant]:
    reduced = "the same crops, decoding at a fraction of the size"
    return [
        Variant("the same crops, decoding", 2.2, DECODING),
        Variant(reduced, 4.0, REDUCED, SIZES, "2000x1500"),
        Variant(reduced, 2.2, REDUCED, SIZES, "500x375"),
        Variant(reduced, 2.2, REDUCED, SMALL_SIZES, "500x375"),
        Variant("the paper's crops, cached, from the second epoch", 4.0 if workers else 10.0, CACHED),
    ]


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `loading`: on one core, and in a DataLoader with workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    originals = {} if setting.quick else setting.photographs
    photographs = {**originals, **_write_scaled_photographs(setting)}
    try:
        for workers in (0, setting.threads):
            for variant in _variants(workers):
                for name, root in photographs.items():
                    if variant.photographs in (None, name):
                        yield _row(setting, workers, variant, name, root)
    finally:
        torch.set_num_threads(threads)


def _row(setting: Setting, workers: int, variant: Variant, name: str, root: Path) -> Row:
    sizes = variant.sizes
    pairs = [_time_pair(setting, root, size, workers, variant.overrides) for size in sizes]
    processes = f"{workers} workers" if workers else "one core"
    limit = ", ".join(f"{theirs / ours:.1f}x at {size}" for size, (ours, theirs) in zip(sizes, pairs, strict=True))
    if not workers and variant.overrides is DECODING:
        limit += f"; the decoder alone takes {_time_decoding(root) * 1e3:.3g} ms"
    return Row(
        "loading",
        f"photographs of {name} at {' and '.join(map(str, sizes))}, {variant.name}, {processes}",
        "ImageFolder, RandomResizedCrop, ToTensor, Normalize",
        sum(ours for ours, _ in pairs) / 2,
        sum(theirs for _, theirs in pairs) / 2,
        geometric_mean([theirs / ours for ours, theirs in pairs]),
        variant.target,
        limit=limit,
        unit="s per photograph",
    )


def _time_pair(
    setting: Setting, root: Path, size: int, workers: int, overrides: tuple[str, ...]
) -> tuple[float, float]:
    """Return the seconds per photograph for sppnet and for ImageFolder.

    Each loader runs a warm-up epoch; then the two alternate for two timed epochs each, of which the faster counts.
    """
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize([0.5] * 3, [0.25] * 3))
    theirs = DataLoader(
        datasets.ImageFolder(str(root), transforms.Compose(steps)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    data = ("data=folder", f"data.root={root}", f"data.num_workers={workers}", f"data.batch_size={BATCH}")
    split = ("data.split.val=0.02", "data.split.test=0.02")
    cfg = compose_config([*data, *split, "sizes=single", f"sizes.train=[{size}]", *overrides])
    sets, schedule = load_splits(cfg.data), build_sizes(cfg.sizes)
    module = DataModule(sets, schedule, cfg.data, cfg.augment, cfg.views, cfg.seed, setting.scratch)
    ours = module.train_dataloader()
    _time_epoch(ours, 1), _time_epoch(theirs, 1)
    our_count, their_count = len(module.sets.train), len(theirs.dataset)  # type: ignore[arg-type]
    pairs = [(_time_epoch(ours, our_count), _time_epoch(theirs, their_count)) for _ in range(2)]
    our_times, their_times = zip(*pairs, strict=True)
    return min(our_times), min(their_times)


def _time_decoding(root: Path) -> float:
    """Return the seconds per photograph for the JPEG decoder alone. No loader that uses this decoder can be faster."""
    paths = sorted(root.rglob("*.jpg"))
    files = {}
    for path in paths[:: -(-len(paths) // 256)]:
        with contextlib.suppress(jpeg.DamagedError):
            if jpeg.decode(path.read_bytes(), str(path)) is not None:  # not every .jpg file is a JPEG
                files[str(path)] = path.read_bytes()

    def decode() -> None:
        for path, data in files.items():
            jpeg.decode(data, path)

    return min(timeit.repeat(decode, number=1, repeat=3)) / max(1, len(files))


def _time_epoch(batches: Iterable[Any], photographs: int) -> float:
    began = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - began) / photographs


def _write_scaled_photographs(setting: Setting) -> dict[str, Path]:
    """Write real photographs scaled to the sizes in `SCALED`, and return the folder of each size."""
    originals = sorted(path for root in setting.photographs.values() for path in root.rglob("*.jpg"))[::5]
    roots = {}
    for name, (width, height, count) in (SCALED_QUICK if setting.quick else SCALED).items():
        roots[name] = setting.scratch / name
        if roots[name].exists():
            continue
        for number in range(count):
            folder = roots[name] / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            with Image.open(originals[number % len(originals)]) as image:
                image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(
                    folder / f"{number}.jpg", quality=90
                )
    return roots


def write_sample_photographs(folder: Path) -> Path:
    """Write 256 random crops of the two photographs that come with scikit-learn, for machines without photographs."""
    rng = np.random.default_rng(0)
    for number, pixels in enumerate(load_sample_images().images):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
        for part in range(128):
            width, height = rng.integers(200, 420, 2).tolist()
            left, top = rng.integers(0, 640 - width), rng.integers(0, 427 - height)
            whole = Image.fromarray(pixels)
            whole.crop((left, top, left + width, top + height)).save(folder / f"class{number}" / f"{part:03d}.jpg")
    return folder
