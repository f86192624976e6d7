"""`sppnet export`: what the files hold, that they were compared with the network, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from calling import SMALL, Called, Caller, command
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.models.network import SPPNet
from sppnet.runs.checkpoint_files import read_checkpoint
from sppnet.runs.onnx_checkpoint import read_onnx_checkpoint
from sppnet.training.inference import load_network
from tiers import some_quick

TINY = (*SMALL, "trainer.max_epochs=1")


def network(run: Path) -> SPPNet:
    """The network of a run, in evaluation mode."""
    best = run / "checkpoints/best.ckpt"
    checkpoint = read_checkpoint(best)
    return load_network(checkpoint, load(Config, checkpoint["sppnet"]["config"]), best).float().eval()


def normalised(images: torch.Tensor, run: Path) -> torch.Tensor:
    """Images (N, H, W, 3) of 8 bits as the network takes them."""
    data = read_checkpoint(run / "checkpoints/best.ckpt")["sppnet"]["config"]["data"]
    mean, std = (torch.tensor(data[key]) for key in ("mean", "std"))
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_an_onnx_file_takes_pixels_of_any_size_and_says_what_it_is(
    sppnet: Caller, trained: Called, tmp_path: Path
) -> None:
    done = sppnet("export", f"checkpoint={trained.run}", "output=net.onnx")
    assert done.code == 0, done.err
    head, random, real, written = done.out.splitlines()
    assert head.split() == ["shapes", "images", "largest", "difference", "same", "top-1"]
    assert random.split()[:3] == ["random", "images", "32"]
    assert real.split()[:5] == ["images", "of", "digits", "5", "16"]
    assert real.endswith(" 16 of 16")
    assert written.startswith("written: net.onnx (")
    run = session(tmp_path / "net.onnx")
    assert run.get_inputs()[0].shape == ["batch", "height", "width", 3]
    assert [output.name for output in run.get_outputs()] == ["probabilities"]
    generator = np.random.default_rng(0)
    for shape in ((1, 7, 90), (4, 24, 24), (9, 33, 61)):
        images = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
        probabilities = run.run(None, {"images": images})[0]
        with torch.inference_mode():
            expected = network(trained.run)(normalised(torch.from_numpy(images), trained.run)).softmax(1)
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    metadata = {key: json.loads(text) for key, text in run.get_modelmeta().custom_metadata_map.items()}
    assert metadata["classes"] == [str(digit) for digit in range(10)]
    assert metadata["sizes"] == {"train": [24, 20], "test": metadata["sppnet"]["config"]["sizes"]["test"]}
    assert metadata["activation"] == "softmax"
    assert len(metadata["mean"]) == len(metadata["std"]) == 3
    assert metadata["origin"]["run"] == trained.run.name
    provenance = json.loads((tmp_path / trained.run / "provenance.json").read_text())
    assert metadata["origin"]["commit"] == provenance["starts"][-1]["code"]["commit"]
    assert set(metadata["sppnet"]) == set(read_checkpoint(trained.run / "checkpoints/best.ckpt")["sppnet"])


def test_a_program_of_torch_export_runs_without_sppnet_and_is_checked_without_the_data(
    sppnet: Caller, trained: Called, tmp_path: Path
) -> None:
    words = ("format=pt2", "output=net.pt2", "preprocess=false", "data=folder", "data.root=nowhere")
    done = sppnet("export", f"checkpoint={trained.run}", *words)
    assert done.code == 0, done.err
    assert "only random images are compared, because images of the run's data cannot be read (data.root=" in done.err
    assert "images of folder" not in done.out
    x = torch.randn(3, 3, 31, 50)
    torch.save(x, tmp_path / "x")
    script = """
