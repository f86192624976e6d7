"""Batch plans: which images go into which batch at which size, on every rank, as pure functions of (seed, epoch).

Lightning tells a batch sampler neither the epoch nor where to resume, and it cannot shard one it does not know. So the
plan needs nothing but numbers that every process has, and a resumed run finds its place by arithmetic.
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
        pairs: sizes at which a batch needs two images (see `sppnet.training.preflight.sizes_for_pairs`). Where
            rounding would leave one, it goes into another batch, which is then one image above its room.

    Attributes:
        images: how many this rank gets in every epoch.
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
            room = [self.schedule.batch_size(size, nominal) for size in sizes]
            least = [2 if size in self.pairs else 1 for size in sizes] if self.pairs else None
            cuts = balanced_cuts(len(mine), room, least)
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
        limit: batches that will be taken. If there are more, those come first that a seeded draw picks, in proportion
            to their images, each a mixture of its bucket: what is cut short sees all classes and common shapes.
        seed: of that draw.
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
        shares = np.array([len(batch) for batch in batches])
        draw = rng(self.seed, "limited", "batches")
        return iter([batches[k] for k in draw.choice(len(batches), self.limit, replace=False, p=shares / shares.sum())])

    def _batches(self, order: np.random.Generator | None) -> Iterator[list[Item]]:
        """All batches; the images of each bucket as they are sorted, or in a drawn order."""
        for bucket, nominal in zip(self.buckets, self.nominal, strict=True):
            members = (bucket.members if order is None else order.permutation(bucket.members)).tolist()
            shapes = tuple(bucket.shape(scale) for scale in self.scales)
            share = -(-len(members) // self.world)
            padded = [(i, True) for i in members] + [(members[0], False)] * (share * self.world - len(members))
            mine = padded[self.rank :: self.world]
            ends = balanced_cuts(share, [nominal] * -(-share // nominal))
            for start, end in zip([0, *ends], ends, strict=False):
                yield [Item(index, self.size, shapes, 0, valid) for index, valid in mine[start:end]]


def balanced_cuts(samples: int, room: Sequence[int], least: Sequence[int] | None = None) -> list[int]:
    """Where each of `len(room)` batches ends when `samples` fill them evenly.

    Every batch gets its least, and of the others a share proportional to the room it has left. Without `least` that is
    one sample, and none is above its room; with it all get more room if they need it.
    """
    if least is None:
        assert len(room) <= samples <= sum(room)
        least = [1] * len(room)
    room = [max(pair) for pair in zip(room, least, strict=True)]
    more = max(0, -(-(samples - sum(room)) // len(room)))
    spare = list(accumulate(r + more - low for r, low in zip(room, least, strict=True)))
    rest = samples - sum(least)
    assert rest >= 0
    return [k + (s * rest // spare[-1] if rest else 0) for k, s in zip(accumulate(least), spare, strict=True)]
