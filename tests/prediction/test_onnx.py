"""`sppnet predict` with an ONNX file: the predictions of the run that it is from, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from calling import SMALL, Called, Caller, limits
from sppnet import cli
from sppnet.runs.onnx_checkpoint import DIGEST, sealed

SHORT = ("trainer.max_epochs=1", *limits(8), "optim.lr=0.01")
OWN = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Conv2d(3, width, 9, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2))
"""


def quietly(home: Path, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(home)
        patch.setattr(sys, "argv", ["sppnet", *words])
        assert cli.dispatch() == 0
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, and ONNX files of them."""
    home = tmp_path_factory.mktemp("exported")
    quietly(home, "train", *SMALL, *SHORT, "study=softmax")
    quietly(home, "train", *SMALL, *SHORT, "study=sigmoid", "pooling=gap", "loss=bce", "backbone.width=8")
    for name in ("softmax", "sigmoid"):
        shutil.move(next((home / "runs" / name).iterdir()), home / name)
    quietly(home, "export", "checkpoint=softmax", "output=softmax.onnx")
    quietly(home, "export", "checkpoint=sigmoid", "output=sigmoid.onnx", "preprocess=false")
    quietly(home, "export", "checkpoint=softmax", "output=softmax_32.onnx", "preprocess=false", "size=32")
    return home


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate([(90, 60), (5, 700), (700, 5), (1, 1), (64, 64), (61, 97), (60, 91)]):
        colours = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / f"{number}.png")
    return folder


def rows(done: Called) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def check_same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        assert {**first, "classes": 0} == {**second, "classes": 0}
        scores = [{entry["class"]: entry["probability"] for entry in row["classes"]} for row in (first, second)]
        assert len(scores[0]) == 10
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize(
    ("file", "run", "words", "of_run"),
    [
        ("softmax.onnx", "softmax", (), ()),
        ("softmax.onnx", "softmax", ("views=center", "sizes.test=[20]", "data.batch_size=3"), ()),
        ("sigmoid.onnx", "sigmoid", (), ()),
        ("sigmoid.onnx", "sigmoid", ("views=warp",), ()),
        ("softmax_32.onnx", "softmax", (), ("views=warp", "sizes.test=[32]")),
        ("softmax_32.onnx", "softmax", ("views=center",), ("sizes.test=[32]",)),
    ],
    ids=lambda value: str(value),
)
def test_an_onnx_file_predicts_as_its_run(
    sppnet: Caller, exported: Path, pictures: Path, file: str, run: str, words: list[str], of_run: list[str]
) -> None:
    same = ("input=pictures", "output=-", "top=99", *words)
    expected = rows(sppnet("predict", f"checkpoint={exported / run}", *same, *of_run))
    check_same(rows(sppnet("predict", f"checkpoint={exported / file}", *same)), expected)
    table = sppnet("predict", f"checkpoint={exported / file}", *same[:1], *words).out.splitlines()
    assert [line.split("\t")[3] for line in table] == [row["classes"][0]["class"] for row in expected]


def test_lines_say_at_which_size_the_network_saw_each_image(sppnet: Caller, exported: Path, pictures: Path) -> None:
    for words, inputs in (
        ((), [[36, 24], [24, 96], [96, 24], [24, 24], [24, 24], [24, 39], [24, 36]]),
        (("views=center",), [[24, 24]] * 7),
        (("views=ten", "sizes.test=[28]"), [[48, 32], [32, 128], [128, 32], [32, 32], [32, 32], [32, 52], [32, 48]]),
    ):
        done = sppnet("predict", f"checkpoint={exported / 'softmax'}", "input=pictures", "output=-", *words)
        assert [row["input"] for row in rows(done)] == inputs


def test_classes_of_ones_own_are_not_needed(
    sppnet: Caller, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "options/backbone").mkdir(parents=True)
    (tmp_path / "options/backbone/own.yaml").write_text("_target_: mine.Net\n")
    words = [word for word in SMALL if not word.startswith("backbone")]
    run = sppnet("train", "--config-dir=options", *words, *SHORT, "backbone=own", "allow=mine").run
    assert sppnet("export", f"checkpoint={run}", "output=own.onnx", "allow=mine").code == 0
    same = ("input=pictures", "output=-", "top=99")
    expected = rows(sppnet("predict", f"checkpoint={run}", "allow=mine", *same))
    (tmp_path / "mine.py").unlink()
    del sys.modules["mine"]
    check_same(rows(sppnet("predict", "checkpoint=own.onnx", *same)), expected)
    refused = sppnet("predict", "checkpoint=own.onnx", "sizes.test=[12]", *same)
    assert (refused.code, refused.out) == (2, "")
    assert "sizes.test=[12] is too small: checkpoint=own.onnx takes sides of at least 13" in refused.err


def test_no_section_needs_a_class_of_ones_own(sppnet: Caller, exported: Path, pictures: Path, tmp_path: Path) -> None:
    model = onnx.load(exported / "softmax.onnx")
    [entry] = [entry for entry in model.metadata_props if entry.key == "sppnet"]
    stored = json.loads(entry.value)
    config = stored["config"]
    own = {"_target_": "mine.Own", "steps": [1, {"_target_": "mine.Inner"}]}
    for name in ("pooling", "head", "loss"):
        config[name] = {"name": None, **own}
    config["loss"]["activation"] = "auto"
    for name in ("backbone", "optim", "sizes", "data"):
        config[name] |= own
    config["callbacks"] = config["metrics"] = {"own": own}
    entry.value = json.dumps(stored)
    save(model, tmp_path / "own.onnx")
    same = ("input=pictures", "output=-", "top=99")
    expected = rows(sppnet("predict", f"checkpoint={exported / 'softmax.onnx'}", *same))
    check_same(rows(sppnet("predict", "checkpoint=own.onnx", *same)), expected)


REFUSED = [
    ("predict checkpoint=softmax.onnx views=ten", "an ONNX file scores one view of each image; use views=full, center"),
    ("predict checkpoint=softmax.onnx draw=true", "draw=true: an ONNX file has no feature maps to plot"),
    ("predict checkpoint=softmax.onnx trainer.precision=bf16-mixed", "trainer.precision has no effect on an ONNX file"),
    ("predict checkpoint=softmax.onnx compute.compile=true", "compute.compile has no effect on an ONNX file"),
    ("predict checkpoint=softmax.onnx backbone.width=8", "backbone.width=8 is not allowed: the checkpoint was trained"),
    ("predict checkpoint=softmax_32.onnx views=full", "views=full: checkpoint=softmax_32.onnx takes squares of 32"),
    (
        "predict checkpoint=softmax_32.onnx sizes.test=[24]",
        "checkpoint=softmax_32.onnx takes squares of 32 pixels only",
    ),
    ("predict checkpoint=softmax.onnx sizes.test=[24,32]", "sizes.test=[24, 32] is not allowed: predict takes one"),
    ("predict checkpoint=none.onnx", "checkpoint=none.onnx: no such file"),
    ("predict checkpoint=cut.onnx", "checkpoint=cut.onnx cannot be read; it is damaged or not an ONNX file"),
    ("predict checkpoint=empty.onnx", "checkpoint=empty.onnx is not an ONNX file of sppnet export"),
    ("predict checkpoint=flipped.onnx", "checkpoint=flipped.onnx is damaged, or was changed after"),
    ("predict checkpoint=renamed.onnx", "checkpoint=renamed.onnx is damaged, or was changed after"),
    ("predict checkpoint=other.onnx", "checkpoint=other.onnx is not an ONNX file of sppnet export"),
    ("predict checkpoint=types.onnx", "checkpoint=types.onnx is damaged: its metadata cannot be read"),
    ("predict checkpoint=inputs.onnx", "checkpoint=inputs.onnx takes other inputs than a file of sppnet export"),
    ("predict checkpoint=program.pt2", "checkpoint=program.pt2 is an exported file, and not a checkpoint"),
    ("test checkpoint=softmax.onnx", "checkpoint=softmax.onnx is an exported file, and not a checkpoint; only predict"),
    ("export checkpoint=softmax.onnx output=new.onnx", "checkpoint=softmax.onnx is an exported file"),
    ("transfer checkpoint=softmax.onnx data=digits", "checkpoint=softmax.onnx is an exported file"),
    ("train init=softmax.onnx", "init=softmax.onnx is an exported file, and not a checkpoint"),
    ("train init=program.pt2", "init=program.pt2 is an exported file, and not a checkpoint"),
]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a file with the digest that fits it."""
    entries = [entry for entry in model.metadata_props if entry.key != DIGEST]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    path.write_bytes(sealed(model.SerializeToString()))


def write_files(exported: Path, folder: Path) -> None:
    """Copy the ONNX files to `folder`, and write damaged and foreign ones."""
    for path in exported.glob("*.onnx"):
        shutil.copy(path, folder)
    content = (exported / "softmax.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[: len(content) // 2])
    for name in ("empty.onnx", "program.pt2"):
        (folder / name).write_bytes(b"")
    model = onnx.load_from_string(content)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = weights.raw_data[:-1] + bytes([weights.raw_data[-1] ^ 4])
    onnx.save(model, folder / "flipped.onnx")
    (folder / "renamed.onnx").write_bytes(content.replace(b'"softmax"', b'"sigmoid"', 1))
    model = onnx.load_from_string(content)
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]
    save(model, folder / "inputs.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "other.onnx")
    model = onnx.load_from_string(content)
    for entry in model.metadata_props:
        entry.value = "3" if entry.key == "sppnet" else entry.value
    save(model, folder / "types.onnx")


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_an_onnx_file_cannot_do_is_refused_in_one_line(
    sppnet: Caller, exported: Path, pictures: Path, tmp_path: Path, words: str, message: str
) -> None:
    write_files(exported, tmp_path)
    before = set(tmp_path.rglob("*"))
    done = sppnet(*words.split(), *(["input=pictures", "output=new.jsonl"] if words.startswith("predict") else []))
    assert done.code == 2, (done.out, done.err)
    [line] = done.err.strip().splitlines()
    assert message in line
    assert set(tmp_path.rglob("*")) == before


def test_a_missing_extra_is_one_line(
    sppnet: Caller, exported: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    find_spec = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == "onnx" else find_spec(name, *more))
    done = sppnet("predict", f"checkpoint={exported / 'softmax.onnx'}", "input=pictures")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "needs onnx, not installed here: run uv sync --extra export" in done.err
