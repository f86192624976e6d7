"""Transforms of training images: where they act, what they draw, and what they must return."""

from __future__ import annotations

import functools
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.transforms import v2

from calling import SMALL, Caller
from sppnet.config.compose import compose_config
from sppnet.config.load import load, replace
from sppnet.config.schema import Augment, Center, Config, Data, Sizes
from sppnet.data import Splits, build_sizes, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.data.seeding import preserved_generators, seed_generators
from sppnet.errors import UserError, format_value
from sppnet.training.preflight import check_augmentation

Load = Callable[..., Data]
V2 = "torchvision.transforms.v2"
OWN = "own_transforms"
FEW = {"val": 0.7}  # of 1,797 images, 270 remain for training
RANDOM = [  # draws from all generators, also inside other transforms
    {"_target_": f"{OWN}.Noise"},
    {
        "_target_": f"{V2}.RandomChoice",
        "transforms": [
            {"_target_": f"{V2}.RandomApply", "p": 0.5, "transforms": [{"_target_": f"{V2}.RandomInvert", "p": 0.5}]},
            {"_target_": f"{V2}.ColorJitter", "contrast": 0.9},
        ],
    },
    {"_target_": f"{V2}.RandomHorizontalFlip"},
]


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", OWN)


@functools.cache
def small() -> Config:
    return compose_config([*SMALL])


def data_module(
    cfg: Data, cache: Path, transforms: Sequence[Any] = (), erasing: float = 0.0, sets: Splits | None = None
) -> DataModule:
    sizes = Sizes(_target_="sppnet.data.Alternating", train=[32, 24], val=[32], test=[32])
    augment = load(Augment, {"flip": True, "color": 0.1, "transforms": list(transforms), "erasing": erasing})
    views = Center(name="center", fit="center", crop_pct=0.875)
    return DataModule(sets or load_splits(cfg), build_sizes(sizes), cfg, augment, views, 0, cache)


def epochs(data: DataModule, count: int = 2) -> list[Any]:
    """All training batches of `count` epochs; the workers persist."""
    loader, batches = data.train_dataloader(), []
    for epoch in range(count):
        taken = epoch * len(loader)
        loader.batch_sampler.taken = lambda n=taken: n  # type: ignore[union-attr]
        batches += list(loader)
    return batches


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a)


def states() -> tuple[str, str, str]:
    return str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state())


@pytest.mark.parametrize("changes", [{"fit": "full"}, {"sampling": "balanced"}], ids=str)
def test_workers_change_nothing_and_no_stream_of_the_process(
    config: Load, tmp_path: Path, changes: dict[str, Any]
) -> None:
    threads = torch.get_num_threads()
    runs, after = [], []
    for number_of_threads, num_workers, transforms in ((2, 0, RANDOM), (1, 2, RANDOM), (1, 0, [])):
        torch.set_num_threads(number_of_threads)
        torch.manual_seed(num_workers)  # the data loader draws a seed for its workers
        cfg = config("digits", num_workers=num_workers, split=FEW, **changes)
        data = data_module(cfg, tmp_path, transforms, erasing=0.5)
        runs.append(epochs(data))
        after.append(states())
        assert torch.get_num_threads() == number_of_threads
    torch.set_num_threads(threads)
    assert all(same(a, b) for a, b in zip(*runs[:2], strict=True))
    assert after[0] == after[2]
    changed = [not torch.equal(a["image"], b["image"]) for a, b in zip(runs[0], runs[2], strict=True)]
    assert all(changed)
    rest = [{key: value for key, value in batch.items() if key != "image"} for batch in runs[0]]
    assert all(same(a, b) for a, b in zip(rest, runs[2], strict=True)), "the regions and colours stay"


def test_images_are_transformed_in_order_after_mirroring_and_only_in_training(config: Load, tmp_path: Path) -> None:
    cfg = config("digits", split=FEW)
    nodes = [{"_target_": f"{OWN}.Quarter"}, {"_target_": f"{OWN}.Mirror"}]
    plain, first, both = (data_module(cfg, tmp_path, nodes[:count]) for count in (0, 1, 2))
    for before, turned, mirrored in zip(*(epochs(data, 1) for data in (plain, first, both)), strict=True):
        assert torch.equal(turned["image"], before["image"].transpose(2, 3))
        assert torch.equal(mirrored["image"], before["image"].transpose(2, 3).flip(3))
        assert turned["image"].is_contiguous(memory_format=torch.channels_last)
    for part in ("val", "test"):
        loaders = [getattr(data, f"{part}_dataloader")()[0] for data in (plain, both)]
        assert all(same(a, b) for a, b in zip(*loaders, strict=True))


