"""The pixels of a crop for each reader, and that cached images give the same pixels as the originals."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from sppnet.config.load import replace
from sppnet.config.schema import Augment, Center, Data, PaperCrop, Sizes
from sppnet.data import build_sizes, load_splits
from sppnet.data.crops import Region, TrainRegions
from sppnet.data.datamodule import DataModule
from sppnet.data.datasets.image_files import Folder
from sppnet.data.decode import DataError, decode
from sppnet.data.decoded import Decoded
from sppnet.data.image_cache import read_index
from sppnet.data.readers import (
    PixelReader,
    Reader,
    SubpixelReader,
    build_reader,
    decode_pixels,
    resize,
    resized_shape,
    round_box,
)
from sppnet.errors import UserError

Load = Callable[..., Data]
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
CHANGES: list[dict[str, Any]] = [
    {},
    *({"short_side": 81}, {"resampler": "torch"}, {"interpolation": "bicubic"}, {"decode": "scaled"}),
    *({"interpolation": "bicubic", "decode": "scaled"}, {}),
]
SIZES = Sizes(_target_="sppnet.data.Alternating", train=[64, 48], val=[64], test=[64])
AUGMENT = Augment(flip=True, color=0.1)
CENTER = Center(name="center", fit="center", crop_pct=0.875)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 JPEGs of many shapes, cut out of scikit-learn's two sample photographs."""
    root = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for name in ("china", "flower"):
        whole = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (root / name).mkdir()
        for number in range(12):
            width, height = generator.integers(150, 420, 2).tolist()
            left, top = generator.integers(0, whole.width - width), generator.integers(0, whole.height - height)
            part = whole.crop((left, top, left + width, top + height))
            part.save(root / name / f"{number:02d}.jpg", quality=90, progressive=number % 3 == 0)
    return root


def data_module(cfg: Data, cache: Path) -> DataModule:
    return DataModule(load_splits(cfg), build_sizes(SIZES), cfg, AUGMENT, CENTER, 0, cache)


def batches(cfg: Data, cache: Path) -> list[dict[str, Any]]:
    """The batches of two training epochs, which have different sizes, and of the validation."""
    data = data_module(cfg, cache)
    train = data.train_dataloader()
    first = list(train)
    # Not `lambda: len(train)`: a loader in a cycle is collected after its queues, and its workers wait for 5 s each.
    train.batch_sampler.taken = lambda: len(first)  # type: ignore[union-attr]
    return [*first, *train, *data.val_dataloader()[0]]


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["index"], b["index"]) and a["bad"] == b["bad"]
        for a, b in zip(first, second, strict=True)
    )


def cache_file(cache: Path) -> Path:
    [path] = cache.glob("photographs-*.bin")
    return path


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_every_jpeg_is_decoded_to_the_bits_of_pillow(tmp_path: Path) -> None:
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, image, options in (
        ("plain", photograph, {}),
        ("fine", photograph, {"quality": 95, "subsampling": 0}),
        ("odd", photograph.crop((0, 0, 333, 217)), {"subsampling": 2}),
        ("progressive", photograph, {"progressive": True}),
        ("grey", photograph.convert("L"), {}),
        ("cmyk", photograph.convert("CMYK"), {}),
        ("turned", photograph, {"exif": exif}),
        ("profiled", photograph, {"exif": exif, "icc_profile": bytes(200_000)}),
        ("tagged", photograph, {"xmp": XMP}),
        ("png", photograph, {"format": "PNG"}),  # whatever the suffix says
    ):
        saved(image, tmp_path / "a" / f"{name}.jpg", **options)
    saved(photograph, tmp_path / "b" / "x.png")
    images = Folder(str(tmp_path))
    assert len(images) == 11
    for index in range(len(images)):
        assert np.array_equal(decode_pixels(images, index), np.asarray(decode(images.path(index)))), images.name(index)


@pytest.mark.parametrize("cut", [0.2, 0.7, 0.99])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, cut: float) -> None:
    buffer = io.BytesIO()
    Image.fromarray(load_sample_image("china.jpg")).save(buffer, "JPEG")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(buffer.getvalue()[: int(cut * len(buffer.getvalue()))])
    with pytest.raises(DataError, match=r"x\.jpg"):
        PixelReader(Folder(str(tmp_path))).open(0)


