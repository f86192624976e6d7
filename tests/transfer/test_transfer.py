"""`sppnet transfer` from the command line to its rows: features, splits, SVM, tables and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.svm import LinearSVC

from calling import SMALL, Caller
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.data.crops import EvalRegions, render
from sppnet.data.datasets.file_names import SUFFIXES
from sppnet.models.backbones import Tiny
from sppnet.models.network import build_network
from sppnet.pyramid import spatial_pyramid_pool2d
from sppnet.statistics import Spread, spread
from sppnet.transfer import feature_file
from sppnet.transfer.splits import Split, draw_splits
from sppnet.transfer.svm import _in_span, accuracies
from tiers import some_quick

COLOURS = {"cat": (250, 20, 20), "dog": (20, 20, 250), "emu": (20, 250, 20)}
QUICK = ("data.num_workers=0", "compute.num_threads=1", "progress=none", "sizes.test=[32]")
SPLITS = ("splits=3", "per_class.train=4", "per_class.test=3")
GIVEN = ("data=folder", "data.root=pets", *QUICK, *SPLITS, "backbone.width=4", "backbone.weights=tiny.pth")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Eight images of each of three classes, in many shapes, and `tiny.pth`, the weights of a narrow backbone."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(8):
            path = tmp_path / "pets" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = draw.integers(-20, 21, (40 + 3 * number, 70 - 4 * number, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
    torch.manual_seed(1)
    torch.save(Tiny(width=4).state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "pets"


def rows(study: str = "runs/default") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(study, "transfer").glob("*.json"))]


def cached(cache: str = "runs/.cache") -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Path(cache).glob("features-*.npy")}


def features(length: int, cache: str = "runs/.cache") -> npt.NDArray[np.float32]:
    [features_ND] = [x for name in cached(cache) if (x := np.load(Path(cache, name))).shape[1] == length]
    return np.asarray(features_ND)


def inputs(pets: Path, fit: str, size: int = 32) -> list[torch.Tensor]:
    """The network's input for every image, as batches of one."""
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    batches = []
    for path in sorted(path for path in pets.rglob("*") if path.suffix in SUFFIXES):
        image = Image.open(path)
        width, height = image.size
        ratio = round(max(image.size) / min(image.size) / 0.125) * 0.125
        shape = {True: (size, round(size * ratio)), False: (round(size * ratio), size)}[width > height]
        region = EvalRegions(fit, 0.875).region(width, height)
        x = torch.from_numpy(render(image, region, *(shape if fit == "full" else (size, size))))
        batches.append(((x / 255 - mean) / std)[None])
    return batches


def test_a_row_is_complete_and_computed_once(sppnet: Caller, pets: Path) -> None:
    done = sppnet("transfer", *GIVEN, "pooling.bins=[2,1]")
    assert done.code == 0, done.err
    [row] = rows()
    assert done.figure("transfer/accuracy") == row["figures"]["accuracy"] == 1.0  # three colours
    assert row["figures"].keys() == {"accuracy", "accuracy_std", "overall", "overall_std"}
    assert [split["per_class"] for split in row["splits"]] == [dict.fromkeys(COLOURS, 1.0)] * 3
    assert row.keys() >= {"identity", "commit", "machine", "seed", "seconds", "packages", "bad_files"}
    assert str(pets.parent) not in json.dumps(row["identity"])
    assert not list(Path("runs").rglob("*.tmp"))
    stamps, written = cached(), Path("runs/default/transfer").stat().st_mtime_ns
    again = sppnet("transfer", *GIVEN, "pooling.bins=[2,1]")
    assert "exists" in again.out
    assert again.figure("transfer/accuracy") == 1.0
    assert Path("runs/default/transfer").stat().st_mtime_ns == written
    forced = sppnet("transfer", *GIVEN, "pooling.bins=[2,1]", "force=true")
    assert "exists" not in forced.out
    assert Path("runs/default/transfer").stat().st_mtime_ns != written
    assert rows()[0]["splits"] == row["splits"]
    assert cached() == stamps


