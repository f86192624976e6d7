import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.config.schema import AnyViews, Augment, Center, Data, Full, Sizes, Warp
from sppnet.data import ImageSet, Splits, build_sizes, load_splits
from sppnet.data.build import check_training
from sppnet.data.datamodule import DataModule
from sppnet.data.decode import DataError
from sppnet.errors import UserError

Load = Callable[..., Data]
Make = Callable[..., Path]
SIZES = Sizes(_target_="sppnet.data.Alternating", train=[32, 24], val=[32], test=[32, 40])
AUGMENT = Augment(flip=True, color=0.1)
CENTER = Center(name="center", fit="center", crop_pct=0.875)
WARP, FULL = Warp(name="warp", fit="warp"), Full(name="full", fit="full", aspect_step=0.125)


def data_module(cfg: Data, cache: Path, sets: Splits | None = None, views: AnyViews = CENTER) -> DataModule:
    return DataModule(sets or load_splits(cfg), build_sizes(SIZES), cfg, AUGMENT, views, 0, cache)


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


@pytest.mark.parametrize("fit", ["crop", "full"])
def test_workers_change_nothing(config: Load, tmp_path: Path, fit: str) -> None:
    loaders = [
        data_module(config("digits", fit=fit, num_workers=num_workers), tmp_path).train_dataloader()
        for num_workers in (0, 2)
    ]
    for epoch in range(2):  # the second with persistent workers
        for loader in loaders:
            taken = epoch * len(loader)
            loader.batch_sampler.taken = lambda n=taken: n  # type: ignore[union-attr]
        pairs = list(zip(*loaders, strict=True))
        assert all(same(a, b) for a, b in pairs)
        assert {batch["size"] for batch, _ in pairs} == {(32, 24)[epoch]}


@pytest.mark.parametrize("fit", ["crop", "full"])
def test_a_training_batch_has_the_documented_types_and_shapes(config: Load, tmp_path: Path, fit: str) -> None:
    cfg = config("digits", fit=fit)
    data = data_module(cfg, tmp_path)
    indices = []
    for batch in data.train_dataloader():
        n = len(batch["index"])
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape[:2] == (n, 3)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert min(batch["image"].shape[2:]) == batch["size"] == 32
        assert fit == "full" or batch["image"].shape[2:] == (32, 32)
        assert batch["target"].dtype == batch["index"].dtype == torch.int64
        assert batch["target"].tolist() == [data.sets.images.label(i) for i in batch["index"].tolist()]
        assert batch["valid"].dtype == torch.bool
        assert batch["valid"].all()
        assert (batch["offset"].dtype, batch["offset"].shape) == (torch.float32, (n, 3))
        assert batch["offset"].abs().min() > 0
        assert batch["bad"] == []
        indices += batch["index"].tolist()
    assert sorted(indices) == data.sets.train.tolist()


@pytest.mark.parametrize(("views", "squares"), [(CENTER, True), (WARP, True), (FULL, False)])
def test_each_test_size_shows_every_test_image_once(
    config: Load, tmp_path: Path, views: AnyViews, squares: bool
) -> None:
    data = data_module(config("digits"), tmp_path, views=views)
    loaders = data.test_dataloader()
    assert len(loaders) == 2
    for size, loader in zip((32, 40), loaders, strict=True):
        batches = list(loader)
        assert sorted(i for b in batches for i in b["index"].tolist()) == data.sets.test.tolist()
        assert all(min(b["image"].shape[2:]) == b["size"] == size for b in batches)
        assert all(b["image"].shape[2] == b["image"].shape[3] for b in batches) is squares
        assert not any(b["offset"].any() for b in batches)


def test_whole_images_keep_their_aspect_ratio(config: Load, tmp_path: Path) -> None:
    data = data_module(config("digits", fit="full"), tmp_path)
    for batch in data.val_dataloader()[0]:
        height, width = batch["image"].shape[2:]
        for index in batch["index"].tolist():
            h, w = data.sets.images.shape(index)
            assert abs(max(h, w) / min(h, w) - max(height, width) / 32) < 0.0625 + 1 / 32
            assert (height > width) <= (h > w)


