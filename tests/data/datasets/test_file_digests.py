"""Data are known by content: a changed picture makes other data, and only what changed is read again."""

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

from sppnet.data import fingerprint, load_splits
from sppnet.data.datasets import file_digests
from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.file_digests import digest_of
from sppnet.data.datasets.image_files import Folder
from sppnet.data.datasets.listing import look_at
from sppnet.data.decode import DataError
from sppnet.data.duplicates import duplicates
from sppnet.data.image_shapes import load_shapes
from sppnet.errors import UserError

Make = Callable[..., Path]
Paint = Callable[..., None]
Load = Callable[..., dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path, make_tree: Make) -> Path:
    return make_tree(tmp_path / "photos", {"cat": 20, "dog": 10, "emu": 12})


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def flip_a_byte(path: Path, offset: int = -20) -> None:
    """Change a byte; neither length nor time shows it."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def known(root: Path, cache: Path, away: Sequence[str] = ()) -> str:
    """The fingerprint of a folder whose digests are kept in `cache`, with some folders moved away before it is read."""
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
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache of digests, of small sets too and of files that were written just now."""
    monkeypatch.setattr(file_digests, "MANY", 1)
    monkeypatch.setattr(file_digests, "TICK", 0)
    return tmp_path / "cache"


def test_a_picture_that_is_painted_over_makes_other_data(root: Path, tmp_path: Path, kept: Path) -> None:
    before, state = known(root, kept), Folder(str(root)).state()
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)
    assert known(tmp_path / "elsewhere", kept) == before
    flip_a_byte(root / "cat" / "003.png")
    assert known(root, kept) == fingerprint({"_target_": "sppnet.data.Folder", "root": str(root)}) != before
    assert Folder(str(root)).state() != state  # what is kept of its pixels is not served either
    flip_a_byte(root / "cat" / "003.png")
    assert known(root, kept) == before


def test_pictures_that_change_places_make_other_data(root: Path, kept: Path, paint: Paint) -> None:
    for number, name in enumerate(("cat/a.bmp", "dog/a.bmp")):  # of one length, unpacked in one second
        paint(root / name, 20, 30 - 10 * number, seed=number)
        path = root / name
        path.write_bytes(path.read_bytes().ljust(4000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    before, shapes = known(root, kept), load_shapes(Folder(str(root)), kept)
    swap(root / "cat/a.bmp", root / "dog/a.bmp")
    assert known(root, kept) != before
    assert load_shapes(Folder(str(root)), kept).tolist() != shapes.tolist()
    swap(root / "cat/a.bmp", root / "dog/a.bmp")
    assert known(root, kept) == before


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "jp2", "bmp", "tif", "ppm", "tga", "jpg as bmp"])
def test_a_long_file_is_known_by_blocks_of_it_if_it_is_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix.split()[0]}"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    options: dict[str, Any] = {"quality": 95} if suffix in ("jpg", "webp") else {}
    Image.fromarray(noise).save(path, format="bmp" if suffix == "jpg as bmp" else None, **options)
    length = path.stat().st_size
    assert length > file_digests.FULL
    before = digest_of(str(path))[0]
    compressed = suffix in ("jpg", "png", "gif", "webp", "jp2")
    for offset in (10, length // 3, 2 * length // 3 + 100, length - 1, *(() if compressed else (length // 2,))):
        flip_a_byte(path, offset)
        assert digest_of(str(path))[0] != before, offset
        flip_a_byte(path, offset)
    assert digest_of(str(path))[0] == before
    path.write_bytes(path.read_bytes() + b"\0")
    assert digest_of(str(path))[0] != before


def test_only_what_changed_is_read_again(root: Path, kept: Path) -> None:
    before = known(root, kept)
    assert known(root, kept, away=("cat", "dog", "emu")) == before
    file = root / "dog" / "001.png"
    flip_a_byte(file)
    (root / "dog" / "002.png").rename(root / "dog" / "new.png")
    assert known(root, kept, away=("cat", "emu")) == Folder(str(root)).fingerprint() != before


def test_copies_on_two_machines_under_one_path_are_both_kept(root: Path, tmp_path: Path, kept: Path) -> None:
    before = known(root, kept)
    shutil.copytree(root, tmp_path / "other")
    for _ in range(2):
        swap(root, tmp_path / "other")
        assert known(root, kept) == before
    for _ in range(2):
        swap(root, tmp_path / "other")
        assert known(root, kept, away=("cat", "dog", "emu")) == before


def test_a_file_that_was_written_just_now_is_not_taken_to_be_known(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file_digests, "TICK", 2 * 10**9)
    os.utime(root / "cat" / "000.png", ns=(1, 1))  # unpacked with the time of the archive
    os.utime(root / "dog" / "000.png", (time.time() + 3600,) * 2)  # by a clock in another time zone
    before = known(root, kept)
    assert not capsys.readouterr().err
    assert known(root, kept, away=["cat"]) != before
    assert "20 files of" in (err := capsys.readouterr().err)  # they were to be read again
    assert "cat/000.png: No such file or directory" in err
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)
    assert known(root, kept) == before == known(root, kept, away=["cat", "dog"])


