"""Predicts pictures as a stream: read ahead by workers, scored in batches of like shape, handed out in their order.

The same code reads, resizes and scores here as in a test, so that the same picture gets the same scores. Memory does
not grow with the number of pictures: no more than a window of them is under way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sppnet.data import DataError, Splits, build_sizes
from sppnet.data.batch_samplers import EvalBatchSampler, Item
from sppnet.data.crops import EvalRegions
from sppnet.data.datamodule import eval_batch_size, eval_buckets
from sppnet.data.datasets.unlabelled import InputFiles, UnlabelledImages
from sppnet.data.image_shapes import ShapeArray
from sppnet.data.loader import Batch, BatchDataset, Collator, UncollatedBatch
from sppnet.data.readers import build_reader
from sppnet.data.views import Views
from sppnet.training.inference import load_classifier, place_on_device

FEW = 16  # pictures for which no worker is started: that takes longer than reading them


@dataclass(frozen=True)
class Prediction:
    """What the network says about one picture, or what kept it from being read.

    Attributes:
        index: its position among the pictures.
        name: its path.
        shape: (height, width) in pixels; (0, 0) if it could not be read.
        probabilities: float64 (K,), on the CPU.
        seen: uint8 (3, h, w), what the network saw of it (at the first of several scales).
        problem: why it could not be read; empty if it could.
    """

    index: int
    name: str
    shape: tuple[int, int]
    probabilities: Tensor
    seen: Tensor
    problem: str = ""

    def top(self, count: int) -> list[tuple[int, float]]:
        """The `count` likeliest classes (fewer if there are fewer) and their probabilities, the likeliest first."""
        order = self.probabilities.argsort(descending=True, stable=True)[:count]
        return [(label, float(self.probabilities[label])) for label in order.tolist()]


class PictureBatch(Batch):
    """A test's batch.

    Keys:
        shapes: (height, width) of each picture in it.
        problems: by position, why a picture could not be read.
    """

    shapes: list[tuple[int, int]]
    problems: dict[int, str]


class Predictor:
    """A trained network, ready to predict.

    Args:
        cfg: the configuration of its run with what was typed; one test size.
        checkpoint: as `read_checkpoint` returns it.
        weights: the file it was read from, for messages.
        found: the pictures.

    Raises:
        UserError: the checkpoint does not fit the configuration.
    """

    def __init__(self, cfg: Mapping[str, Any], checkpoint: Mapping[str, Any], weights: Path, found: InputFiles) -> None:
        made, none = checkpoint["sppnet"], np.arange(0)
        self.pictures = UnlabelledImages(found, made["classes"], made["multilabel"], made["fingerprint"])
        self.cfg = cfg
        self.remarks: dict[str, str] = {}  # harmless warnings of the decoder so far, by file
        classifier = load_classifier(checkpoint, cfg, Splits(self.pictures, none, none, none), weights)
        self.fabric, self.classifier = place_on_device(classifier, cfg["trainer"])

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.classifier.classes

    def __iter__(self) -> Iterator[Prediction]:
        """One prediction per picture, in the order of the pictures."""
        waiting: dict[int, Prediction] = {}
        first = 0
        for prediction in self._as_they_come():
            waiting[prediction.index] = prediction
            while first in waiting:
                yield waiting.pop(first)
                first += 1
        assert not waiting

    @torch.inference_mode()
    def probabilities(self, batch: Batch) -> Tensor:
        """float64 (N, K) of a batch on the device, on the CPU: softmax, or sigmoid if that is the network's loss."""
        with self.fabric.autocast():
            logits_NK = self.classifier.scores(batch).cpu().double()  # Apple's GPUs have no float64
        return (logits_NK.sigmoid() if self.classifier.sigmoid else logits_NK.softmax(1)).cpu()

    def _as_they_come(self) -> Iterator[Prediction]:
        for batch in self._batches():
            self.remarks |= batch["remarks"]
            for index, problem in batch["problems"].items():
                none = torch.empty(0)
                yield Prediction(index, self.pictures.name(index), (0, 0), none, none, problem)
            if not bool(batch["valid"].any()):
                continue
            probabilities_NK = self.probabilities(self.fabric.to_device(batch))
            rows = zip(batch["index"].tolist(), batch["shapes"], probabilities_NK, batch["image"], strict=True)
            for index, shape, probabilities, seen in rows:
                yield Prediction(index, self.pictures.name(index), shape, probabilities, seen)

    def _batches(self) -> Iterable[PictureBatch]:
        regions = EvalRegions(self.cfg["views"]["fit"], self.cfg["views"]["ratio"])
        source = build_reader(self.pictures, self.cfg["data"], regions.fit)
        workers = self.cfg["data"]["workers"] if len(self.pictures) > FEW else 0
        return DataLoader(
            _Looks(self.pictures, BatchDataset(self.pictures, regions, source)),
            batch_sampler=_Windows(self.pictures, self.cfg),
            collate_fn=_Together(Collator(self.pictures, skip=True)),  # type: ignore[arg-type]  # no list: __getitems__
            num_workers=workers,
            pin_memory=self.fabric.device.type == "cuda",
        )


@dataclass(frozen=True)
class _Looks(Dataset[UncollatedBatch]):
    """What a test reads of pictures, and the pictures' own shapes."""

    pictures: UnlabelledImages
    samples: BatchDataset

    def __getitems__(self, items: Sequence[Item]) -> tuple[UncollatedBatch, list[tuple[int, int]]]:
        drawn = self.samples.__getitems__(items)
        return drawn, [self.pictures.shape(sample.item.index) for sample in drawn.samples if not sample.problem]


@dataclass(frozen=True)
class _Together:
    """A test's batch with `shapes`, those of the pictures, and `problems`, why each of the others is left out."""

    collate: Collator

    def __call__(self, looks: tuple[UncollatedBatch, list[tuple[int, int]]]) -> PictureBatch:
        drawn, shapes = looks
        batch = self.collate(drawn)
        assert not isinstance(batch, DataError)
        problems = {sample.item.index: sample.problem for sample in drawn.samples if sample.problem}
        return {**batch, "shapes": shapes, "problems": problems}


class _Windows(Sampler[list[Item]]):
    """Batches out of one window of pictures after another (`data.batch_size` of them): those of like shape share one.

    The shapes are those of a test: the same rounding of the aspect ratio, the same sizes.
    """

    def __init__(self, pictures: UnlabelledImages, cfg: Mapping[str, Any]) -> None:
        schedule, views = build_sizes(cfg["sizes"]), Views.build(cfg["views"])
        self.pictures, self.views = pictures, cfg["views"]
        self.size = schedule.test[0]
        self.sides = [self.size] if views is None else views.sides(self.size)
        self.window = cfg["data"]["batch_size"]
        self.batch_size = eval_batch_size(self.window, self.sides, max(schedule.sizes))

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, len(self.pictures), self.window):
            members = np.arange(min(self.window, len(self.pictures) - start))
            shapes = partial(self._shapes, range(start, start + len(members)))
            buckets = eval_buckets(members, self.views["fit"], shapes, self.views["aspect_step"])
            batches = EvalBatchSampler(buckets, self.size, self.sides, self.batch_size)
            for batch in sorted(batches, key=lambda batch: batch[0].index):  # so that the first can be shown soon
                yield [item._replace(index=start + item.index) for item in batch]

    def _shapes(self, indices: Iterable[int]) -> ShapeArray:
        return np.array([self._shape(index) for index in indices], dtype=np.int32)

    def _shape(self, index: int) -> tuple[int, int]:
        try:
            return self.pictures.shape(index)
        except DataError:
            return (0, 0)  # reading it will say why