import json, sys, torch
sys.modules["sppnet"] = None
extra = {"classes": ""}
program = torch.export.load("net.pt2", extra_files=extra)
torch.save(program.module()(torch.load("x")), "y")
print(extra["classes"])
"""
    printed = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == [str(digit) for digit in range(10)]
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "y"), network(trained.run)(x))


@pytest.mark.slow
def test_a_program_takes_no_maps_of_one_cell_and_says_so(sppnet: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    done = sppnet("train", *TINY, "pooling=gap", "sizes=single", "sizes.train=[4]", "sizes.test=[4]", "views=warp")
    assert done.code == 0, done.err
    exported = sppnet("export", f"checkpoint={done.run}", "output=net.pt2", "format=pt2")
    assert exported.code == 0, exported.err
    assert "the network was trained or tested at [4]; size=4 exports it for images of that size" in exported.err
    assert "16 images of the run's data have shapes that the file does not take" in exported.err
    words = (f"checkpoint={done.run}", "output=small.pt2", "format=pt2", "size=4")
    assert sppnet("export", *words).code == 0
    monkeypatch.setattr(tempfile, "tempdir", "no/such/folder")
    refused = sppnet("export", *words, "force=true")
    assert refused.code == 2
    assert "the folder for temporary files cannot be written to (No such file or directory)" in refused.err


def test_one_size_several_labels_and_half_precision(sppnet: Caller, tmp_path: Path) -> None:
    more = ("loss=bce", "pooling=flatten", "pooling.output_size=2", "sizes=single", "sizes.train=[24]")
    done = sppnet("train", *TINY, *more, "trainer.precision=bf16-true", "pyramid=l1_1")
    assert done.code == 0, done.err
    refused = sppnet("export", f"checkpoint={done.run}", "output=net.onnx")
    assert refused.code == 2
    assert "pooling=flatten takes images of one size; size=24 exports the network for that size" in refused.err
    exported = sppnet("export", f"checkpoint={done.run}", "output=net.onnx", "size=24")
    assert exported.code == 0, exported.err
    assert "trainer.precision=bf16-true: the network is exported in float32" in exported.err
    run = session(tmp_path / "net.onnx")
    assert run.get_inputs()[0].shape == ["batch", 24, 24, 3]
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = network(done.run)(normalised(torch.from_numpy(images), done.run)).sigmoid()
    np.testing.assert_allclose(run.run(None, {"images": images})[0], expected, atol=1e-6)
    wrong = sppnet("export", f"checkpoint={done.run}", "output=other.onnx", "size=37")
    assert wrong.code == 2
    assert "size=37 is not allowed: the network takes no such image" in wrong.err
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "net.onnx"}


def test_another_rule_is_exported_for_one_size(sppnet: Caller, tmp_path: Path) -> None:
    done = sppnet("train", *TINY, "pooling.rule=padded")
    assert done.code == 0, done.err
    refused = sppnet("export", f"checkpoint={done.run}", "output=net.onnx")
    assert refused.code == 2
    assert "pooling.rule=padded refuses some sizes, and an exported file would refuse others; size=" in refused.err
    exported = sppnet("export", f"checkpoint={done.run}", "output=net.onnx", "size=20", "data.crop_pct=0.9")
    assert exported.code == 0
    assert "data.crop_pct has no effect on an export" in exported.err


OWN = """
import torch

class Branches(torch.nn.Module):
    '''Pools maps of many rows in another way. An exporter sees one of the ways.'''

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, maps):
        return maps.amax((2, 3)) if maps.shape[2] > self.rows else maps.mean((2, 3))
"""


@pytest.mark.parametrize("rows", some_quick([9, 30], every=2))
def test_a_file_that_differs_from_its_network_is_not_written(rows: int, sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    own = ("pooling=class", "pooling._target_=mine.Branches", f"+pooling.rows={rows}", "allow=mine")
    done = sppnet("train", *TINY, *own, "views=warp")
    assert done.code == 0, done.err
    refused = sppnet("export", f"checkpoint={done.run}", "output=net.onnx")
    assert refused.code == 2
    assert "allow=PACKAGE" in refused.err
    for kind in ("onnx", "pt2"):
        differs = sppnet("export", f"checkpoint={done.run}", f"format={kind}", f"output=net.{kind}", "allow=mine")
        assert differs.code == 1
        (line,) = differs.err.splitlines()
        assert "random images of shape " in line
        assert "nothing is written; size=" in line
        assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"runs", "mine.py"}


LIMITED = """
import torch

class Limited(torch.nn.Module):
    '''Takes maps of up to a number of rows or cells.'''

    def __init__(self, rows=10_000, cells=10_000_000):
        super().__init__()
        self.rows, self.cells = rows, cells

    def forward(self, maps):
        if maps.shape[2] > self.rows or maps.shape[2] * maps.shape[3] > self.cells:
            raise ValueError("too large a map")
        return maps.mean((2, 3))
