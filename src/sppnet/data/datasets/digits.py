"""The default data set: scikit-learn's scans of handwritten digits, on canvases of different sizes and aspect ratios.

The scans (UCI "Optical Recognition of Handwritten Digits", test part: 1,797 scans of 8 x 8 pixels) come with
scikit-learn, so there is nothing to download. The canvases turn them into images of many sizes, the kind of input that
pyramid pooling is made for.
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

RECIPE = 1  # part of the identity of every run on digits; increment it when a change to this module alters an image
SCANS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
COUNT = 1797
SHORT_SIDE = (36, 72)  # pixels
ASPECT = 4 / 3  # the largest ratio of the longer to the shorter side
CENTRE = 0.875  # side of the central square that holds the digit, as a fraction of the shorter side
FILL = (0.7, 1.0)  # range of the digit's side, as a fraction of the central square's side


class Digits(ImageSet):
    """1,797 grey images in ten classes, with a shorter side of 36 to 72 pixels and an aspect ratio of 3:4 to 4:3.

    The canvas, scale and position of image i depend only on i. The digit is inside the central square whose side is
    0.875 times the shorter side, so a centre crop of that size never cuts off any of the digit.
    """

    classes = tuple("0123456789")

    @cached_property
    def _scans(self) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Scans (1797, 8, 8) in 0..255 and their labels.

        Loaded on first use, because importing scikit-learn takes a second.
        """
        from sklearn.datasets import load_digits

        data = load_digits()
        scans, labels = data.images.astype(np.uint8), data.target.tolist()
        if hashlib.sha256(scans.tobytes() + bytes(labels)).hexdigest() != SCANS_SHA256:
            raise UserError(
                "data=digits: the scans in this version of scikit-learn differ from those used for earlier results"
            )
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
        """Digest of `RECIPE` and the scans."""
        return digest(["digits", str(RECIPE), SCANS_SHA256])


def _layout(index: int) -> tuple[int, int, int, int, int]:
    """(canvas height, canvas width, left edge, top edge and side length of the digit) in pixels."""
    generator = rng("digits", RECIPE, index)
    short = int(generator.integers(*SHORT_SIDE, endpoint=True))
    long = int(short * generator.uniform(1, ASPECT))
    height, width = (long, short) if generator.random() < 0.5 else (short, long)
    square = CENTRE * short
    # Subtracting 1 leaves room to round `left` and `top` up without moving the digit out of the square.
    side = int(square * generator.uniform(*FILL)) - 1
    left, top = (
        int(np.ceil((axis - square) / 2 + generator.random() * (square - side - 1))) for axis in (width, height)
    )
    return height, width, left, top, side