def test_one_pass_serves_all_pooled_layers_splits_and_constants(sppnet: Caller, pets: Path) -> None:
    first = sppnet("transfer", *GIVEN)
    assert "difference" not in first.out
    stamps = cached()
    assert len(stamps) == 3
    for words in (["layer=pool"], ["layer=gap", "svm.C=10"], ["splits=2"]):
        assert sppnet("transfer", *GIVEN, *words).code == 0
        assert cached() == stamps
    table = sppnet("transfer", *GIVEN, "views=warp", "layer=conv").out
    assert len(cached()) == 3 + 4
    assert table.count("(equal in every split)") == 6  # of four rows, all perfect; that of two splits is not compared
    assert all(f" {layer} " in table for layer in ("spp 6, 3, 2, 1", "pool 6", "gap", "conv"))


@pytest.mark.parametrize("fit", ["center", "warp", "full"])
def test_features_are_those_of_a_plain_forward_pass(sppnet: Caller, pets: Path, fit: str) -> None:
    trunk = Tiny(width=4).eval()
    trunk.load_state_dict(torch.load(pets.parent / "tiny.pth", weights_only=True))
    layer = "gap" if fit == "full" else "conv"
    assert sppnet("transfer", *GIVEN, f"views={fit}", f"layer={layer}", "pool_to=3", "pooling.bins=[2,1]").code == 0
    with torch.inference_mode():
        maps = [trunk(x) for x in inputs(pets, fit)]
    expected = {
        "spp": [spatial_pyramid_pool2d(x, (2, 1)) for x in maps],
        "pool": [F.adaptive_max_pool2d(x, 3) for x in maps],
        "gap": [x.mean((2, 3)) for x in maps],
    } | ({} if fit == "full" else {"conv": maps})
    for vectors in expected.values():
        plain = F.normalize(torch.cat([x.flatten(1) for x in vectors]))
        stored = features(plain.shape[1])
        np.testing.assert_allclose(stored, plain.numpy(), atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-6)


def test_keys_without_an_effect_on_the_features_are_named(sppnet: Caller, pets: Path) -> None:
    words = ("layer=pool", "data/crop=random_resized", "data.crop_pct=0.5", "pyramid=l1_3", "seed=1")
    effective = ("data.batch_size=3", "data.mean=[0,0,0]", "pooling.kernel=plain", "compute.channels_last=true")
    done = sppnet("transfer", *GIVEN, *words, *effective)
    assert done.code == 0, done.err
    reasons = {"data/crop": "in sppnet transfer", "data.crop_pct": "in sppnet transfer", "pyramid": "with layer=pool"}
    assert done.err.splitlines() == [
        f"sppnet: warning: {key} has no effect {reason}"
        for key, reason in {**reasons, "seed": "with pretrained weights"}.items()
    ]