"""
VIT = ["backbone=timm", "backbone.name=test_vit", "+backbone.dynamic_img_size=true", "pooling=gap"]
OWN_POOLING = ["backbone.width=4", "pooling=class", "pooling._target_=limited.Limited", "allow=limited"]


@pytest.mark.parametrize(
    "words",
    some_quick(
        [
            VIT,  # refuses sides that are no multiples of its patches
            [*OWN_POOLING, "+pooling.rows=60"],  # takes all squares that are compared, but not every strip
            [*OWN_POOLING, "+pooling.cells=300"],  # takes all squares and strips, but not every other shape
        ]
    ),
    ids=["vit", "rows", "cells"],
)
def test_a_network_that_refuses_some_sizes_is_exported_for_one(
    words: list[str], sppnet: Caller, tmp_path: Path
) -> None:
    (tmp_path / "limited.py").write_text(LIMITED)
    small = [word for word in TINY if not word.startswith("backbone.width")]
    sizes = ("sizes=single", "sizes.train=[32]", "sizes.val=[32]", "sizes.test=[32]")
    done = sppnet("train", *small, *words, *sizes, "views=warp")
    assert done.code == 0, done.err
    allow = ["allow=limited"] if "allow=limited" in words else []
    refused = sppnet("export", f"checkpoint={done.run}", "output=net.onnx", *allow)
    assert refused.code == 2
    [line] = refused.err.splitlines()
    assert "the network refuses some sizes, such as " in line
    assert "which an ONNX file cannot; size=32 exports it" in line
    assert sppnet("export", f"checkpoint={done.run}", "output=net.onnx", "size=32", *allow).code == 0


@pytest.mark.slow
def test_of_two_jobs_that_write_the_same_file_one_is_refused(spawn: Caller, trained: Called) -> None:
    both = ("preprocess=true,false", "launch=processes", "hydra.launcher.n=2")
    done = spawn("export", "-m", f"checkpoint={trained.run}", "output=net.onnx", *both)
    assert done.code == 1
    assert done.out.count("output=net.onnx exists; force=true replaces it") == 1
    assert done.out.count("written: net.onnx") == 1


def handles_sigterm(process: subprocess.Popen[str]) -> bool:
    """Whether a process has a handler of its own for SIGTERM; without one, it has not begun an export."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seconds"),
    [("onnx", 0), ("onnx", 4), ("pt2", None)],  # after the begin; None: while the program runs in its own process
)
def test_a_stopped_export_leaves_nothing(kind: str, seconds: float | None, trained: Called, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        command("export", f"checkpoint={tmp_path / trained.run}", f"format={kind}", f"output=net.{kind}"),
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (handles_sigterm(process) if seconds is not None else any(temporary.glob("sppnet-*/program.pt2"))):
        assert process.poll() is None
        time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds or 0.5)
    process.terminate()
    _, printed = process.communicate()
    if (output := tmp_path / f"net.{kind}").exists():  # it was done before, and the file is whole
        assert seconds == 4
        read_onnx_checkpoint(output)
        output.unlink()
    else:
        assert printed.splitlines()[-1] == "sppnet export: interrupted"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "temporary"}
    assert not list(temporary.glob("sppnet-*"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("output=taken.onnx",), "output=taken.onnx exists; force=true replaces it"),
        (("output=net.bin",), "output=net.bin: a file of format=onnx ends in .onnx"),
        (("output=none/net.onnx",), "output=none/net.onnx: there is no folder none that can be written to"),
        (("output=runs", "format=pt2"), "a file of format=pt2 ends in .pt2"),
        ((), "output must be given"),
        (("output=lost.onnx", "force=true"), "output=lost.onnx: there is no folder "),
        (("output=best.onnx", "force=true"), "output=best.onnx is the file that checkpoint= names"),
        (("output=loop.onnx", "force=true"), "output=loop.onnx is a link that leads to itself"),
        (("output=net.onnx", "data.interpolation=bicubic"), "data.interpolation=bicubic is not allowed"),
        (("output=net.onnx", "size=0"), "size=0 is not allowed"),
        (("output=net.onnx", "format=tflite"), "format=tflite is not allowed: must be one of onnx, pt2, safetensors"),
        (("output=net.onnx", "trainer.precision=bf16-true"), "trainer.precision"),
        (("output=net.onnx", "pooling.bins=[2]"), "pooling.bins"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], problem: str, sppnet: Caller, trained: Called, tmp_path: Path
) -> None:
    (tmp_path / "taken.onnx").write_text("mine")
    for name, target in (
        ("lost", "no/such/net.onnx"),
        ("best", trained.run / "checkpoints/best.ckpt"),
        ("loop", "loop.onnx"),
    ):
        (tmp_path / f"{name}.onnx").symlink_to(target)
    before = set(tmp_path.iterdir())
    done = sppnet("export", f"checkpoint={trained.run}", *words)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert problem in line
    assert set(tmp_path.iterdir()) == before
    assert (tmp_path / "taken.onnx").read_text() == "mine"


def test_a_missing_package_is_named_with_its_extra(
    sppnet: Caller, trained: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    done = sppnet("export", f"checkpoint={trained.run}", "output=net.onnx")
    assert done.code == 2
    assert "format=onnx needs " in done.err
    assert "uv sync --extra export" in done.err