@given(st.integers(1, 600), st.integers(1, 600), *[st.floats(0, 1)] * 2, *[st.floats(0.01, 1)] * 2)
def test_rounded_boxes_lie_inside_and_are_the_nearest(w: int, h: int, x: float, y: float, a: float, b: float) -> None:
    wide, high = a * w, b * h
    left, top = x * (w - wide), y * (h - high)
    box = round_box((left, top, left + wide, top + high), w, h)
    assert 0 <= box[0] < box[2] <= w
    assert 0 <= box[1] < box[3] <= h
    assert abs(box[2] - box[0] - wide) <= max(0.5, 1 - wide) + 1e-6
    assert abs(box[0] - left) <= 1 + 1e-6


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 512))
def test_resized_shapes_have_the_shorter_side_and_keep_the_aspect_ratio(height: int, width: int, side: int) -> None:
    h, w = resized_shape(height, width, side)
    assert min(h, w) == side
    longer = min(max(height, width), 16 * min(height, width))
    assert abs(max(h, w) - longer * side / min(height, width)) <= 0.5


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_a_crop_of_the_size_of_the_batch_is_a_copy_of_the_resized_photograph(photographs: Path, resampler: str) -> None:
    images = Folder(str(photographs))
    reader = PixelReader(images, resampler=resampler, short_side=128)
    regions = TrainRegions(0, "crop", PaperCrop(name="paper", positions="random"), 0.875, True, 0.0)
    flips = set()
    for index in range(len(images)):
        width, height = size = reader.open(index).size
        whole = resize(torch.from_numpy(decode_pixels(images, index)), height, width, resampler)
        out = torch.empty(3, 112, 112, dtype=torch.uint8)
        region = reader.read(index, regions(index, 0), [out])
        left, top, right, bottom = round_box(region.box, *size)
        assert (right - left, bottom - top) == (112, 112)
        crop = whole[:, top:bottom, left:right]
        assert torch.equal(out, crop.flip(2) if region.flip else crop)
        flips.add(region.flip)
    assert flips == {True, False}


def test_the_two_resamplers_differ_by_a_level_in_few_pixels(photographs: Path) -> None:
    images = Folder(str(photographs))
    differ = []
    for index in range(len(images)):
        pixels = torch.from_numpy(decode_pixels(images, index))
        for height, width in ((112, 112), (90, 140), (300, 500)):
            pillow, by_torch = (resize(pixels, height, width, resampler).int() for resampler in ("pillow", "torch"))
            assert (pillow - by_torch).abs().max() <= 2
            assert ((pillow - by_torch).abs() > 1).float().mean() < 1e-4
            differ.append(float((pillow != by_torch).float().mean()))
    assert 0 < np.mean(differ) < 0.05  # not equal, so the resampler is part of a run's identity


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_whole_pixels_are_within_a_level_of_the_default_where_the_box_is_whole(
    photographs: Path, resampler: str
) -> None:
    images = Folder(str(photographs))
    region = Region((10.0, 20.0, 138.0, 148.0), True)
    for index in range(len(images)):
        outs = []
        readers: tuple[Reader, ...] = (SubpixelReader(images), PixelReader(images, resampler=resampler))
        for reader in readers:
            outs.append(torch.empty(3, 64, 64, dtype=torch.uint8))
            reader.read(index, lambda width, height: region, outs[-1:])
        # without the edge, where Pillow also uses pixels outside the box
        inside = (outs[0].int() - outs[1].int()).abs()[:, 2:-2, 2:-2]
        assert inside.max() <= 1


def test_only_crops_are_taken_from_images_with_a_short_side(config: Load, photographs: Path) -> None:
    images = Folder(str(photographs))
    for trained, fit, side in (
        *(("crop", fit, 64) for fit in ("crop", "center")),
        *(("crop", fit, None) for fit in ("full", "windows", "warp")),
        *(("full", fit, None) for fit in ("full", "windows", "warp", "center")),
    ):
        reader = build_reader(images, config("folder", fit=trained, resampler="torch", short_side=64), fit)
        assert isinstance(reader, PixelReader)
        assert reader.short_side == side


