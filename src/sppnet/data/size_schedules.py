"""Size schedules: the input size of each training batch, as a pure function of (seed, epoch).

All images in a batch have the same size, but a run can use several sizes (He et al., section 2.3). A size is the side
of a square input, or the shorter side of an input that keeps the image's aspect ratio, in pixels. Schedules do not
depend on images, torch or ranks: every rank computes the same sizes, a resumed run needs no stored state, and this file
can be copied into other projects on its own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np


def rng(*key: int | str) -> np.random.Generator:
    """A random generator seeded only with `key`. Its stream is the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(str(part) for part in key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def equal_memory_batch_size(nominal: int, size: int, base: int) -> int:
    """The largest batch size (>= 1) at size `size` that needs no more memory than `nominal` images at size `base`."""
    return max(1, nominal * base * base // (size * size))


class SizeSchedule(ABC):
    """The sizes of a run. Subclass `EpochSchedule` unless the size changes within an epoch.

    Args:
        train: training sizes; the subclass defines what they mean.
        val: validation sizes; the first one selects the best checkpoint.
        test: test sizes; the first one gives the headline metrics.

    Raises:
        ValueError: a list is empty or contains anything other than positive integers, or `val` or `test` lists a size
            twice.
    """

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int]) -> None:
        self.train = _check_sizes("train", train)
        self.val = _check_sizes("val", val, distinct=True)
        self.test = _check_sizes("test", test, distinct=True)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that a training batch may have. The network is checked at these sizes before any data are read."""
        return tuple(dict.fromkeys(self.train))

    def batch_size(self, size: int, nominal: int) -> int:
        """The maximum number of images in a batch of `size` when `data.batch_size` is `nominal`."""
        del size
        return nominal

    def batches(self, samples: int, nominal: int) -> int:
        """The number of batches per epoch of `samples` images.

        Lightning reads this number only once, so it must be the same in every epoch. A subclass that overrides
        this method must return at most `samples`, but enough for the batches to hold all images, whichever sizes
        `epoch_sizes` draws.
        """
        return -(-samples // nominal)

    @abstractmethod
    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """The sizes of an epoch's batches, in order.

        Args:
            seed: the run's seed.
            epoch: the epoch, counted from 0.
            batches: number of sizes to return, as computed by the method `batches`.
            stream: name of the bucket whose images are batched. A schedule that draws a size for each batch
                includes `stream` in the key of its generator, so that the draws for different buckets are independent.
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
            raise ValueError(f"train={list(train)}: single takes exactly one size; the other schedules take several")

    def size_at(self, seed: int, epoch: int) -> int:
        """The only size in `train`."""
        del seed, epoch
        return self.train[0]


class Alternating(EpochSchedule):
    """Each epoch uses the next size in turn (224 and 180 in section 2.3, which does not say which comes first)."""

    def size_at(self, seed: int, epoch: int) -> int:
        """The size `train[epoch % n]`, where n is the number of sizes."""
        del seed
        return self.train[epoch % len(self.train)]


class Uniform(EpochSchedule):
    """Each epoch draws an integer size from `train` = [low, high], both included ([180, 224] in section 3.1.2)."""

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