def test_an_own_transform_may_take_a_list_of_names(config: Load, tmp_path: Path) -> None:
    cfg = config("digits", split=FEW)
    named = {"_target_": f"{OWN}.Named", "transforms": ["invert"]}
    plain, own = (data_module(cfg, tmp_path, nodes) for nodes in ((), (named,)))
    for before, after in zip(epochs(plain, 1), epochs(own, 1), strict=True):
        assert torch.equal(after["image"], 255 - before["image"])


def test_a_rectangle_is_erased_with_the_mean_after_the_transforms(config: Load, tmp_path: Path) -> None:
    cfg = config("digits", mean=[0.5, 0.25, 0.0], split=FEW)
    plain = epochs(data_module(cfg, tmp_path, [{"_target_": f"{OWN}.Quarter"}]), 1)
    erased = epochs(data_module(cfg, tmp_path, [{"_target_": f"{OWN}.Quarter"}], erasing=1.0), 1)
    boxes = set()
    for before, after in zip(plain, erased, strict=True):
        for a, b in zip(before["image"], after["image"], strict=True):
            changed = (a != b).any(0)
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            mean = torch.tensor([128, 64, 0], dtype=torch.uint8)[:, None, None]
            assert torch.equal(b[:, *box], mean.expand_as(b[:, *box]))
            boxes.add(str(box))
    assert len(boxes) > 100
    some = epochs(data_module(cfg, tmp_path, [{"_target_": f"{OWN}.Quarter"}], erasing=0.3), 1)
    pairs = [pair for a, b in zip(plain, some, strict=True) for pair in zip(a["image"], b["image"], strict=True)]
    assert 0.2 < np.mean([not torch.equal(a, b) for a, b in pairs]) < 0.4


def test_an_image_does_not_depend_on_its_batch_or_rank(config: Load, tmp_path: Path) -> None:
    """The transforms are torchvision's own, on the region of the image, after a seed of (seed, epoch, image, draw)."""
    cfg = config("digits", sampling="balanced", split=FEW, batch_size=64)
    node = {"_target_": f"{V2}.RandAugment", "num_ops": 3, "magnitude": 20}
    plain, drawn = (data_module(cfg, tmp_path, nodes) for nodes in ([], [node]))
    datasets = [data.train_dataloader().dataset for data in (plain, drawn)]
    transform, changed = v2.RandAugment(num_ops=3, magnitude=20), []
    for rank in (0, 1):
        items = next(iter(drawn.train_batches(rank, 2)))
        (before,), (after,) = (dataset.__getitems__(items).images for dataset in datasets)  # type: ignore[attr-defined]
        for item, region, image in zip(items, before, after, strict=True):
            with preserved_generators():
                seed_generators(0, 0, "augment", item.index, *([item.draw] if item.draw else []))
                assert torch.equal(transform(region.clone()), image)
            changed.append(not torch.equal(region, image))
    assert np.mean(changed) > 0.9


def test_a_repeated_image_has_another_region_and_other_transforms(config: Load, tmp_path: Path) -> None:
    sets = load_splits(config("digits"))
    labels = np.array([sets.images.label(index) for index in sets.train.tolist()])
    few = np.concatenate([sets.train[labels == 0][:6], sets.train[labels > 0][:60]])
    sets = Splits(sets.images, few, sets.val, sets.test)
    resized = {"name": "random_resized", "scale": [0.2, 0.9], "ratio": [0.7, 1.4]}
    images: dict[int, list[Any]] = defaultdict(list)
    for transforms in ([], [{"_target_": f"{V2}.RandomErasing", "p": 1.0}]):
        data = data_module(config("digits", sampling="balanced", crop=resized), tmp_path, transforms, sets=sets)
        images.clear()
        for batch in epochs(data, 1):
            for index, offset, image in zip(batch["index"].tolist(), batch["offset"], batch["image"], strict=True):
                images[index].append((offset, image if not transforms else (image == 0).all(0)))
        assert sum(map(len, images.values())) == 66 > len(images)
        for repeats in images.values():
            for part in zip(*repeats, strict=True):  # the colour offsets; the regions, or where they were erased
                assert len(torch.unique(torch.stack(part), dim=0)) == len(repeats)


