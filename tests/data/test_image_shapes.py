import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sppnet.data.datasets.digits import Digits
from sppnet.data.datasets.image_files import Folder
from sppnet.data.decode import DataError
from sppnet.data.image_shapes import load_shapes

Make = Callable[..., Path]
Paint = Callable[..., None]
BUILD = """
import sys, time
from pathlib import Path
from sppnet.data.datasets.image_files import Folder
from sppnet.data.image_shapes import load_shapes
images = Folder(sys.argv[1])
while not Path(sys.argv[3]).exists(): time.sleep(0.001)
print(load_shapes(images, Path(sys.argv[2])).sum())
"""


@pytest.fixture
def root(tmp_path: Path, make_tree: Make) -> Path:
    return make_tree(tmp_path / "photos", {"cat": 9, "dog": 9})


def test_shapes_are_read_once_and_cached(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    images = Folder(str(root))
    shapes = load_shapes(images, tmp_path / "cache")
    assert [tuple(shape) for shape in shapes.tolist()] == [images.shape(i) for i in range(18)]
    assert "reading the shapes of 18 images" in caplog.text
    caplog.clear()
    assert (load_shapes(Folder(str(root)), tmp_path / "cache") == shapes).all()
    assert not caplog.text
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_that_changes_is_read_again(root: Path, tmp_path: Path, paint: Paint) -> None:
    load_shapes(Folder(str(root)), tmp_path)
    file = root / "cat" / "000.png"
    length = file.stat().st_size
    paint(file, 5, 3)
    file.write_bytes(file.read_bytes().ljust(length, b"\0"))  # same name, same length
    os.utime(file, ns=(1, 1))
    assert load_shapes(Folder(str(root)), tmp_path)[0].tolist() == [3, 5]


def test_a_damaged_cache_file_is_built_again(root: Path, tmp_path: Path) -> None:
    shapes = load_shapes(Folder(str(root)), tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert (load_shapes(Folder(str(root)), tmp_path / "cache") == shapes).all()


def test_a_cache_folder_that_is_not_writable_only_warns(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert len(load_shapes(Folder(str(root)), tmp_path / "cache")) == 18
    assert "cannot be cached" in caplog.text


def test_an_unreadable_header_is_an_error_or_skipped_and_tried_again(root: Path, tmp_path: Path) -> None:
    file = root / "dog" / "004.png"
    good = file.read_bytes()
    file.write_bytes(b"x" * len(good))
    os.utime(file, ns=(1, 1))
    for _ in range(2):  # the second time with a cache file
        with pytest.raises(DataError, match=r"004\.png"):
            load_shapes(Folder(str(root)), tmp_path)
        assert load_shapes(Folder(str(root)), tmp_path, skip=True)[13].tolist() == [0, 0]
    file.write_bytes(good)
    os.utime(file, ns=(1, 1))
    assert load_shapes(Folder(str(root)), tmp_path)[13].all()


def test_data_sets_without_a_state_leave_no_file(tmp_path: Path) -> None:
    assert load_shapes(Digits(), tmp_path).shape == (1797, 2)
    assert not list(tmp_path.iterdir())


def test_two_processes_may_build_the_cache_at_once(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(root), str(tmp_path / "cache"), str(tmp_path / "go")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (tmp_path / "go").touch()
    sums = [process.communicate(timeout=60)[0] for process in processes]
    assert sums == [f"{load_shapes(Folder(str(root)), tmp_path / 'cache').sum()}\n"] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 1
