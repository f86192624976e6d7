"""Chooses the shapes of images on which an exported file is compared with its network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sppnet.errors import UserError
from sppnet.export.deployed import Deployed
from sppnet.models.probe import LARGEST, map_size, smallest_input

Shape = tuple[int, int, int]  # N, H, W

SHAPES = 32
BATCHES = 9  # the sizes of batches are 1 to this
FAR = (4, 16)  # long sides of the narrowest images, in multiples of the largest size
PIXELS = 4 * 512**2  # of a batch of images of a fixed size


class Sides:
    """The sides of images that a network takes.

    Args:
        deployed: the network.
        sizes: the sides that it was trained and tested at, in pixels.
        cells: the smallest side of a feature map that the format takes.

    Attributes:
        smallest: the smallest side, in pixels, of a square image that the network takes.
        valid: sides of square images that it takes.
        refused: a larger side that it does not take, because it cuts images into patches, for example; None if there is
            none.
    """

    def __init__(self, deployed: Deployed, sizes: Sequence[int], cells: int) -> None:
        self.deployed, self.cells, self.largest = deployed, cells, max(sizes)
        first = smallest_input(deployed.network.get_submodule("backbone"), cells)
        # the pooling may need a larger map
        self.smallest = next((side for side in range(first, first + LARGEST) if self.takes(side, side)), first)
        multiples = range(self.smallest, 2 * self.largest, self.smallest)
        primes = [side for side in range(self.smallest, 2 * self.largest) if _is_prime(side)]
        others = np.random.default_rng(0).permutation([*primes, *multiples]).tolist()
        tried = [self.smallest, *sizes, *range(self.smallest + 1, self.smallest + 8), *others]
        tried = list(dict.fromkeys(tried))[:40]
        self.valid = [side for side in tried if self.takes(side, side)]
        self.refused = next((side for side in tried if side not in self.valid), None)

    def takes(self, height: int, width: int) -> bool:
        """Whether the network takes images of `height` x `width`, and its map has sides of at least `cells`."""
        try:
            cells = map_size(self.deployed.network.get_submodule("backbone"), height, width)
            with torch.inference_mode():
                self.deployed(self.deployed.example(1, height, width))
        except Exception:  # a user's own module may raise any exception
            return False
        return min(cells) >= self.cells

    def example(self) -> tuple[int, int]:
        """Return the height and width to trace the network with: not square, and with maps of several cells."""
        several = smallest_input(self.deployed.network.get_submodule("backbone"), 4)
        least = max(several, self.largest)
        height = min((side for side in self.valid if side >= least), default=several)
        width = min((side for side in self.valid if side >= height * 4 / 3), default=height + self.smallest)
        return height, width


def draw_shapes(sides: Sides) -> Iterator[Shape]:
    """Yield distinct shapes that the network takes: small and large, square and not, some with prime sides, far larger.

    A batch has at most four times the pixels of a training image, apart from the two longest strips.
    """
    generator = np.random.default_rng(1)
    seen: set[Shape] = set()
    for times in FAR:  # a network may branch on a size beyond all others
        far = min(LARGEST, times * sides.largest) // sides.smallest * sides.smallest
        for height, width in ((far, sides.smallest), (sides.smallest, far)):
            if sides.takes(height, width):
                seen.add((1, height, width))
    yield from sorted(seen)
    for height in itertools.islice(itertools.cycle(sides.valid), 40 * SHAPES):
        width = int(generator.choice(sides.valid)) if len(seen) > 2 * len(FAR) else height
        count = min(1 + len(seen) % BATCHES, max(1, 4 * sides.largest**2 // (height * width)))
        shape = (count, height, width)
        if shape not in seen and sides.takes(height, width):
            seen.add(shape)
            yield shape
        if len(seen) == SHAPES:
            return


def fixed_shapes(deployed: Deployed, side: int) -> list[Shape]:
    """Return batches of square images.

    Raises:
        UserError: the network takes no such image.
    """
    try:
        with torch.inference_mode():
            deployed(deployed.example(1, side, side))
    except Exception as error:  # a user's own module may raise any exception
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"size={side} is not allowed: the network takes no such image ({reason})") from error
    return [(count, side, side) for count in range(1, BATCHES + 1) if count <= 2 or count * side**2 <= PIXELS]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