@pytest.fixture
def damaged(make_tree: Make, tmp_path: Path) -> Path:
    root = make_tree(tmp_path / "photos", {"cat": 12, "dog": 12})
    for name in ("cat/003.png", "dog/007.png"):
        path = root / name
        path.write_bytes(path.read_bytes()[:60])
    return root


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_cannot_be_decoded_stops_the_run_and_is_named(
    config: Load, damaged: Path, tmp_path: Path, num_workers: int
) -> None:
    cfg = config("folder", root=str(damaged), num_workers=num_workers)
    data = data_module(cfg, tmp_path)
    with pytest.raises(DataError) as caught:
        [list(loader) for loader in (data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader())]
    assert "003.png" in str(caught.value) or "007.png" in str(caught.value)
    assert "bad_files=skip" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fit", ["crop", "full"])
def test_a_file_that_is_skipped_is_left_out_and_listed(
    config: Load, damaged: Path, tmp_path: Path, num_workers: int, fit: str
) -> None:
    cfg = config("folder", root=str(damaged), num_workers=num_workers, bad_files="skip", fit=fit)
    data = data_module(cfg, tmp_path)
    batches = [*data.train_dataloader(), *data.val_dataloader()[0], *data.test_dataloader()[0]]
    bad = [name for batch in batches for name in batch["bad"]]
    good = [i for batch in batches for i in batch["index"][batch["valid"]].tolist()]
    assert sorted(bad) == ["cat/003.png", "dog/007.png"]
    assert sorted([*good, 3, 19]) == list(range(24))


def test_a_batch_of_bad_files_only_becomes_one_blank_invalid_image(config: Load, damaged: Path, tmp_path: Path) -> None:
    cfg = config("folder", root=str(damaged), bad_files="skip", batch_size=1)
    data = data_module(cfg, tmp_path)
    batches = [*data.train_dataloader(), *data.val_dataloader()[0], *data.test_dataloader()[0]]
    blank = [batch for batch in batches if batch["bad"]]
    assert len(blank) == 2
    for batch in blank:
        assert batch["image"].shape[0] == batch["target"].shape[0] == 1
        assert not batch["valid"].any()
        assert not batch["image"].any()
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_single_readable_training_image_is_doubled(
    config: Load, damaged: Path, tmp_path: Path, num_workers: int
) -> None:
    """Batch normalisation may be unable to train on a single image; the copy is invalid."""
    data = data_module(
        config("folder", root=str(damaged), bad_files="skip", batch_size=2, num_workers=num_workers), tmp_path
    )
    broken = [batch for batch in data.train_dataloader() if batch["bad"]]
    assert broken
    for batch in broken:
        assert batch["valid"].tolist() == [True, False]
        assert torch.equal(batch["image"][0], batch["image"][1])
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert len(batch["target"]) == len(batch["index"]) == len(batch["offset"]) == 2
    tested = [batch for batch in data.test_dataloader()[0] if batch["bad"]]
    assert all(len(batch["index"]) == 1 for batch in tested)


class Tags(ImageSet):
    """A multi-label data set."""

    classes = ("a", "b", "c")
    multilabel = True

    def __len__(self) -> int:
        return 40

    def label(self, index: int) -> tuple[int, ...]:
        return ((0, 2), (1,), (), (0, 1, 2))[index % 4]

    def read(self, index: int) -> Image.Image:
        return Image.new("RGB", (30, 40 + index))


class OfNumPy(Tags):
    """Labels from an array of small integers, as files of arrays hold them."""

    def label(self, index: int) -> Any:
        label = np.array(Tags.label(self, index), np.uint8)
        return tuple(label) if self.multilabel else np.uint8(len(label) % 3)


class OneOfNumPy(OfNumPy):
    multilabel = False


