"""Transforms of images that tests plug in."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Noise(nn.Module):
    """Draws from all generators, has a random parameter of its own, and depends on the number of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.rand(1))

    def forward(self, image: Tensor) -> Tensor:
        noise = torch.randint(0, 256, image.shape) + random.randrange(256) + np.random.randint(256)
        return (image + self.strength * noise + torch.get_num_threads()).to(torch.int64).remainder(256).to(torch.uint8)


class Quarter(nn.Module):
    """Returns a view of its input: the transposed image."""

    def forward(self, image: Tensor) -> Tensor:
        return image.transpose(1, 2)


class Named(nn.Module):
    """Takes a list of names, not of modules, as `transforms`."""

    def __init__(self, transforms: list[str]) -> None:
        super().__init__()
        self.names = transforms

    def forward(self, image: Tensor) -> Tensor:
        return 255 - image if "invert" in self.names else image


class Mirror(nn.Module):
    """Changes its input in place."""

    def forward(self, image: Tensor) -> Tensor:
        return image.copy_(image.flip(2))


class Pillow(nn.Module):
    """Returns no tensor."""

    def forward(self, image: Tensor) -> Image.Image:
        return Image.fromarray(image.permute(1, 2, 0).numpy())


class Tenth(nn.Module):
    """Fails at every tenth image."""

    images = 0

    def forward(self, image: Tensor) -> Tensor:
        type(self).images += 1
        if self.images % 10 == 0:
            raise RuntimeError("the tenth\nimage")
        return image


class Counter(nn.Module):
    """Turns each image further than the one before."""

    images = 0

    def forward(self, image: Tensor) -> Tensor:
        self.images += 1
        return image.roll(self.images, 2)


class ShrinksDark(nn.Module):
    """Changes the size of dark images, to which images of noise do not belong."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, 1:] if image.float().mean() < 100 else image


class NotAModule:
    """Is no torch.nn.Module."""