@pytest.mark.parametrize("where", [0, 20, 60, 500, -1])
def test_damaged_digests_are_made_anew(root: Path, kept: Path, where: int) -> None:
    before = known(root, kept)
    (file,) = kept.glob("*.bin")
    whole = file.read_bytes()
    flip_a_byte(file, where)
    assert known(root, kept) == before
    assert file.read_bytes() == whole
    file.write_bytes(whole[:where])
    assert known(root, kept) == before


def test_a_drive_that_fails_now_and_then_makes_no_other_data(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left = known(root, kept), [1]
    real = file_digests.digest_of

    def flaky(path: str) -> tuple[bytes, tuple[int, int, int]]:
        if path.endswith("cat/003.png") and left:
            left.pop()
            raise OSError(errno.EIO, "Input/output error", path)
        return real(path)

    monkeypatch.setattr(file_digests, "digest_of", flaky)
    next(kept.glob("digests-*.bin")).unlink()
    assert known(root, kept) == before
    left += [1, 2]
    next(kept.glob("digests-*.bin")).unlink()
    with pytest.raises(UserError, match="Input/output error; without its content"):
        known(root, kept)


def test_a_cache_that_cannot_be_written_is_no_failure(root: Path, kept: Path) -> None:
    kept.write_text("no folder")
    assert known(root, kept) == Folder(str(root)).fingerprint()
    assert known(root, kept / "below") == Folder(str(root)).fingerprint()


def test_few_files_are_read_at_each_start_and_leave_nothing_behind(root: Path, tmp_path: Path) -> None:
    known(root, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_named_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert look_at(tmp_path / "a.png", tmp_path).bytes == 0
    digest_of(str(tmp_path / "a.png"))


SLOWLY = """
import sys, time
from pathlib import Path
from sppnet.data.datasets import file_digests
from sppnet.data.datasets.image_files import Folder
real = file_digests.digest_of
def slow(path):
    time.sleep(float(sys.argv[3]))
    return real(path)
file_digests.digest_of, file_digests.MANY, file_digests.TICK = slow, 1, 0
file_digests.SAVE_EVERY, file_digests.AT_ONCE = 0.02, 1
images = Folder(sys.argv[1])
images.keep_in(Path(sys.argv[2]), "lines")
print(images.fingerprint(), "torch" in sys.modules)
"""


def start(root: Path, cache: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that takes so long for each file."""
    words = [sys.executable, "-c", SLOWLY, str(root), str(cache), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read(cache: Path) -> int:
    """How many files' digests are kept."""
    content = [file_digests._load(file) for file in cache.glob("*.bin")]
    return sum(int((one.stamps[:, 0] >= 0).sum()) for one in content if one is not None)


def test_a_first_reading_that_is_stopped_goes_on_and_two_do_not_read_the_same(
    root: Path, kept: Path, make_tree: Make
) -> None:
    make_tree(root, {"many": 400})
    with start(root, kept, 0.02) as first:
        while not read(kept):
            time.sleep(0.005)
        first.kill()
    killed = read(kept)
    assert 0 < killed < 442
    with start(root, kept, 0.3) as second:
        while read(kept) == killed:
            time.sleep(0.005)
        with start(root, kept, 0) as third:
            assert third.stderr
            assert "another process reads the files" in third.stderr.readline()
            second.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in second.communicate()[1]
            out, err = third.communicate()
    left = re.search(r"reading (\d+) files of .*, once, ", err)
    assert left
    assert int(left[1]) < 442 - killed  # it goes on from what the two have read
    assert out.split() == [Folder(str(root)).fingerprint(), "False"]
    assert {path.suffix for path in kept.iterdir()} == {".bin", ".lock"}


Said = Callable[..., list[str]]


@pytest.fixture
def said(config: Load, root: Path) -> Said:
    """said(root, **changes): what is said of the same files in the parts of a folder."""

    def call(root: Path = root, **changes: Any) -> list[str]:
        cfg = config("folder", root=str(root), **changes)
        sets = load_splits(cfg)
        return [line.removeprefix("data=folder: ") for line in duplicates(cfg, sets.images, sets.parts())]

    return call


def members(cfg: dict[str, Any]) -> dict[str, list[Path]]:
    """The files of each part."""
    sets = load_splits(cfg)
    images = sets.images
    assert isinstance(images, Folder)
    return {part: [images.path(i) for i in getattr(sets, part).tolist()] for part in ("train", "val", "test")}


def test_the_same_file_in_two_parts_is_said_in_one_line_or_refused(root: Path, config: Load, said: Said) -> None:
    assert said() == []
    parts = members(config("folder", root=str(root)))
    shutil.copy(parts["train"][0], parts["test"][1])
    shutil.copy(parts["train"][0], parts["test"][2])
    name = parts["test"][1].relative_to(root).as_posix()
    [line] = said()
    assert line.startswith(f"2 of 7 images in test are in train, too ({name} is the same file as cat/")
    assert said(duplicates="ignore") == []
    cfg = config("folder", root=str(root))
    [anywhere] = duplicates(cfg, load_splits(cfg).images)  # random splits of transfer
    assert "2 of 42 images are there a second time, and may be trained and tested on (cat/" in anywhere
    with pytest.raises(UserError, match=r"^data=folder: 2 of 7 images in test .*; data\.duplicates=error refuses"):
        said(duplicates="error")
    shutil.copy(parts["val"][0], parts["test"][0])
    shutil.copy(parts["train"][1], parts["val"][1])
    [line] = said()
    assert line.startswith(
        "3 of 7 images in test are in train or val, too, and 1 of 7 images in val is in train, too ("
    )
    assert said(split={"val": 0.15, "test": 0.15, "seed": 0, "fold": 1}) != [line]


def test_a_copy_is_found_in_parts_of_ones_own_and_where_validation_is_the_test(
    tmp_path: Path, make_tree: Make, said: Said
) -> None:
    base = tmp_path / "parted"
    make_tree(base / "train", {"cat": 6, "dog": 6})
    (base / "test" / "cat").mkdir(parents=True)
    shutil.copy(base / "train/cat/001.png", base / "test/cat/x copy.png")
    one = "1 of 1 images in test is in train, too (test/cat/x copy.png is the same file as train/cat/001.png)"
    for val in (0, 0.2):
        [line] = said(base, split={"val": val, "test": 0.2, "seed": 0})
        assert line.startswith(one.replace("train, too", f"{'val' if 'in val' in line else 'train'}, too"))


def test_a_picture_in_two_classes_is_said(root: Path, config: Load, said: Said) -> None:
    train = members(config("folder", root=str(root)))["train"]
    cat, dog = (next(path for path in train if path.parent.name == name) for name in ("cat", "dog"))
    shutil.copy(cat, dog)
    [line] = said()
    assert line.startswith(
        f"1 of 42 images is in another class, too (cat/{cat.name} is the same file as dog/{dog.name})"
    )
    shutil.copy(cat, next(path for path in train if path.parent == cat.parent and path != cat))
    assert len(said()) == 1  # twice in one class and part is a matter of weight


def test_files_are_compared_in_full_and_those_that_hold_nothing_are_no_pictures(
    root: Path, config: Load, said: Said
) -> None:
    parts = members(config("folder", root=str(root)))
    Image.new("RGB", (9, 9)).save(parts["train"][0], format="jpeg")
    content = parts["train"][0].read_bytes() + os.urandom(200_000)
    for path in (parts["train"][0], parts["test"][0]):
        path.write_bytes(content)
    assert len(said()) == 1
    flip_a_byte(parts["test"][0], 100_000)
    assert digest_of(str(parts["test"][0]))[0] == digest_of(str(parts["train"][0]))[0]
    assert said() == []
    for content in (b"", b"<html>503 Service Unavailable</html>"):  # for data.bad_files to tell
        for path in (parts["train"][0], parts["test"][0]):
            path.write_bytes(content)
        assert said() == []


class Dots(ImageSet):
    """A set of one's own that does not say what it is."""

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


def test_a_set_that_does_not_say_what_it_is_is_known_by_its_pixels() -> None:
    assert Dots(1).fingerprint() == Dots(1).fingerprint() != Dots(2).fingerprint()
    assert Palette(1).fingerprint() == Palette(1).fingerprint() != Palette(2).fingerprint()
    assert Named(1).fingerprint() == Named(2, noise=True).fingerprint()
    with pytest.raises(UserError, match=r"Dots\.read\(0\) gives other pixels each time"):
        Dots(noise=True).fingerprint()


def test_an_archive_of_another_content_is_other_data(tmp_path: Path, config: Load) -> None:
    file = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    file.parent.mkdir()
    file.write_bytes(os.urandom(1000))
    before = fingerprint(config("cifar10", root=str(tmp_path)))
    flip_a_byte(file)
    assert fingerprint(config("cifar10", root=str(tmp_path))) != before
