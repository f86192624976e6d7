"""Batch samplers: which images form each batch, and at which size, on every rank.

Lightning tells a batch sampler neither the epoch nor the position to resume from, and it cannot shard a custom batch
sampler over ranks. So the batches are pure functions of (seed, epoch), and a resumed run computes its position from
the number of batches taken so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from sppnet.data.aspect_buckets import Bucket
from sppnet.data.size_schedules import SizeSchedule, rng
from sppnet.data.splits import IntArray


class Item(NamedTuple):
    """One image of a batch: all that a worker needs to load it, so that workers hold no state.

    Attributes:
        index: index of the image in the data set.
        size: the schedule's size, in pixels.
        shapes: (height, width) of the result; several for tests at several scales.
        epoch: counted from 0.
        valid: False for an image that only pads the batch.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    size: int
    shapes: tuple[tuple[int, int], ...]
    epoch: int
    valid: bool


class TrainBatchSampler(Sampler[list[Item]]):
    """The training batches of this rank.

    In every epoch each rank gets n // world of the n images of each bucket; with one process that is every image once.
    All ranks have the same number of batches, and the k-th batches of all ranks have the same size and number of
    images.

    Args:
        buckets: groups of images that may share a batch, each with at least `world` members.
        schedule: gives the sizes.
        batch_size: images per rank in a square batch (`data.batch_size`).
        seed: the run's seed.
        rank: of this process.
        world: number of processes.
        taken: returns the number of batches taken since the run's first step; called once per epoch, in `__iter__`.
        pairs: sizes at which a batch needs at least two images (see `sppnet.training.preflight.sizes_for_pairs`). An
            image that rounding would leave on its own joins another batch, which may then exceed its batch size by one.

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
    ) -> None:
        assert 0 <= rank < world
        shares = [len(bucket.members) // world for bucket in buckets]
        assert min(shares) >= (2 if pairs else 1)
        self.buckets, self.schedule, self.seed = buckets, schedule, seed
        self.rank, self.world, self.taken, self.pairs = rank, world, taken, pairs
        self.images = sum(shares)
        self.nominal = [bucket.batch_size(batch_size) for bucket in buckets]
        self.counts = [
            min(schedule.batches(share, nominal), share // 2 if pairs else share)
            for share, nominal in zip(shares, self.nominal, strict=True)
        ]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[list[Item]]:
        # not a generator function: `taken` must be read now, not when a worker asks for the first batch
        epoch, start = divmod(self.taken(), len(self))
        batches = self._epoch_batches(epoch)
        return (
            [Item(index, min(shape), (shape,), epoch, True) for index in members.tolist()]
            for shape, members in batches[start:]
        )

    def _epoch_batches(self, epoch: int) -> list[tuple[tuple[int, int], IntArray]]:
        """(height, width) and this rank's image indices, for each batch of the epoch."""
        batches = []
        for bucket, nominal, count in zip(self.buckets, self.nominal, self.counts, strict=True):
            stream = f"{bucket.aspect:.6f}"
            order = rng(self.seed, epoch, "order", stream).permutation(bucket.members)
            rank_order = order[self.rank :: self.world][: len(order) // self.world]
            sizes = self.schedule.epoch_sizes(self.seed, epoch, count, stream)
            capacities = [self.schedule.batch_size(size, nominal) for size in sizes]
            minimums = [2 if size in self.pairs else 1 for size in sizes] if self.pairs else None
            ends = balanced_cuts(len(rank_order), capacities, minimums)
            batches += [
                (bucket.shape(size), members)
                for size, members in zip(sizes, np.split(rank_order, ends[:-1]), strict=True)
            ]
        return [batches[k] for k in rng(self.seed, epoch, "batches").permutation(len(batches))]


class EvalBatchSampler(Sampler[list[Item]]):
    """The evaluation batches of this rank, sorted by shape.

    Over all ranks every image occurs once as a valid item. If the images of a bucket do not divide evenly among the
    ranks, its first image pads the other ranks, with `valid` False. The k-th batches of all ranks have the same shape
    and number of images.

    Args:
        buckets: groups of images that may share a batch.
        size: the schedule's size, in pixels.
        scales: shorter sides in pixels; every image is loaded at each of them.
        batch_size: maximum number of images per rank in a square batch.
        rank: of this process.
        world: number of processes.
        limit: number of batches that will be used; None for all. With a limit below the number of batches, each batch
            is a random sample of its bucket, and the batches are drawn with probabilities proportional to their number
            of images, so that a limited evaluation covers all classes and the common shapes.
        seed: of these draws.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        size: int,
        scales: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        limit: int | None = None,
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
        if self.limit is None or self.limit >= len(self):
            return self._batches(None)
        batches = list(self._batches(rng(self.seed, "limited", "members")))
        counts = np.array([len(batch) for batch in batches])
        generator = rng(self.seed, "limited", "batches")
        chosen = generator.choice(len(batches), self.limit, replace=False, p=counts / counts.sum())
        return iter([batches[k] for k in chosen])

    def _batches(self, shuffle: np.random.Generator | None) -> Iterator[list[Item]]:
        """All batches; each bucket in sorted order, or shuffled if a generator is given."""
        for bucket, nominal in zip(self.buckets, self.nominal, strict=True):
            members = (bucket.members if shuffle is None else shuffle.permutation(bucket.members)).tolist()
            shapes = tuple(bucket.shape(scale) for scale in self.scales)
            share = -(-len(members) // self.world)
            padded = [(index, True) for index in members] + [(members[0], False)] * (share * self.world - len(members))
            rank_members = padded[self.rank :: self.world]
            ends = balanced_cuts(share, [nominal] * -(-share // nominal))
            for start, end in zip([0, *ends], ends, strict=False):
                yield [Item(index, self.size, shapes, 0, valid) for index, valid in rank_members[start:end]]


def balanced_cuts(samples: int, capacities: Sequence[int], minimums: Sequence[int] | None = None) -> list[int]:
    """The end positions of `len(capacities)` batches that `samples` fill evenly.

    Each batch gets its minimum, and a share of the remaining samples in proportion to its spare capacity. Without
    `minimums` every minimum is 1 and no batch exceeds its capacity. With `minimums` all capacities grow alike if they
    are too small for all samples.
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