@pytest.mark.parametrize("kind", [Tags, OfNumPy, OneOfNumPy])
def test_targets_are_class_numbers_or_zeros_and_ones(config: Load, tmp_path: Path, kind: type[Tags]) -> None:
    parts = (np.arange(40), np.arange(4), np.arange(4))
    data = data_module(config("digits", fit="full"), tmp_path, Splits(kind(), *parts))
    for batch in data.train_dataloader():
        if not kind.multilabel:
            assert batch["target"].dtype == torch.int64
            assert batch["target"].tolist() == [kind().label(index) for index in batch["index"].tolist()]
            continue
        assert batch["target"].dtype == torch.float32
        for index, target in zip(batch["index"].tolist(), batch["target"].tolist(), strict=True):
            assert tuple(np.flatnonzero(target)) == Tags().label(index)


def test_classes_cannot_be_balanced_if_images_have_several(config: Load) -> None:
    check_training(config("digits"), Tags())
    with pytest.raises(UserError, match=r"data.sampling=balanced is not allowed with data=digits: .*several labels"):
        check_training(config("digits", sampling="balanced"), Tags())


class Silent(Tags):
    """A data set whose DataError has no message."""

    def read(self, index: int) -> Image.Image:
        if index == 7:
            raise DataError("")
        return super().read(index)


def test_an_image_that_fails_without_a_message_is_left_out(config: Load, tmp_path: Path) -> None:
    parts = (np.arange(40), np.arange(4), np.arange(4))
    batches = list(data_module(config("digits"), tmp_path, Splits(Silent(), *parts)).val_dataloader()[0])
    assert sum(len(batch["index"]) for batch in batches) == 4
    with pytest.raises(DataError, match="cannot be read"):
        list(data_module(config("digits"), tmp_path, Splits(Silent(), *parts)).train_dataloader())
    data = data_module(config("digits", bad_files="skip"), tmp_path, Splits(Silent(), *parts))
    batches = list(data.train_dataloader())
    assert [name for batch in batches for name in batch["bad"]] == [Silent().name(7)]
    assert 7 not in [i for batch in batches for i in batch["index"].tolist()]


@pytest.mark.parametrize("fit", ["crop", "full"])
def test_real_photographs_come_in_batches(config: Load, tmp_path: Path, fit: str) -> None:
    root = Path(os.environ.get("SPPNET_DATA", "missing"), "caltech20")
    if not root.is_dir():
        pytest.skip("SPPNET_DATA holds no caltech20: real photographs are not tested")
    data = data_module(config("folder", root=str(root), fit=fit), tmp_path)
    assert [len(data.sets.train), len(data.sets.val), len(data.sets.test)] == [840, 180, 180]
    batches = list(data.val_dataloader()[0])
    assert sum(len(batch["index"]) for batch in batches) == 180
    mean = torch.stack([batch["image"].float().mean() for batch in batches]).mean()
    assert 80 < mean < 180  # photographs, neither black nor white
    if fit == "full":
        assert len({batch["image"].shape[2:] for batch in batches}) > 3


FULL_PIPE = """
import os, signal, sys
import numpy as np
from PIL import Image
from sppnet.data import ImageSet
from sppnet.data.batch_samplers import EvalBatchSampler
from sppnet.data.crops import EvalRegions
from sppnet.data.aspect_buckets import square_bucket
from sppnet.data.loader import BatchDataset, Loader

class Tagged(ImageSet):
    multilabel, classes = True, [str(number) for number in range(5000)]
    def __len__(self): return 64
    def label(self, index): return (index,)
    def read(self, index): return Image.new("RGB", (8, 8))

batches = EvalBatchSampler(square_bucket(np.arange(64)), 8, [8], 8)
loader = Loader(BatchDataset(Tagged(), EvalRegions("full", 1.0)), batches, False, 1, False)
iterator = iter(loader)
next(iterator)
print(iterator.gi_frame.f_locals["collated"]._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_takes_its_workers_along() -> None:
    """A batch of 5,000 labels per image does not fit in the pipe, so the worker waits for a reader."""
    child = subprocess.Popen([sys.executable, "-c", FULL_PIPE], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    worker = Path("/proc") / child.stdout.readline().strip()  # not all of it: the worker has the same stdout
    child.wait()
    assert worker.name.isdigit()
    deadline = time.monotonic() + 5
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    survived = worker.exists()
    if survived:
        os.kill(int(worker.name), signal.SIGKILL)
    assert not survived
