"""The plot of an attribution: the same bytes each time, and room for any image, name and number of levels."""

from __future__ import annotations

import io
import warnings
from fractions import Fraction

import pytest
import torch
from PIL import Image
from torch import nn

from sppnet.config.schema import GAP, MLP, SPP, AnyPooling
from sppnet.models.heads import build_head
from sppnet.models.network import SPPNet
from sppnet.models.pooling import build_pooling, pooled_length
from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import attribute_logit
from sppnet.prediction.attribution_plot import plot_attribution

POOLINGS: dict[str, AnyPooling] = {
    "spp": SPP(name="spp", bins=[6, 3, 2, 1], pool="max", rule="adaptive"),
    "one level": SPP(name="spp", bins=[2], pool="avgmax", rule="adaptive"),
    "gap": GAP(name="gap"),
}
LINEAR = MLP(name="mlp", hidden=[], dropout=0.0)


def plot(pooling: str, size: tuple[int, int], name: str = "photo.jpg", label: str = "cat") -> Image.Image:
    """Plot an image of `size` (width, height), seen in cells of 8 pixels."""
    torch.manual_seed(0)
    width, height = (max(1, side // 8) for side in size)
    pool = build_pooling(POOLINGS[pooling], 3, height)
    network = SPPNet(nn.Identity(), pool, build_head(LINEAR, pooled_length(pool, 3, height, width), 4)).eval()
    attribution = attribute_logit(network, torch.randn(1, 3, height, width), 0)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    box = (0.0, 0.0, float(size[0]), float(size[1]))
    classes = [(label, 0.9995), ("dog", 0.0005)]
    return plot_attribution(
        image, name, box, (8 * width, 8 * height), classes, attribution, ReceptiveField(8, Fraction(7, 2))
    )


@pytest.mark.parametrize("size", [(96, 64), (5, 700), (700, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_any_image_fits_the_page(pooling: str, size: tuple[int, int]) -> None:
    page = plot(pooling, size)
    assert 600 <= page.width <= 1400
    assert 250 <= page.height <= 2000
    assert all(page.getpixel((x, y)) == (255, 255, 255) for x in (0, page.width - 1) for y in (0, page.height - 1))


def test_the_same_input_gives_the_same_bytes() -> None:
    files = []
    for _ in range(2):
        with io.BytesIO() as file:
            plot("spp", (96, 64)).save(file, "PNG")
            files.append(file.getvalue())
    assert files[0] == files[1]


@pytest.mark.parametrize("name", ["日本 größe \U0001f600", "$x_2$ \\frac", "a\nb\tc\x00\udcff", "n" * 300, "$"])
def test_names_in_any_script_are_plotted_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot("spp", (96, 64), name, name).width == plot("spp", (96, 64)).width


def test_a_long_name_keeps_its_beginning() -> None:
    header = (0, 0, 240, 42)
    long, longer = (plot("spp", (96, 64), "beginning" + "x" * count).crop(header) for count in (60, 90))
    assert long.tobytes() == longer.tobytes()
    assert long.tobytes() != plot("spp", (96, 64), "ending" + "x" * 60).crop(header).tobytes()