def test_a_checkpoint_gives_its_fully_connected_layers(sppnet: Caller, pets: Path) -> None:
    words = ("data=folder", "data.root=pets", "data.num_workers=0", "head.hidden=[7,6]")
    run = sppnet("train", *SMALL, *words, "trainer.max_epochs=1").run
    from_run = (f"checkpoint={run}", *SPLITS, "sizes.test=[32]", "views=full")
    done = sppnet("transfer", *from_run, "layer=fc2", "paths.cache=kept")
    assert done.code == 0, done.err
    assert "trained on some of the test images of data=folder" in done.err
    state = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    cfg = load(Config, state["sppnet"]["config"])
    network = build_network(cfg.backbone, cfg.pooling, cfg.head, 3, 24).eval()
    network.load_state_dict({key.removeprefix("network."): value for key, value in state["state_dict"].items()})
    with torch.inference_mode():
        pooled = [network.pooling(network.backbone(x)) for x in inputs(pets, "full")]
        assert isinstance(network.head, torch.nn.Sequential)
        for length, stages in ((7, network.head[:1]), (6, network.head[:2])):
            plain = F.normalize(torch.cat([stages(x) for x in pooled]))
            assert (plain >= 0).all()  # behind the ReLU
            np.testing.assert_allclose(features(length, "kept"), plain.numpy(), atol=2e-6)
    assert sppnet("transfer", *from_run, "layer=pooling", "paths.cache=other").code == 0
    pyramids = [x for name in cached("other") if (x := np.load(Path("other", name))).shape[1] == 5 * 8]
    assert len(pyramids) == 2, "layer=spp, which is cheap, and layer=pooling"
    assert np.array_equal(*pyramids)
    stamps = cached("kept")
    assert sppnet("transfer", *from_run, "layer=fc1", "paths.cache=kept").code == 0
    assert cached("kept") == stamps
    pyramid = sppnet("transfer", *from_run, "layer=spp", "pooling.bins=[3]", "study=other")
    assert pyramid.code == 0, pyramid.err
    assert rows("runs/other")[0]["row"]["length"] == 9 * 8
    for override, message in (
        ("pooling.bins=[3]", "pooling.bins=[3] is not allowed with layer=fc1: the checkpoint was trained with [2, 1]"),
        ("pyramid.bins=[3]", "pooling.bins=[3] is not allowed with layer=fc1"),
        ("seed=5", "seed=5"),
        ("data.mean=[0,0,0]", "data.mean"),
    ):
        refused = sppnet("transfer", *from_run, "layer=fc1", override)
        assert (refused.code, message in refused.err) == (2, True), refused.err
    lone = pets.parent / "lone.ckpt"
    lone.write_bytes((run / "checkpoints/best.ckpt").read_bytes())
    same = sppnet("transfer", *from_run[1:], f"checkpoint={lone}", "layer=fc2")
    assert "exists" in same.out, same.err  # the same weights


def test_features_of_a_damaged_file_or_a_changed_image_are_computed_again(sppnet: Caller, pets: Path) -> None:
    sppnet("transfer", *GIVEN)
    before = {path: path.read_bytes() for path in Path("runs/.cache").glob("features-*")}
    for (path, good), damage in zip(before.items(), ("a bit", "cut", "empty"), strict=True):
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        path.write_bytes({"a bit": flipped, "cut": good[:-100], "empty": b""}[damage])
    for layer in ("pool", "spp", "gap"):
        assert sppnet("transfer", *GIVEN, f"layer={layer}", "force=true").code == 0
    assert {path: path.read_bytes() for path in before} == before
    Image.new("RGB", (50, 60), COLOURS["dog"]).save(pets / "cat/0.png")
    sppnet("transfer", *GIVEN)
    assert len(cached()) == 6
    shutil.copy(pets / "cat/1.png", pets / "cat/1 copy.png")
    for _ in range(2):  # also when the row exists
        assert "1 of 25 images is in the data set a second time" in sppnet("transfer", *GIVEN).err
    assert sppnet("transfer", *GIVEN, "data.duplicates=error").code == 2


def test_caltech101_in_its_own_layout(sppnet: Caller, pets: Path) -> None:
    (pets / "emu").rename(pets / "BACKGROUND_Google")
    (pets.parent / "caltech").mkdir()
    pets.rename(pets.parent / "caltech/101_ObjectCategories")
    words = (*GIVEN[2:], "data=caltech101", "data.root=caltech", "layer=gap", "views=full")
    done = sppnet("transfer", *words, "splits=1")
    assert done.code == 0, done.err
    [row] = rows()
    assert set(row["splits"][0]["per_class"]) == {"BACKGROUND_Google", "cat", "dog"}
    assert "accuracy_std" not in row["figures"]  # one split has none
    assert sppnet("transfer", *words, "splits=1", "svm.C=2").out.endswith("(one split: no intervals)\n")


