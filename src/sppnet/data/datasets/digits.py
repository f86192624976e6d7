"""The default data: scikit-learn's scans of handwritten digits, each on a canvas of its own size and shape.

The scans (UCI "Optical Recognition of Handwritten Digits", test part: 1,797 of 8 x 8 pixels) come with scikit-learn,
so nothing is downloaded; the canvases make of them what a network with a pyramid is for: images of any size.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from sppnet.data.datasets.base import ImageSet, digest
from sppnet.data.size_schedules import rng
from sppnet.errors import UserError

RECIPE = 1  # raise it when a picture changes: it is part of the identity of every run on digits
SCANS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
COUNT = 1797
SHORT_SIDE = (36, 72)  # pixels
ASPECT = 4 / 3  # the longest side over the shortest
CENTRE = 0.875  # a centre crop of this share of the shorter side shows the whole digit
FILL = (0.7, 1.0)  # the digit's side over that of the central square


class Digits(ImageSet):
    """1,797 grey pictures in ten classes: short side 36 to 72 pixels, aspect ratio 3:4 to 4:3.

    Canvas, scale and position of picture i depend on i alone. The digit lies within the central square whose side is
    0.875 of the shorter side, so that a centre crop never cuts it.
    """

    classes = tuple("0123456789")

    @cached_property
    def _scans(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Scans (1797, 8, 8) in 0..255 and their labels; read late, as scikit-learn takes a second to import."""
        from sklearn.datasets import load_digits

        data = load_digits()
        scans, labels = data.images.astype(np.uint8), data.target.tolist()
        if hashlib.sha256(scans.tobytes() + bytes(labels)).hexdigest() != SCANS_SHA256:
            raise UserError("data=digits: this scikit-learn holds other scans than the ones results are known for")
        return np.rint(scans * (255 / 16)).astype(np.uint8), labels

    def __len__(self) -> int:
        return COUNT

    def label(self, index: int) -> int:
        return self._scans[1][index]

    def read(self, index: int) -> Image.Image:
        height, width, left, top, side = _layout(index)
        scan = Image.fromarray(self._scans[0][index]).resize((side, side), Image.Resampling.BICUBIC)
        canvas = Image.new("L", (width, height))
        canvas.paste(scan, (left, top))
        return canvas.convert("RGB")

    def shape(self, index: int) -> tuple[int, int]:
        return _layout(index)[:2]

    def fingerprint(self) -> str:
        """Digest of the recipe's number and of the scans."""
        return digest(["digits", str(RECIPE), SCANS_SHA256])


def _layout(index: int) -> tuple[int, int, int, int, int]:
    """Height and width of a canvas, left and top of the digit on it, and the digit's side; in pixels."""
    draw = rng("digits", RECIPE, index)
    short = int(draw.integers(*SHORT_SIDE, endpoint=True))
    long = int(short * draw.uniform(1, ASPECT))
    height, width = (long, short) if draw.random() < 0.5 else (short, long)
    square = CENTRE * short
    side = int(square * draw.uniform(*FILL)) - 1  # one less, as the central square may begin between two pixels
    left, top = (int(np.ceil((axis - square) / 2 + draw.random() * (square - side - 1))) for axis in (width, height))
    return height, width, left, top, side
