"""Photographs of many sizes; real ones, and trained weights, if SPPNET_DATA and SPPNET_WEIGHTS point to them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from calling import SMALL, Caller, limits, records, same_weights
from sppnet.training.callbacks import BadFiles

PHOTOS = Path(os.environ.get("SPPNET_DATA", "no")) / "caltech20"
WEIGHTS = Path(os.environ.get("SPPNET_WEIGHTS", "no")) / "alexnet_features.pth"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="SPPNET_DATA has no caltech20: photographs untested")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="SPPNET_WEIGHTS has no alexnet_features.pth")


@needs_photos
@needs_weights
@pytest.mark.slow
def test_a_trained_trunk_tells_photographs_apart_on_whole_images(sppnet: Caller) -> None:
    trunk = ("backbone=alexnet", f"backbone.weights={WEIGHTS.resolve()}", "backbone.freeze=true")
    whole = ("data.fit=full", "views=full", "sizes.train=[224,180]")
    words = ("data=folder", f"data.root={PHOTOS.resolve()}", *trunk, *whole)
    done = sppnet("train", *words, "trainer.max_epochs=2", "progress=none", "compute.num_threads=1")
    assert done.code == 0, done.err
    assert done.figure("test/top1") > 0.8  # chance is 0.05


@needs_photos
@needs_weights
@pytest.mark.slow
def test_whole_photographs_tell_more_than_their_centres(sppnet: Caller) -> None:
    """The order of the columns (b) and (c) of the paper's table 7."""
    words = (
        "data=folder",
        f"data.root={PHOTOS.resolve()}",
        "backbone=alexnet",
        f"backbone.weights={WEIGHTS.resolve()}",
    )
    accuracy = {}
    for view in ("center", "full"):
        done = sppnet("transfer", *words, f"views={view}", "splits=5", "progress=none", "compute.num_threads=1")
        assert done.code == 0, done.err
        accuracy[view] = done.figure("transfer/accuracy")
    assert accuracy["full"] > accuracy["center"] > 0.9  # chance is 0.05


@needs_photos
@pytest.mark.slow
def test_a_small_network_learns_photographs_from_nothing(sppnet: Caller) -> None:
    words = ("data=folder", f"data.root={PHOTOS.resolve()}", "sizes.train=[64,48]", "trainer.max_epochs=4")
    done = sppnet("train", *words, "progress=none", "compute.num_threads=1")
    assert done.code == 0, done.err
    losses = [record["train/loss"] for record in records(done.run) if "train/loss" in record]
    assert losses[-1] < losses[0]
    assert done.figure("test/top1") > 0.15


def folder(root: Path, broken: int = 0) -> None:
    """Write two classes of 20 images in many shapes.

    The first `broken` images of each class are truncated, every other one with an end marker appended; the next has
    stray bytes.
    """
    for number in range(40):
        path = root / ("cat" if number % 2 else "dog") / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (40 + 3 * number, 100 - 2 * number)
        Image.new("RGB", size, (250, 20, 20) if number % 2 else (20, 20, 250)).save(path)
        if number // 2 < broken:
            path.write_bytes(path.read_bytes()[:-9] + b"\xff\xd9" if number % 4 < 2 else path.read_bytes()[:300])
        elif broken and number // 2 == broken:
            path.write_bytes(path.read_bytes()[:20] + b"stray" + path.read_bytes()[20:])


def test_a_file_that_cannot_be_read_is_named(sppnet: Caller, tmp_path: Path) -> None:
    folder(tmp_path / "pets", broken=20)
    done = sppnet("train", *SMALL, "data=folder", "data.root=pets", "data.num_workers=1")
    assert done.code == 1
    line = done.err.strip().splitlines()[-1]
    assert ".jpg" in line
    assert "data.bad_files=skip" in line
    assert "Traceback" not in done.err
    assert json.loads(next(Path("runs").rglob("status.json")).read_text())["state"] == "failed"


