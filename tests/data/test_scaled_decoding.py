"""`data.decode=scaled`: the regions of `full`, in nearly the same pixels; and both kinds of `data.interpolation`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from calling import SMALL, Caller, limits
from sppnet.config.schema import Data, PaperCrop, RandomResizedCrop
from sppnet.data import jpeg
from sppnet.data.crops import Box, Region, TrainRegions
from sppnet.data.datasets.image_files import Folder
from sppnet.data.datasets.unlabelled import InputFiles, UnlabelledImages
from sppnet.data.decode import JpegFile, decode_array, open_image
from sppnet.data.decoded import Decoded
from sppnet.data.readers import PixelReader, Reader, SubpixelReader, build_reader, decoding_factor

PHOTOS = Path(os.environ.get("SPPNET_DATA", "no")) / "caltech20"
CHINA = Image.fromarray(load_sample_image("china.jpg"))
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "grey": ("L", {}),
    "progressive": ("RGB", {"progressive": True}),
    "CMYK": ("CMYK", {}),
}
HOW = ("full", "scaled")
Pixels = npt.NDArray[np.float64]


def write(path: Path, image: Image.Image, kind: str = "4:2:0", orientation: int = 1, quality: int = 95) -> Path:
    """Write an image as a JPEG file that is upright after it has been turned as `orientation` says."""
    mode, options = KINDS[kind]
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(back)  # of PIL's Transpose
    stored = image if turn is None else image.transpose(Image.Transpose(turn))
    stored.convert(mode).save(path, "JPEG", quality=quality, exif=exif, **options)
    return path


def reader(path: Path, kind: str = "pillow", scaled: bool = True) -> Reader:
    images = UnlabelledImages(InputFiles(path.parent, [path.name], False), ["a"], False, "")
    made = SubpixelReader(images) if kind == "pillow" else PixelReader(images)
    return replace(made, scaled=scaled)


def read(source: Reader, box: Box, *shapes: tuple[int, int], flip: bool = False) -> list[Pixels]:
    """The box of the reader's image as float64 (3, h, w) of each shape."""
    outs = [torch.empty(3, *shape, dtype=torch.uint8) for shape in shapes]
    source.read(0, lambda width, height: Region(box, flip), outs)
    return [out.numpy().astype(np.float64) for out in outs]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.floats(1, 3000), st.floats(1, 3000), st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1)
)
def test_the_factor_is_the_largest_that_leaves_every_output_enough_pixels(
    width: float, height: float, shapes: list[tuple[int, int]]
) -> None:
    enough = [f for f in (8, 4, 2, 1) if all(width / f >= w and height / f >= h for h, w in shapes)]
    assert decoding_factor((3.5, 4.5, 3.5 + width, 4.5 + height), shapes) == max(enough, default=1)


@pytest.mark.parametrize("side", [512, 640, 333])
def test_rounding_errors_of_a_box_do_not_count(side: int) -> None:
    for place in np.linspace(0, 1, 101):
        left = float(place * 0.125 * side)
        assert decoding_factor((left, 0.0, left + 0.875 * side, 1000.0), [(10, 0.875 * side / 2)]) == 2  # type: ignore[list-item]


@pytest.mark.parametrize("kind", KINDS)
def test_pillow_decodes_the_same_pixels_at_every_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Machines without simplejpeg, and files that it does not support, get the same pixels."""
    generator = np.random.default_rng(0)
    sizes = [(1, 1), (3, 3), (5, 5), (7, 7), (8, 8), (9, 8), (333, 217), *generator.integers(8, 60, (12, 2)).tolist()]
    for number, (width, height) in enumerate(sizes):
        path = write(tmp_path / "x.jpg", CHINA.crop((90, 80, 90 + width, 80 + height)), kind, number % 8 + 1)
        for factor in (f for f in (1, 2, 4, 8) if f <= min(width, height)):
            decoded = []
            for module in (simplejpeg, None):
                monkeypatch.setattr(jpeg, "simplejpeg", module)
                opened = open_image(path)
                assert isinstance(opened, JpegFile)
                assert opened.size == (width, height)
                decoded.append(opened.decode(factor))
            ours, pillows = decoded
            monkeypatch.undo()
            used = factor if max(width, height) >= 8 else 1
            assert (ours.factor, ours.size, ours.corner) == (used, (width, height), pillows.corner)
            assert ours.array.shape == (-(-height // used), -(-width // used), 3)
            assert np.array_equal(ours.array, pillows.array), (width, height, factor)


def ramps(width: int, height: int) -> Image.Image:
    """Red rises by a level per pixel from left to right, green from top to bottom: a mean tells where it is from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.dstack([x, y, 0 * x + 128]).astype(np.uint8))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(100, 250),
    st.integers(100, 250),
    st.integers(1, 8),
    st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "progressive"]),
    st.sampled_from(["pillow", "torch"]),
    st.sampled_from([2, 4, 8]),
    *[st.floats(0, 1)] * 2,
    *[st.floats(0.6, 1)] * 2,
    st.booleans(),
)
def test_no_region_is_shifted(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    orientation: int,
    kind: str,
    resampler: str,
    factor: int,
    x: float,
    y: float,
    wide: float,
    high: float,
    flip: bool,
) -> None:
    """On any side, turned or mirrored: to a tenth of a decoded pixel in the mean."""
    path = write(tmp_path_factory.getbasetemp() / "ramps.jpg", ramps(width, height), kind, orientation, 100)
    w, h = wide * width, high * height
    left, top = x * (width - w), y * (height - h)
    box = left, top, min(left + w, width), min(top + h, height)
    shape = int(round(h) / factor * 0.9), int(round(w) / factor * 0.9)
    assert decoding_factor(box, [shape]) == factor
    [full], [scaled] = (read(reader(path, resampler, s), box, shape, flip=flip) for s in (False, True))
    inside = (scaled - full)[:2, 1:-1, 1:-1]  # torch uses no pixels outside a box, Pillow does
    assert np.abs(inside.mean((1, 2)) / factor).max() < 0.1


