"""Chooses the shapes of images on which an exported file is compared with its network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sppnet.errors import UserError
from sppnet.export.deployed import Deployed
from sppnet.models.probe import smallest_input

Shape = tuple[int, int, int]  # N, H, W

SHAPES = 32
BATCHES = 9  # the sizes of batches are 1 to this
SQUARE, STRIP = 4, 16  # sides of the largest square and of the longest strips, in multiples of the largest size
LARGEST_SQUARE = 2048  # pixels; it must fit into the memory
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
        refused: height and width of a larger image that it does not take, because it cuts images into patches, for
            example; None until there is one.
    """

    def __init__(self, deployed: Deployed, sizes: Sequence[int], cells: int) -> None:
        self.deployed, self.cells, self.largest = deployed, cells, max(sizes)
        self.refused: tuple[int, int] | None = None
        self.backbone = deployed.network.get_submodule("backbone")
        first = smallest_input(self.backbone, cells)
        # the pooling may need a larger map, but the network was trained
        least = max(first, min(sizes))
        self.smallest = next((side for side in range(first, least) if self._runs(side, side)), least)
        multiples = range(self.smallest, 2 * self.largest, self.smallest)
        primes = [side for side in range(self.smallest, 2 * self.largest) if _is_prime(side)]
        others = np.random.default_rng(0).permutation([*primes, *multiples]).tolist()
        tried = [self.smallest, *sizes, *range(self.smallest + 1, self.smallest + 8), *others]
        self.valid = [side for side in list(dict.fromkeys(tried))[:40] if self.takes(side, side)]

    def takes(self, height: int, width: int) -> bool:
        """Whether the network takes images of `height` x `width`, whose sides are not below the smallest.

        The first one that it does not take is noted in `refused`.
        """
        if min(height, width) < self.smallest:
            return False
        if self._runs(height, width):
            return True
        self.refused = self.refused or (height, width)
        return False

    def _runs(self, height: int, width: int) -> bool:
        """Whether the network takes images of `height` x `width`, and its map has sides of at least `cells`."""
        maps: list[torch.Size] = []
        with self.backbone.register_forward_hook(lambda *called: maps.append(called[2].shape)):
            refused = refusal(self.deployed, self.deployed.example(1, height, width))
        return not refused and min(maps[0][2:]) >= self.cells

    def example(self) -> tuple[int, int]:
        """Return the height and width to trace the network with: not square, and with maps of several cells."""
        several = smallest_input(self.backbone, 4)
        least = max(several, self.largest)
        height = min((side for side in self.valid if side >= least), default=several)
        width = min((side for side in self.valid if side >= height * 4 / 3), default=height + self.smallest)
        return height, width


def draw_shapes(sides: Sides) -> Iterator[Shape]:
    """Yield distinct shapes that the network takes: small and large, square and not, some with prime sides, far larger.

    Those that it does not take are noted in `sides.refused`. A batch has at most four times the pixels of a training
    image, apart from the largest square and the longest strips.
    """
    generator = np.random.default_rng(1)
    # a network may do something else, or nothing, beyond some size: a far larger square, and strips of two lengths
    least, largest = sides.smallest, sides.largest
    side = max(largest, min(LARGEST_SQUARE, SQUARE * largest)) // least * least
    far = [(side, side)]
    for length in (SQUARE * largest // least * least, STRIP * largest // least * least):
        far += [(length, least), (least, length)]
    seen = {(1, height, width) for height, width in far if sides.takes(height, width)}
    yield from sorted(seen)
    number = len(seen)
    for height in itertools.islice(itertools.cycle(sides.valid), 40 * SHAPES):
        width = int(generator.choice(sides.valid)) if len(seen) > number else height
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
    if reason := refusal(deployed, deployed.example(1, side, side)):
        raise UserError(f"size={side} is not allowed: the network takes no such image ({reason})")
    return [(count, side, side) for count in range(1, BATCHES + 1) if count <= 2 or count * side**2 <= PIXELS]


def refusal(deployed: Deployed, images: Tensor) -> str:
    """Return why the network does not take `images`; "" if it does."""
    try:
        with torch.inference_mode():
            deployed(images)
    except Exception as error:  # a user's own module may raise any exception
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
