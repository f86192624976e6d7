"""Batch samplers, which choose the images and the input size of each batch on every rank.

Lightning does not tell a batch sampler the epoch or the position to resume from, and it cannot shard a custom batch
sampler across ranks. Therefore, every rank computes its batches as a pure function of (seed, epoch), and a resumed run
computes its position from the number of batches taken so far.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from sppnet.data.aspect_buckets import Bucket
from sppnet.data.balanced_sampling import balanced_draws
from sppnet.data.size_schedules import SizeSchedule, rng
from sppnet.data.splits import IntArray
from sppnet.errors import UserError

TRIED_SIZES = 1_000_000  # no more sizes than this are tried before training


class Item(NamedTuple):
    """Everything that a worker needs to load one image of a batch. Workers keep no state of their own.

    Attributes:
        index: index of the image in the data set.
        size: the size from the schedule, in pixels.
        shapes: the (height, width) of the resized image at each scale. Only multi-view testing uses several scales.
        epoch: the epoch, counted from 0.
        valid: whether the image counts; False if it only pads the batch.
        draw: how often the epoch has drawn the image before. It is 0 unless `data.sampling` repeats images.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    size: int
    shapes: tuple[tuple[int, int], ...]
    epoch: int
    valid: bool
    draw: int = 0

    def repeats(self) -> tuple[int, ...]:
        """What is added to the keys of the image's random generators, so that a repeated image differs."""
        return (self.draw,) if self.draw else ()