BAD = [
    ("Resize, size: 20", "returns uint8 (3, 20, 20)"),
    ("CenterCrop, size: 20", "returns uint8 (3, 20, 20)"),
    ("Grayscale, num_output_channels: 1", "returns uint8 (1, 20, 20)"),
    ("ConvertImageDtype", "returns float32 (3, 20, 20)"),
    ("ToDtype, dtype: float32", "refuses its arguments: dtype must be"),
    ("Normalize, mean: [0.5], std: [0.5]", "fails (TypeError: Input tensor should be a float tensor"),
    ("MixUp, num_classes: 10", "; to mix images, use mix=mixup"),
    ("RandAugment, strength: 3", "refuses its arguments: got an unexpected keyword argument 'strength'"),
    ("RandAug", "._target_=torchvision.transforms.v2.RandAug does not exist"),
    ("functional.invert", "is neither a subclass of Module nor"),
    ("Compose, transforms: [{_target_: torch.nn.Identity}, {_target_: torch.nn.Sigmoid}]", "returns float32"),
    ("Compose, transforms: [{_target_: torch.nn.Identities}]", ".transforms.0._target_=torch.nn.Identities does not"),
    ("Compose, transforms: [{_target_: os.system}]", ".transforms.0._target_=os.system is not allowed"),
    ("Compose, transforms: [5]", ".transforms=[5] is not allowed: must be a list of transforms, each a mapping"),
    ("own_transforms.Pillow", "returns PIL.Image.Image"),
    ("own_transforms.Counter", "Counter.images changes when the transform is called, so a run could not be repeated"),
    ("own_transforms.Tenth", "fails (RuntimeError: the tenth image)"),
    ("own_transforms.NotAModule", "is neither a subclass of Module nor"),
]


@pytest.mark.parametrize(("node", "reason"), BAD)
def test_what_is_no_transform_of_an_image_is_refused_before_training(node: str, reason: str) -> None:
    node = node if node.startswith(OWN) else f"{V2}.{node}"
    nodes = yaml.safe_load(f"[{{_target_: torch.nn.Identity}}, {{_target_: {node}}}]")
    with pytest.raises(UserError) as caught:
        check_augmentation(replace(small(), {"augment.transforms": nodes}))
    assert str(caught.value).startswith("augment.transforms.1")
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [5, None, [5], [{"num_ops": 2}]], ids=str)
def test_transforms_are_a_list_of_mappings(value: Any) -> None:
    rule = re.escape(f"augment.transforms={format_value(value)} is not allowed: must be a list of transforms, each a")
    with pytest.raises(UserError, match=rule):
        replace(small(), {"augment.transforms": value})


def test_a_transform_that_needs_squares_is_refused_for_whole_images() -> None:
    cfg = replace(small(), {"augment.transforms": [{"_target_": f"{OWN}.Quarter"}]})
    check_augmentation(cfg)
    with pytest.raises(UserError, match=r"input, uint8 \(3, 20, 40\), but returns uint8 \(3, 40, 20\)"):
        check_augmentation(replace(cfg, {"data.fit": "full"}))


def test_a_refused_transform_leaves_nothing_behind(sppnet: Caller) -> None:
    refused = sppnet(
        "train", *SMALL, f"augment.transforms=[{{_target_: {V2}.RandomGrayscale}}, {{_target_: {V2}.Pad}}]"
    )
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("sppnet train: augment.transforms.1: torchvision.transforms.v2.Pad refuses")
    assert not Path("runs").exists()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_transform_that_fails_only_sometimes_stops_the_run(sppnet: Caller, num_workers: int) -> None:
    """Also with `data.bad_files=skip`: it is the transform that is bad, not the file."""
    words = (*SMALL, f"data.num_workers={num_workers}", "data.bad_files=skip", f"allow={OWN}")
    failed = sppnet("train", *words, f"augment.transforms=[{{_target_: {OWN}.ShrinksDark}}]")
    assert failed.code == 1
    [line] = failed.err.splitlines()
    rule = "must return an image of the type and shape of its input, uint8 (3, 24, 24), but returns uint8 (3, 23, 24)"
    assert line == f"sppnet train: augment.transforms.0: {OWN}.ShrinksDark {rule}"
    (status,) = Path("runs").rglob("status.json")
    assert json.loads(status.read_text())["state"] == "failed"