@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": 2},
        {"resampler": "torch"},
        {"decode": "scaled", "interpolation": "bicubic"},
        {"decode": "scaled", "resampler": "torch", "num_workers": 2},
    ],
    ids=str,
)
def test_cached_images_give_the_same_batches(
    config: Load, photographs: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    cfg = config("folder", root=str(photographs), short_side=80, batch_size=8, **changes)
    expected = batches(cfg, tmp_path)
    assert not list(tmp_path.glob("photographs-*"))
    assert same(batches(replace(cfg, {"cache": True}), tmp_path), expected)
    stamp = cache_file(tmp_path).stat().st_mtime_ns
    assert same(batches(replace(cfg, {"cache": True}), tmp_path), expected)
    assert cache_file(tmp_path).stat().st_mtime_ns == stamp


def test_other_pixels_make_another_file(config: Load, photographs: Path, tmp_path: Path) -> None:
    cfg = config("folder", root=str(photographs), short_side=80, cache=True)
    for count, more in enumerate(CHANGES, start=1):
        data_module(replace(cfg, more), tmp_path).prepare_data()
        assert len(list(tmp_path.glob("photographs-*.bin"))) == min(count, 6)
    changed = photographs / "china" / "00.jpg"
    os.utime(changed, ns=(1, 1))
    data_module(cfg, tmp_path).prepare_data()
    assert len(list(tmp_path.glob("photographs-*.bin"))) == 7


@pytest.fixture
def cached(config: Load, photographs: Path, tmp_path: Path) -> tuple[Data, Path]:
    """A config with `data.cache=true`, and the cache folder with its file."""
    cfg = config("folder", root=str(photographs), short_side=80, cache=True, batch_size=8)
    data_module(cfg, tmp_path).prepare_data()
    return cfg, tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_flipped_byte_is_reported_and_repaired(
    cached: tuple[Data, Path], capfd: pytest.CaptureFixture[str], num_workers: int
) -> None:
    cfg, cache = cached
    expected = batches(cfg, cache)
    path = cache_file(cache)
    good = path.read_bytes()
    table = read_index(path)
    assert table is not None
    index = data_module(cfg, cache).sets.train[0]
    at = int(table[index, 0]) + 1234
    path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    capfd.readouterr()
    assert same(batches(replace(cfg, {"num_workers": num_workers}), cache), expected)
    output = capfd.readouterr().err
    assert "damaged" in output
    assert load_splits(cfg).images.name(int(index)) in output
    assert path.read_bytes() == good
    assert same(batches(replace(cfg, {"num_workers": num_workers}), cache), expected)
    assert "damaged" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["index", "header", "end", "empty"])
