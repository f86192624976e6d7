"""The DataModule: loaders for training at the schedule's sizes, and for validating and testing at a list of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from sppnet.data.batches import Loader, Samples
from sppnet.data.buckets import Bucket, shape_buckets, square_bucket
from sppnet.data.build import Sets
from sppnet.data.crops import EvalRegions, TrainRegions
from sppnet.data.kept import Kept, keep
from sppnet.data.pixels import Source, Whole, source_of
from sppnet.data.sampler import EvalBatches, TrainBatches
from sppnet.data.shapes import ShapeArray, load_shapes
from sppnet.data.sizes import SizeSchedule, level_batch
from sppnet.data.split import IntArray
from sppnet.views import Views

WHOLE = ("full", "windows")  # what `views.fit` takes of an image: all of it, its aspect ratio kept


class DataModule(LightningDataModule):
    """Batches (see `sppnet.data.batches.Batch`) for a Trainer with `use_distributed_sampler=False`.

    Validation has one loader per size of `sizes.val`, testing one per size of `sizes.test`, in that order.

    Args:
        sets: the data (`sppnet.data.load_sets`).
        schedule: the sizes (`sppnet.data.build_sizes`).
        cfg_data: the config's `data`, plain.
        cfg_views: the config's `views`, plain: what is seen of a test image.
        seed: the run's seed.
        cache: folder in which the shapes of the images are kept, and with `data.cache` their pixels.
        progress: `trainer.progress`, of keeping them.
    """

    def __init__(
        self,
        sets: Sets,
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
        self._shapes: ShapeArray | None = None

    def prepare_data(self) -> None:
        """Read the images' shapes where whole images are used; the first process of a machine does it for all."""
        if self.cfg["fit"] == "full" or self.views["fit"] in WHOLE:
            self._load_shapes()
        if self.cfg["fit"] == "crop":
            self._source("crop")

    def train_dataloader(self) -> Loader:
        """The training batches of this rank, from where the run stands."""
        world, members = self._world(), self.sets.train
        step = self.cfg["aspect_step"]
        full = self.cfg["fit"] == "full"
        buckets = shape_buckets(members, self._load_shapes(), step, world) if full else square_bucket(members)
        batches = TrainBatches(
            buckets, self.schedule, self.cfg["batch_size"], self.seed, self._rank(), world, self._taken
        )
        self._train_batches = len(batches)
        regions = TrainRegions(self.seed, self.cfg["fit"], self.cfg["crop"], self.cfg["flip"], self.cfg["color"])
        return self._loader(Samples(self.sets.images, regions, self._source("crop")), batches, persistent=True)

    def val_dataloader(self) -> list[Loader]:
        """One loader per size of `sizes.val`: centre crops, or whole images if that is what is trained on."""
        fit = "full" if self.cfg["fit"] == "full" else "center"
        regions = EvalRegions(fit, self.cfg["crop"]["ratio"])
        scales = {size: [size] for size in self.schedule.val}
        return self._eval_loaders(self.sets.val, scales, regions, self.cfg["aspect_step"])

    def test_dataloader(self) -> list[Loader]:
        """One loader per size of `sizes.test`, of what `views` shows: each image at all its scales."""
        regions = EvalRegions(self.views["fit"], self.views["ratio"])
        views = Views.build(self.views)
        scales = {size: [size] if views is None else views.sides(size) for size in self.schedule.test}
        return self._eval_loaders(self.sets.test, scales, regions, self.views["aspect_step"])

    def _eval_loaders(
        self, members: IntArray, scales: Mapping[int, Sequence[int]], regions: EvalRegions, step: float
    ) -> list[Loader]:
        buckets: list[Bucket] = square_bucket(members)
        if regions.fit in WHOLE:
            buckets = shape_buckets(members, self._load_shapes(), step)
        nominal, loaders = self.cfg["batch_size"], []
        samples = Samples(self.sets.images, regions, self._source(regions.fit))
        for size, sides in scales.items():
            # a size far above those of training must not need far more memory
            batch_size = min(nominal, level_batch(nominal, max(sides), max(self.schedule.sizes)))
            batches = EvalBatches(buckets, size, sides, batch_size, self._rank(), self._world())
            loaders.append(self._loader(samples, batches))
        return loaders

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
