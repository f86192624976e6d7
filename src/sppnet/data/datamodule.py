"""The DataModule: loaders for training at the schedule's sizes, and for validating and testing at a list of sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from sppnet.data.aspect_buckets import Bucket, shape_buckets, square_bucket
from sppnet.data.batch_samplers import EvalBatches, TrainBatches
from sppnet.data.build import Splits
from sppnet.data.crops import EvalRegions, TrainRegions
from sppnet.data.image_cache import Kept, keep
from sppnet.data.image_shapes import ShapeArray, load_shapes
from sppnet.data.loader import Loader, Samples
from sppnet.data.readers import Source, Whole, source_of
from sppnet.data.size_schedules import SizeSchedule, level_batch
from sppnet.data.splits import IntArray
from sppnet.data.views import Views
from sppnet.errors import UserError, notice

WHOLE = ("full", "windows")  # what `views.fit` takes of an image: all of it, its aspect ratio kept


class DataModule(LightningDataModule):
    """Batches (see `sppnet.data.loader.Batch`) for a Trainer with `use_distributed_sampler=False`.

    Validation has one loader per size of `sizes.val`, testing one per size of `sizes.test`, in that order.

    Args:
        sets: the data (`sppnet.data.load_splits`).
        schedule: the sizes (`sppnet.data.build_sizes`).
        cfg_data: the config's `data`, plain.
        cfg_views: the config's `views`, plain: what is seen of a test image.
        seed: the run's seed.
        cache: folder in which the shapes of the images are kept, and with `data.cache` their pixels.
        progress: `trainer.progress`, of keeping them.

    Attributes:
        pairs: training sizes at which a batch needs two images (`sppnet.training.preflight.sizes_for_pairs`).
    """

    def __init__(
        self,
        sets: Splits,
        schedule: SizeSchedule,
        cfg_data: Mapping[str, Any],
        cfg_views: Mapping[str, Any],
        seed: int,
        cache: Path,
        progress: str = "none",
    ) -> None:
        super().__init__()
        self.sets, self.schedule, self.cfg, self.views = sets, schedule, cfg_data, cfg_views
        self.seed, self.cache, self.progress = seed, cache, progress
        self.skip = cfg_data["bad_files"] == "skip"
        self.pairs: Collection[int] = ()
        self._shapes: ShapeArray | None = None
        self._buckets: dict[tuple[int, int], list[Bucket]] = {}  # of training; for a million images it takes seconds

    def prepare_data(self) -> None:
        """Read the images' shapes where whole images are used; the first process of a machine does it for all."""
        if self.cfg["fit"] == "full" or self.views["fit"] in WHOLE:
            self._load_shapes()
        if self.cfg["fit"] == "crop":
            self._source("crop")

    def train_batches(self, rank: int = 0, world: int = 1) -> TrainBatches:
        """The plan of the training batches of one process of `world`, from where the run stands.

        Of whole images, shapes too rare for a quarter of a batch share those of the next shape, at most two of
        `data.aspect_step` away; shapes too rare for a batch at all, those of the nearest. Validation and tests stretch
        no image so: they show each in its own (rounded) shape, however rare.

        Raises:
            UserError: there are too few images, or too few in a batch, for `pairs`.
        """
        batch_size, least = self.cfg["batch_size"], world * (2 if self.pairs else 1)
        key = (world, least)
        if key not in self._buckets:
            self._buckets[key] = square_bucket(self.sets.train)
            if self.cfg["fit"] == "full":
                shapes, few = self._load_shapes(), world * batch_size / 4
                self._buckets[key] = shape_buckets(self.sets.train, shapes, self.cfg["aspect_step"], least, few)
        buckets = self._buckets[key]
        if self.pairs and (batch_size == 1 or len(buckets[0].members) < least):
            raise UserError(self._lone(world))
        return TrainBatches(buckets, self.schedule, batch_size, self.seed, rank, world, self._taken, self.pairs)

    def images_per_step(self) -> float:
        """Images of this rank per optimiser step, in training: those of an epoch, read or not, over its steps. The same
        in every epoch; if `trainer.limit_batches` cuts them short, with an average batch, as each draws others."""
        assert self.trainer is not None
        batches, accumulate = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        return self._mean_batch * batches / ceil(batches / accumulate)

    @cached_property
    def _mean_batch(self) -> float:
        batches = self.train_batches(self._rank(), self._world())
        return batches.images / len(batches)

    def train_dataloader(self) -> Loader:
        """The training batches of this rank, from where the run stands."""
        batches = self.train_batches(self._rank(), self._world())
        self._train_batches = len(batches)
        regions = TrainRegions(self.seed, self.cfg["fit"], self.cfg["crop"], self.cfg["flip"], self.cfg["color"])
        return self._loader(Samples(self.sets.images, regions, self._source("crop")), batches, persistent=True)

    def say_joined(self, world: int) -> None:
        """Say how many images are stretched to the shape of another bucket."""
        joined = sum(bucket.joined for bucket in self.train_batches(world=world).buckets)
        if joined:
            notice(
                f"data.fit=full: {joined} of {len(self.sets.train)} training images are of shapes too rare for batches"
                " of their own and are stretched to the nearest shape (see data.aspect_step)"
            )

    def val_dataloader(self) -> list[Loader]:
        """One loader per size of `sizes.val`: centre crops, or whole images if that is what is trained on."""
        fit = "full" if self.cfg["fit"] == "full" else "center"
        regions = EvalRegions(fit, self.cfg["crop"]["ratio"])
        scales = {size: [size] for size in self.schedule.val}
        return self._eval_loaders("val", scales, regions, self.cfg["aspect_step"])

    def test_dataloader(self) -> list[Loader]:
        """One loader per size of `sizes.test`, of what `views` shows: each image at all its scales."""
        regions = EvalRegions(self.views["fit"], self.views["ratio"])
        views = Views.build(self.views)
        scales = {size: [size] if views is None else views.sides(size) for size in self.schedule.test}
        return self._eval_loaders("test", scales, regions, self.views["aspect_step"])

    def _eval_loaders(
        self, part: Literal["val", "test"], scales: Mapping[int, Sequence[int]], regions: EvalRegions, step: float
    ) -> list[Loader]:
        members: IntArray = getattr(self.sets, part)
        limit = getattr(self.trainer, f"limit_{part}_batches", None)
        limit = limit if isinstance(limit, int) else None  # 1.0: all
        buckets, loaders = eval_buckets(members, regions.fit, self._load_shapes, step), []
        samples = Samples(self.sets.images, regions, self._source(regions.fit))
        for size, sides in scales.items():
            batch_size = eval_batch_size(self.cfg["batch_size"], sides, max(self.schedule.sizes))
            # cut short, all runs on the same split see the same images, whatever their seeds
            seed = self.cfg["split"]["seed"]
            batches = EvalBatches(buckets, size, sides, batch_size, self._rank(), self._world(), limit, seed)
            loaders.append(self._loader(samples, batches))
        return loaders

    def _lone(self, world: int) -> str:
        """What to change where a batch of one image cannot be helped."""
        pairs = ", ".join(map(str, sorted(self.pairs)))
        what = f"batch normalisation cannot train on one image of {pairs} pixels, of which it sees a single value"
        if self.cfg["batch_size"] == 1:
            return f"data.batch_size=1: {what}; use data.batch_size=2 or more, or larger sizes in sizes.train"
        return (
            f"data={self.cfg['name']}: {what}, and {len(self.sets.train)} training images make no batch of two for each"
            f" of {world} process(es); use more images, fewer trainer.devices, or larger sizes in sizes.train"
        )

    def _loader(self, samples: Samples, batches: TrainBatches | EvalBatches, persistent: bool = False) -> Loader:
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(samples, batches, self.skip, self.cfg["workers"], pin, persistent)

    def _source(self, fit: str) -> Source:
        return source_of(self.sets.images, self.cfg, fit, self._kept if self.cfg.get("cache") else None)

    def _kept(self, source: Whole) -> Kept:
        name, workers, progress = self.cfg["name"], self.cfg["workers"], self.progress
        path = keep(source, self._load_shapes(), self.cache, name, workers, progress, self.skip)
        return Kept(path, source, name)

    def _load_shapes(self) -> ShapeArray:
        if self._shapes is None:
            self._shapes = load_shapes(self.sets.images, self.cache, self.skip)
        return self._shapes

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _taken(self) -> int:
        """Batches taken since the run's first, as if `trainer.limit_train_batches` had cut nothing off."""
        if self.trainer is None:
            return 0
        limit, full = self.trainer.limit_train_batches, self._train_batches
        used = int(limit * full) if isinstance(limit, float) else min(limit or full, full)
        epoch, start = divmod(self.trainer.fit_loop.epoch_loop.batch_progress.total.ready, max(1, used))
        return epoch * full + start


def eval_buckets(members: IntArray, fit: str, shapes: Callable[[], ShapeArray], aspect_step: float) -> list[Bucket]:
    """The groups of images that can share a batch of an evaluation.

    Args:
        members: positions of the images.
        fit: what is cut out of them, as `views.fit`: whole images share a batch by their rounded shape.
        shapes: loads the shapes of all images; only called if they are needed.
        aspect_step: rounding of the aspect ratio.
    """
    return shape_buckets(members, shapes(), aspect_step) if fit in WHOLE else square_bucket(members)


def eval_batch_size(nominal: int, sides: Sequence[int], largest: int) -> int:
    """Images in a batch of an evaluation: sizes far above `largest`, that of training, must not need far more."""
    return min(nominal, level_batch(nominal, max(sides), largest))