def test_a_folders_own_parts_are_the_train_and_test_images(sppnet: Caller, pets: Path, tmp_path: Path) -> None:
    """Colours are swapped in the test part, so that training on it shows."""
    swapped = {"cat": "dog", "dog": "emu", "emu": "cat"}
    for name in COLOURS:
        for number in range(8):
            label, part = (name, "train") if number < 4 else (name, "val") if number == 4 else (swapped[name], "test")
            path = tmp_path / "parts" / part / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(pets / name / f"{number}.png").save(path)
    words = ("data=folder", "data.root=parts", *QUICK, *GIVEN[-2:])
    done = sppnet("transfer", *words, "per_class.train=4")
    assert done.code == 0, done.err
    protocol = "folder: the data set's own parts, 15 images to train on (train and val), 9 to test on"
    assert done.out.splitlines()[0] == protocol
    assert done.out.count(protocol) == 2  # before the work, and above the table
    assert done.figure("transfer/accuracy") == 0  # no test image was trained on
    assert "per_class.train has no effect because the data set has its own parts" in done.err
    [row] = rows()
    assert (len(row["splits"]), row["seed"], row["images"]) == (1, None, 24)
    stamps = cached()
    drawn = sppnet("transfer", *words, "splits=3", "per_class.train=5", "per_class.test=2")
    assert drawn.code == 0, drawn.err
    assert "3 random splits of all images, ignoring the data set's own parts (train, val, test)" in drawn.out
    assert drawn.figure("transfer/accuracy") > 0
    assert len(rows()) == 2
    assert "difference" not in drawn.out  # other images are tested
    assert cached() == stamps  # features are of every image, whatever the protocol
    shutil.rmtree("parts/test/cat")
    for path in Path("parts").glob("[tv][ra]*/dog/*"):
        path.write_bytes(b"no picture")
    lacking = sppnet("transfer", *words, "data.bad_files=skip")
    assert lacking.code == 0, lacking.err
    assert "not in the test part and are left out of the mean: cat" in lacking.err
    assert "lack training images, so they are always misclassified: dog" in lacking.err
    [last] = [row for row in rows() if row["bad_files"]]
    assert last["splits"][0]["per_class"] == {"cat": None, "dog": 0.0, "emu": 1.0}


def test_no_warning_of_test_images_in_training_with_the_sets_own_parts(sppnet: Caller, pets: Path) -> None:
    for path in sorted(pets.rglob("*.png")):
        part = pets.parent / "parts" / ("test" if path.stem in "67" else "train") / path.parent.name
        part.mkdir(parents=True, exist_ok=True)
        path.rename(part / path.name)
    words = ("data=folder", "data.root=parts", "data.num_workers=0", "data.batch_size=4", "trainer.max_epochs=1")
    run = sppnet("train", *SMALL, *words).run
    done = sppnet("transfer", f"checkpoint={run}", "sizes.test=[32]")
    assert done.code == 0, done.err
    assert "trained on some" not in done.err
    drawn = sppnet("transfer", f"checkpoint={run}", "sizes.test=[32]", *SPLITS)
    assert "trained on some of the test images of data=folder" in drawn.err


def test_equal_features_are_reported(sppnet: Caller, pets: Path) -> None:
    for path in pets.rglob("*.png"):  # a square image is the same whole and warped
        Image.open(path).resize((40, 40)).save(path)
    for words in (["views=warp"], ["views=full"], ["views=full", "svm.C=2"]):
        done = sppnet("transfer", *GIVEN, "layer=gap", *words)
        assert done.code == 0, done.err
    assert done.out.count("(the same features)") == 1
    assert "may be zero" not in done.out
    for words in (["views=warp"], ["views=full"]):
        done = sppnet("transfer", *GIVEN, "layer=gap", *words, "splits=1", "study=one")
    assert "the same features" in done.out


