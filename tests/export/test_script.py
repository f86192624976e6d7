"""The script of docs/export.md classifies images with an exported file as `sppnet predict` does, without sppnet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calling import SMALL, Caller, limits
from sppnet.config import option_files

BLOCKS = re.findall(r"```python\n(.*?)```", (option_files.root() / "docs/export.md").read_text(), re.DOTALL)
[SCRIPT] = [block for block in BLOCKS if "import onnxruntime" in block]
WITHOUT_TORCH = """
import sys


class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "sppnet", "torchvision", "onnx"):
            raise ImportError(f"{name} is not installed")


sys.meta_path.insert(0, Refuse())
"""
PHOTOGRAPHS = Path(os.environ.get("SPPNET_DATA", "no")) / "caltech20"
WEIGHTS = Path(os.environ.get("SPPNET_WEIGHTS", "no")) / "alexnet_features.pth"


def test_the_script_is_short() -> None:
    assert len(SCRIPT.strip().splitlines()) <= 20


def classify(folder: Path, model: str, paths: list[str]) -> dict[str, tuple[str, float, list[int]]]:
    """Run the script in a process that can import neither torch nor sppnet; class, probability and shape by file."""
    (folder / "classify.py").write_text(WITHOUT_TORCH + SCRIPT)
    done = subprocess.run(
        [sys.executable, "-I", "classify.py", model, *paths], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: (label, float(p), [*map(int, shape.split("x"))]) for name, label, p, shape in lines}


def check_same(sppnet: Caller, folder: Path, count: int) -> None:
    """Compare the script on `model.onnx` with `sppnet predict` on the run in `runs`, for the images of `pictures`."""
    [run] = folder.glob("runs/default/*")
    done = sppnet("predict", f"checkpoint={run}", "input=pictures", "output=-", "top=1")
    assert done.code == 0, done.err
    predictions: list[dict[str, Any]] = [json.loads(line) for line in done.out.splitlines()]
    assert len(predictions) == count
    scripted = classify(folder, "model.onnx", [row["file"] for row in predictions])
    for row in predictions:
        label, probability, shape = scripted[row["file"]]
        [best] = row["classes"]
        assert (label, shape) == (best["class"], row["input"]), row
        assert probability == pytest.approx(best["probability"], abs=1e-4)


def test_the_script_of_the_docs_classifies_as_predict_does(sppnet: Caller, tmp_path: Path) -> None:
    run = sppnet("train", *SMALL, "trainer.max_epochs=1", *limits(8), "optim.lr=0.01").run
    assert sppnet("export", f"checkpoint={run}", "output=model.onnx").code == 0
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("P").save(folder / "palette.gif")
    for name, shape in {"dot": (1, 1), "tall": (5, 700), "wide": (700, 5), "large": (1500, 1013)}.items():
        image.resize(shape).save(folder / f"{name}.png")
    image.rotate(30, expand=True).save(folder / "turned by 30.png")
    image.resize((97, 61)).save(folder / "prime.bmp")
    check_same(sppnet, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.skipif(
    not (PHOTOGRAPHS.is_dir() and WEIGHTS.is_file()),
    reason="no caltech20 in SPPNET_DATA, or no alexnet_features.pth in SPPNET_WEIGHTS: photographs remain untested",
)
def test_the_script_classifies_photographs_as_predict_does(sppnet: Caller, tmp_path: Path) -> None:
    words = ("data=folder", f"data.root={PHOTOGRAPHS}", "sizes=single", "sizes.train=[224]", "progress=none")
    network = ("backbone=alexnet", f"backbone.weights={WEIGHTS}", "backbone.freeze=true", "head.hidden=[64]")
    part = ("trainer.max_epochs=1", "trainer.limit_train_batches=8", "trainer.limit_val_batches=1", "optim.lr=0.001")
    done = sppnet("train", *words, *network, *part, "trainer.limit_test_batches=1", "data.batch_size=32")
    assert done.code == 0, done.err
    exported = sppnet("export", f"checkpoint={done.run}", "output=model.onnx")
    assert exported.code == 0, exported.err
    paths = sorted(PHOTOGRAPHS.glob("*/*.jpg"))
    (tmp_path / "pictures").mkdir()
    for number, path in enumerate(paths[:: len(paths) // 200][:200]):
        (tmp_path / "pictures" / f"{number:03d}.jpg").symlink_to(path)
    check_same(sppnet, tmp_path, 200)


def test_the_network_of_ones_own_in_the_docs_can_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    import torch

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    [example] = [block for block in BLOCKS if "SpatialPyramidPool2d" in block]
    exec(example, names)
    session = onnxruntime.InferenceSession(str(tmp_path / "own.onnx"))
    for shape in ((1, 3, 48, 64), (3, 3, 31, 17), (2, 3, 97, 200)):
        images = torch.rand(shape)
        with torch.inference_mode():
            expected = names["network"](images).numpy()
        [scores] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(scores, expected, atol=1e-5)
