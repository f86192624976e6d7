"""The paper's facts about its networks: map sizes (section 2.3), vector lengths (2.2, 3.1.2) and the last pooling."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sppnet.config.schema import MLP, SPP, Backbone, Flatten
from sppnet.models.backbones import ZF5, Blog, Convnet5, Overfeat, map_size
from sppnet.models.backbones.paper import WithinChannelNorm
from sppnet.models.network import build_network
from sppnet.models.pooling import build_pooling
from sppnet.models.probe import Trunk, probe

FLATTEN = Flatten(name="flatten", pool="max", output_size=6)
HEAD = MLP(name="mlp", hidden=[8], dropout=0.5)
FOUR: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # stride, channels of the last map
    "zf5": (ZF5, 16, 256),
    "convnet5": (Convnet5, 16, 256),
    "overfeat5": (lambda: Overfeat(5), 12, 512),
    "overfeat7": (lambda: Overfeat(7), 12, 512),
}
# Table 1 at 224 pixels: the map after each convolution and its pooling. ZF-5's second is not the printed 27x27, which
# contradicts the 13x13 after it.
TABLE_1 = {
    "zf5": [55, 13, 13, 13, 13],
    "convnet5": [55, 27, 13, 13, 13],
    "overfeat5": [36, 18, 18, 18, 18],
    "overfeat7": [36, 18, 18, 18, 18, 18, 18],
}


def _pyramid(*bins: int) -> SPP:
    return SPP(name="spp", bins=list(bins), pool="max", rule="adaptive")


@pytest.mark.parametrize("name", FOUR)
def test_maps_are_those_of_table_1(name: str) -> None:
    """Hooks record the input size of each convolution."""
    make, stride, channels = FOUR[name]
    trunk, sides = make(), list[int]()

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], _output: Any) -> None:
        sides.append(inputs[0].shape[2])

    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        last = trunk.eval()(torch.zeros(1, 3, 224, 224))
    assert [*sides[1:], last.shape[2]] == TABLE_1[name]
    assert probe(trunk) == Trunk(channels, stride)


@pytest.mark.parametrize(("name", "at_180"), [("zf5", 10), ("convnet5", 10), ("overfeat5", 14), ("overfeat7", 14)])
def test_maps_at_the_two_training_sizes_and_between(name: str, at_180: int) -> None:
    """13 cells at 224 and 10 at 180 for the first two (section 2.3); 18 at 224 for the others."""
    trunk = FOUR[name][0]()
    sides = [map_size(trunk, size, size) for size in range(180, 225)]
    assert sides[0] == (at_180, at_180)
    assert sides[-1] == (TABLE_1[name][-1],) * 2
    assert sides == sorted(sides)


@pytest.mark.parametrize(
    ("name", "bins", "length"),
    [
        ("zf5", [6, 3, 2, 1], 12_800),
        ("zf5", [4, 3, 2, 1], 7_680),
        ("convnet5", [6, 3, 2, 1], 12_800),
        ("overfeat5", [6, 3, 2, 1], 25_600),
        ("overfeat7", [6, 3, 2, 1], 25_600),
    ],
)
def test_the_pyramids_make_vectors_of_the_papers_length_at_any_size(name: str, bins: list[int], length: int) -> None:
    make, _, channels = FOUR[name]
    trunk, pool = make().eval(), build_pooling(_pyramid(*bins), channels, 13)
    with torch.no_grad():
        for height, width in ((100, 100), (90, 143)):
            assert pool(trunk(torch.randn(1, 3, height, width))).shape == (1, length)


@pytest.mark.parametrize("name", FOUR)
def test_without_a_pyramid_the_last_pooling_makes_6x6(name: str) -> None:
    """9,216 values of ZF-5 (section 3.1.2)."""
    make, _, channels = FOUR[name]
    trunk = make()
    side, _ = map_size(trunk, 224, 224)
    pool = build_pooling(FLATTEN, channels, side)
    assert pool(torch.randn(1, channels, side, side)).shape == (1, 36 * channels)
    assert 36 * FOUR["zf5"][2] == 9_216


def test_the_blogs_network_makes_10752_values_of_any_input_that_leaves_a_map() -> None:
    blog = Backbone.model_validate({"_target_": "sppnet.models.Blog"})
    net = build_network(blog, _pyramid(4, 2, 1), HEAD, 3, 32).eval()
    with torch.no_grad():
        for size in (8, 9, 20):
            assert net.pooling(net.backbone(torch.randn(1, 3, size, size))).shape == (1, 10_752)
    filters = [tuple(m.weight.shape[::2]) + m.stride[:1] for m in Blog().modules() if isinstance(m, nn.Conv2d)]
    assert filters == [(64, 4, 2), (128, 4, 1), (256, 4, 1), (512, 4, 1)]


@pytest.mark.parametrize(("side", "stride"), [(13, 2), (18, 3)], ids=["ZF-5", "Overfeat"])
def test_the_last_pooling_without_a_pyramid_is_the_papers(side: int, stride: int) -> None:
    x = torch.randn(2, 5, side, side)
    pool = build_pooling(FLATTEN, 5, side)
    assert torch.equal(pool(x), nn.functional.max_pool2d(x, 3, stride).flatten(1))
    assert x.numel() // 2 > pool(x).shape[1] == 5 * 36


@pytest.mark.parametrize("name", FOUR)
def test_the_four_are_initialised_as_their_sources(name: str) -> None:
    torch.manual_seed(0)
    bias_1 = {"conv2", "conv4", "conv5"} if not name.startswith("overfeat") else set()
    for layer_name, layer in FOUR[name][0]().named_children():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
            assert layer.bias is not None
            assert set(layer.bias.tolist()) == {1.0 if layer_name in bias_1 else 0.0}


def test_convnet5_and_overfeat_normalise_across_five_channels_as_alexnet_does() -> None:
    x = 100 * torch.randn(2, 9, 3, 4, dtype=torch.float64)
    for trunk in (Convnet5(), Overfeat(7)):
        out = trunk.norm(x)
        for c in range(9):
            power = (x[:, max(0, c - 2) : c + 3] ** 2).sum(1)
            assert torch.allclose(out[:, c], x[:, c] / (2 + 1e-4 * power) ** 0.75)


@pytest.mark.slow
def test_the_table_of_networks_is_printed_by_a_command() -> None:
    command = [sys.executable, "-P", "-m", "sppnet.cli", "models"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines}
    maps = {name: row[4::2] for name, row in table.items() if name in FOUR}
    assert maps == {
        "zf5": ["10x10", "13x13", "23x23"],
        "convnet5": ["10x10", "13x13", "23x23"],
        "overfeat5": ["14x14", "18x18", "32x32"],
        "overfeat7": ["14x14", "18x18", "32x32"],
    }
    assert table["zf5"][:3] == ["256", "16", "20"]
    convolutions = [(3 * 49, 96, 110), (96 * 25, 256, 26), (256 * 9, 384, 13), (384 * 9, 384, 13), (384 * 9, 256, 13)]
    parameters = sum(window * filters + filters for window, filters, _ in convolutions)
    products = sum(window * filters * side**2 for window, filters, side in convolutions)
    assert table["zf5"][3] == f"{parameters / 1e6:.2f}"
    assert table["zf5"][7] == f"{products / 1e9:.2f}"


def test_normalisation_is_within_each_channel_and_counts_the_border_as_zeros() -> None:
    x = 100 * torch.randn(1, 2, 4, 5, dtype=torch.float64)
    out = WithinChannelNorm()(x)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for c in range(2):
        for i in range(4):
            for j in range(5):
                power = (padded[0, c, i : i + 3, j : j + 3] ** 2).sum() / 9
                assert out[0, c, i, j].item() == pytest.approx((x[0, c, i, j] / (1 + 5e-5 * power) ** 0.75).item())
    x[0, 0] = 0
    assert torch.equal(WithinChannelNorm()(x)[0, 1], out[0, 1])