def difference(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a - b).mean())


def photographs() -> list[Path | Image.Image]:
    real: list[Path | Image.Image] = [*sorted(PHOTOS.rglob("*.jpg"))[::60]] if PHOTOS.is_dir() else []
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    return [*real, CHINA, flower, CHINA.crop((0, 0, 333, 217)), flower.resize((1999, 1333), Image.Resampling.BICUBIC)]


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_crops_of_photographs_keep_their_pixels_to_a_few_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resampler: str
) -> None:
    """In the mean over all crops 2.5 levels of 255, in a crop 7; a shift by half a decoded pixel would be further.

    Machines without simplejpeg get the same crops.
    """
    crop = RandomResizedCrop(name="random_resized", scale=[0.35, 1.0], ratio=[0.75, 4 / 3])
    regions = TrainRegions(0, "crop", crop, 0.875, True, 0.0)
    differences, factors = [], set()
    for number, photograph in enumerate(photographs()):
        path, kind = photograph, [*KINDS][number % 5]
        if isinstance(path, Image.Image):
            path = write(tmp_path / f"{number}.jpg", path, kind, number % 8 + 1)
        for size in (32, 64, 112):
            full, scaled = (reader(path, resampler, s) for s in (False, True))
            box, flip, _ = regions(number, size)(*scaled.open(0).size)
            factor = decoding_factor(box, [(size, size)])
            [expected], [pixels] = (read(source, box, (size, size), flip=flip) for source in (full, scaled))
            factors.add(factor)
            with monkeypatch.context() as patch:
                patch.setattr(jpeg, "simplejpeg", None)
                assert np.array_equal(read(scaled, box, (size, size), flip=flip)[0], pixels)
            if factor == 1:
                assert np.array_equal(pixels, expected)
                continue
            differences.append(difference(pixels, expected))
            assert differences[-1] < 7
            assert np.abs(pixels - expected).max() < 90
            half = factor / 2
            for dx, dy in ((half, 0), (-half, 0), (0, half), (0, -half)):
                beside = box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy
                if min(beside) >= 0 and all(a <= b for a, b in zip(beside[2:], full.open(0).size, strict=True)):
                    [shifted] = read(full, beside, (size, size), flip=flip)
                    assert difference(pixels, shifted) > 1.2 * differences[-1]
    assert factors == {1, 2, 4, 8}
    assert np.mean(differences) < 2.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_a_box_that_needs_all_pixels_gets_those_of_a_full_decoding(tmp_path: Path, kind: str, resampler: str) -> None:
    for orientation in range(1, 9):
        path = write(tmp_path / "x.jpg", CHINA.crop((100, 50, 257, 171)), kind, orientation)
        for box, shape in (
            ((3.2, 5.7, 103.1, 88.8), (64, 64)),
            ((0.0, 0.0, 157.0, 121.0), (200, 300)),
            ((0.0, 0.0, 157.0, 121.0), (10, 8192)),
            ((8.0, 8.0, 136.0, 12.0), (4, 4)),
        ):
            [full], [scaled] = (read(reader(path, resampler, s), box, shape, flip=True) for s in (False, True))
            assert np.array_equal(full, scaled)