class TrainBatchSampler(Sampler[list[Item]]):
    """The training batches of this rank.

    In every epoch, each rank gets n // world of the n images in each bucket. A single process gets every image once.
    With `classes`, an epoch has as many images, but all classes have the same share of them. All ranks have the same
    number of batches, and the k-th batch has the same input size and number of images on every rank.

    Args:
        buckets: groups of images that may share a batch, each with at least `world` members.
        schedule: the size schedule.
        batch_size: number of images per rank in a batch of square images (`data.batch_size`).
        seed: the run's seed.
        rank: rank of this process.
        world: number of processes.
        taken: function that returns the number of batches taken since the run's first step. It is called once per
            epoch, in `__iter__`.
        pairs: sizes at which a batch needs at least two images (see `sppnet.training.preflight.sizes_for_pairs`). An
            image that would otherwise be alone in a batch joins a different batch, which may then hold more images than
            its batch size.
        classes: the image indices of each class, if all classes should have the same share of an epoch's images. There
            must be a single bucket.

    Attributes:
        images: number of images per epoch on this rank.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        schedule: SizeSchedule,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        taken: Callable[[], int] = lambda: 0,
        pairs: Collection[int] = (),
        classes: Sequence[IntArray] | None = None,
    ) -> None:
        assert 0 <= rank < world
        assert classes is None or len(buckets) == 1
        shares = [len(bucket.members) // world for bucket in buckets]
        assert min(shares) >= (2 if pairs else 1)
        self.buckets, self.schedule, self.seed = buckets, schedule, seed
        self.rank, self.world, self.taken, self.pairs = rank, world, taken, pairs
        self.classes = classes
        self.images = sum(shares)
        self.nominal = [bucket.batch_size(batch_size) for bucket in buckets]
        with self._names_schedule("batches"):
            self.counts = [
                min(operator.index(schedule.batches(share, nominal)), share // 2 if pairs else share)
                for share, nominal in zip(shares, self.nominal, strict=True)
            ]
        if min(self.counts) < 1:
            raise UserError(f"sizes: {type(schedule).__name__}.batches must return at least 1")

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[list[Item]]:
        # Do not turn this into a generator function. Otherwise, `taken` would be called only when the first batch is
        # requested, and the number of batches taken might have changed by then.
        epoch, start = divmod(self.taken(), len(self))
        batches = self._epoch_batches(epoch)
        return (
            [Item(index, min(shape), (shape,), epoch, True, draw) for index, draw in draws.tolist()]
            for shape, draws in batches[start:]
        )

    def _epoch_batches(self, epoch: int) -> list[tuple[tuple[int, int], IntArray]]:
        """The (height, width) of each batch of the epoch, and this rank's (n, 2) image indices and earlier draws."""
        batches = []
        for bucket, nominal, count in zip(self.buckets, self.nominal, self.counts, strict=True):
            draws = self._draws(bucket, epoch)
            order = draws[rng(self.seed, epoch, "order", _stream(bucket)).permutation(len(draws))]
            rank_order = order[self.rank :: self.world][: len(order) // self.world]
            sizes, capacities = self._sizes(bucket, nominal, count, epoch)
            minimums = [2 if size in self.pairs else 1 for size in sizes] if self.pairs else None
            ends = balanced_cuts(len(rank_order), capacities, minimums)
            batches += [
                (bucket.shape(size), rank_draws)
                for size, rank_draws in zip(sizes, np.split(rank_order, ends[:-1]), strict=True)
            ]
        return [batches[k] for k in rng(self.seed, epoch, "batches").permutation(len(batches))]

    def _sizes(self, bucket: Bucket, nominal: int, count: int, epoch: int) -> tuple[list[int], list[int]]:
        """The size of each batch of a bucket in an epoch, and the number of images that the batch may hold.

        Raises:
            UserError: the size schedule, which may be of the user's own, does not keep what `SizeSchedule` asks for.
        """
        schedule, images = self.schedule, len(bucket.members) // self.world
        with self._names_schedule(f"epoch {epoch}"):
            sizes = [operator.index(size) for size in schedule.epoch_sizes(self.seed, epoch, count, _stream(bucket))]
            capacities = [operator.index(schedule.batch_size(size, nominal)) for size in sizes]
        problem = ""
        if len(sizes) != count:
            problem = f"epoch_sizes returns {len(sizes)} sizes for {count} batches"
        elif others := set(sizes) - set(schedule.sizes):
            problem = f"the size {min(others)} is not among its `sizes`, {', '.join(map(str, schedule.sizes))}"
        elif min(capacities) < 1 or (not self.pairs and sum(capacities) < images):
            problem = f"{count} batches hold {sum(capacities)} of {images} images; see its `batches` and `batch_size`"
        if problem:
            raise UserError(f"sizes: {type(schedule).__name__} in epoch {epoch}: {problem}")
        return sizes, capacities

    @contextlib.contextmanager
    def _names_schedule(self, moment: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a user's class may raise any exception
            name = type(self.schedule).__name__
            raise UserError(f"sizes: {name} raises {type(error).__name__} in {moment}: {error}") from error

    def check_schedule(self, again: SizeSchedule, epochs: int) -> None:
        """Try the size schedule for all epochs, and compare it with `again`, which was built anew, in reverse order.

        Raises:
            UserError: an epoch gets other sizes from `again`, as it would in a resumed run; or see `_sizes`.
        """
        other = copy.copy(self)
        other.schedule = again
        epochs = min(epochs, max(1, TRIED_SIZES // len(self)))
        buckets = list(zip(self.buckets, self.nominal, self.counts, strict=True))
        first = [[self._sizes(*bucket, epoch) for bucket in buckets] for epoch in range(epochs)]
        for epoch in reversed(range(epochs)):
            if [other._sizes(*bucket, epoch) for bucket in buckets] != first[epoch]:
                raise UserError(
                    f"sizes: {type(again).__name__} does not always give epoch {epoch} the same sizes, so a resumed run"
                    " would train with others; they must depend on the seed and the epoch alone"
                )

    def _draws(self, bucket: Bucket, epoch: int) -> IntArray:
        """The images of an epoch in a bucket, over all ranks: (n, 2) image indices and earlier draws of the image."""
        if self.classes is None:
            return np.stack([bucket.members, np.zeros_like(bucket.members)], axis=1)
        return balanced_draws(self.classes, self.images * self.world, rng(self.seed, epoch, "balanced"))


def _stream(bucket: Bucket) -> str:
    """The name of a bucket in the keys of random generators."""
    return f"{bucket.aspect:.6f}"


class EvalBatchSampler(Sampler[list[Item]]):
    """The evaluation batches of this rank, sorted by shape.

    Across all ranks, every image occurs exactly once as a valid item. If the images of a bucket do not divide evenly
    among the ranks, each rank with one image fewer gets a copy of an image, with `valid` set to False. The k-th batch
    has the same shape and number of images on every rank.

    Args:
        buckets: groups of images that may share a batch.
        size: the size from the schedule, in pixels.
        scales: shorter sides, in pixels, at which every image is loaded.
        batch_size: maximum number of images per rank in a batch of square images.
        rank: rank of this process.
        world: number of processes.
        limit: number (int) or share (float) of the batches that will be used; None for all. If some are left out, each
            batch is a random sample of its bucket, and batches are drawn with probabilities proportional to their
            number of images, so that a limited evaluation covers all classes and the common shapes.
        seed: seed of these random draws.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        size: int,
        scales: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        limit: float | None = None,
        seed: int = 0,
    ) -> None:
        assert 0 <= rank < world
        self.buckets, self.size, self.scales, self.rank, self.world = buckets, size, scales, rank, world
        self.limit, self.seed = limit, seed
        self.nominal = [bucket.batch_size(batch_size) for bucket in buckets]

    def __len__(self) -> int:
        shares = (-(-len(bucket.members) // self.world) for bucket in self.buckets)
        return sum(-(-share // nominal) for share, nominal in zip(shares, self.nominal, strict=True))

    def __iter__(self) -> Iterator[list[Item]]:
        limit = used_batches(len(self), self.limit)
        if limit == len(self):
            return self._batches(None)
        batches = list(self._batches(rng(self.seed, "limited", "members")))
        counts = np.array([len(batch) for batch in batches])
        generator = rng(self.seed, "limited", "batches")
        chosen = generator.choice(len(batches), limit, replace=False, p=counts / counts.sum())
        return iter([batches[k] for k in chosen])

    def _batches(self, shuffle: np.random.Generator | None) -> Iterator[list[Item]]:
        """Yield all batches. The images of each bucket are in sorted order, or shuffled if a generator is given."""
        for bucket, nominal in zip(self.buckets, self.nominal, strict=True):
            members = (bucket.members if shuffle is None else shuffle.permutation(bucket.members)).tolist()
            shapes = tuple(bucket.shape(scale) for scale in self.scales)
            share = -(-len(members) // self.world)
            padded = [(index, True) for index in members] + [(members[0], False)] * (share * self.world - len(members))
            rank_members = padded[self.rank :: self.world]
            ends = balanced_cuts(share, [nominal] * -(-share // nominal))
            for start, end in zip([0, *ends], ends, strict=False):
                yield [Item(index, self.size, shapes, 0, valid) for index, valid in rank_members[start:end]]


def used_batches(batches: int, limit: float | None) -> int:
    """How many of its `batches` Lightning uses under a limit: a number (int), a share (float), or None for all."""
    return int(batches * limit) if isinstance(limit, float) else batches if limit is None else min(batches, limit)


def balanced_cuts(samples: int, capacities: Sequence[int], minimums: Sequence[int] | None = None) -> list[int]:
    """Divide `samples` images into `len(capacities)` batches. Returns the end position of each batch.

    Each batch gets its minimum plus a share of the remaining samples in proportion to its spare capacity. Without
    `minimums`, every minimum is 1 and no batch exceeds its capacity. With `minimums`, if the capacities are too small
    for all samples, every capacity grows by the same amount.
    """
    if minimums is None:
        assert len(capacities) <= samples <= sum(capacities)
        minimums = [1] * len(capacities)
    capacities = [max(pair) for pair in zip(capacities, minimums, strict=True)]
    extra = max(0, -(-(samples - sum(capacities)) // len(capacities)))
    spare = list(accumulate(room + extra - least for room, least in zip(capacities, minimums, strict=True)))
    rest = samples - sum(minimums)
    assert rest >= 0
    return [k + (s * rest // spare[-1] if rest else 0) for k, s in zip(accumulate(minimums), spare, strict=True)]