class Progressive(EpochSchedule):
    """The size grows over the epochs, from about the first to the second size in `train` = [low, high].

    It grows linearly with the epoch, in steps: the sizes are high, high - step, high - 2 * step and so on, as long as
    they are at least low. The last epoch has the size high. Training on small images at first saves time (Tan and Le,
    2021, EfficientNetV2, who also strengthen the regularisation as the images grow).

    Args:
        train: the lowest and the highest size.
        val: validation sizes.
        test: test sizes.
        epochs: number of epochs over which the size grows; later epochs have the size high.
        step: difference between successive sizes, in pixels.
    """

    def __init__(
        self, train: Sequence[int], val: Sequence[int], test: Sequence[int], epochs: int, step: int = 8
    ) -> None:
        super().__init__(train, val, test)
        if len(self.train) != 2 or self.train[0] > self.train[1]:
            raise ValueError(f"train={list(train)}: progressive takes two sizes, first the lower and then the higher")
        for key, value in (("epochs", epochs), ("step", step)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key}={value!r}: must be a positive integer")
        if self.train[0] < self.train[1] < self.train[0] + step:
            raise ValueError(
                f"step={step}: must be at most the difference between the sizes, {self.train[1] - self.train[0]}"
            )
        self.epochs, self.step = epochs, step

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of all epochs, in ascending order."""
        return tuple(dict.fromkeys(self.size_at(0, epoch) for epoch in range(self.epochs)))

    def size_at(self, seed: int, epoch: int) -> int:
        """The smallest of the sizes that is at least `low + (high - low) * epoch / (epochs - 1)`."""
        del seed
        low, high = self.train
        remaining = (high - low) * max(0, self.epochs - 1 - epoch)
        return high - remaining // (self.step * max(1, self.epochs - 1)) * self.step


class Weighted(SizeSchedule):
    """Each batch has its own size. In every epoch, size i gets a share `weights[i] / sum(weights)` of the batches.

    The share is exact to within one batch. All batches need about the same memory: at size s, a batch holds up to
    max(1, floor(b * (s0 / s)^2)) images, where s0 is the first size in `train` and b is `data.batch_size`. The learning
    rate is not scaled with the number of images.
    """

    def __init__(self, train: Sequence[int], val: Sequence[int], test: Sequence[int], weights: Sequence[float]) -> None:
        super().__init__(train, val, test)
        if len(self.sizes) != len(self.train):
            raise ValueError(f"train={list(train)}: a size is listed twice; list it once, with a larger weight")
        if len(weights) != len(self.train) or not all(_is_number(w) and 0 < w < float("inf") for w in weights):
            raise ValueError(f"weights={list(weights)}: weighted takes one positive number per size in train")
        # exact fractions: with floats, an error of one bit in a cumulative weight can give a size one batch too many
        exact = [Fraction(str(weight)) for weight in weights]
        self.cumulative = [sum(exact[: i + 1], Fraction(0)) / sum(exact) for i in range(len(exact))]

    def batch_size(self, size: int, nominal: int) -> int:
        """The largest batch size at `size` that needs no more memory than `nominal` images at the first size."""
        return equal_memory_batch_size(nominal, size, self.train[0])

    def batches(self, samples: int, nominal: int) -> int:
        """The smallest number of batches that can hold all samples, whichever sizes are drawn."""
        capacities = [self.batch_size(size, nominal) for size in self.train]
        mean = sum(share * capacity for share, capacity in zip(self._shares(), capacities, strict=True))
        batches = ceil(samples / mean)  # a lower bound: the worst draw needs at least as many batches as an average one
        while self._smallest_capacity(batches, capacities) < samples:
            batches += 1
        return batches

    def epoch_sizes(self, seed: int, epoch: int, batches: int, stream: str) -> list[int]:
        """Draw the sizes by systematic sampling and shuffle them.

        Before the shuffle, batch k gets the size whose interval of the cumulative weights contains (k + u) / batches.
        The random u in [0, 1) is the same for all k.
        """
        generator = rng(seed, epoch, "sizes", stream)
        counts = self._counts(batches, Fraction(int(generator.integers(2**32)), 2**32))
        return [int(size) for size in generator.permutation(np.repeat(self.train, counts))]

    def _shares(self) -> list[Fraction]:
        return [high - low for low, high in zip([Fraction(0), *self.cumulative], self.cumulative, strict=False)]

    def _counts(self, batches: int, u: Fraction) -> list[int]:
        """The number of batches per size: how many points `(k + u) / batches` its interval has (see `epoch_sizes`)."""
        ends = [ceil(batches * c - u) for c in self.cumulative]
        return [high - low for low, high in zip([0, *ends], ends, strict=False)]

    def _smallest_capacity(self, batches: int, capacities: Sequence[int]) -> int:
        """The minimum number of images that an epoch's batches can hold, over all u in [0, 1).

        `_counts` changes only at values of u where `batches * c - u` is an integer for some cumulative weight c.
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
