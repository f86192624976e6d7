import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.config.schema import Data
from sppnet.data import DataError, ImageSet, Splits, fingerprint, load_splits
from sppnet.data.datasets.digits import Digits
from sppnet.data.datasets.image_files import VOC_CLASSES
from sppnet.data.datasets.trial import try_own_images
from sppnet.errors import UserError

Load = Callable[..., Data]
Make = Callable[..., Path]
Paint = Callable[..., None]


def names(sets: Splits, part: str) -> list[str]:
    return [sets.images.name(i) for i in getattr(sets, part).tolist()]


def test_digits_are_1797_images_of_many_shapes_split_by_class(config: Load) -> None:
    sets = load_splits(config("digits"))
    assert [len(sets.train), len(sets.val), len(sets.test)] == [1259, 269, 269]
    shapes = [sets.images.shape(i) for i in range(len(sets.images))]
    assert {min(shape) for shape in shapes} == set(range(36, 73))
    assert all(max(h, w) / min(h, w) <= 4 / 3 for h, w in shapes)
    assert len(set(shapes)) > 500
    assert min(Counter(sets.images.label(i) for i in sets.test.tolist()).values()) >= 26


def test_every_digit_lies_within_the_centre_crop() -> None:
    images = Digits()
    for index in range(len(images)):
        pixels = np.asarray(images.read(index))
        height, width = pixels.shape[:2]
        assert (height, width) == images.shape(index)
        rows, columns = np.nonzero(pixels[..., 0])
        half = 0.875 * min(height, width) / 2
        assert height / 2 - half <= rows.min() <= rows.max() + 1 <= height / 2 + half
        assert width / 2 - half <= columns.min() <= columns.max() + 1 <= width / 2 + half


def test_digits_are_the_same_images_in_every_process() -> None:
    images, copy = Digits(), pickle.loads(pickle.dumps(Digits()))
    assert all(images.read(i).tobytes() == copy.read(i).tobytes() for i in (0, 700, 1796))


def test_imagenet_tests_on_val_and_validates_on_training_images(tmp_path: Path, config: Load, make_tree: Make) -> None:
    make_tree(tmp_path / "train", {"n01": 30, "n02": 30})
    make_tree(tmp_path / "val", {"n01": 3, "n02": 4})
    sets = load_splits(config("imagenet", root=str(tmp_path)))
    assert [len(sets.train), len(sets.val), len(sets.test)] == [58, 2, 7]
    assert {name.split("/")[0] for name in names(sets, "val")} == {"train"}
    assert {name.split("/")[0] for name in names(sets, "test")} == {"val"}


@pytest.mark.parametrize("inside", ["", "101_ObjectCategories"])
def test_caltech101_background_is_optional(tmp_path: Path, config: Load, inside: str, make_tree: Make) -> None:
    make_tree(tmp_path / inside, {"BACKGROUND_Google": 5, "ant": 6, "bass": 7})
    assert len(load_splits(config("caltech101", root=str(tmp_path))).images.classes) == 3
    sets = load_splits(config("caltech101", root=str(tmp_path), background=False))
    assert list(sets.images.classes) == ["ant", "bass"]
    assert len(sets.images) == 13


def test_imagenette_lists_what_torchvision_lists(tmp_path: Path, config: Load, paint: Paint) -> None:
    from torchvision.datasets import Imagenette

    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040"):
            for i in range(8):
                paint(tmp_path / "imagenette2-160" / part / wnid / f"{i}.jpeg", 9, 8)
    sets = load_splits(config("imagenette", root=str(tmp_path), folder="imagenette2-160"))
    reference = Imagenette(tmp_path, "val", "160px", download=False)
    assert sets.images.classes == reference.wnids
    assert [sets.images.label(i) for i in sets.test.tolist()] == [reference[i][1] for i in range(len(reference))]
    with pytest.raises(UserError, match="download=True"):
        load_splits(config("imagenette", root=str(tmp_path)))


def test_oxford_pets_lists_what_torchvision_lists(tmp_path: Path, config: Load, paint: Paint) -> None:
    from torchvision.datasets import OxfordIIITPet

    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for part, numbers in {"trainval": range(1, 9), "test": range(9, 12)}.items():
        lines = [(f"{b}_{i}", label) for i in numbers for label, b in ((1, "Abyssinian"), (2, "great_pyrenees"))]
        (base / "annotations" / f"{part}.txt").write_text("".join(f"{n} {label} 1 1\n" for n, label in lines))
        for name, _ in lines:
            paint(base / "images" / f"{name}.jpg", 9, 8)
    sets = load_splits(config("oxford_pets", root=str(tmp_path)))
    reference = OxfordIIITPet(tmp_path, "test")
    assert list(sets.images.classes) == reference.classes == ["Abyssinian", "Great Pyrenees"]
    assert names(sets, "test") == [f"images/{path.name}" for path in reference._images]
    assert [sets.images.label(i) for i in sets.test.tolist()] == reference._labels
    assert [len(sets.train), len(sets.val)] == [14, 2]
    (base / "images" / "Abyssinian_10.jpg").unlink()
    with pytest.raises(UserError, match=r"Abyssinian_10\.jpg"):
        load_splits(config("oxford_pets", root=str(tmp_path)))


