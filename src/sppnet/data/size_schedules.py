"""Size schedules: the input size of each training batch, as a pure function of (seed, epoch).

All images of a batch have one size; a run uses several sizes (He et al., section 2.3). A size is the side of a square
input, or the shorter side of an input that keeps its aspect ratio, in pixels. Schedules know nothing of images, torch
or ranks: every rank computes the same sizes, a resumed run needs no stored state, and this file can be copied alone.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np


def rng(*key: int | str) -> np.random.Generator:
    """A random generator seeded by `key` alone: the same stream in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(str(part) for part in key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def equal_memory_batch_size(nominal: int, size: int, base: int) -> int:
    """Images per batch at `size` that need at most the memory of `nominal` images at `base`; at least 1."""
    return max(1, nominal * base * base // (size * size))


class SizeSchedule(ABC):
    """The sizes of a run. Subclass `EpochSchedule` unless the size changes within an epoch.

    Args:
        train: training sizes; the subclass defines what they mean.
        val: validation sizes; the first one selects the best checkpoint.
        test: test sizes; the first one gives the headline metrics.

    Raises:
        ValueError: a list is empty or holds something other than positive integers, or `val` or `test` lists a size
            twice.
    """

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        self.train = _check_sizes("train", train)
        self.val = _check_sizes("val", val, distinct=True)
        self.test = _check_sizes("test", test, distinct=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that a training batch may have. The network is checked at these before any data is read."""
        return tuple(dict.fromkeys(self.train))

    def batch_size(self, size: int, nominal: int) -> int:
        """The maximum number of images in a batch of `size` when `data.batch_size` is `nominal`."""
        del size
        return nominal

    def batches(self, samples: int, nominal: int) -> int:
        """Batches per epoch over `samples` images; the same in every epoch, since Lightning reads it once.

        An override must return at most `samples`, and enough batches for all samples whichever sizes `epoch_sizes`
        draws for them.
        """
        return -(-samples // nominal)

    @abstractmethod
    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """The sizes of an epoch's batches, in order.

        Args:
            seed: the run's seed.
            epoch: counted from 0.
            batches: number of sizes to return, as computed by the method `batches`.
            stream: name of the bucket of images that is batched. A random schedule includes it in the key of its
                generator, so that the buckets of an epoch draw independently.
        """


class EpochSchedule(SizeSchedule):
    """A schedule with one size per epoch."""

    @abstractmethod
    def size_at(self, seed: int, epoch: int) -> int:
        """The size of every batch of `epoch` (counted from 0)."""

    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """`size_at(seed, epoch)` for every batch."""
        del stream
        return [self.size_at(seed, epoch)] * batches


class Single(EpochSchedule):
    """One size for the whole run."""

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        super().__init__(train, val, test)
        if len(self.train) != 1:
            raise ValueError(
                f"train={list(train)}: single takes one size (alternating, uniform and weighted take more)"
            )

    def size_at(self, seed: int, epoch: int) -> int:
        """The only size."""
        del seed, epoch
        return self.train[0]


class Alternating(EpochSchedule):
    """The sizes in turn, one epoch each (section 2.3: 224 and 180; the paper does not say which comes first)."""

    def size_at(self, seed: int, epoch: int) -> int:
        """`train[epoch % n]`."""
        del seed
        return self.train[epoch % len(self.train)]


class Uniform(EpochSchedule):
    """Each epoch draws an integer size from `train` = [low, high], both included (section 3.1.2: [180, 224])."""

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        super().__init__(train, val, test)
        if len(self.train) != 2 or self.train[0] > self.train[1]:
            raise ValueError(f"train={list(train)}: uniform takes two sizes, the lowest and the highest")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every integer from low to high."""
        return tuple(range(self.train[0], self.train[1] + 1))

    def size_at(self, seed: int, epoch: int) -> int:
        """The size drawn for `epoch`."""
        return int(rng(seed, epoch, "size").integers(self.train[0], self.train[1], endpoint=True))


class Weighted(SizeSchedule):
    """Each batch has its own size; per epoch, size i gets its share `weights[i] / sum(weights)` of the batches.

    The share is exact to within one batch. All batches need about the same memory: at size s a batch holds up to
    max(1, floor(b * (s0 / s)^2)) images, where s0 is the first of `train` and b is `data.batch_size`. The learning
    rate is not scaled with the batch.
    """

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int], weights: Sequence[float]) -> None:
        super().__init__(train, val, test)
        if len(self.sizes) != len(self.train):
            raise ValueError(f"train={list(train)}: a size is listed twice; list it once, with a larger weight")
        if len(weights) != len(self.train) or not all(_is_number(w) and 0 < w < float("inf") for w in weights):
            raise ValueError(f"weights={list(weights)}: weighted takes one positive number per size of train")
        # exact fractions: with floats, a cumulative weight off by one bit gives a size one batch too many
        exact = [Fraction(str(weight)) for weight in weights]
        self.cumulative = [sum(exact[: i + 1], Fraction(0)) / sum(exact) for i in range(len(exact))]

    def batch_size(self, size: int, nominal: int) -> int:
        """The number of images that need the memory of `nominal` images at the first size."""
        return equal_memory_batch_size(nominal, size, self.train[0])

    def batches(self, samples: int, nominal: int) -> int:
        """The smallest number of batches that holds all samples for every possible draw of sizes."""
        capacities = [self.batch_size(size, nominal) for size in self.train]
        mean = sum(share * capacity for share, capacity in zip(self._shares(), capacities, strict=True))
        batches = ceil(samples / mean)  # a lower bound: the worst draw needs no fewer than the mean
        while self._smallest_capacity(batches, capacities) < samples:
            batches += 1
        return batches

    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """Systematic sampling, then a shuffle: points (k + u) / batches on the cumulative weights, one u per epoch."""
        generator = rng(seed, epoch, "sizes", stream)
        counts = self._counts(batches, Fraction(int(generator.integers(2**32)), 2**32))
        return [int(size) for size in generator.permutation(np.repeat(self.train, counts))]

    def _shares(self) -> list[Fraction]:
        return [high - low for low, high in zip([Fraction(0), *self.cumulative], self.cumulative, strict=False)]

    def _counts(self, batches: int, u: Fraction) -> list[int]:
        """The batches of each size: the points (k + u) / batches in its interval of the cumulative weights."""
        ends = [ceil(batches * c - u) for c in self.cumulative]
        return [high - low for low, high in zip([0, *ends], ends, strict=False)]

    def _smallest_capacity(self, batches: int, capacities: Sequence[int]) -> int:
        """The minimum over all u in [0, 1) of the images that an epoch's batches can hold.

        The counts change only at those u where `batches * c - u` is an integer for a cumulative weight c.
        """
        breakpoints = {Fraction(0), *(batches * c % 1 for c in self.cumulative)}
        return min(
            sum(count * capacity for count, capacity in zip(self._counts(batches, u), capacities, strict=True))
            for u in breakpoints
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_sizes(key: str, sizes: object, distinct: bool = False) -> tuple[int, ...]:
    if not isinstance(sizes, list | tuple) or not sizes:
        raise ValueError(f"{key}={sizes!r}: a list of at least one size is needed, such as [224, 180]")
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{key}={list(sizes)}: {size!r} is not a size (a positive integer, in pixels)")
    if distinct and len(set(sizes)) != len(sizes):
        raise ValueError(f"{key}={list(sizes)}: a size is listed twice")
    return tuple(sizes)
