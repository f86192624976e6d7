"""Batch plans: which images go into which batch at which size, on every rank, as pure functions of (seed, epoch).

Lightning tells a batch sampler neither the epoch nor where to resume, and it cannot shard one it does not know. So the
plan needs nothing but numbers that every process has, and a resumed run finds its place by arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from sppnet.data.buckets import Bucket
from sppnet.data.sizes import SizeSchedule, rng
from sppnet.data.split import IntArray


class Item(NamedTuple):
    """What a worker has to know of one image of a batch; nothing else, so that workers need no state.

    Attributes:
        index: its position in the set.
        size: the schedule's size, in pixels.
        shapes: (height, width) at which it is wanted; several if a test looks at several scales.
        epoch: counted from 0.
        valid: False for an image that only fills up a batch.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    size: int
    shapes: tuple[tuple[int, int], ...]
    epoch: int
    valid: bool


class TrainBatches(Sampler[list[Item]]):
    """The training batches of this rank.

    In every epoch each rank gets n // world images of every bucket (all n, each once, with one process), in the same
    number of batches, of which the k-th has the same size and number of images on every rank.

    Args:
        buckets: groups of images that may share a batch, each with at least `world` members.
        schedule: gives the sizes.
        batch_size: images in a square batch per rank (`data.batch_size`).
        seed: the run's seed.
        rank: this process.
        world: number of processes.
        taken: batches that the run has taken since its first step; asked when an epoch's iterator is made.
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
    ) -> None:
        assert 0 <= rank < world
        assert all(len(bucket.members) >= world for bucket in buckets)
        self.buckets, self.schedule, self.seed = buckets, schedule, seed
        self.rank, self.world, self.taken = rank, world, taken
        self.nominal = [bucket.batch_size(batch_size) for bucket in buckets]
        self.counts = [
            schedule.batches(len(bucket.members) // world, nominal)
            for bucket, nominal in zip(buckets, self.nominal, strict=True)
        ]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[list[Item]]:
        # not a generator itself: the position must be read now, not when a worker asks for the first batch
        epoch, start = divmod(self.taken(), len(self))
        plan = self._plan(epoch)
        return (
            [Item(index, min(shape), (shape,), epoch, True) for index in members.tolist()]
            for shape, members in plan[start:]
        )

    def _plan(self, epoch: int) -> list[tuple[tuple[int, int], IntArray]]:
        """(height, width) and this rank's images of each of the epoch's batches."""
        plan = []
        for bucket, nominal, count in zip(self.buckets, self.nominal, self.counts, strict=True):
            stream = f"{bucket.aspect:.6f}"
            order = rng(self.seed, epoch, "order", stream).permutation(bucket.members)
            mine = order[self.rank :: self.world][: len(order) // self.world]
            sizes = self.schedule.epoch_sizes(self.seed, epoch, count, stream)
            cuts = balanced_cuts(len(mine), [self.schedule.batch_size(size, nominal) for size in sizes])
            plan += [(bucket.shape(s), part) for s, part in zip(sizes, np.split(mine, cuts[:-1]), strict=True)]
        return [plan[k] for k in rng(self.seed, epoch, "batches").permutation(len(plan))]


class EvalBatches(Sampler[list[Item]]):
    """The evaluation batches of this rank, in order of shape.

    Over all ranks every image comes once; where a bucket's images do not divide among the ranks, some repeat its first
    one, marked invalid. The k-th batches of all ranks have the same shape and number of images.

    Args:
        buckets: groups of images that may share a batch.
        size: the schedule's size, in pixels.
        scales: shorter sides at which every image is wanted, in pixels.
        batch_size: most images in a square batch per rank.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        size: int,
        scales: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert 0 <= rank < world
        self.buckets, self.size, self.scales, self.rank, self.world = buckets, size, scales, rank, world
        self.nominal = [bucket.batch_size(batch_size) for bucket in buckets]

    def __len__(self) -> int:
        shares = (-(-len(bucket.members) // self.world) for bucket in self.buckets)
        return sum(-(-share // nominal) for share, nominal in zip(shares, self.nominal, strict=True))

    def __iter__(self) -> Iterator[list[Item]]:
        for bucket, nominal in zip(self.buckets, self.nominal, strict=True):
            members, shapes = bucket.members.tolist(), tuple(bucket.shape(scale) for scale in self.scales)
            share = -(-len(members) // self.world)
            padded = [(i, True) for i in members] + [(members[0], False)] * (share * self.world - len(members))
            mine = padded[self.rank :: self.world]
            ends = balanced_cuts(share, [nominal] * -(-share // nominal))
            for start, end in zip([0, *ends], ends, strict=False):
                yield [Item(index, self.size, shapes, 0, valid) for index, valid in mine[start:end]]


def balanced_cuts(samples: int, room: Sequence[int]) -> list[int]:
    """Where each of `len(room)` batches ends when `samples` fill them evenly: none above its room, none empty.

    Every batch gets one sample, and of the others a share proportional to the room it has left.
    """
    assert len(room) <= samples <= sum(room)
    spare = list(accumulate(r - 1 for r in room))
    rest = samples - len(room)
    return [k + (s * rest // spare[-1] if rest else 0) for k, s in enumerate(spare, start=1)]
