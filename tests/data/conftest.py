import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.config.compose import compose_plain
from sppnet.config.load import load
from sppnet.config.schema import Data


def _paint(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def _make_tree(root: Path, counts: Mapping[str, int]) -> Path:
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            _paint(root / name / f"{i:03d}.png", 20 + 3 * i % 25, 30 - 7 * i % 19, 100 * c + i)
    return root


@pytest.fixture
def paint() -> Callable[..., None]:
    """paint(path, width, height, seed=0): write an image of noise; the suffix selects the format."""
    return _paint


@pytest.fixture
def make_tree() -> Callable[..., Path]:
    """make_tree(root, {name: count}): write a folder per class with `count` small images of many shapes."""
    return _make_tree


@functools.cache
def _composed(name: str) -> dict[str, Any]:
    data: dict[str, Any] = compose_plain("train", [f"data={name}"])["data"]
    return data


@pytest.fixture
def config() -> Callable[..., Data]:
    """config(name, **changes): the section `data` of `data=NAME`, read by the main process, with changes.

    Changes of `split` leave its other keys alone.
    """

    def change(name: str, /, **changes: Any) -> Data:
        data = _composed(name)
        split = data["split"] | changes.pop("split", {})
        return load(Data, data | {"num_workers": 0, "split": split} | changes)

    return change