def test_a_damaged_file_is_reported_and_built_again(
    cached: tuple[Data, Path], capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    cfg, cache = cached
    path = cache_file(cache)
    good = path.read_bytes()
    spoiled = {"index": good[:100] + bytes([good[100] ^ 1]) + good[101:], "header": b"x" + good[1:], "end": good[:-1]}
    path.write_bytes(spoiled.get(damage, b""))
    data_module(cfg, cache).prepare_data()
    assert path.read_bytes() == good
    assert "damaged" in capfd.readouterr().err


BUILD = """
import sys, yaml
from pathlib import Path
from types import SimpleNamespace
from sppnet.config.schema import Augment, Center, Data, Sizes
from sppnet.data import build_sizes, load_splits
from sppnet.data.datamodule import DataModule
cfg = Data.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
schedule = build_sizes(Sizes(_target_="sppnet.data.Single", train=[64], val=[64], test=[64]))
augment, views = Augment(flip=True, color=0.1), Center(name="center", fit="center", crop_pct=0.875)
data = DataModule(load_splits(cfg), schedule, cfg, augment, views, 0, Path(sys.argv[2]), "lines")
data.prepare_data()
"""


def builder(cfg: Data, cache: Path, **more: Any) -> subprocess.Popen[str]:
    cache.mkdir(exist_ok=True)
    (cache / "cfg.yaml").write_text(yaml.safe_dump(cfg.plain()))
    command = [sys.executable, "-c", BUILD, str(cache / "cfg.yaml"), str(cache)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.slow
def test_of_several_builders_one_builds_and_all_succeed(config: Load, photographs: Path, tmp_path: Path) -> None:
    cfg = config("folder", root=str(photographs), short_side=900, cache=True)
    builders = [builder(cfg, tmp_path) for _ in range(3)]
    outputs = [process.communicate()[1] for process in builders]
    assert [process.returncode for process in builders] == [0] * 3, outputs
    assert sum("caching 24 images" in output for output in outputs) == 1
    assert not list(tmp_path.glob("*.tmp"))
    assert read_index(cache_file(tmp_path)) is not None


@pytest.mark.slow
def test_the_file_of_a_killed_builder_is_not_used_but_removed(config: Load, photographs: Path, tmp_path: Path) -> None:
    cfg = config("folder", root=str(photographs), short_side=2000, cache=True)
    process = builder(cfg, tmp_path)
    deadline = time.monotonic() + 60
    while not (files := list(tmp_path.glob("*.tmp"))) or files[0].stat().st_size < 2**20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.glob("photographs-*.bin"))
    assert list(tmp_path.glob("*.tmp"))
    again = builder(cfg, tmp_path)
    assert again.communicate()[1].count("caching 24") == 1
    assert not list(tmp_path.glob("*.tmp"))
    assert read_index(cache_file(tmp_path)) is not None


@pytest.mark.slow
def test_a_disk_that_fills_up_while_building_leaves_nothing(config: Load, photographs: Path, tmp_path: Path) -> None:
    cfg = config("folder", root=str(photographs), short_side=900, cache=True)
    limit = 20 * 2**20  # bytes per file; stands for a full disk
    process = builder(cfg, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert "OSError" in process.communicate()[1]
    assert process.returncode == 1
    assert not [*tmp_path.glob("photographs-*.bin"), *tmp_path.glob("*.tmp")]


def test_a_disk_that_is_too_small_is_reported_before_images_are_read(
    config: Load, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**5))
    cfg = config("folder", root=str(photographs), short_side=200, cache=True)
    with pytest.raises(UserError, match=r"24 images of folder .* take 4 MiB, but paths.cache=.* has only 0 MiB free"):
        data_module(cfg, tmp_path).prepare_data()
    assert not list(tmp_path.glob("photographs-*.bin"))


def test_a_cache_folder_that_is_not_writable_is_an_error(config: Load, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    cfg = config("folder", root=str(photographs), short_side=81, cache=True)
    with pytest.raises(UserError, match=r"^data\.cache=true: paths\.cache=.*cache is not writable: "):
        data_module(cfg, tmp_path / "cache").prepare_data()


def test_an_image_that_cannot_be_read_is_skipped_or_stops_the_build(
    config: Load, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(photographs, tmp_path / "copy")
    bad = root / "china" / "03.jpg"
    bad.write_bytes(bad.read_bytes()[:5000] + b"\xff\xd9")  # only the decoder can tell
    odd = root / "china" / "04.jpg"
    odd.write_bytes(odd.read_bytes()[:20] + b"stray" + odd.read_bytes()[20:])
    cfg = config("folder", root=str(root), short_side=80, batch_size=8)
    with pytest.raises(DataError, match=r"03\.jpg.*bad_files=skip"):
        data_module(replace(cfg, {"cache": True}), tmp_path).prepare_data()
    assert not list(tmp_path.glob("photographs-*.bin"))
    skipping = replace(cfg, {"bad_files": "skip"})
    capsys.readouterr()
    cached, read = batches(replace(skipping, {"cache": True}), tmp_path), batches(skipping, tmp_path)
    assert same(cached, read)
    assert any("china/03.jpg" in batch["bad"] for batch in read)
    assert "1 JPEG file causes decoder warnings" in capsys.readouterr().err  # while the cache is built


def test_a_data_set_without_a_state_is_not_cached(config: Load, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the images of digits cannot be cached"):
        data_module(config("digits", short_side=32, cache=True), tmp_path).prepare_data()


class Boxed(Folder):
    """A data set that crops each file."""

    def read(self, index: int) -> Image.Image:
        return super().read(index).crop((0, 0, 50, 50))


def test_an_overridden_read_is_used(photographs: Path) -> None:
    for scaled in (False, True):
        assert PixelReader(Boxed(str(photographs)), scaled=scaled).open(0).size == (50, 50)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_images_of_an_overridden_read_become_rgb(config: Load, photographs: Path, mode: str) -> None:
    class Converted(Boxed):
        def read(self, index: int) -> Image.Image:
            return super().read(index).convert(mode)

    images = Converted(str(photographs))
    for resampler in ("torch", "pillow"):
        opened = build_reader(images, config("folder", resampler=resampler), "crop").open(0)
        assert isinstance(opened, Decoded)
        assert opened.array.shape == (50, 50, 3)


def test_a_file_that_is_removed_is_reported_and_the_originals_are_read(
    cached: tuple[Data, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    cfg, cache = cached
    expected = batches(cfg, cache)
    data = data_module(replace(cfg, {"bad_files": "skip"}), cache)
    loader: Any = data.train_dataloader()
    cache_file(cache).unlink()
    capfd.readouterr()
    assert same(list(loader), expected[: len(loader)])
    assert capfd.readouterr().err.count("removed while it was in use") == 1
