"""The LightningDataModule, with loaders for training at scheduled sizes and for evaluation at a list of sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from sppnet.config.schema import AnyViews, Augment, Data
from sppnet.data.aspect_buckets import Bucket, shape_buckets, square_bucket
from sppnet.data.augmentation import build_augmentation
from sppnet.data.balanced_sampling import group_by_class
from sppnet.data.batch_samplers import EvalBatchSampler, TrainBatchSampler, used_batches
from sppnet.data.build import Splits
from sppnet.data.crops import EvalRegions, TrainRegions
from sppnet.data.image_cache import ImageCache, build_image_cache
from sppnet.data.image_shapes import ShapeArray, load_shapes
from sppnet.data.loader import BatchDataset, Loader
from sppnet.data.readers import PixelReader, Reader, build_reader
from sppnet.data.size_schedules import SizeSchedule, equal_memory_batch_size
from sppnet.data.splits import IntArray
from sppnet.data.views import Views
from sppnet.errors import UserError, notice

WHOLE_IMAGE = ("full", "windows")  # values of `views.fit` that load the whole image and keep its aspect ratio


class DataModule(LightningDataModule):
    """Provides batches (see `sppnet.data.loader.Batch`) for a Trainer with `use_distributed_sampler=False`.

    There is one validation loader per size in `sizes.val` and one test loader per size in `sizes.test`, in that order.

    Args:
        sets: the data set and its parts, from `sppnet.data.load_splits`.
        schedule: the size schedule, from `sppnet.data.build_sizes`.
        cfg: the config's `data`.
        augment: the config's `augment`.
        views: the config's `views`, which determines which regions of a test image are scored.
        seed: the run's seed.
        cache: `paths.cache`, the folder for cached image shapes and, with `data.cache=true`, cached pixels.
        progress: `progress`, the progress display to use while the pixel cache is built.

    Attributes:
        pairs: training sizes at which a batch needs at least two images (see
            `sppnet.training.preflight.sizes_for_pairs`). Set this attribute before the training loader is created.
        world: number of processes if there is no Trainer.
        device: device on which the batches are used if there is no Trainer. If it is a GPU, the loaders use pinned
            memory.
    """

    def __init__(
        self,
        sets: Splits,
        schedule: SizeSchedule,
        cfg: Data,
        augment: Augment,
        views: AnyViews,
        seed: int,
        cache: Path,
        progress: str = "none",
    ) -> None:
        super().__init__()
        self.sets, self.schedule, self.cfg, self.augment, self.views = sets, schedule, cfg, augment, views
        self.seed, self.cache, self.progress = seed, cache, progress
        self.skip = cfg.bad_files == "skip"
        self.pairs: Collection[int] = ()
        self.world = 1
        self.device = torch.device("cpu")
        self._shapes: ShapeArray | None = None
        # training buckets by (world, minimum), stored because grouping a million images takes seconds
        self._buckets: dict[tuple[int, int], list[Bucket]] = {}

    def prepare_data(self) -> None:
        """Cache the shapes and pixels of the images, if needed. Lightning calls this in one process per machine."""
        if self.cfg.fit == "full" or self.views.fit in WHOLE_IMAGE:
            self._load_shapes()
        if self.cfg.fit == "crop":
            self._reader("crop")

    def train_batches(self, rank: int = 0, world: int = 1) -> TrainBatchSampler:
        """The training batches of `rank`, one of `world` ranks, starting at the run's current position.

        With `data.fit=full`, images of a shape that is too rare to fill a quarter of a batch are stretched to the
        nearest shape, unless that shape is more than two steps (`data.aspect_step`) away. If there are too few images
        of a shape to give every rank one (or two, with `pairs`), they are stretched to the nearest shape, however far
        away it is. In validation and testing, every image keeps its own (rounded) shape.

        Raises:
            UserError: a batch needs at least two images (`pairs`), but the batch size is 1 or there are too few images.
        """
        batch_size, minimum = self.cfg.batch_size, world * (2 if self.pairs else 1)
        key = (world, minimum)
        if key not in self._buckets:
            self._buckets[key] = square_bucket(self.sets.train)
            if self.cfg.fit == "full":
                shapes, merge_below = self._load_shapes(), world * batch_size / 4
                self._buckets[key] = shape_buckets(self.sets.train, shapes, self.cfg.aspect_step, minimum, merge_below)
        buckets = self._buckets[key]
        if self.pairs and (batch_size == 1 or len(buckets[0].members) < minimum):
            raise UserError(self._single_image_message(world))
        classes = self._classes if self.cfg.sampling == "balanced" else None
        return TrainBatchSampler(
            buckets, self.schedule, batch_size, self.seed, rank, world, self._taken, self.pairs, classes
        )

    @cached_property
    def _classes(self) -> list[IntArray]:
        """The training images of each class that has any."""
        members = self.sets.train
        labels = np.fromiter(map(self.sets.images.label, members.tolist()), dtype=np.int64, count=len(members))
        return group_by_class(members, labels)

    def images_per_step(self) -> float:
        """The mean number of images per optimizer step on this rank, including unreadable images.

        The value is the same in every epoch. With `trainer.limit_train_batches`, the number of images differs between
        epochs, so the value is based on the mean number of images per batch.
        """
        assert self.trainer is not None
        batches, accumulate = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        return self._mean_batch * batches / ceil(batches / accumulate)

    @cached_property
    def _mean_batch(self) -> float:
        batches = self.train_batches(self._rank(), self._world())
        return batches.images / len(batches)

    def train_dataloader(self) -> Loader:
        """The loader for the training batches of this rank, starting at the run's current position."""
        batches = self.train_batches(self._rank(), self._world())
        self._train_batches = len(batches)
        cfg, augment = self.cfg, self.augment
        regions = TrainRegions(self.seed, cfg.fit, cfg.crop, cfg.crop_pct, augment.flip, augment.color)
        augmentation = build_augmentation(augment, cfg.mean, self.seed)
        dataset = BatchDataset(self.sets.images, regions, self._reader("crop"), augmentation)
        return self._loader(dataset, batches, persistent=True)

    def notice_stretched(self, world: int) -> None:
        """Print how many training images are stretched to the shape of a different bucket, if there are any."""
        stretched = sum(bucket.stretched for bucket in self.train_batches(world=world).buckets)
        if stretched:
            notice(
                f"data.fit=full: {stretched} of {len(self.sets.train)} training images will be stretched to the nearest"
                " shape, as some shapes are too rare for batches of their own (see data.aspect_step)"
            )

    def val_dataloader(self) -> list[Loader]:
        """One loader per size in `sizes.val`, with whole images if `data.fit=full` and centre crops otherwise."""
        fit = "full" if self.cfg.fit == "full" else "center"
        regions = EvalRegions(fit, self.cfg.crop_pct)
        scales = {size: [size] for size in self.schedule.val}
        return self._eval_loaders("val", scales, regions, self.cfg.aspect_step)

    def test_dataloader(self) -> list[Loader]:
        """One loader per size in `sizes.test`, with the regions and scales that `views` describes."""
        views, protocol = self.views, Views.build(self.views)
        regions = EvalRegions(views.fit, views.crop_pct)
        scales = {size: [size] if protocol is None else protocol.sides(size) for size in self.schedule.test}
        return self._eval_loaders("test", scales, regions, views.aspect_step)

    def _eval_loaders(
        self, part: Literal["val", "test"], scales: Mapping[int, Sequence[int]], regions: EvalRegions, step: float
    ) -> list[Loader]:
        members: IntArray = getattr(self.sets, part)
        limit = getattr(self.trainer, f"limit_{part}_batches", None)
        buckets, loaders = eval_buckets(members, regions.fit, self._load_shapes, step), []
        dataset = BatchDataset(self.sets.images, regions, self._reader(regions.fit))
        for size, sides in scales.items():
            batch_size = eval_batch_size(self.cfg.batch_size, sides, max(self.schedule.sizes))
            # not the run's seed, so that limited evaluations of all runs on the same split use the same images
            seed = self.cfg.split.seed
            batches = EvalBatchSampler(buckets, size, sides, batch_size, self._rank(), self._world(), limit, seed)
            loaders.append(self._loader(dataset, batches))
        return loaders

    def _single_image_message(self, world: int) -> str:
        sizes = " or ".join(map(str, sorted(self.pairs)))
        problem = (
            "batch normalisation needs more than one value per channel, but a single image provides only one"
            f" at size {sizes}"
        )
        if self.cfg.batch_size == 1:
            return f"data.batch_size=1: {problem}; use data.batch_size=2 or more, or larger sizes in sizes.train"
        return (
            f"data={self.cfg.name}: {problem}, and {len(self.sets.train)} training image(s) are too few for a"
            f" batch of two on each of {world} process(es); use more images, fewer trainer.devices, or larger sizes in"
            " sizes.train"
        )

    def _loader(
        self, dataset: BatchDataset, batches: TrainBatchSampler | EvalBatchSampler, persistent: bool = False
    ) -> Loader:
        device = self.device if self.trainer is None else self.trainer.strategy.root_device
        return Loader(dataset, batches, self.skip, self.cfg.num_workers, device.type == "cuda", persistent)

    def _reader(self, fit: str) -> Reader:
        return build_reader(self.sets.images, self.cfg, fit, self._open_cache if self.cfg.cache else None)

    def _open_cache(self, reader: PixelReader) -> ImageCache:
        name, workers, progress = self.cfg.name, self.cfg.num_workers, self.progress
        path = build_image_cache(reader, self._load_shapes(), self.cache, name, workers, progress, self.skip)
        return ImageCache(path, reader)

    def _load_shapes(self) -> ShapeArray:
        if self._shapes is None:
            self._shapes = load_shapes(self.sets.images, self.cache, self.skip)
        return self._shapes

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else self.world

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _taken(self) -> int:
        """The number of batches taken since the run's first step, including those skipped by `limit_train_batches`."""
        if self.trainer is None:
            return 0
        full = self._train_batches
        used = used_batches(full, self.trainer.limit_train_batches)
        epoch, start = divmod(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready, max(1, used))
        repeats = getattr(self.trainer, "overfit_batches", 0) > 0  # the Trainer does not declare this attribute
        return start + (0 if repeats else epoch * full)  # overfitting repeats the first epoch


def eval_buckets(members: IntArray, fit: str, shapes: Callable[[], ShapeArray], aspect_step: float) -> list[Bucket]:
    """The buckets of images that can share an evaluation batch.

    Args:
        members: indices of the images.
        fit: the region of each image to evaluate, as in `views.fit`. Whole images are grouped by their rounded aspect
            ratio.
        shapes: function that loads the shapes of all images. It is called only if they are needed.
        aspect_step: aspect ratios are rounded to multiples of this.
    """
    return shape_buckets(members, shapes(), aspect_step) if fit in WHOLE_IMAGE else square_bucket(members)


def eval_batch_size(nominal: int, sides: Sequence[int], largest: int) -> int:
    """The evaluation batch size: `nominal`, or less if that would need more memory than a training batch.

    Args:
        nominal: `data.batch_size`.
        sides: shorter sides, in pixels, at which each image is loaded.
        largest: the largest training size.
    """
    return min(nominal, equal_memory_batch_size(nominal, max(sides), largest))