def test_several_scales_share_one_decoding_that_is_enough_for_the_largest(tmp_path: Path) -> None:
    path, whole = write(tmp_path / "x.jpg", CHINA), (0.0, 0.0, 640.0, 427.0)
    opened = open_image(path)
    assert isinstance(opened, JpegFile)
    by_two = Image.fromarray(opened.decode(2).array)
    small, large = read(reader(path), whole, (40, 60), (200, 300))
    for pixels, (height, width) in ((small, (40, 60)), (large, (200, 300))):
        expected = by_two.resize((width, height), Image.Resampling.BILINEAR, (0, 0, 320, 213.5))
        assert np.abs(pixels - np.asarray(expected).transpose(2, 0, 1)).max() <= 1
    assert difference(small, read(reader(path), whole, (40, 60))[0]) > 0, "alone, it needs an eighth"


def test_torch_resizes_boxes_on_whole_pixels_of_a_reduced_image(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jpg", CHINA.crop((0, 0, 640, 424)))
    opened = open_image(path)
    assert isinstance(opened, JpegFile)
    planes = torch.from_numpy(opened.decode(4).array).permute(2, 0, 1)[None]
    [pixels] = read(reader(path, "torch"), (0.0, 0.0, 640.0, 424.0), (90, 100))
    expected = torch.nn.functional.interpolate(planes, (90, 100), mode="bilinear", antialias=True)[0]
    assert np.array_equal(pixels, expected.numpy())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_that_are_left_out_before_resizing_do_not_matter(tmp_path: Path, interpolation: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = write(tmp_path / "x.jpg", Image.fromarray(noise))
    for box, (width, height) in (((90.5, 71.2, 240.0, 200.1), (70, 60)), ((131.0, 7.5, 293.4, 250.0), (80, 3))):
        opened = open_image(path)
        assert isinstance(opened, JpegFile)
        decoded = opened.decode(2)
        image, inside = decoded.cut(box, width, height)
        assert image.width * image.height < 0.7 * 200 * 150
        halved: Box = (box[0] / 2, box[1] / 2, box[2] / 2, box[3] / 2)
        pixels, expected = (
            np.asarray(each.resize((width, height), Image.Resampling[interpolation.upper()], where)).astype(int)
            for each, where in ((image, inside), (decoded.image, halved))
        )
        assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "tif"])