def test_voc2007_labels_are_all_classes_but_difficult_ones(tmp_path: Path, config: Load, paint: Paint) -> None:
    with pytest.raises(
        UserError, match=r"VOCDetection\('\S+/downloads', year='2007', image_set='trainval', download=True"
    ):
        load_splits(config("voc2007", root=str(tmp_path / "downloads")))
    base = tmp_path / "VOCdevkit" / "VOC2007"
    (base / "ImageSets" / "Main").mkdir(parents=True)
    (base / "Annotations").mkdir()
    objects = [[("dog", 0), ("cat", 0), ("dog", 0)], [("car", 0), ("dog", 1)], [("bus", 1)]]
    for i in range(24):
        paint(base / "JPEGImages" / f"{i:06d}.jpg", 9, 8)
        annotation = "".join(
            f"<object><name>{n}</name><difficult>{d}</difficult><part><name>head</name></part></object>"
            for n, d in objects[i % 3]
        )
        (base / "Annotations" / f"{i:06d}.xml").write_text(f"<annotation>{annotation}</annotation>")
    for part, numbers in {"trainval": range(18), "test": range(18, 24)}.items():
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{i:06d}\n" for i in numbers))
    sets = load_splits(config("voc2007", root=str(tmp_path)))
    cat, dog, car = (VOC_CLASSES.index(name) for name in ("cat", "dog", "car"))
    assert sets.images.multilabel
    assert [sets.images.label(i) for i in range(3)] == [(cat, dog), (car,), ()]
    assert [sets.images.difficult(i) for i in range(3)] == [(), (dog,), (VOC_CLASSES.index("bus"),)]
    assert sets.trainval().tolist() == list(range(18))
    assert [len(sets.train), len(sets.val), len(sets.test)] == [15, 3, 6]  # one of each kind for validation
    assert len({sets.images.label(i) for i in sets.val.tolist()}) == 3
    file = base / "Annotations" / "000003.xml"  # your own data in VOC's layout
    file.write_text(file.read_text().replace("cat", "raccoon"))
    with pytest.raises(
        UserError, match=r"000003\.xml lists an object called 'raccoon', which is not a class of VOC 2007"
    ):
        load_splits(config("voc2007", root=str(tmp_path)))


def test_flowers102_has_three_official_parts(tmp_path: Path, config: Load, paint: Paint) -> None:
    from scipy.io import savemat  # type: ignore[import-untyped]

    base = tmp_path / "flowers-102"
    base.mkdir()
    savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 3, 1, 2, 3]], dtype=np.uint8)})
    savemat(base / "setid.mat", {"trnid": [[1, 2, 3]], "valid": [[5]], "tstid": [[4, 6]]})
    for number in range(1, 7):
        paint(base / "jpg" / f"image_{number:05d}.jpg", 9, 8)
    sets = load_splits(config("flowers102", root=str(tmp_path)))
    assert [sets.images.label(i) for i in range(6)] == [0, 1, 2, 1, 0, 2]
    assert names(sets, "test") == ["jpg/image_00004.jpg", "jpg/image_00006.jpg"]


def test_incomplete_cifar10_says_how_to_get_it(tmp_path: Path, config: Load) -> None:
    with pytest.raises(UserError, match="download=True"):
        load_splits(config("cifar10", root=str(tmp_path)))
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n")  # never unpickled
    with pytest.raises(UserError, match="not a complete copy of CIFAR-10"):
        load_splits(config("cifar10", root=str(tmp_path)))


REAL = {"cifar10": (50_000, 10_000, "cifar-10-batches-py"), "flowers102": (2_040, 6_149, "flowers-102")}


@pytest.mark.parametrize("name", REAL)
def test_the_real_data_set_is_read(name: str, config: Load) -> None:
    train, test, folder = REAL[name]
    root = os.environ.get("SPPNET_DATA")
    if root is None or not Path(root, folder).is_dir():
        pytest.skip(f"SPPNET_DATA holds no {folder}: reading the real {name} is not tested here")
    sets = load_splits(config(name, root=root))
    assert [len(sets.train) + len(sets.val), len(sets.test)] == [train, test]
    assert sets.images.read(0).size == sets.images.shape(0)[::-1]


class Stripes(ImageSet):
    """The minimal data set of your own, as in the README."""

    classes: Sequence[str] = ("across", "down")

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int) -> Image.Image:
        lines = np.arange(30 + index)[:, None] // 3 % 2 * np.ones((1, 40)) * 255
        return Image.fromarray((lines if index % 2 == 0 else lines.T).astype(np.uint8)).convert("RGB")


