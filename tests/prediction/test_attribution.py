"""What bins add to a logit: exact for a linear head, else first order; and where they lie on the image."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sppnet.config.schema import GAP, MLP, SPP, AnyPooling, AvgMax, Flatten
from sppnet.errors import UserError
from sppnet.models.heads import build_head
from sppnet.models.network import SPPNet
from sppnet.models.pooling import build_pooling, pooled_length
from sppnet.models.receptive_field import ReceptiveField
from sppnet.prediction.attribution import attribute_logit, cell_edges, check_pooling, find_grids
from sppnet.pyramid import SpatialPyramidPool2d

POOLINGS: dict[str, AnyPooling] = {
    "max": SPP(name="spp", bins=[3, 2, 1], pool="max", rule="adaptive"),
    "avg": SPP(name="spp", bins=[3, 2, 1], pool="avg", rule="adaptive"),
    "sliding": SPP(name="spp", bins=[2, 1], pool="max", rule="sliding"),
    "padded": SPP(name="spp", bins=[2], pool="max", rule="padded"),
    "avgmax": SPP(name="spp", bins=[3, 1], pool="avgmax", rule="adaptive"),
    "gap": GAP(name="gap"),
    "global avgmax": AvgMax(name="avgmax"),
    "grid": Flatten(name="flatten", pool="max", output_size=3),
    "mean grid": Flatten(name="flatten", pool="avg", output_size=2),
    "flat": Flatten(name="flatten", pool="max", output_size=None),
}
ANY_SHAPE = ("max", "avg", "avgmax", "gap", "global avgmax")


def network(pooling: str, hidden: list[int], side: int = 6) -> SPPNet:
    torch.manual_seed(0)
    pool = build_pooling(POOLINGS[pooling], 3, side)
    head = build_head(MLP(name="mlp", hidden=hidden, dropout=0.5), pooled_length(pool, 3, side, side), 4)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return SPPNet(nn.Identity(), pool, head).double().eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@given(data=st.data())
def test_the_bins_of_a_linear_head_and_the_bias_make_the_logit(pooling: str, data: st.DataObject) -> None:
    sides = st.integers(1, 12) if pooling in ANY_SHAPE else st.just(6)
    image = torch.randn(1, 3, data.draw(sides), data.draw(sides), dtype=torch.float64)
    net = network(pooling, [])
    label = data.draw(st.integers(0, 3))
    attribution = attribute_logit(net, image, label)
    assert attribution.logit == pytest.approx(net(image)[0, label].item(), abs=1e-12)
    last = net.head.classifier
    assert isinstance(last, nn.Linear)
    assert attribution.rest == pytest.approx(last.bias[label].item(), abs=1e-10)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_hidden_layers_leave_what_a_bin_adds_true_to_first_order(pooling: str) -> None:
    net, image, step = network(pooling, [5, 5]), torch.rand(1, 3, 6, 6, dtype=torch.float64), 1e-6
    attribution = attribute_logit(net, image, 2)
    pooled = net.pooling(image)
    start = 0
    for level in attribution.levels:
        if level.grid.pool == "cells":
            continue
        rows, cols = level.bins.shape
        for i in range(rows):
            for j in range(cols):
                more = pooled.clone()
                more[0, start : start + 3 * rows * cols].view(3, rows, cols)[:, i, j] *= 1 + step
                change = (net.head(more)[0, 2] - net.head(pooled)[0, 2]).item() / step
                assert change == pytest.approx(float(level.bins[i, j]), abs=1e-4)
        start += 3 * rows * cols


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_a_bin_adds_comes_from_its_cells(pooling: str) -> None:
    net, image = network(pooling, []), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    for level in attribute_logit(net, image, 1).levels:
        for i, (top, bottom) in enumerate(level.grid.rows):
            for j, (left, right) in enumerate(level.grid.cols):
                row, col = level.winners[i, j].tolist()
                assert (row, col) == (-1, -1) or (top <= row < bottom and left <= col < right)
                assert (row, col) != (-1, -1) or level.bins[i, j] <= 0


class Strange(SpatialPyramidPool2d):
    """A user's own pooling."""


class Strongest(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.amax((2, 3))


UNKNOWN = {
    "of one's own": Strongest(),
    "a subclass": Strange([2, 1]),
    "adaptive maxima": nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    "with more behind it": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Flatten()),
    "padding": nn.Sequential(nn.MaxPool2d(3, 2, padding=1), nn.Flatten()),
    "ceil": nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.Flatten()),
    "oblong": nn.Sequential(nn.AvgPool2d((2, 1)), nn.Flatten()),
    "empty": nn.Sequential(),
    "a generalised mean": SpatialPyramidPool2d([2, 1], "gem"),
    "a log-mean-exp": SpatialPyramidPool2d([1], "lse"),
}


@pytest.mark.parametrize("pool", UNKNOWN.values(), ids=UNKNOWN)
def test_a_pooling_whose_bins_are_not_known_is_refused(pool: nn.Module) -> None:
    with pytest.raises(UserError, match="draw=false"):
        check_pooling(pool, 7)


def test_the_poolings_that_are_drawn_are_known() -> None:
    for name, pooling in POOLINGS.items():
        check_pooling(network(name, []).pooling, 6)
        if isinstance(pooling, SPP):
            for pool in ("max", "avg", "avgmax"):
                check_pooling(SpatialPyramidPool2d([3, 1], pool, pooling.rule), 9)


def test_the_cell_that_matters_wins() -> None:
    net, image = network("max", []), torch.zeros(1, 3, 9, 9, dtype=torch.float64)
    last = net.head.classifier
    assert isinstance(last, nn.Linear)
    nn.init.ones_(last.weight)
    image[0, :, 7, 1] = 5.0
    for level in attribute_logit(net, image, 0).levels:
        winners = [tuple(cell) for cell in level.winners.flatten(0, 1).tolist() if cell[0] >= 0]
        assert set(winners) == {(7, 1)}
        assert float(level.bins.sum()) == pytest.approx(15.0 * len(winners))


def test_inference_tensors_are_accepted() -> None:
    net = network("max", [5])
    with torch.inference_mode():
        attribution = attribute_logit(net, torch.rand(1, 3, 6, 6, dtype=torch.float64), 0)
    assert len(attribution.levels) == 3


def test_bins_lie_where_their_cells_look() -> None:
    field = ReceptiveField(16, Fraction(15))  # 13 cells of 224 pixels, centred at 15, 31, ..., 207
    [level_2] = [g for g in find_grids(network("max", []).pooling, 13, 13) if len(g.rows) == 2]
    assert level_2.rows == [(0, 7), (6, 13)]
    assert cell_edges(13, field, 224)[np.array(level_2.rows)].tolist() == [[7.5, 119.5], [103.5, 215.5]]
    assert cell_edges(13, ReceptiveField(32, Fraction(0)), 400)[[0, 13]].tolist() == [
        0.0,
        400.0,
    ]  # clipped to the image


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 32), st.integers(0, 40))
def test_bins_cover_the_centres_of_their_cells(length: int, n: int, stride: int, offset: int) -> None:
    field, pixels = ReceptiveField(stride, Fraction(offset, 2)), stride * length + 40
    edges = [(i * length // n, -(-(i + 1) * length // n)) for i in range(n)]
    extents = cell_edges(length, field, pixels)[np.array(edges)]
    for (start, end), (left, right) in zip(edges, extents, strict=True):
        assert 0 <= left < right <= pixels
        assert all(left <= field.centre(cell) + 0.5 <= right for cell in range(start, end))
    assert all(a[1] >= b[0] for a, b in pairwise(extents))  # no gap between neighbours
