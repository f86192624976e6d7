"""Every reader refuses damaged files; files with harmless oddities are read as by Pillow, with a notice."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_image

from sppnet.data.decode import DataError, decode, decode_array, open_image, read_shape
from sppnet.data.jpeg import notice_remarks, take_remarks

PHOTOS = Path(os.environ.get("SPPNET_DATA", "no")) / "caltech20"
PHOTO = Image.fromarray(load_sample_image("china.jpg")).crop((200, 100, 421, 257))
TURNED = Image.Exif()
TURNED[0x0112] = 6
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PHOTO.convert(mode).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\xff\xd9"


def middle(data: bytes, put: bytes, drop: int = 0) -> bytes:
    at = len(data) // 2
    at += data[at - 1] == 0xFF  # not into an escaped byte
    return data[:at] + put + data[at + drop :]


def without_a_restart(data: bytes) -> bytes:
    first, second = data.index(b"\xff\xd2"), data.index(b"\xff\xd3")
    return data[:first] + data[second:]


def without_a_restart_marker(data: bytes) -> bytes:
    at = data.index(b"\xff\xd2")
    return data[:at] + data[at + 2 :]


def stray(data: bytes) -> bytes:
    """Bytes between the first segment and the next."""
    at = 4 + int.from_bytes(data[4:6], "big")
    return data[:at] + b"stray" + data[at:]


def revision(data: bytes) -> bytes:
    at = data.index(b"JFIF\0") + 5
    return data[:at] + b"\x07" + data[at + 1 :]


DAMAGED: dict[str, tuple[bytes, str]] = {
    "half": (half(jpeg()), "premature end of data"),
    "half, no end marker": (jpeg()[:-5000], "Premature end of JPEG file"),
    "half, progressive": (half(jpeg(progressive=True)), "premature end of data"),
    "half, grey": (half(jpeg("L")), "premature end of data"),
    "half, four colours": (half(jpeg("CMYK")), "premature end of data"),
    "half, turned": (half(jpeg(exif=TURNED)), "premature end of data"),
    "half behind stray bytes": (half(stray(jpeg())), "premature end of data"),
    "half behind an unknown revision": (half(revision(jpeg())), "premature end of data"),
    "no such code": (middle(jpeg(progressive=True), b"\xff\x00" * 20), "bad Huffman code"),
    "a lost restart": (without_a_restart(jpeg(restart_marker_blocks=20)), "instead of RST"),
    "a lost restart marker": (without_a_restart_marker(jpeg(restart_marker_blocks=20)), "bytes before marker 0xd3"),
}
ODD: dict[str, tuple[bytes, bytes, str]] = {
    "stray bytes": (stray(jpeg()), jpeg(), "extraneous bytes before marker 0xdb"),
    "stray bytes, four colours": (stray(jpeg("CMYK")), jpeg("CMYK"), "extraneous bytes before marker 0x"),
    "stray bytes, turned": (stray(jpeg(exif=TURNED)), jpeg(exif=TURNED), "extraneous bytes before marker 0xe1"),
    "stray bytes at the end": (jpeg()[:-2] + bytes(9) + jpeg()[-2:], jpeg(), "extraneous bytes before marker 0xd9"),
    "unknown revision": (revision(jpeg()), jpeg(), "unknown JFIF revision"),
    "a video behind it": (jpeg() + bytes(5000), jpeg(), ""),  # motion photos of telephones
    "a second image": (jpeg() + half(jpeg()), jpeg(), ""),
    "filled markers": (jpeg()[:2] + b"\xff" * 3 + jpeg()[2:], jpeg(), ""),
}
SCALED: list[Callable[[Path], object]] = [
    lambda path, factor=factor: open_image(path).decode(factor).array  # type: ignore[misc, union-attr]
    for factor in (1, 2, 4, 8)
]
READERS: list[Callable[[Path], object]] = [decode, decode_array]


@pytest.mark.parametrize("kind", DAMAGED)
def test_pixels_made_up_by_the_decoder_are_damage(tmp_path: Path, kind: str) -> None:
    data, reason = DAMAGED[kind]
    (tmp_path / "x.jpg").write_bytes(data)
    for read in [*READERS, *SCALED]:
        with pytest.raises(DataError, match=rf"x\.jpg .*{reason}"):
            read(tmp_path / "x.jpg")
    assert not take_remarks()


@pytest.mark.parametrize("kind", ODD)
def test_harmless_oddities_give_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    data, whole, remark = ODD[kind]
    for name, content in (("odd", data), ("whole", whole)):
        (tmp_path / f"{name}.jpg").write_bytes(content)
    expected = np.asarray(decode(tmp_path / "whole.jpg"))
    for read in READERS:
        assert np.array_equal(np.asarray(read(tmp_path / "odd.jpg")), expected)
    for read in SCALED:
        odd, whole_file = (np.asarray(read(tmp_path / f"{name}.jpg")) for name in ("odd", "whole"))
        assert np.array_equal(odd, whole_file)
    remarks = take_remarks()
    assert list(remarks) == ([str(tmp_path / "odd.jpg")] if remark else [])
    notice_remarks(remarks)
    err = capsys.readouterr().err
    assert remark in err
    assert err.count("\n") == bool(remark)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="SPPNET_DATA holds no caltech20: real photographs are not tested here")
def test_real_photographs_are_read_as_by_pillow_and_their_halves_refused(tmp_path: Path) -> None:
    photographs = sorted(PHOTOS.rglob("*.jpg"))[::40]
    assert photographs
    for photograph in photographs:
        with Image.open(photograph) as image:
            assert np.array_equal(decode_array(photograph), np.asarray(image.convert("RGB"))), photograph
        (tmp_path / "half.jpg").write_bytes(half(photograph.read_bytes()))
        for read in [decode, *SCALED]:
            with pytest.raises(DataError, match="premature end"):
                read(tmp_path / "half.jpg")
    assert not take_remarks()


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def profile(name: str, content: bytes) -> bytes:
    """A text chunk as ImageMagick writes it."""
    lines = "\n".join(content.hex()[at : at + 72] for at in range(0, 2 * len(content), 72))
    return b"Raw profile type " + name.encode() + b"\0" + f"\n{name}\n{len(content):8d}\n{lines}\n".encode()


def compressed(text: bytes) -> bytes:
    key, _, value = text.partition(b"\0")
    return key + b"\0\0" + zlib.compress(value)


EXIF = TURNED.tobytes()  # begins with Exif\0\0
ORIENTED = {
    "eXIf": chunk(b"eXIf", EXIF[6:]),
    "tEXt exif": chunk(b"tEXt", profile("exif", EXIF)),
    "zTXt exif": chunk(b"zTXt", compressed(profile("exif", EXIF))),
    "zTXt APP1": chunk(b"zTXt", compressed(profile("APP1", EXIF))),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode()),
    "tEXt xmp": chunk(b"tEXt", profile("xmp", XMP.encode())),
    "damaged profile, XMP": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nnothex")
    + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode()),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", ORIENTED)
def test_a_png_is_turned_as_its_metadata_say(tmp_path: Path, kind: str, behind: bool) -> None:
    path, buffer = tmp_path / "x.png", io.BytesIO()
    PHOTO.save(buffer, "PNG")
    data, header = buffer.getvalue(), 33
    path.write_bytes(
        data[:-12] + ORIENTED[kind] + data[-12:] if behind else data[:header] + ORIENTED[kind] + data[header:]
    )
    upright = np.asarray(PHOTO.transpose(Image.Transpose.ROTATE_270))
    assert read_shape(path) == upright.shape[:2]
    for read in READERS:
        assert np.array_equal(np.asarray(read(path)), upright)


def test_a_png_with_other_text_stays_as_it_is(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("Comment", 'of tiff:Orientation="6"')
    text.add_itxt("Title", "x", zip=True)
    PHOTO.save(tmp_path / "x.png", pnginfo=text)
    assert read_shape(tmp_path / "x.png") == (PHOTO.height, PHOTO.width)
    assert np.array_equal(decode_array(tmp_path / "x.png"), np.asarray(PHOTO))


def test_the_checksums_of_a_png_are_verified_for_pixels_not_for_comments(tmp_path: Path) -> None:
    path, buffer = tmp_path / "x.png", io.BytesIO()
    PHOTO.save(buffer, "PNG")
    data, text = buffer.getvalue(), chunk(b"tEXt", b"Comment\0taken by hand")
    path.write_bytes(data[:-12] + text[:-1] + bytes([text[-1] ^ 1]) + data[-12:])
    assert np.array_equal(decode_array(path), np.asarray(PHOTO))
    path.write_bytes(data[:-13] + bytes([data[-13] ^ 1]) + data[-12:])
    for read in READERS:
        with pytest.raises(DataError, match=r"x\.png is damaged .*checksum"):
            read(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "bmp", "tif"])
def test_truncated_files_of_other_formats_are_refused_or_complete(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    PHOTO.save(path)
    data, whole = path.read_bytes(), np.asarray(decode(path))
    for cut in (0.02, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(data[: int(cut * len(data))])
        with pytest.raises(DataError, match=f"x.{suffix}"):
            decode(path)
    for lost in (1, 5, 13, 40):
        path.write_bytes(data[:-lost])
        try:
            assert np.array_equal(np.asarray(decode(path)), whole)
        except DataError:
            continue


def test_extraneous_bytes_between_scans_are_damage(tmp_path: Path) -> None:
    """Zeros in a progressive file: bytes left over from a broken scan are not stray bytes of a camera."""
    whole, path, refused = jpeg(progressive=True), tmp_path / "x.jpg", 0
    for at in range(len(whole) // 4, len(whole) - 60, len(whole) // 100):
        path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
        try:
            simplejpeg.decode_jpeg(path.read_bytes(), strict=True)
        except ValueError as error:
            if "before marker 0xc4" in str(error) or "before marker 0xda" in str(error):
                refused += 1
                with pytest.raises(DataError, match=r"before marker|damaged"):
                    decode(path)
    assert refused