def test_a_file_of_features_is_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "cache/features-x.npy"

    def write_and_stop() -> None:
        with feature_file.writing({"a": path}, 3) as files:
            files["a"].put([1], np.ones((1, 4), dtype=np.float32))
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert not list(tmp_path.iterdir())
    with (
        feature_file.writing({"a": path}, 3) as first,
        feature_file.writing({"a": path}, 3) as second,
    ):  # two jobs at a time
        for files in (first, second):
            files["a"].put([2, 0], np.arange(8, dtype=np.float32).reshape(2, 4))
    features_ND = feature_file.load(path, 3)
    assert features_ND is not None
    np.testing.assert_array_equal(features_ND, [[4, 5, 6, 7], [np.nan] * 4, [0, 1, 2, 3]])
    assert feature_file.load(path, 4) is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_splits_are_seeded_disjoint_and_by_class() -> None:
    labels = [0] * 20 + [1] * 7 + [2] * 9
    settings = {"count": 4, "train": 5, "test": 6, "seed": 3}
    splits = draw_splits(labels, range(36), ["a", "b", "c"], settings)
    for train, test in splits:
        assert not set(train.tolist()) & set(test.tolist())
        assert [[labels[i] for i in part.tolist()].count(c) for part in (train, test) for c in range(3)] == [
            *(5, 5, 5),
            *(6, 2, 4),
        ]
    assert len({tuple(split.train.tolist()) for split in splits}) == 4
    again = draw_splits(labels, range(36), ["a", "b", "c"], settings | {"count": 2})
    assert [s.train.tolist() for s in again] == [s.train.tolist() for s in splits[:2]]
    reseeded = draw_splits(labels, range(36), ["a", "b", "c"], settings | {"seed": 4})
    assert [s.train.tolist() for s in reseeded] != [s.train.tolist() for s in splits]
    fewer = draw_splits(labels[:27], range(27), ["a", "b"], settings)  # without a class, the draw of the others stays
    assert all(set(a.train.tolist()) < set(b.train.tolist()) for a, b in zip(fewer, splits, strict=True))


def test_the_svm_equals_scikit_learns_on_the_plain_features() -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = draw.standard_normal((60, 400)) + 0.2 * draw.standard_normal((3, 400))[labels]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    x[6] = x[3]  # twins
    split = Split(np.arange(30), np.arange(30, 60))
    plain = LinearSVC(C=2, dual=False, tol=1e-8).fit(x[:30], labels[:30])
    train, test = _in_span(x, split)
    assert train.shape == (30, 30)
    turned = LinearSVC(C=2, dual=False, tol=1e-8).fit(train, labels[:30])
    np.testing.assert_allclose(turned.decision_function(test), plain.decision_function(x[30:]), atol=1e-4)
    result = accuracies(x, labels, split, 3, 2.0)
    assert result["overall"] == (plain.predict(x[30:]) == labels[30:]).mean()
    assert result["converged"]


def test_the_interval_of_a_paired_difference() -> None:
    difference = spread([0.5 - 0.4, 0.7 - 0.5, 0.9 - 0.6])
    assert difference is not None
    half = 4.302653 * 0.1 / 3**0.5  # Student's t for two degrees of freedom, deviation 0.1
    assert (difference.mean, difference.half) == pytest.approx((0.2, half), abs=1e-6)
    assert spread([0.5]) == Spread(1, 0.5, None, None)


def test_unreadable_images_are_named_or_left_out(sppnet: Caller, pets: Path) -> None:
    for number in (0, 1):
        (pets / f"cat/{number}.png").write_bytes(b"no picture")
    refused = sppnet("transfer", *GIVEN)
    assert refused.code == 2
    [line] = refused.err.splitlines()
    assert "cat/0.png" in line or "cat/1.png" in line
    assert not Path("runs").exists()
    skipped = sppnet("transfer", *GIVEN, "views=full", "data.bad_files=skip")
    assert skipped.code == 0, skipped.err
    assert rows()[0]["bad_files"] == ["cat/0.png", "cat/1.png"]
    assert skipped.err.count("left out") == 3  # each, and how many
    assert "in the data set a second time" not in skipped.err  # two unreadable files are no duplicates
    again = sppnet("transfer", *GIVEN, "views=full", "layer=gap")  # stored features with gaps are not used
    assert again.code == 2
    assert "cannot be read" in again.err
    (pets / "cat/2.png").write_bytes(b"no picture")
    (pets / "cat/3.png").write_bytes(b"no picture")
    few = sppnet("transfer", *GIVEN, "data.bad_files=skip")
    assert few.code == 2
    assert "cat (4)" in few.err