def test_other_formats_are_decoded_in_full(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    CHINA.crop((0, 0, 161, 99)).save(path)
    opened = open_image(path)
    assert isinstance(opened, Decoded)
    assert np.array_equal(opened.array, decode_array(path))
    [full], [scaled] = (read(reader(path, scaled=s), (0.0, 0.0, 161.0, 99.0), (8, 8)) for s in (False, True))
    assert np.array_equal(full, scaled)


def test_of_several_images_in_a_file_the_first_is_decoded_at_every_scale(tmp_path: Path) -> None:
    first = CHINA.crop((0, 0, 161, 99))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[CHINA.crop((200, 200, 361, 299))], quality=75)
    first.save(tmp_path / "plain.jpg", quality=75)
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "MPO"
    for factor in (1, 2, 4, 8):
        opened = [open_image(tmp_path / name) for name in ("x.jpg", "plain.jpg")]
        several, one = (file.decode(factor) for file in opened if isinstance(file, JpegFile))
        assert several.factor == factor
        assert np.array_equal(several.array, one.array)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of JPEGs of several shapes and orientations."""
    for number in range(16):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = CHINA.crop((9 * number, 5 * number, 9 * number + 250 + number, 5 * number + 150 + 3 * number))
        write(path, part, [*KINDS][number % 6], number % 8 + 1)
    return tmp_path / "photos"


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_images_resized_to_a_shorter_side_keep_their_shape_and_pixels(
    config: Callable[..., Data], tree: Path, resampler: str
) -> None:
    images = Folder(str(tree))
    readers = [
        build_reader(images, config("folder", short_side=60, resampler=resampler, decode=how), "crop")
        for how in ("full", "scaled")
    ]
    for index in range(len(images)):
        full, scaled = (source.open(index) for source in readers)
        assert isinstance(full, Decoded)
        assert isinstance(scaled, Decoded)
        assert full.size == scaled.size
        assert 0 < difference(full.array.astype(np.float64), scaled.array.astype(np.float64)) < 6


def test_the_region_is_that_of_a_full_decoding(tree: Path) -> None:
    images = Folder(str(tree))
    regions = TrainRegions(0, "crop", PaperCrop(name="paper", positions="random"), 0.875, True, 0.1)
    for index in range(len(images)):
        drawn = [
            SubpixelReader(images, scaled=scaled).read(
                index, regions(index, 3), [torch.empty(3, 24, 24, dtype=torch.uint8)]
            )
            for scaled in (False, True)
        ]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_interpolation_is_pillows_or_torchs_with_antialiasing(tmp_path: Path, interpolation: str) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (120, 160, 3)).astype(np.uint8) * 255  # cubic kernels overshoot
    Image.fromarray(noise).save(tmp_path / "x.png")
    for shape in ((50, 40), (119, 200), (300, 500)):
        out = torch.empty(3, *shape, dtype=torch.uint8)
        sub, whole = (replace(reader(tmp_path / "x.png", kind), interpolation=interpolation) for kind in ("pillow", ""))
        sub.read(0, lambda w, h: Region((10.5, 20.0, 90.0, 101.25), True), [out])
        box = (10.5, 20.0, 90.0, 101.25)
        expected = Image.fromarray(noise).resize(shape[::-1], Image.Resampling[interpolation.upper()], box)
        assert np.array_equal(out.permute(1, 2, 0).numpy(), np.asarray(expected)[:, ::-1])
        whole.read(0, lambda w, h: Region((10.0, 20.0, 90.0, 101.0)), [out])
        planes = torch.from_numpy(noise[20:101, 10:90]).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(planes, shape, mode=interpolation, antialias=True)[0]
        assert torch.equal(out, resized)
        pillows = Image.fromarray(noise[20:101, 10:90]).resize(shape[::-1], Image.Resampling[interpolation.upper()])
        beside = out.permute(1, 2, 0).int() - torch.from_numpy(np.array(pillows)).int()
        assert beside.abs().max() <= 2, "torch clamps overshoots as Pillow does"


TRAIN = (*SMALL, "data=folder", "data.root=photos", "data.num_workers=0", "trainer.max_epochs=1", *limits(1))


@pytest.mark.slow
def test_commands_decode_what_their_inputs_need(sppnet: Caller, tree: Path, tmp_path: Path) -> None:
    full = sppnet("train", *TRAIN)
    assert full.code == 0, full.err
    scaled = sppnet("train", *TRAIN, "data.decode=scaled", "data.interpolation=bicubic", "views=ten")
    assert scaled.code == 0, scaled.err
    assert "decode" not in scaled.err
    assert full.run != scaled.run
    for views in ("views=center", "views=multi_full", "views=full"):
        for words in ([], ["data.decode=scaled"], ["data.interpolation=bicubic"]):
            tested = sppnet("test", f"checkpoint={full.run}", views, *words)
            assert tested.code == 0, tested.err
    records = [json.loads(path.read_text())["metrics"]["test/loss"] for path in full.run.glob("tests/*.json")]
    assert len(records) == len(set(records)) == 9
    predicted = sppnet("predict", f"checkpoint={scaled.run}", "input=photos", "draw=drawn")
    assert predicted.code == 0, predicted.err
    assert len(list(tmp_path.glob("drawn/**/*.png"))) == 16
    for words in ([], ["data.decode=scaled"], ["data.interpolation=bicubic"]):
        moved = sppnet("transfer", f"checkpoint={full.run}", "splits=2", "per_class.train=3", *words)
        assert moved.code == 0, moved.err
    assert len(list(tmp_path.glob("runs/**/features-*.npy"))) % 3 == 0
    assert len(list(tmp_path.glob("runs/**/transfer/*.json"))) == 3


OWN = """
from sppnet.data import Folder
class Opened(Folder):
    def read(self, index):
        return super().read(index)
class Listed(Folder):
    pass
"""


def test_a_data_set_that_reads_its_images_itself_says_that_they_are_decoded_in_full(
    sppnet: Caller, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    own = (*TRAIN, "allow=mine", "data.decode=scaled")
    for name, lines in (("Opened", 1), ("Listed", 0)):
        called = sppnet("train", *own, f"data._target_=mine.{name}")
        assert called.code == 0, called.err
        assert called.err.count(f"data.decode=scaled has no effect on {name}: its read method decodes") == lines
        tested = sppnet("test", "allow=mine", f"checkpoint={called.run}", "sizes.test=[40]")
        assert tested.code == 0, tested.err
        assert tested.err.count("data.decode=scaled has no effect") == lines


@pytest.mark.slow
def test_a_damaged_file_ends_a_run_as_with_full(sppnet: Caller, tree: Path) -> None:
    broken = tree / "a" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:-900] + b"\xff\xd9")
    lines = [sppnet("train", *TRAIN, *limits(None), f"data.decode={how}").err.splitlines()[-1] for how in HOW]
    assert "4.jpg is damaged or truncated (" in lines[0]
    assert lines[0] == lines[1]
    done = sppnet("train", *TRAIN, *limits(None), "data.decode=scaled", "data.bad_files=skip")
    assert done.code == 0, done.err
    assert "unreadable images left out: 1" in done.err


def test_another_value_is_refused(sppnet: Caller) -> None:
    for word, allowed in (("decode=half", "full, scaled"), ("interpolation=nearest", "bilinear, bicubic")):
        called = sppnet("train", f"data.{word}")
        assert (called.code, called.err) == (
            2,
            f"sppnet train: data.{word} is not allowed: must be one of {allowed}\n",
        )
