"""File contents identify a data set: a changed image changes the fingerprint, and only changed files are read again."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.config.schema import Data
from sppnet.data import fingerprint, load_splits
from sppnet.data.datasets import file_digests
from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.digest_cache import load_table
from sppnet.data.datasets.file_digests import digest_file
from sppnet.data.datasets.image_files import Folder
from sppnet.data.datasets.listing import stat_file
from sppnet.data.decode import DataError
from sppnet.data.duplicates import describe_duplicates
from sppnet.data.image_shapes import load_shapes
from sppnet.errors import UserError

Make = Callable[..., Path]
Paint = Callable[..., None]
Load = Callable[..., Data]


@pytest.fixture
def root(tmp_path: Path, make_tree: Make) -> Path:
    return make_tree(tmp_path / "photos", {"cat": 20, "dog": 10, "emu": 12})


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def flip_a_byte(path: Path, offset: int = -20) -> None:
    """Change a byte; neither length nor time shows it."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def fingerprint_of(root: Path, cache: Path, away: Sequence[str] = ()) -> str:
    """The fingerprint of a folder with the digest cache `cache`; `away` folders are moved out before files are read."""
    images = Folder(str(root))
    images.keep_in(cache, "none")
    for name in away:
        (root / name).rename(root.parent / name)
    try:
        return images.fingerprint()
    finally:
        for name in away:
            (root.parent / name).rename(root / name)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder; digests of small data sets and of files written just now are cached, too."""
    monkeypatch.setattr(file_digests, "MANY", 1)
    monkeypatch.setattr(file_digests, "TICK", 0)
    return tmp_path / "cache"


def test_an_image_that_is_painted_over_changes_the_fingerprint(
    root: Path, tmp_path: Path, cache: Path, config: Load
) -> None:
    before, state = fingerprint_of(root, cache), Folder(str(root)).state()
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)
    assert fingerprint_of(tmp_path / "elsewhere", cache) == before
    flip_a_byte(root / "cat" / "003.png")
    assert fingerprint_of(root, cache) == fingerprint(config("folder", root=str(root))) != before
    assert Folder(str(root)).state() != state  # cached pixels are not served either
    flip_a_byte(root / "cat" / "003.png")
    assert fingerprint_of(root, cache) == before


def test_images_that_swap_places_change_the_fingerprint(root: Path, cache: Path, paint: Paint) -> None:
    for number, name in enumerate(("cat/a.bmp", "dog/a.bmp")):  # of one length, unpacked in one second
        paint(root / name, 20, 30 - 10 * number, seed=number)
        path = root / name
        path.write_bytes(path.read_bytes().ljust(4000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    before, shapes = fingerprint_of(root, cache), load_shapes(Folder(str(root)), cache)
    swap(root / "cat/a.bmp", root / "dog/a.bmp")
    assert fingerprint_of(root, cache) != before
    assert load_shapes(Folder(str(root)), cache).tolist() != shapes.tolist()
    swap(root / "cat/a.bmp", root / "dog/a.bmp")
    assert fingerprint_of(root, cache) == before


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "jp2", "bmp", "tif", "ppm", "tga", "jpg as bmp"])
def test_blocks_of_a_long_file_are_hashed_if_it_is_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix.split()[0]}"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    options: dict[str, Any] = {"quality": 95} if suffix in ("jpg", "webp") else {}
    Image.fromarray(noise).save(path, format="bmp" if suffix == "jpg as bmp" else None, **options)
    length = path.stat().st_size
    assert length > file_digests.FULL
    before = digest_file(str(path))[0]
    compressed = suffix in ("jpg", "png", "gif", "webp", "jp2")
    for offset in (10, length // 3, 2 * length // 3 + 100, length - 1, *(() if compressed else (length // 2,))):
        flip_a_byte(path, offset)
        assert digest_file(str(path))[0] != before, offset
        flip_a_byte(path, offset)
    assert digest_file(str(path))[0] == before
    path.write_bytes(path.read_bytes() + b"\0")
    assert digest_file(str(path))[0] != before


def test_only_changed_files_are_read_again(root: Path, cache: Path) -> None:
    before = fingerprint_of(root, cache)
    assert fingerprint_of(root, cache, away=("cat", "dog", "emu")) == before
    file = root / "dog" / "001.png"
    flip_a_byte(file)
    (root / "dog" / "002.png").rename(root / "dog" / "new.png")
    assert fingerprint_of(root, cache, away=("cat", "emu")) == Folder(str(root)).fingerprint() != before


def test_copies_on_two_machines_under_one_path_are_both_cached(root: Path, tmp_path: Path, cache: Path) -> None:
    before = fingerprint_of(root, cache)
    shutil.copytree(root, tmp_path / "other")
    for _ in range(2):
        swap(root, tmp_path / "other")
        assert fingerprint_of(root, cache) == before
    for _ in range(2):
        swap(root, tmp_path / "other")
        assert fingerprint_of(root, cache, away=("cat", "dog", "emu")) == before


def test_the_digest_of_a_file_written_just_now_is_not_trusted(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file_digests, "TICK", 2 * 10**9)
    os.utime(root / "cat" / "000.png", ns=(1, 1))  # unpacked with the time of the archive
    os.utime(root / "dog" / "000.png", (time.time() + 3600,) * 2)  # by a clock in another time zone
    before = fingerprint_of(root, cache)
    assert not capsys.readouterr().err
    assert fingerprint_of(root, cache, away=["cat"]) != before
    assert "20 file(s) in" in (err := capsys.readouterr().err)  # these files are read again
    assert "cat/000.png: No such file or directory" in err
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)
    assert fingerprint_of(root, cache) == before == fingerprint_of(root, cache, away=["cat", "dog"])


@pytest.mark.parametrize("offset", [0, 20, 60, 500, -1])
def test_a_damaged_cache_is_rebuilt(root: Path, cache: Path, offset: int) -> None:
    before = fingerprint_of(root, cache)
    (file,) = cache.glob("*.bin")
    whole = file.read_bytes()
    flip_a_byte(file, offset)
    assert fingerprint_of(root, cache) == before
    assert file.read_bytes() == whole
    file.write_bytes(whole[:offset])
    assert fingerprint_of(root, cache) == before


def test_a_transient_read_error_does_not_change_the_fingerprint(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, failures = fingerprint_of(root, cache), [1]
    real = file_digests.digest_file

    def flaky(path: str) -> tuple[bytes, tuple[int, int, int]]:
        if path.endswith("cat/003.png") and failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path)

    monkeypatch.setattr(file_digests, "digest_file", flaky)
    next(cache.glob("digests-*.bin")).unlink()
    assert fingerprint_of(root, cache) == before
    failures += [1, 2]
    next(cache.glob("digests-*.bin")).unlink()
    with pytest.raises(UserError, match="Input/output error; without this file's content"):
        fingerprint_of(root, cache)


def test_a_cache_that_cannot_be_written_is_no_failure(root: Path, cache: Path) -> None:
    cache.write_text("no folder")
    assert fingerprint_of(root, cache) == Folder(str(root)).fingerprint()
    assert fingerprint_of(root, cache / "below") == Folder(str(root)).fingerprint()


def test_few_files_are_read_at_each_start_and_not_cached(root: Path, tmp_path: Path) -> None:
    fingerprint_of(root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert stat_file(tmp_path / "a.png", tmp_path).bytes == 0
    digest_file(str(tmp_path / "a.png"))


SLOWLY = """
import sys, time
from pathlib import Path
from sppnet.data.datasets import file_digests
from sppnet.data.datasets.image_files import Folder
real = file_digests.digest_file
def slow(path):
    time.sleep(float(sys.argv[3]))
    return real(path)
