"""Which input size each training batch has: size schedules as pure functions of (seed, epoch).

A batch has one size, a run has many (He et al., section 2.3). Nothing here knows of images, torch or processes, so
every rank works out the same sizes, a resumed run needs no stored state, and the file can be copied as it is.
A size is the side of a square input, or the shorter side where images keep their aspect ratio; in pixels.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np


def rng(*key: int | str) -> np.random.Generator:
    """A generator whose stream is fixed by `key` alone: the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(str(part) for part in key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def level_batch(nominal: int, size: int, base: int) -> int:
    """Images per batch at `size` that take the memory `nominal` images take at `base`; at least 1."""
    return max(1, nominal * base * base // (size * size))


class SizeSchedule(ABC):
    """The sizes of a run. Subclass `EpochSchedule` unless the size changes within an epoch.

    Args:
        train: the sizes that training is made of; what they mean is the subclass's.
        val: sizes to validate at, the first of which picks the best checkpoint.
        test: sizes to test at, the first of which is the headline figure.

    Raises:
        ValueError: a list is empty, holds something other than a positive integer, or asks for one evaluation twice.
    """

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        self.train = _checked("train", train)
        self.val = _checked("val", val, distinct=True)
        self.test = _checked("test", test, distinct=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size a training batch may have, so that a network can be checked before data is read."""
        return tuple(dict.fromkeys(self.train))

    def batch_size(self, size: int, nominal: int) -> int:
        """Most images a batch of `size` may hold where `data.batch_size` is `nominal`."""
        del size
        return nominal

    def batches(self, samples: int, nominal: int) -> int:
        """Batches in every epoch over `samples` images; never depends on the epoch (Lightning reads it once).

        Whatever `epoch_sizes` returns for this number must have room for all samples, and it is at most `samples`.
        """
        return -(-samples // nominal)

    @abstractmethod
    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """The sizes of an epoch's batches, in order.

        Args:
            seed: the run's seed.
            epoch: counted from 0.
            batches: how many are wanted, as `batches` said.
            stream: names the group of images that is batched; groups of one epoch should not draw in step.
        """


class EpochSchedule(SizeSchedule):
    """A schedule that keeps one size for a whole epoch."""

    @abstractmethod
    def size_at(self, seed: int, epoch: int) -> int:
        """The size of every batch of `epoch` (counted from 0)."""

    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """`size_at(seed, epoch)` for every batch."""
        del stream
        return [self.size_at(seed, epoch)] * batches


class Single(EpochSchedule):
    """One size throughout."""

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        super().__init__(train, val, test)
        if len(self.train) != 1:
            raise ValueError(
                f"train={list(train)}: single takes one size (alternating, uniform and weighted take more)"
            )

    def size_at(self, seed: int, epoch: int) -> int:
        """The one size."""
        del seed, epoch
        return self.train[0]


class Alternating(EpochSchedule):
    """The sizes in turn, a full epoch each (section 2.3: 224 and 180; which comes first is not stated there)."""

    def size_at(self, seed: int, epoch: int) -> int:
        """`train[epoch % n]`."""
        del seed
        return self.train[epoch % len(self.train)]


class Uniform(EpochSchedule):
    """`train` is [low, high]; every epoch draws one integer from them, both included (section 3.1.2: [180, 224])."""

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        super().__init__(train, val, test)
        if len(self.train) != 2 or self.train[0] > self.train[1]:
            raise ValueError(f"train={list(train)}: uniform takes two sizes, the lowest and the highest")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every integer from low to high."""
        return tuple(range(self.train[0], self.train[1] + 1))

    def size_at(self, seed: int, epoch: int) -> int:
        """The epoch's draw."""
        return int(rng(seed, epoch, "size").integers(self.train[0], self.train[1], endpoint=True))


class Weighted(SizeSchedule):
    """Each batch has a size of its own; over an epoch, size i gets `weights[i]` of the batches, to within one.

    Batches are level in memory: at size s they hold floor(b * (s0 / s)^2) images, at least 1, where s0 is the first
    of `train` and b is `data.batch_size`. The learning rate does not follow.
    """

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int], weights: Sequence[float]) -> None:
        super().__init__(train, val, test)
        if len(self.sizes) != len(self.train):
            raise ValueError(f"train={list(train)}: a size is listed twice; give it one, larger weight")
        if len(weights) != len(self.train) or not all(_is_number(w) and 0 < w < float("inf") for w in weights):
            raise ValueError(f"weights={list(weights)}: weighted takes one positive number per size of train")
        # Fractions, because a cumulative weight that is off by one bit would give a size one batch too many
        exact = [Fraction(str(weight)) for weight in weights]
        self.cumulative = [sum(exact[: i + 1], Fraction(0)) / sum(exact) for i in range(len(exact))]

    def batch_size(self, size: int, nominal: int) -> int:
        """As many images as take the memory of `nominal` at the first size."""
        return level_batch(nominal, size, self.train[0])

    def batches(self, samples: int, nominal: int) -> int:
        """The smallest number whose batches hold all samples, however the epoch's draw falls."""
        room = [self.batch_size(size, nominal) for size in self.train]
        mean = sum(share * r for share, r in zip(self._shares(), room, strict=True))
        batches = ceil(samples / mean)  # the average over all draws is exact, so the worst draw needs no fewer
        while self._least_room(batches, room) < samples:
            batches += 1
        return batches

    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """Systematic sampling: points (k + u) / batches over the cumulative weights, one u per epoch, then shuffled."""
        draw = rng(seed, epoch, "sizes", stream)
        counts = self._counts(batches, Fraction(int(draw.integers(2**32)), 2**32))
        return [int(size) for size in draw.permutation(np.repeat(self.train, counts))]

    def _shares(self) -> list[Fraction]:
        return [high - low for low, high in zip([Fraction(0), *self.cumulative], self.cumulative, strict=False)]

    def _counts(self, batches: int, u: Fraction) -> list[int]:
        """How many of the points (k + u) / batches fall to each size."""
        ends = [ceil(batches * c - u) for c in self.cumulative]
        return [high - low for low, high in zip([0, *ends], ends, strict=False)]

    def _least_room(self, batches: int, room: Sequence[int]) -> int:
        """The least total over all u in [0, 1): it changes only where `batches * c - u` is a whole number."""
        turns = {Fraction(0), *(batches * c % 1 for c in self.cumulative)}
        return min(sum(n * r for n, r in zip(self._counts(batches, u), room, strict=True)) for u in turns)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(key: str, sizes: object, distinct: bool = False) -> tuple[int, ...]:
    if not isinstance(sizes, list | tuple) or not sizes:
        raise ValueError(f"{key}={sizes!r}: a list of at least one size is needed, such as [224, 180]")
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{key}={list(sizes)}: {size!r} is not a size (a whole number of pixels, at least 1)")
    if distinct and len(set(sizes)) != len(sizes):
        raise ValueError(f"{key}={list(sizes)}: a size is listed twice")
    return tuple(sizes)
