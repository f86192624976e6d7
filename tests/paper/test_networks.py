"""The paper's facts about its networks: map sizes (section 2.3), vector lengths (2.2, 3.1.2) and the last pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sppnet.backbones import ZF5, Blog, map_size, probe
from sppnet.backbones.zf5 import WithinChannelNorm
from sppnet.network import build_head, build_network

SPP = {"name": "spp", "pool": "max", "rule": "adaptive", "hidden": [8], "dropout": 0.5}
FLATTEN = {"name": "flatten", "pool": "max", "pool_to": 6, "hidden": [8], "dropout": 0.5}


def test_zf5_has_13_cells_at_224_and_10_at_180_and_no_others_between() -> None:
    backbone = ZF5()
    sides = {size: map_size(backbone, size, size) for size in range(180, 225)}
    assert sides[224] == (13, 13)
    assert sides[180] == (10, 10)
    assert {side for side, _ in sides.values()} == {10, 11, 12, 13}
    assert probe(backbone).stride == 16


@pytest.mark.parametrize(
    ("bins", "length"), [([6, 3, 2, 1], 12_800), ([4, 3, 2, 1], 7_680)], ids=["50 bins", "30 bins"]
)
def test_the_pyramids_on_zf5_make_vectors_of_the_papers_length_at_any_size(bins: list[int], length: int) -> None:
    net = build_network({"_target_": "sppnet.backbones.ZF5"}, {**SPP, "bins": bins}, classes=3).eval()
    with torch.no_grad():
        for height, width in ((100, 100), (90, 143)):
            assert net.head[:1](net.backbone(torch.randn(1, 3, height, width))).shape == (1, length)


def test_zf5_without_a_pyramid_flattens_6x6_to_9216_values() -> None:
    net = build_network({"_target_": "sppnet.backbones.ZF5"}, FLATTEN, classes=3, size=224)
    assert net.head[:1](torch.randn(1, 256, 13, 13)).shape == (1, 9_216)


def test_the_blogs_network_makes_10752_values_of_any_input_that_leaves_a_map() -> None:
    net = build_network({"_target_": "sppnet.backbones.Blog"}, {**SPP, "bins": [4, 2, 1]}, classes=3).eval()
    with torch.no_grad():
        for size in (8, 9, 20):
            assert net.head[:1](net.backbone(torch.randn(1, 3, size, size))).shape == (1, 10_752)
    filters = [tuple(m.weight.shape[::2]) + m.stride[:1] for m in Blog().modules() if isinstance(m, nn.Conv2d)]
    assert filters == [(64, 4, 2), (128, 4, 1), (256, 4, 1), (512, 4, 1)]


@pytest.mark.parametrize(("side", "stride"), [(13, 2), (18, 3)], ids=["ZF-5", "Overfeat"])
def test_the_last_pooling_without_a_pyramid_is_the_papers(side: int, stride: int) -> None:
    x = torch.randn(2, 5, side, side)
    head = build_head(FLATTEN, 5, 3, side)
    assert torch.equal(head[:1](x), nn.functional.max_pool2d(x, 3, stride).flatten(1))
    assert x.numel() // 2 > head[:1](x).shape[1] == 5 * 36


def test_zf5_starts_as_the_released_model_does() -> None:
    torch.manual_seed(0)
    for name, layer in ZF5().named_children():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
            assert layer.bias is not None
            assert set(layer.bias.tolist()) == {1.0 if name in {"conv2", "conv4", "conv5"} else 0.0}


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