file_digests.digest_file, file_digests.MANY, file_digests.TICK = slow, 1, 0
file_digests.SAVE_EVERY, file_digests.AT_ONCE = 0.02, 1
images = Folder(sys.argv[1])
images.keep_in(Path(sys.argv[2]), "lines")
print(images.fingerprint(), "torch" in sys.modules)
"""


def start(root: Path, cache: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that takes `seconds` for each file."""
    words = [sys.executable, "-c", SLOWLY, str(root), str(cache), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def count_cached(cache: Path) -> int:
    """The number of cached digests."""
    tables = [load_table(file) for file in cache.glob("*.bin")]
    return sum(int((table.stamps[:, 0] >= 0).sum()) for table in tables if table is not None)


def test_an_interrupted_first_reading_resumes_and_two_processes_do_not_read_the_same_files(
    root: Path, cache: Path, make_tree: Make
) -> None:
    make_tree(root, {"many": 400})
    with start(root, cache, 0.02) as first:
        while not count_cached(cache):
            time.sleep(0.005)
        first.kill()
    cached = count_cached(cache)
    assert 0 < cached < 442
    (cache / f".{next(cache.glob('*.bin')).name}.0123.tmp").touch()  # of a writer that was killed
    with start(root, cache, 0.3) as second:
        while count_cached(cache) == cached:
            time.sleep(0.005)
        with start(root, cache, 0) as third:
            assert third.stderr
            assert "another process is reading the files" in third.stderr.readline()
            second.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in second.communicate()[1]
            out, err = third.communicate()
    announced = re.search(r"reading (\d+) file\(s\) in .* once, ", err)
    assert announced
    assert int(announced[1]) < 442 - cached  # the third continues after both
    assert out.split() == [Folder(str(root)).fingerprint(), "False"]
    assert {path.suffix for path in cache.iterdir()} == {".bin", ".lock"}


Describe = Callable[..., list[str]]


@pytest.fixture
def describe(config: Load, root: Path) -> Describe:
    """describe(root, **changes): the lines about identical files in a folder."""

    def call(root: Path = root, **changes: Any) -> list[str]:
        cfg = config("folder", root=str(root), **changes)
        sets = load_splits(cfg)
        return [line.removeprefix("data=folder: ") for line in describe_duplicates(cfg, sets.images, sets.parts())]

    return call


def members(cfg: Data) -> dict[str, list[Path]]:
    """The files of each part."""
    sets = load_splits(cfg)
    images = sets.images
    assert isinstance(images, Folder)
    return {part: [images.path(i) for i in getattr(sets, part).tolist()] for part in ("train", "val", "test")}


def test_the_same_file_in_two_parts_gives_one_line_or_is_refused(root: Path, config: Load, describe: Describe) -> None:
    assert describe() == []
    parts = members(config("folder", root=str(root)))
    shutil.copy(parts["train"][0], parts["test"][1])
    shutil.copy(parts["train"][0], parts["test"][2])
    name = parts["test"][1].relative_to(root).as_posix()
    [line] = describe()
    assert line.startswith(f"2 of 7 images in test are also in train ({name} is the same file as cat/")
    assert describe(duplicates="ignore") == []
    cfg = config("folder", root=str(root))
    [anywhere] = describe_duplicates(cfg, load_splits(cfg).images)  # random splits of transfer
    assert "2 of 42 images are in the data set a second time and may be used for both" in anywhere
    with pytest.raises(UserError, match=r"^data=folder: 2 of 7 images in test .*; use data\.duplicates=warn"):
        describe(duplicates="error")
    shutil.copy(parts["val"][0], parts["test"][0])
    shutil.copy(parts["train"][1], parts["val"][1])
    [line] = describe()
    assert line.startswith(
        "3 of 7 images in test are also in train or val, and 1 of 7 images in val is also in train ("
    )
    assert describe(split={"fold": 1}) != [line]


def test_a_copy_is_found_in_official_parts_and_where_validation_is_the_test_part(
    tmp_path: Path, make_tree: Make, describe: Describe
) -> None:
    base = tmp_path / "parted"
    make_tree(base / "train", {"cat": 6, "dog": 6})
    (base / "test" / "cat").mkdir(parents=True)
    shutil.copy(base / "train/cat/001.png", base / "test/cat/x copy.png")
    expected = "1 of 1 images in test is also in train (test/cat/x copy.png is the same file as train/cat/001.png)"
    for val in (0, 0.2):
        [line] = describe(base, split={"val": val, "test": 0.2})
        assert line.startswith(expected.replace("also in train", f"also in {'val' if 'in val' in line else 'train'}"))


def test_an_image_in_two_classes_gives_one_line(root: Path, config: Load, describe: Describe) -> None:
    train = members(config("folder", root=str(root)))["train"]
    cat, dog = (next(path for path in train if path.parent.name == name) for name in ("cat", "dog"))
    shutil.copy(cat, dog)
    [line] = describe()
    assert line.startswith(
        f"1 of 42 images is also in a different class (cat/{cat.name} is the same file as dog/{dog.name})"
    )
    shutil.copy(cat, next(path for path in train if path.parent == cat.parent and path != cat))
    assert len(describe()) == 1  # two copies in one class and part give no line


def test_files_are_compared_in_full_and_empty_ones_are_no_images(root: Path, config: Load, describe: Describe) -> None:
    parts = members(config("folder", root=str(root)))
    Image.new("RGB", (9, 9)).save(parts["train"][0], format="jpeg")
    content = parts["train"][0].read_bytes() + os.urandom(200_000)
    for path in (parts["train"][0], parts["test"][0]):
        path.write_bytes(content)
    assert len(describe()) == 1
    flip_a_byte(parts["test"][0], 100_000)
    assert digest_file(str(parts["test"][0]))[0] == digest_file(str(parts["train"][0]))[0]
    assert describe() == []
    for content in (b"", b"<html>503 Service Unavailable</html>"):  # data.bad_files handles them
        for path in (parts["train"][0], parts["test"][0]):
            path.write_bytes(content)
        assert describe() == []


class Dots(ImageSet):
    """A data set without a fingerprint() method."""

    classes = ("a", "b")

    def __init__(self, level: int = 0, noise: bool = False) -> None:
        self.level, self.noise = level, noise

    def __len__(self) -> int:
        return 6

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int) -> Image.Image:
        if index == 4:
            raise DataError("index 4 is not there")
        return Image.new("RGB", (5, 5), tuple(os.urandom(3)) if self.noise else (self.level, 0, index))


class Palette(Dots):
    def read(self, index: int) -> Image.Image:
        image = Image.new("P", (5, 5))
        image.putpalette([self.level, 0, index])
        return image


class Named(Dots):
    def fingerprint(self) -> str:
        return "dots, version 1"


def test_pixels_identify_a_data_set_without_a_fingerprint_method() -> None:
    assert Dots(1).fingerprint() == Dots(1).fingerprint() != Dots(2).fingerprint()
    assert Palette(1).fingerprint() == Palette(1).fingerprint() != Palette(2).fingerprint()
    assert Named(1).fingerprint() == Named(2, noise=True).fingerprint()
    with pytest.raises(UserError, match=r"Dots\.read\(0\) returns different pixels each time"):
        Dots(noise=True).fingerprint()


def test_another_content_of_an_archive_changes_the_fingerprint(tmp_path: Path, config: Load) -> None:
    file = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    file.parent.mkdir()
    file.write_bytes(os.urandom(1000))
    before = fingerprint(config("cifar10", root=str(tmp_path)))
    flip_a_byte(file)
    assert fingerprint(config("cifar10", root=str(tmp_path))) != before
