from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """config(name, **changes): the config conf/data/NAME.yaml as a plain dict, with changes."""

    def load(name: str, **changes: Any) -> dict[str, Any]:
        cfg: dict[str, Any] = {}
        for file in ("folder", name) if name != "digits" else (name,):
            node = yaml.safe_load((ROOT / "conf" / "data" / f"{file}.yaml").read_text())
            for key, value in node.items():
                cfg[key] = cfg[key] | value if isinstance(cfg.get(key), dict) else value
        cfg.pop("defaults", None)
        return cfg | {"workers": 0} | changes

    return load
