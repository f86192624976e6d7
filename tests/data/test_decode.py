import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.decode import DataError, decode, read_shape
from sppnet.data.orientation import ORIENTATION

RAMP = np.linspace(0, 65535, 16 * 8).reshape(8, 16)  # 16-bit values
PHOTO = np.dstack([RAMP / 257, RAMP[::-1] / 257, np.full((8, 16), 90)]).astype(np.uint8)


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    image = decode(path)
    assert image.mode == "RGB"
    assert read_shape(path) == (image.height, image.width)
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("RGB", "png", 0),
        ("RGB", "bmp", 0),
        ("RGB", "tif", 0),
        ("RGB", "webp", 40),
        ("RGB", "jpg", 40),
        ("CMYK", "tif", 1),
        ("CMYK", "jpg", 40),
        ("YCbCr", "jpg", 40),
        ("LAB", "tif", 12),
    ],
)
def test_an_image_of_any_colour_model_keeps_its_colours(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    image = Image.fromarray(PHOTO)
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )  # type: ignore[assignment]
    elif mode != "RGB":
        image = image.convert(mode)
    path = tmp_path / f"x.{suffix}"
    image.save(path)
    assert np.abs(pixels(path) - PHOTO).mean() <= tolerance / 2


def test_grey_bilevel_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray((RAMP / 257).astype(np.uint8))
    for name, image in {"L": grey, "1": grey.convert("1"), "P": grey.convert("P"), "LA": grey.convert("LA")}.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        assert (pixels(path) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    assert (pixels(path)[..., 0] == np.rint(RAMP.astype(np.uint16) / 257)).all()


@pytest.mark.parametrize(
    "values",
    [
        (RAMP / 65535).astype(np.float32),
        RAMP.astype(np.int32),
        (RAMP * 1000 - 5).astype(np.int32),
        (RAMP - 3000).astype(np.float32),
    ],
    ids=["fractions", "16 bits in 32", "wide integers", "wide floats"],
)
def test_wide_images_use_the_whole_range(
    tmp_path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    assert np.abs(pixels(path)[..., 1] - RAMP / 257).max() <= 1


def test_a_constant_wide_image_with_nan_is_read(tmp_path: Path) -> None:
    values = np.full((4, 4), 7e5, dtype=np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert pixels(tmp_path / "x.tif").shape == (4, 4, 3)


def test_transparent_images_are_composited_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([PHOTO, np.full((8, 16), 255, np.uint8)])
    rgba[:, 8:, 3] = 0
    image = Image.fromarray(rgba)
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(PHOTO).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((15, 7)))
    for name in ("rgba", "la"):
        assert (pixels(tmp_path / f"{name}.png")[:, 8:] == 255).all()
    assert (pixels(tmp_path / "rgba.png")[:, :8] == PHOTO[:, :8]).all()
    assert (pixels(tmp_path / "p.png")[7, 15] == 255).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_pixels_and_shape_alike(tmp_path: Path, orientation: int, suffix: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(PHOTO).save(path, exif=exif, lossless=True)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(np.int64)
    assert (pixels(path) == upright).all()
    assert pixels(path).shape[:2] == ((16, 8) if orientation >= 5 else (8, 16))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_invalid_orientation_counts_as_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "x.png", exif=exif)
    assert (pixels(tmp_path / "x.png") == PHOTO).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "x.gif")[0, 0] == (255, 0, 0)).all()


def truncated(path: Path) -> None:
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:900])


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an image"),
    "header only": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    "a folder": lambda path: path.mkdir(),
    "a named pipe": lambda path: os.mkfifo(path),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_undecodable_file_gives_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "broken.jpg"
    BROKEN[kind](path)
    with pytest.raises(DataError) as caught:
        decode(path)
    assert "broken.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shape_reads_the_header_only(tmp_path: Path) -> None:
    truncated(tmp_path / "x.jpg")
    assert read_shape(tmp_path / "x.jpg") == (64, 64)
    with pytest.raises(DataError, match=r"y\.jpg"):
        read_shape(tmp_path / "y.jpg")