def test_a_multi_label_set_is_ranked_on_its_own_parts(sppnet: Caller, tmp_path: Path) -> None:
    """A small VOC 2007: red is a cat, blue a dog, green a person.

    The first test image is red, and its only cat is marked difficult; so is the cat of a blue image of trainval.
    """
    base = tmp_path / "voc/VOCdevkit/VOC2007"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (base / folder).mkdir(parents=True)
    red, blue, green = (COLOURS[name] for name in ("cat", "dog", "emu"))
    kinds: list[tuple[tuple[int, ...], list[tuple[str, int]]]] = [
        (red, [("cat", 0)]), (blue, [("dog", 0)]), (green, [("person", 0)])
    ]  # fmt: skip
    annotated = [*kinds * 6, (blue, [("dog", 0), ("cat", 1)]), (red, [("cat", 1)]), *kinds * 3]
    for number, (colour, objects) in enumerate(annotated):
        Image.new("RGB", (40 + number, 50), colour).save(base / f"JPEGImages/{number:06d}.jpg", quality=95)
        text = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in objects)
        (base / f"Annotations/{number:06d}.xml").write_text(f"<annotation>{text}</annotation>")
    for part, numbers in {"trainval": range(19), "test": range(19, len(annotated))}.items():
        (base / f"ImageSets/Main/{part}.txt").write_text("".join(f"{i:06d}\n" for i in numbers))
    words = (*QUICK, "data=voc2007", "data.root=voc", "backbone.width=4", "layer=gap")
    done = sppnet("transfer", *words)
    assert done.code == 0, done.err
    assert "the means leave them out" in done.err
    [row] = rows()
    assert done.figure("transfer/map") == done.figure("transfer/map_all") == 1.0
    assert {name for name, value in row["splits"][0]["per_class"].items() if value == 1} == {"cat", "dog", "person"}
    assert row["row"]["protocol"] == "the data set's own parts, 19 images to train on (train), 10 to test on"
    assert row["seed"] is None
    annotation = base / "Annotations/000019.xml"
    annotation.write_text(annotation.read_text().replace(">1<", ">0<").replace("cat", "bus"))
    changed = sppnet("transfer", *words, "splits=3")
    assert "warning: splits has no effect" in changed.err
    per_class = next(row for row in rows() if row["hash"] in changed.out)["splits"][0]["per_class"]
    assert per_class["cat"] < 1  # the image counts against the cats now
    assert per_class["dog"] == 1


NAMES_AND_VALUES = [
    (["layer=fly"], ["layer=fly", "conv, pool, spp"]),
    (["layer=fc1"], ["layer=fc1", "checkpoint"]),
    (["pool_to=0"], ["pool_to=0", "from 1 to"]),
    (["svm.C=0"], ["svm.C=0", "greater than 0"]),
    (["svm=5"], ["svm=5", "mapping"]),
    (["+svm.loss=hinge"], ["svm.loss", "svm has C"]),
    (["~svm.C"], ["svm.C is missing"]),
    (["splits=0"], ["splits=0", "from 1 to"]),
    (["splits=own"], ["splits=own", "null or an integer"]),
    (["per_class.train=no"], ["per_class.train=no", "integer"]),
    (["+per_class.val=3"], ["per_class.val", "per_class has test, train"]),
    (["views=ten"], ["views=ten", "center, warp or full"]),
    (["views=full", "layer=conv"], ["layer=conv", "views=full"]),
    (["sizes.test=[48,64]"], ["sizes.test=[48, 64]", "one size"]),
    (["optim.lr=1"], ["optim.lr has no effect"]),
    (["sizes.train=[40]"], ["sizes.train has no effect"]),
    (["trainer.limit_test_batches=3"], ["trainer.limit_test_batches has no effect"]),
    (["per_class.train=200"], ["per_class.train=200", "no test images for"]),
    (["data=folder", "data.root=no/such"], ["no/such"]),
    (["checkpoint=no/such"], ["no/such", "no such file"]),
    (["backbone.weights=no/such.pth"], ["backbone.weights=no/such.pth"]),
    (["backbone=zf5", "sizes.test=[20]"], ["sizes.test: size 20", "the smallest size that works is"]),
    (["pooling.rule=sliding", "views=full"], ["pooling.rule=sliding", "whole images"]),
    (["trainer.accelerator=cpu", "trainer.precision=16-mixed"], ["16-mixed"]),
]


