"""Which images of another data set a trained network is tested on."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sppnet.config.load import replace
from sppnet.config.schema import Data
from sppnet.data import ImageSet, Splits, build_images, load_splits, load_tested
from sppnet.errors import UserError

Load = Callable[..., Data]
CLASSES = ["ant", "bee", "cat"]


def folder(root: Path, *names: str, count: int = 4) -> Path:
    """Write `count` files with an image suffix, but no image, in each of the folders `names`."""
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(name.encode())
    return root


@pytest.fixture
def trained(tmp_path: Path, config: Load) -> dict[str, Any]:
    """What a checkpoint stores about its training data, and under `test` the names of the run's test images."""
    cfg = config("folder", root=str(folder(tmp_path / "trained", *CLASSES)), split={"val": 0.25, "test": 0.5})
    images = build_images(cfg)
    stored = {"classes": CLASSES, "multilabel": False, "fingerprint": images.fingerprint()}
    return stored | {"config": {"data": cfg.plain()}, "test": names(load_splits(cfg, images))}


def names(sets: Splits) -> list[str]:
    return [sets.images.name(i) for i in sets.test.tolist()]


def load(
    trained: dict[str, Any], root: Path, chosen: bool = True, keys: Mapping[str, Any] = {}
) -> tuple[Splits, list[str]]:
    cfg = replace(Data.model_validate(trained["config"]["data"]), {"root": str(root), **keys})
    return load_tested(cfg, build_images(cfg), trained, chosen)


def test_of_other_data_all_images_are_tested(trained: dict[str, Any], tmp_path: Path) -> None:
    sets, notices = load(trained, folder(tmp_path / "new", *CLASSES, count=5))
    assert len(sets.test) == 15
    assert [len(sets.train), len(sets.val)] == [0, 0]
    assert [f"data.root={tmp_path / 'new'} is not the data set that the net" in line for line in notices] == [True]
    _, notices = load(trained, tmp_path / "new", keys={"split.seed": 1})
    assert "data.split has no effect" in notices[1]


@pytest.mark.parametrize("parts", [["test"], ["train", "Testing"], ["train", "val"], ["val"], ["train", "val", "test"]])
def test_of_other_data_with_parts_the_test_part_is_tested(
    trained: dict[str, Any], tmp_path: Path, parts: list[str]
) -> None:
    new = folder(tmp_path / "new", *(f"{part}/{name}" for part in parts for name in CLASSES))
    sets, notices = load(trained, new, keys={"split.fold": 1})  # has no effect on official parts
    assert names(sets) == [f"{parts[-1]}/{name}/{i}.png" for name in CLASSES for i in range(4)]
    assert ("has no test/" in "".join(notices)) == (parts[-1] == "val")


def test_the_data_trained_on_keep_their_split_wherever_they_lie(trained: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "trained", tmp_path / "copy")
    (tmp_path / "copy" / "dog").mkdir()  # a class without images is ignored
    (tmp_path / "copy" / "ant" / "notes.txt").touch()
    sets, notices = load(trained, tmp_path / "copy")
    assert names(sets) == trained["test"]
    assert len(sets.test) == 6
    assert len(notices) == 1
    assert "1 .txt" in notices[0]
    with pytest.raises(UserError, match="would be tested on training images"):
        load(trained, tmp_path / "copy", keys={"split.seed": 1})


def test_an_official_test_part_does_not_depend_on_the_split_of_the_run(config: Load, tmp_path: Path) -> None:
    for part in ("train", "test"):
        folder(tmp_path / "parts" / part, *CLASSES)
    cfg = config("folder", root=str(tmp_path / "parts"))
    images = build_images(cfg)
    trained = {"classes": images.classes, "multilabel": False, "fingerprint": images.fingerprint()}
    trained["config"] = {"data": replace(cfg, {"split.val": 0.01}).plain()}  # like conf/data/imagenet.yaml
    sets, notices = load_tested(cfg, images, trained, True)
    assert {sets.images.name(i).split("/")[0] for i in sets.test.tolist()} == {"test"}
    assert "data.split has no effect" in notices[-1]


def test_data_that_changed_are_tested_only_if_they_were_chosen(trained: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "trained" / "ant" / "new.png").touch()
    with pytest.raises(UserError, match=r"data\.root=.*/trained has changed since the network was trained"):
        load(trained, tmp_path / "trained", chosen=False)
    assert len(load(trained, tmp_path / "trained")[0].test) == 13


def test_classes_are_matched_by_name_and_the_others_are_listed(trained: dict[str, Any], tmp_path: Path) -> None:
    folder(tmp_path / "new", "aardvark", "cat", "yak", count=3)
    (tmp_path / "new" / "bee").mkdir()
    sets, notices = load(trained, folder(tmp_path / "new", "ant", count=2))
    assert {sets.images.name(i): sets.images.label(i) for i in sets.test.tolist()} == {
        **{f"ant/{i}.png": 0 for i in range(2)},
        **{f"cat/{i}.png": 2 for i in range(3)},
    }
    assert list(sets.images.classes) == CLASSES
    assert "6 image(s) of 2 class(es) that the network does not know are left out (aardvark, yak)" in notices[1]
    assert "has no images of 1 of the network's 3 classes (bee)" in notices[2]


def test_one_class_is_enough_for_a_test(trained: dict[str, Any], tmp_path: Path) -> None:
    sets, _ = load(trained, folder(tmp_path / "new", "cat"))
    assert [sets.images.label(i) for i in sets.test.tolist()] == [2] * 4


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["dog", "yak"], "none of the 3 classes that the network was trained on (ant, bee, cat); its own classes are"),
        (["train/ant", "train/bee"], "no test images (its parts: train)"),
    ],
)
def test_nothing_to_test_on_is_an_error(
    trained: dict[str, Any], tmp_path: Path, folders: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(trained, folder(tmp_path / "new", *folders))
    assert message in str(caught.value)


def test_imagenet_without_its_training_images_can_be_tested_on(
    trained: dict[str, Any], tmp_path: Path, config: Load
) -> None:
    cfg = config("imagenet", root=str(folder(tmp_path / "new", "val/bee", "val/cat")))
    sets, _ = load_tested(cfg, build_images(cfg), trained, True)
    assert len(sets.test) == 8
    with pytest.raises(UserError, match=r"has no folder train/ \(found: val\)"):
        load_splits(cfg)


class Several(ImageSet):
    """A multi-label data set, some of whose classes the network may not know."""

    multilabel = True
    classes: Sequence[str] = ("yak", "cat", "ant")

    def __len__(self) -> int:
        return 3

    def label(self, index: int) -> tuple[int, ...]:
        return ((0, 1, 2), (0,), (2,))[index]

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8))


def test_several_labels_are_reduced_to_those_that_the_network_knows(
    trained: dict[str, Any], config: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", __name__)
    cfg = config("digits", _target_=f"{__name__}.Several", name="several")
    with pytest.raises(UserError, match="several labels"):
        load_tested(cfg, build_images(cfg), trained, True)
    sets, notices = load_tested(cfg, build_images(cfg), trained | {"multilabel": True}, True)
    assert [sets.images.label(i) for i in sets.test.tolist()] == [(0, 2), (), (0,)]
    assert "2 label(s) of 1 class(es) that the network does not know are left out (yak)" in notices[1]