@pytest.mark.parametrize("fit", ["crop", "full"])
def test_bad_files_are_skipped_counted_and_listed(sppnet: Caller, tmp_path: Path, fit: str) -> None:
    folder(tmp_path / "pets", broken=4)
    words = (*SMALL, "data=folder", "data.root=pets", "data.batch_size=4", *limits(None))
    done = sppnet("train", *words, "data.bad_files=skip", f"data.fit={fit}", f"views={fit.replace('crop', 'center')}")
    assert done.code == 0, done.err
    listed = (done.run / "bad_files.txt").read_text().splitlines()
    assert sorted(listed) == sorted(set(listed))
    assert {name.split("/")[1] for name in listed} == {f"{number:02d}.jpg" for number in range(8)}
    assert json.loads((done.run / "status.json").read_text())["bad_files"] <= 8
    lines = [line for line in done.err.splitlines() if "JPEG file" in line]
    assert len(lines) in (1, 2)  # after the first epoch, and after the test if it read new ones
    assert lines[-1].startswith("sppnet: 2 JPEG files cause decoder warnings")
    assert "pets/" in lines[-1]
    assert "extraneous bytes" in lines[-1]


def test_a_bad_file_that_two_ranks_meet_is_listed_once_and_counted_by_both(tmp_path: Path) -> None:
    rank0, rank1 = (BadFiles(tmp_path / "bad_files.txt") for _ in range(2))
    for rank, bad in ((rank0, ["a", "b"]), (rank1, ["c"]), (rank1, ["b", "d\u2028d"]), (rank0, ["c"])):
        rank.on_train_batch_end(None, None, None, {"bad": bad, "remarks": {}}, 0)  # type: ignore[arg-type]
    rank1.read()
    assert rank0.names == rank1.names == {"a", "b", "c", "d\u2028d"}
    assert (tmp_path / "bad_files.txt").read_text(encoding="utf-8") == "a\nb\nc\nd\u2028d\n"


def test_two_classes_and_whole_images_are_learned(sppnet: Caller, tmp_path: Path) -> None:
    folder(tmp_path / "pets")
    words = ("data=folder", "data.root=pets", "sizes.train=[32,24]", "data.batch_size=4", "data.num_workers=0")
    small = ("trainer.max_epochs=6", "backbone.width=8", "head.hidden=[16]", "pooling.bins=[2,1]")
    done = sppnet("train", *words, "compute.num_threads=1", "data.fit=full", "views=full", *small)
    assert done.code == 0, done.err
    assert not done.err  # a quarter of a batch is one image
    assert done.figure("test/top1") == 1.0
    assert done.figure("test/top5") == 1.0


@pytest.mark.slow
def test_the_same_photographs_elsewhere_are_the_same_run_and_others_there_are_not(
    sppnet: Caller, tmp_path: Path
) -> None:
    folder(tmp_path / "here")
    words = [*SMALL, "data=folder", "data.fit=full", "data.batch_size=4"]
    first = sppnet("train", *words, "data.root=here")
    (tmp_path / "here").rename(tmp_path / "there")
    again = sppnet("train", *words, "data.root=there")
    assert "is done" in again.out
    anew = sppnet("train", *words, "data.root=there", "paths.runs=anew")
    assert same_weights(first.run / "checkpoints/last.ckpt", anew.run / "checkpoints/last.ckpt")

    path = tmp_path / "there/cat/01.jpg"
    before = path.stat()
    Image.new("RGB", (43, 98), (20, 250, 20)).save(path)
    path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    words += ["data.root=there", "trainer.max_epochs=1"]
    painted = sppnet("train", *words, "trainer.max_epochs=2")
    assert "is done" not in painted.out
    assert painted.run != first.run

    for file in list((tmp_path / "there/cat").iterdir()):
        shutil.copy(file, file.with_name(f"{file.stem} copy.jpg"))
    runs = sorted(Path("runs").rglob("*"))
    refused = sppnet("train", *words, "data.duplicates=error")  # before the shapes of whole images are read and cached
    assert refused.code == 2
    assert re.match(
        r"sppnet train: data=folder: \d+ of 9 images in test are also in train( or val)?, and ", refused.err
    )
    assert re.search(
        r" in train \(cat/.*\.jpg is the same file as cat/.*\.jpg\); use data\.duplicates=warn.*\n$", refused.err
    )
    assert refused.err.count("\n") == 1
    assert sorted(Path("runs").rglob("*")) == runs
    copied = sppnet("train", *words)
    scored = sppnet("test", f"checkpoint={copied.run}", "views=full")
    for called in (copied, scored):
        assert called.code == 0
        assert called.err.count("images in test are also in train") == 1
    assert sppnet("train", *words, "data.duplicates=ignore").out.count("is done") == 1
    test = ("test", f"checkpoint={copied.run}", "views=full")
    for done in (("train", *words), ("train", "-m", *words, "seed=0,1"), test):
        late = sppnet(*done, "data.duplicates=error")
        assert (late.code, late.err.count("use data.duplicates=warn")) == (2, 1), late