@pytest.mark.parametrize(("overrides", "parts"), some_quick(NAMES_AND_VALUES, 4), ids=lambda v: " ".join(v))
def test_a_mistake_is_one_line_and_leaves_nothing(
    sppnet: Caller, tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    refused = sppnet("transfer", *overrides)
    assert refused.code == 2, refused.err or refused.out
    [line] = refused.err.splitlines()
    assert all(part in line for part in parts), line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_maps_that_gem_cuts_off_are_named(sppnet: Caller) -> None:
    small = [word for word in SMALL if not word.startswith(("backbone", "pyramid", "sizes"))]
    trunk = ("backbone=torchvision", "backbone.name=mobilenet_v3_small", "sizes.train=[40,32]", "sizes.test=[40]")
    run = sppnet("train", *small, *trunk, "pooling=spp", "pooling.bins=[1]", "trainer.max_epochs=1").run
    for words in ((*trunk[:2], "layer=pooling", "pooling=gem"), (f"checkpoint={run}", "layer=spp", "pooling.pool=gem")):
        done = sppnet("transfer", *words, "splits=1", "sizes.test=[40]", "per_class.train=5", "per_class.test=5")
        assert done.code == 0, done.err
        assert done.err.count("gem takes negative values for 0") == 1
    assert "gem takes" not in sppnet("transfer", f"checkpoint={run}", "layer=spp", "splits=1").err


def test_an_own_pooling_without_repeatable_features_is_refused(sppnet: Caller) -> None:
    """Its features would depend on `data.batch_size`, which is not part of a row's identity."""
    Path("mine/pooling").mkdir(parents=True)
    for name in ("OverBatch", "Noisy", "Mean"):
        Path(f"mine/pooling/{name}.yaml").write_text(f"_target_: own_parts.{name}\n")
    words = ("--config-dir", "mine", "allow=own_parts", "layer=pooling", "splits=1", "sizes.test=[24]")
    for name, problem in (("OverBatch", "gives an image other outputs beside other images"), ("Noisy", "draws random")):
        refused = sppnet("transfer", *words, f"pooling={name}")
        assert refused.code == 2, refused.err
        assert f"pooling: {name} {problem}" in refused.err
    assert not list(Path().rglob("*.json"))
    assert sppnet("transfer", *words, "pooling=Mean").code == 0


def test_a_run_without_such_a_layer_and_several_sizes(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "sizes.test=[24,32]", "trainer.max_epochs=1").run
    before = sorted(Path("runs").rglob("*"))
    for overrides, message in (
        (["layer=fc2", "sizes.test=[24]"], "hidden layers: fc1 (head"),
        ([], "sizes.test=[24, 32]"),
    ):
        refused = sppnet("transfer", f"checkpoint={run}", *overrides)
        assert refused.code == 2
        assert message in refused.err
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.slow
def test_a_sweep_fills_the_table(sppnet: Caller, pets: Path) -> None:
    done = sppnet("transfer", "-m", *GIVEN, "layer=pool,spp", "views=center,full", "launch=processes")
    assert done.code == 0, done.err
    assert len(rows()) == 4
    assert sppnet("transfer", *GIVEN, "layer=spp").out.count(" - ") == 6


@pytest.mark.slow
def test_a_study_with_a_row_to_compare_with_is_reported_with_its_transfers(sppnet: Caller, pets: Path) -> None:
    words = ("train", "-m", *SMALL, "trainer.max_epochs=1", "study=y")
    assert sppnet(*words, "pooling=gap,gem").code == 0
    run = next(Path("runs/y").glob("*-gem-*"))
    assert sppnet("transfer", f"checkpoint={run}", "layer=pooling", "splits=2", "per_class.train=20").code == 0
    done = sppnet("report", "study=y", "report.compare=gap")
    assert done.code == 0, done.err
    assert {path.name for path in Path("runs/y/report").glob("*.md")} == {"y.md", "y_transfer.md"}
    assert "minus gap" in Path("runs/y/report/y.md").read_text()
