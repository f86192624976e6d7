"""Predict the classes of a stream of images, in the order of the stream.

Workers read ahead, and images of similar shape share a batch. Images are read, resized and scored by the code that also
tests a network, so an image gets the same scores as in a test. A result is held in
memory until those of all earlier images are ready. Batches never cross the borders of windows of `data.batch_size`
images, so the memory does not grow with the length of the stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sppnet.config.schema import Config
from sppnet.data import DataError, Splits, build_sizes
from sppnet.data.batch_samplers import EvalBatchSampler, Item
from sppnet.data.crops import EvalRegions
from sppnet.data.datamodule import eval_batch_size, eval_buckets
from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.unlabelled import InputFiles, UnlabelledImages
from sppnet.data.image_shapes import ShapeArray
from sppnet.data.loader import Batch, BatchDataset, Collator, UncollatedBatch
from sppnet.data.readers import build_reader
from sppnet.data.views import Views
from sppnet.training.inference import load_classifier, place_on_device

FEW = 16  # for up to this many images, no workers are started: starting them takes longer than reading the images


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image, or why the image could not be read.

    Attributes:
        index: position of the image in the stream.
        name: the image's path.
        shape: (height, width) of the image in pixels; (0, 0) if the image could not be read.
        probabilities: float64 (K,), on the CPU.
        view: the network's input before normalisation, uint8 (3, h, w); at the first scale if there are several.
        problem: why the image could not be read; empty if it was read.
    """

    index: int
    name: str
    shape: tuple[int, int]
    probabilities: Tensor
    view: Tensor
    problem: str = ""

    @property
    def input_shape(self) -> tuple[int, int]:
        """The (height, width) of `view`."""
        height, width = self.view.shape[1:]
        return height, width

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return the `count` likeliest classes (or all, if fewer) as (class number, probability), likeliest first."""
        order = self.probabilities.argsort(descending=True, stable=True)[:count]
        return [(label, float(self.probabilities[label])) for label in order.tolist()]


class PredictionBatch(Batch):
    """A test batch with two more keys.

    Keys:
        shapes: (height, width) of each original image in the batch.
        problems: the reasons why images could not be read, keyed by image index.
    """

    shapes: list[tuple[int, int]]
    problems: dict[int, str]


class Predictor(ABC):
    """A trained network, ready to predict.

    Args:
        cfg: the run's configuration, with the overrides from the command line and a single test size.
        metadata: what a checkpoint holds under the key `sppnet`.
        files: the image files.
    """

    pin_memory = False

    def __init__(self, cfg: Config, metadata: Mapping[str, Any], files: InputFiles) -> None:
        self.images = UnlabelledImages(files, metadata["classes"], metadata["multilabel"], metadata["fingerprint"])
        self.classes: list[str] = list(metadata["classes"])
        self.cfg = cfg
        self.regions = EvalRegions(cfg.views.fit, cfg.views.crop_pct)
        self.remarks: dict[str, str] = {}  # harmless warnings from the decoder, keyed by file

    def __iter__(self) -> Iterator[Prediction]:
        """Yield one prediction per image, in the order of the images."""
        waiting: dict[int, Prediction] = {}
        next_index = 0
        for prediction in self._predict_batches():
            waiting[prediction.index] = prediction
            while next_index in waiting:
                yield waiting.pop(next_index)
                next_index += 1
        assert not waiting

    @abstractmethod
    def probabilities(self, batch: Batch) -> Tensor:
        """Return the class probabilities of a batch as float64 (N, K) on the CPU.

        They are the softmax of the logits, or the sigmoid if the network's loss uses it.

        Raises:
            RunFailed: the network's scores are not finite.
        """

    def _predict_batches(self) -> Iterator[Prediction]:
        for batch in self._batches():
            self.remarks |= batch["remarks"]
            for index, problem in batch["problems"].items():
                none = torch.empty(0)
                yield Prediction(index, self.images.name(index), (0, 0), none, none, problem)
            if not bool(batch["valid"].any()):
                continue
            probabilities_NK = self.probabilities(batch)
            rows = zip(batch["index"].tolist(), batch["shapes"], probabilities_NK, batch["image"], strict=True)
            for index, shape, probabilities, view in rows:
                yield Prediction(index, self.images.name(index), shape, probabilities, view)

    def _batches(self) -> Iterable[PredictionBatch]:
        source = build_reader(self.images, self.cfg.data, self.regions.fit)
        workers = self.cfg.data.num_workers if len(self.images) > FEW else 0
        return DataLoader(
            _ShapedSamples(self.images, BatchDataset(self.images, self.regions, source)),
            batch_sampler=WindowBatches(self.images, self.cfg),
            # The annotation expects a function that takes a list, but `__getitems__` returns a tuple.
            collate_fn=_ShapedCollate(Collator(self.images, skip=True)),  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=self.pin_memory,
        )


class CheckpointPredictor(Predictor):
    """The network of a checkpoint, ready to predict.

    Args:
        cfg: see `Predictor`.
        checkpoint: the checkpoint that `read_checkpoint` returns.
        weights: the path of the checkpoint file, used in messages.
        files: the image files.

    Raises:
        UserError: the checkpoint does not fit the configuration.
    """

    def __init__(self, cfg: Config, checkpoint: Mapping[str, Any], weights: Path, files: InputFiles) -> None:
        super().__init__(cfg, checkpoint["sppnet"], files)
        none = np.arange(0)
        classifier = load_classifier(checkpoint, cfg, Splits(self.images, none, none, none), weights)
        self.fabric, self.classifier = place_on_device(classifier, cfg)
        self.pin_memory = self.fabric.device.type == "cuda"

    @torch.inference_mode()
    def probabilities(self, batch: Batch) -> Tensor:
        with self.fabric.autocast():
            scores = self.classifier.scores(self.fabric.to_device(batch))
        logits_NK = scores.cpu().double()  # CPU first: Apple's GPUs have no float64
        return logits_NK.sigmoid() if self.classifier.sigmoid else logits_NK.softmax(1)


@dataclass(frozen=True)
class _ShapedSamples(Dataset[UncollatedBatch]):
    """Test samples, with the shapes of the original images."""

    images: UnlabelledImages
    samples: BatchDataset

    def __getitems__(self, items: Sequence[Item]) -> tuple[UncollatedBatch, list[tuple[int, int]]]:
        drawn = self.samples.__getitems__(items)
        return drawn, [self.images.shape(sample.item.index) for sample in drawn.samples if not sample.problem]


@dataclass(frozen=True)
class _ShapedCollate:
    """Collates samples into a `PredictionBatch`."""

    collate: Collator

    def __call__(self, samples: tuple[UncollatedBatch, list[tuple[int, int]]]) -> PredictionBatch:
        drawn, shapes = samples
        batch = self.collate(drawn)
        assert not isinstance(batch, DataError)
        problems = {sample.item.index: sample.problem for sample in drawn.samples if sample.problem}
        return {**batch, "shapes": shapes, "problems": problems}


class WindowBatches(Sampler[list[Item]]):
    """Batches from successive windows of `data.batch_size` images; images of similar shape share a batch.

    Aspect ratios are rounded, and image sizes and batch sizes are chosen, in the same way as in a test.
    """

    def __init__(self, images: ImageSet, cfg: Config) -> None:
        schedule, views = build_sizes(cfg.sizes), Views.build(cfg.views)
        self.images, self.fit = images, cfg.views.fit
        # the other views crop or warp every image to a square
        self.aspect_step = cfg.views.aspect_step
        self.size = schedule.test[0]
        self.sides = [self.size] if views is None else views.sides(self.size)
        self.window = cfg.data.batch_size
        self.batch_size = eval_batch_size(self.window, self.sides, max(schedule.sizes))

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, len(self.images), self.window):
            members = np.arange(min(self.window, len(self.images) - start))
            shapes = partial(self._shapes, range(start, start + len(members)))
            buckets = eval_buckets(members, self.fit, shapes, self.aspect_step)
            batches = EvalBatchSampler(buckets, self.size, self.sides, self.batch_size)
            for batch in sorted(batches, key=lambda batch: batch[0].index):  # in the order of their first images
                yield [item._replace(index=start + item.index) for item in batch]

    def _shapes(self, indices: Iterable[int]) -> ShapeArray:
        return np.array([self._shape(index) for index in indices], dtype=np.int32)

    def _shape(self, index: int) -> tuple[int, int]:
        try:
            return self.images.shape(index)
        except DataError:
            return (0, 0)  # the error is reported when the image is read
