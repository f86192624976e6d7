"""Compares an exported file, run in its own runtime, with the network in PyTorch, at many shapes and on real images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sppnet.errors import RunFailed, UserError
from sppnet.export.deployed import Deployed
from sppnet.models.probe import map_size, smallest_input

TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit of the batch
SHAPES = 32
BATCHES = 9  # the sizes of batches that are tried are 1 to this
# Runs the exported file on batches of images, and returns for each batch the output and the logits, or the error.
Run = Callable[[Sequence[Tensor]], list[tuple[Tensor, Tensor] | str]]


@dataclass(frozen=True)
class Agreement:
    """How far an exported file agrees with its network on some images.

    Attributes:
        what: the images.
        shapes: number of distinct shapes of batches.
        images: number of images.
        difference: largest difference of a logit, relative to the largest logit of its batch.
        same: number of images with the same likeliest class.
    """

    what: str
    shapes: int
    images: int
    difference: float
    same: int


def compare(deployed: Deployed, run: Run, batches: Sequence[Tensor], what: str, advice: str) -> Agreement:
    """Compare an exported file with the network on batches of images, such as `deployed.example` makes.

    Args:
        deployed: the network.
        run: runs the exported file.
        batches: the images.
        what: names the images.
        advice: what to do if they differ.

    Raises:
        RunFailed: they differ by more than `TOLERANCE`, or the file fails; the message names the shape.
    """
    differences, same = [0.0], 0
    for images, result in zip(batches, run(batches), strict=True):
        shape = "x".join(map(str, images.shape))
        if isinstance(result, str):
            raise RunFailed(f"the exported file fails on {what} of shape {shape} ({result}); {advice}")
        with torch.inference_mode():
            expected = (deployed(images), deployed.logits(images))
        difference = max(_difference(*pair) for pair in zip(result, expected, strict=True))
        if not difference <= TOLERANCE:  # also true of NaN
            raise RunFailed(
                f"the exported file differs from the network by {difference:.2g} on {what} of shape {shape}, and at"
                f" most {TOLERANCE:g} is allowed; {advice}"
            )
        differences.append(difference)
        same += int((result[1].argmax(1) == expected[1].argmax(1)).sum())
    shapes = len({batch.shape for batch in batches})
    return Agreement(what, shapes, sum(map(len, batches)), max(differences), same)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; NaN if the shapes differ."""
    if actual.shape != expected.shape:
        return float("nan")
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((actual - expected).abs().max() / largest)


def build_examples(deployed: Deployed, sizes: Sequence[int], fixed: int | None, cells: int) -> list[Tensor]:
    """Build random images of many shapes: small and large, square and not, with prime sides, in batches of 1 to 9.

    Args:
        deployed: the network.
        sizes: the sides that it was trained and tested at, in pixels.
        fixed: the only side that the file takes; None if it takes images of any size.
        cells: the smallest side of a feature map that the format takes.

    Raises:
        UserError: the network takes no image of the side `fixed`, or none of the images.
    """
    if fixed is not None:
        shapes = [(count, fixed, fixed) for count in range(1, BATCHES + 1)]
        _check_side(deployed, fixed)
    else:
        shapes = list(_draw_shapes(deployed, sizes, cells))
    if not shapes:
        raise UserError("the network takes none of the images that it would be compared on")
    return [deployed.example(*shape, seed=number) for number, shape in enumerate(shapes)]


def smallest_side(deployed: Deployed, cells: int) -> int:
    """Return the side of the smallest image, in pixels, whose feature map has `cells` x `cells` cells."""
    trunk = deployed.network.get_submodule("backbone")
    smallest = smallest_input(trunk)
    while not _gives_map(trunk, smallest, cells):
        smallest += 1
    return smallest


def _check_side(deployed: Deployed, side: int) -> None:
    try:
        deployed(deployed.example(1, side, side))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"size={side} is not allowed: the network takes no such image ({error})") from error


def _draw_shapes(deployed: Deployed, sizes: Sequence[int], cells: int) -> Iterator[tuple[int, int, int]]:
    """Yield distinct shapes (N, H, W) that the network takes, of at most four times the pixels of a training image."""
    trunk, smallest, largest = deployed.network.get_submodule("backbone"), smallest_side(deployed, cells), max(sizes)
    generator = np.random.default_rng(0)
    sides = [side for side in range(smallest, 2 * largest) if _is_prime(side) or side % smallest == 0]
    # beside primes, multiples of the smallest, because a network that cuts images into patches takes no others
    few = [smallest, *sizes, smallest + 1, *generator.permutation(sides).tolist()][:40]
    valid = [side for side in dict.fromkeys(few) if _gives_map(trunk, side, cells)]
    seen: set[tuple[int, int, int]] = set()
    for height in itertools.islice(itertools.cycle(valid), 40 * SHAPES):
        width = int(generator.choice(valid)) if seen else height
        count = min(1 + len(seen) % BATCHES, max(1, 4 * largest**2 // (height * width)))
        shape = (count, height, width)
        if shape not in seen and _pools(deployed, height, width):
            seen.add(shape)
            yield shape
        if len(seen) == SHAPES:
            return


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _gives_map(trunk: torch.nn.Module, side: int, cells: int) -> bool:
    try:
        return min(map_size(trunk, side, side)) >= cells
    except UserError:
        return False


def _pools(deployed: Deployed, height: int, width: int) -> bool:
    """Whether the network takes images of `height` x `width`: a rule of bins, or patches, may refuse some."""
    try:
        with torch.inference_mode():
            deployed(deployed.example(1, height, width))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True