class Wrong(Stripes):
    def label(self, index: int) -> int:
        return 2


class Halved(Stripes):
    def split(self) -> dict[str, range]:
        return {"train": range(10), "validation": range(10, 20)}


class Named(Stripes):
    classes = ("one", "one")


class Spoken(Stripes):
    def label(self, index: int) -> Any:
        return "down"


class Yes(Stripes):
    def label(self, index: int) -> bool:
        return index % 2 == 1


class Leaking(Stripes):
    def split(self) -> dict[str, Any]:
        return {"train": range(12), "test": np.arange(10, 20)}


class Masked(Stripes):
    def split(self) -> dict[str, Any]:
        return {"train": np.arange(20) < 10, "test": np.arange(20) >= 10}


class Beyond(Stripes):
    def split(self) -> dict[str, Any]:
        return {"train": range(10), "test": range(10, 21)}


class Indexed(Stripes):
    def split(self) -> dict[str, Any]:
        return {"train": np.nonzero(np.arange(20) < 10), "test": np.arange(10, 20)}


class Uneven(Stripes):
    def split(self) -> dict[str, Any]:
        return {"train": [[1], [2, 3]], "test": [4]}


class Alone(Stripes):
    classes = ("one",)


def data_config(config: Load, cls: type[ImageSet], **arguments: int) -> Data:
    return config("digits", _target_=f"{cls.__module__}.{cls.__qualname__}", name="mine", **arguments)


def test_your_own_data_set_needs_three_methods(config: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", __name__)
    sets = load_splits(data_config(config, Stripes, count=40))
    assert [len(sets.train), len(sets.val), len(sets.test)] == [28, 6, 6]
    assert sets.images.shape(3) == (40, 33)
    assert fingerprint(data_config(config, Stripes, count=40)) != fingerprint(data_config(config, Stripes, count=41))
    with pytest.raises(UserError, match="width"):
        load_splits(data_config(config, Stripes, width=40))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Wrong, "number of classes, 2"),
        (Alone, "only one class"),
        (Halved, "train, validation"),
        (Named, "two classes called one"),
        (Spoken, r"label\(0\) is 'down'.*integers"),
        (Yes, r"label\(0\) is False.*integers"),
        (Leaking, r"parts 'train' and 'test' must not overlap, but 2 image\(s\) are in both \(for example 10\)"),
        (Masked, r"part 'train' must be a list of distinct indices"),
        (Indexed, r"part 'train' must be a list of distinct indices"),
        (Uneven, r"part 'train' must be a list of distinct indices"),
        (Beyond, r"part 'test' must be a list of distinct indices \(integers from 0 to 19\)"),
    ],
)
def test_an_inconsistent_data_set_is_refused(
    config: Load, monkeypatch: pytest.MonkeyPatch, cls: type[ImageSet], message: str
) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", __name__)
    with pytest.raises(UserError, match=message):
        load_splits(data_config(config, cls))


class Unnamed(Stripes):
    classes = None  # type: ignore[assignment]


class Numbered(Stripes):
    classes = np.array(["one", "two"])  # type: ignore[assignment]


class Lettered(Stripes):
    classes = tuple(np.array(["one", "two"]))


class Array(Stripes):
    def read(self, index: int) -> Any:
        return np.zeros((4, 4, 3), np.uint8)


class Fails(Stripes):
    def read(self, index: int) -> Image.Image:
        raise ValueError("no file")


class Turned(Stripes):
    def shape(self, index: int) -> tuple[int, int]:
        return self.read(index).size  # (width, height)


class Shapeless(Stripes):
    def shape(self, index: int) -> Any:
        return None


class Unreadable(Stripes):
    def read(self, index: int) -> Image.Image:
        raise DataError(f"{index} is damaged")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Unnamed, r"Unnamed.classes must be a list of the names of the classes, not NoneType"),
        (Numbered, r"Numbered.classes must be a list of the names of the classes, not ndarray"),
        (Lettered, r"Lettered.classes\[0\] must be a str, not str_"),
        (Array, r"Array.read\(0\) must return an image of PIL, not ndarray"),
        (
            Fails,
            r"Fails.read\(0\) raises ValueError: no file; an image that cannot be read raises sppnet.data.DataError",
        ),
        (Turned, r"Turned.shape\(0\) is \(40, 30\), but the \(height, width\) of read\(0\) is \(30, 40\)"),
        (Shapeless, r"Shapeless.shape\(0\) raises TypeError"),
    ],
)
def test_a_data_set_of_ones_own_is_tried_on_its_first_images(cls: type[ImageSet], message: str) -> None:
    with pytest.raises(UserError, match=message):
        try_own_images(cls())
    for right in (Stripes, Unreadable):  # data.bad_files says what happens to a damaged image
        try_own_images(right())
