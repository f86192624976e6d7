"""Reading photographs: ours against torchvision's reference, from JPEG to a batch of crops."""

from __future__ import annotations

import contextlib
import time
import timeit
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from sppnet.benchmarks.measurement import Row, Setting, geometric
from sppnet.config.compose import compose_config
from sppnet.data import build_sizes, jpeg, load_splits
from sppnet.data.datamodule import DataModule

SIZES = (224, 180)
BATCH = 16  # so that several workers have several batches of the fewest photographs
LITTLE = {"500x375": (500, 375, 16)}
MADE = {
    "500x375": (500, 375, 128),
    "2000x1500": (2000, 1500, 128),
}  # photographs of other sizes: width, height, how many

RESIZED = {"kind": "random_resized", "scale": [0.08, 1.0], "aspect": [3 / 4, 4 / 3], "ratio": 0.875}  # as torchvision's
DECODING = {"resampler": "torch", "crop": RESIZED}
KEPT = {"resampler": "torch", "short_side": 256, "cache": True}


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of the group `loading`: per core, and through a DataLoader."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # per core
    try:
        for workers in (0, setting.threads):
            yield from _rows(setting, workers, "the same crops, decoding", 2.2, DECODING)
            yield from _rows(
                setting, workers, "the paper's crops, kept, from the second epoch", 4.0 if workers else 10.0, KEPT
            )
    finally:
        torch.set_num_threads(threads)


def _rows(setting: Setting, workers: int, kind: str, least: float, keys: Mapping[str, Any]) -> Iterator[Row]:
    given = {} if setting.quick else setting.photographs
    for name, root in {**given, **_made(setting)}.items():
        pairs = [_pair(setting, root, size, workers, keys) for size in SIZES]
        ratio = geometric([theirs / ours for ours, theirs in pairs])
        where = f"{workers} workers" if workers else "one core"
        limit = ", ".join(f"{theirs / ours:.1f}x at {size}" for size, (ours, theirs) in zip(SIZES, pairs, strict=True))
        if not workers and keys is DECODING:
            limit += f"; the decoder alone takes {_decoding(root) * 1e3:.3g} ms"
        yield Row(
            "loading",
            f"photographs of {name} at 224 and 180, {kind}, {where}",
            "ImageFolder, RandomResizedCrop, ToTensor, Normalize",
            sum(ours for ours, _ in pairs) / 2,
            sum(theirs for _, theirs in pairs) / 2,
            ratio,
            least,
            limit=limit,
            unit="s per photograph",
        )


def _pair(setting: Setting, root: Path, size: int, workers: int, keys: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds per photograph of ours and theirs, epochs taking turns, the first of each not counted."""
    chain = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    chain.append(transforms.Normalize([0.5] * 3, [0.25] * 3))
    theirs = DataLoader(
        datasets.ImageFolder(str(root), transforms.Compose(chain)),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    cfg = compose_config("train", ["data=folder", f"data.root={root}"])["data"]
    cfg |= {
        "workers": workers,
        "batch_size": BATCH,
        "split": {"val": 0.02, "test": 0.02, "seed": 0, "fold": None},
        **keys,
    }
    sizes = {"_target_": "sppnet.data.Single", "train": [size], "val": [size], "test": [size]}
    views = {"fit": "center", "ratio": 0.875, "aspect_step": 0.125}
    module = DataModule(load_splits(cfg), build_sizes(sizes), cfg, views, 0, setting.scratch)
    ours = module.train_dataloader()
    _epoch(ours, 1), _epoch(theirs, 1)
    trained, listed = len(module.sets.train), len(theirs.dataset)  # type: ignore[arg-type]
    pairs = [(_epoch(ours, trained), _epoch(theirs, listed)) for _ in range(2)]
    return min(one for one, _ in pairs), min(other for _, other in pairs)


def _decoding(root: Path) -> float:
    """Seconds that the decoder alone takes for a photograph: no loader of ours can be faster."""
    found = sorted(root.rglob("*.jpg"))
    files = {}
    for path in found[:: -(-len(found) // 256)]:
        with contextlib.suppress(jpeg.DamagedError):
            if jpeg.decode(path.read_bytes(), str(path)) is not None:  # not all that is called so is a JPEG
                files[str(path)] = path.read_bytes()

    def decode() -> None:
        for path, data in files.items():
            jpeg.decode(data, path)

    return min(timeit.repeat(decode, number=1, repeat=3)) / max(1, len(files))


def _epoch(batches: Iterable[Any], photographs: int) -> float:
    began = time.perf_counter()
    for _ in batches:
        pass
    return (time.perf_counter() - began) / photographs


def _made(setting: Setting) -> dict[str, Path]:
    """Photographs of other sizes, cut out of and scaled up from real ones."""
    found = sorted(path for root in setting.photographs.values() for path in root.rglob("*.jpg"))[::5]
    roots = {}
    for name, (width, height, count) in (LITTLE if setting.quick else MADE).items():
        roots[name] = setting.scratch / name
        if roots[name].exists():
            continue
        for number in range(count):
            folder = roots[name] / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            with Image.open(found[number % len(found)]) as image:
                image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(
                    folder / f"{number}.jpg", quality=90
                )
    return roots


def two_photographs(folder: Path) -> Path:
    """A folder of parts of the photographs that come with scikit-learn, for machines without any of their own."""
    draw = np.random.default_rng(0)
    for number, pixels in enumerate(load_sample_images().images):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
        for part in range(128):
            width, height = draw.integers(200, 420, 2).tolist()
            left, top = draw.integers(0, 640 - width), draw.integers(0, 427 - height)
            whole = Image.fromarray(pixels)
            whole.crop((left, top, left + width, top + height)).save(folder / f"class{number}" / f"{part:03d}.jpg")
    return folder
