"""Transforms of training images (`augment.transforms` and `augment.erasing`), in the process that loads them.

A transform gets the region of one image at the size of its batch, after mirroring, and returns an image of the same
type and shape. Transforms draw from the global generators, which are seeded for each image. What they draw therefore
does not depend on the worker or rank, or on whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import Augment, nests_transforms
from sppnet.data.batch_samplers import Item
from sppnet.data.seeding import preserved_generators, seed_generators
from sppnet.errors import UserError

MIXES = ("MixUp", "CutMix")  # transforms of batches in torchvision.transforms.v2


@dataclass(frozen=True)
class Transform:
    """A transform of one image.

    Attributes:
        slot: its config key, such as `augment.transforms.0`.
        name: name of its class.
        module: the transform itself.
    """

    slot: str
    name: str
    module: nn.Module

    def __call__(self, image: Tensor) -> Tensor:
        """Transform `image`, uint8 (3, h, w).

        Raises:
            UserError: the transform fails, or returns anything else than an image of this type and shape.
        """
        given, shape = describe(image), image.shape
        try:
            returned = self.module(image)
        except Exception as error:  # a user's class may raise any exception
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise UserError(self._problem(given, f"fails ({reason})")) from error
        if isinstance(returned, Tensor) and (returned.dtype, returned.shape) == (torch.uint8, shape):
            return returned
        raise UserError(self._problem(given, f"returns {describe(returned)}"))

    def _problem(self, given: str, what: str) -> str:
        last = self.name.rpartition(".")[2]
        hint = f"; to mix images, use mix={last.lower()}" if last in MIXES else ""
        rule = f"must return an image of the type and shape of its input, {given}"
        return f"{self.slot}: {self.name} {rule}, but {what}{hint}"


@dataclass(frozen=True)
class Augmentation:
    """The transforms of training images, in order, and the run's seed."""

    transforms: tuple[Transform, ...]
    seed: int

    def __call__(self, images: Tensor, items: Sequence[Item]) -> None:
        """Transform `images`, uint8 (N, 3, h, w), in place.

        Raises:
            UserError: see `Transform`.
        """
        threads = torch.get_num_threads()
        with preserved_generators(), torch.no_grad():
            torch.set_num_threads(1)  # as in a worker, because a mean over several threads is rounded differently
            try:
                for image, item in zip(images, items, strict=True):
                    seed_generators(self.seed, item.epoch, "augment", item.index, *item.repeats())
                    transformed = image.clone()  # a transform may return a view, such as a transposed image
                    for transform in self.transforms:
                        transformed = transform(transformed)
                    image.copy_(transformed)
            finally:
                torch.set_num_threads(threads)


def build_augmentation(cfg: Augment, mean: Sequence[float], seed: int) -> Augmentation | None:
    """Build the transforms that the config's `augment` describes; None if there are none.

    Args:
        cfg: the config's `augment`.
        mean: the config's `data.mean`. An erased rectangle has this colour, which normalisation maps to zero.
        seed: the run's seed. A transform with random parameters of its own has the same ones in every process.

    Raises:
        UserError: a class is not allowed, is not a torch.nn.Module, or refuses its arguments.
    """
    nodes = {f"augment.transforms.{number}": node.node() for number, node in enumerate(cfg.transforms)}
    if cfg.erasing:
        value = [round(255 * channel) for channel in mean]
        target = "torchvision.transforms.v2.RandomErasing"
        nodes["augment.erasing"] = {"_target_": target, "p": cfg.erasing, "value": value}
    if not nodes:
        return None
    with preserved_generators():
        seed_generators(seed, "augment")
        built = tuple(Transform(slot, node["_target_"], _build(node, slot)) for slot, node in nodes.items())
    return Augmentation(built, seed)


def _build(node: Mapping[str, Any], slot: str) -> nn.Module:
    """Build a transform, and first the transforms inside it, as in RandomApply and RandomChoice."""
    if nests_transforms(node):
        inner = [_build(each, f"{slot}.transforms.{number}") for number, each in enumerate(node["transforms"])]
        node = {**node, "transforms": inner}
    return instantiate(node, nn.Module, slot)


def describe(value: object) -> str:
    """Describe what a transform gets or returns: type and shape of a tensor, otherwise the class."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}"
