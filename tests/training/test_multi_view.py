"""Multi-view testing: receptive fields of cells, the windows of a protocol, and their scores."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from calling import SMALL, Called, Caller
from sppnet.config import option_files
from sppnet.config.load import load, replace
from sppnet.config.schema import GAP, LSE, MLP, SPP, AnyPooling, AvgMax, Backbone, Config, Flatten, GeM, Windows
from sppnet.data import load_splits
from sppnet.data.datamodule import DataModule
from sppnet.data.loader import Batch
from sppnet.data.views import Views, Window
from sppnet.errors import UserError
from sppnet.models.backbones import Blog, Tiny, torchvision_trunk
from sppnet.models.heads import build_head
from sppnet.models.network import SPPNet, build_backbone
from sppnet.models.pooling import build_pooling, pooled_length
from sppnet.models.probe import map_size, on_meta
from sppnet.models.receptive_field import ReceptiveField, receptive_field
from sppnet.runs.checkpoint_files import load_stored_config, read_checkpoint
from sppnet.training.inference import load_classifier
from sppnet.training.lit_module import Classifier
from sppnet.training.multi_view import Scorer, map_windows
from sppnet.training.trainer import build_data

CONF = option_files.root() / "conf"
TEN = Windows(
    name="ten",
    fit="windows",
    scales=[256],
    base_size=224,
    positions=5,
    mirror=True,
    full=None,
    source="map",
    aspect_step=0.125,
)
NAMES = ("alexnet", "vgg11", "resnet18", "densenet121", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t")


def views(**changed: Any) -> Views:
    built = Views.build(replace(TEN, changed))
    assert built is not None
    return built


def seen_extent(trunk: nn.Module, side: int) -> tuple[int, Tensor]:
    """A cell in the middle of the map, and the pixels along x that its gradient reaches."""
    for parameter in trunk.parameters():
        parameter.data = parameter.data.abs() + 0.01 if parameter.ndim > 1 else parameter.data.abs()
    for parent in list(trunk.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):  # its gradient would reach a single pixel of each window
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(parent, name, pool)
    image = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    maps = trunk.double().eval()(image)
    cell = maps.shape[3] // 2
    maps[0, :, maps.shape[2] // 2, cell].sum().backward()
    assert image.grad is not None
    return cell, image.grad.abs().sum((0, 1, 2)).nonzero().flatten()


@pytest.mark.parametrize("name", ["tiny", "blog", "zf5", "overfeat5", "alexnet", "resnet18", "odd"])
def test_a_cell_is_centred_where_its_gradient_is(name: str) -> None:
    odd = nn.Sequential(nn.ZeroPad2d((5, 0, 5, 0)), nn.Conv2d(3, 4, 4, dilation=2, stride=3), nn.AvgPool2d(2, 2))
    modules: dict[str, nn.Module] = {"tiny": Tiny(2), "blog": Blog(), "odd": odd}
    trunk = modules[name] if name in modules else build(name)
    field = receptive_field(trunk)
    side = {"resnet18": 600, "tiny": 60, "blog": 60, "odd": 60}.get(name, 300)
    cell, pixels = seen_extent(trunk, side)
    assert 0 < pixels[0] < pixels[-1] < side - 1  # or the border would hide a part of the receptive field
    assert field.centre(cell) == Fraction(int(pixels[0] + pixels[-1]), 2)


def build(name: str) -> nn.Module:
    """A backbone of `conf/backbone` or of torchvision, with random weights."""
    file = CONF / "backbone" / f"{name}.yaml"
    cfg = yaml.safe_load(file.read_text()) if file.exists() else {}
    return build_backbone(load(Backbone, cfg)) if "_target_" in cfg else torchvision_trunk(name)


def test_a_backbone_that_cannot_be_followed_is_refused() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, scale_factor=0.25)

    with pytest.raises(UserError, match=r"views\.source=image"):
        receptive_field(Odd())
    with pytest.raises(UserError, match="4 by 2 pixels"):
        receptive_field(nn.Conv2d(3, 1, 4, stride=(4, 2)))


FACTORIES = ("timm", "torchvision")  # these option files name no network
BACKBONES = [path.stem for path in sorted((CONF / "backbone").glob("*.yaml")) if path.stem not in FACTORIES]


def fields() -> list[tuple[str, nn.Module, ReceptiveField]]:
    with on_meta():
        trunks = {name: build(name) for name in dict.fromkeys([*BACKBONES, *NAMES])}
    return [(name, trunk, receptive_field(trunk)) for name, trunk in trunks.items()]


def check(field: ReceptiveField, cells: int, start: int, end: int) -> None:
    """Check which of `cells` cells the pixels `[start, end)` are mapped to."""
    first, stop = field.cells(start, end, cells)
    last = stop - 1
    assert 0 <= first <= last < cells
    if not any(start <= field.centre(i) < end - 1 for i in range(-60, 400)):  # no centre inside: the nearest cell
        middle = Fraction(start + end - 1, 2)
        assert first == last
        assert abs(field.centre(first) - middle) == min(abs(field.centre(i) - middle) for i in range(cells))
        return
    left, right = field.centre(first) - start, end - 1 - field.centre(last)  # how far each edge moves inwards
    assert 0 <= left < field.stride or first in (0, cells - 1)
    assert 0 < right <= field.stride or last in (0, cells - 1)
    assert left < field.stride or first == 0  # no cell with its centre in the window is missing
    assert right <= field.stride or last == cells - 1


@pytest.mark.slow
def test_edges_of_a_window_are_mapped_to_within_a_stride() -> None:
    """For random windows, image sizes (60 to 700), both mirror images and every backbone."""
    trunks = fields()
    assert len(trunks) >= 12

    @settings(max_examples=12, deadline=None)
    @given(
        which=st.sampled_from(trunks),
        side=st.integers(60, 700),
        windows=st.lists(st.tuples(st.integers(0, 699), st.integers(1, 700), st.booleans()), min_size=10),
    )
    def holds(which: tuple[str, nn.Module, ReceptiveField], side: int, windows: list[tuple[int, int, bool]]) -> None:
        _, trunk, field = which
        try:
            cells, _ = map_size(trunk, side, 64)
        except UserError:
            return  # too small for this backbone
        for at, length, mirrored in windows:
            start = min(at, side - 1)
            end = min(start + length, side)
            if mirrored:
                start, end = side - end, side - start
            check(field, cells, start, end)

    holds()


@pytest.mark.parametrize(("name", "cells"), [("zf5", 13), ("convnet5", 13), ("overfeat5", 18), ("overfeat7", 18)])
def test_a_view_at_the_origin_has_the_cells_of_a_training_image(name: str, cells: int) -> None:
    with on_meta():
        trunk = build(name)
    field = receptive_field(trunk)
    for side in (256, 448, 560):
        length = trunk(torch.empty(1, 3, side, side, device="meta")).shape[2]
        assert map_windows([Window(0, 0, 224, 224)], field, length, length) == [Window(0, 0, cells, cells)]


def test_the_paper_has_ninety_six_views() -> None:
    cfg = yaml.safe_load((CONF / "views/multi.yaml").read_text())
    protocol = views(scales=cfg["scales"], positions=cfg["positions"])
    assert protocol.sides(224) == [224, 256, 300, 360, 448, 560]
    all_views = set()
    for side in protocol.sides(224):
        windows = protocol.windows(side, side * 4 // 3, 224)
        assert len(set(windows)) == len(windows) == (3 if side == 224 else 9)
        assert all(0 <= w.left < w.right <= side * 4 // 3 and 0 <= w.top < w.bottom <= side for w in windows)
        assert all(w.right - w.left == w.bottom - w.top == 224 for w in windows)
        all_views |= {(side, mirrored, window) for mirrored in (False, True) for window in windows}
    assert len(all_views) == 96
    for shape in ((300, 400), (400, 300)):  # windows at the middle of each side are included
        tops = sorted({w.top for w in protocol.windows(*shape, 224)})
        assert [b - a for a, b in pairwise(tops)] == [(shape[0] - 224) // 2, (shape[0] - 224 + 1) // 2]


def test_ten_views_are_the_centre_and_the_corners_both_ways_round() -> None:
    assert views().sides(224) == [256]
    assert views().sides(48) == [55]
    assert views().windows(256, 341, 224) == [
        (0, 0, 224, 224), (117, 0, 341, 224), (58, 16, 282, 240), (0, 32, 224, 256), (117, 32, 341, 256),
    ]  # fmt: skip
    assert views().windows(224, 224, 224) == [(0, 0, 224, 224)]


POOLINGS: dict[str, AnyPooling] = {
    "spp, max": SPP(name="spp", bins=[3, 1], pool="max", rule="adaptive"),
    "spp, avg": SPP(name="spp", bins=[3, 1], pool="avg", rule="adaptive"),
    "spp, gem": SPP(name="spp", bins=[2, 1], pool="gem", rule="adaptive", per_channel=True),
    "spp, lse": SPP(name="spp", bins=[2, 1], pool="lse", rule="adaptive"),
    "spp, avgmax": SPP(name="spp", bins=[2, 1], pool="avgmax", rule="adaptive"),
    "gap": GAP(name="gap"),
    "avgmax": AvgMax(name="avgmax"),
    "gem": GeM(name="gem", p=4.0, learn_p=True, per_channel=False),
    "lse": LSE(name="lse", r=5.0),
    "flatten": Flatten(name="flatten", pool="max", output_size=3),
}


class Spread(nn.Module):
    """A pooling of the user's own, without `pool_windows`."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([maps.mean((2, 3)), maps.flatten(2).std(2, correction=0)], 1)


def net(pooling: str = "spp, max") -> SPPNet:
    torch.manual_seed(0)
    pool = Spread() if pooling == "own" else build_pooling(POOLINGS[pooling], 8, 10)
    head = build_head(MLP(name="mlp", hidden=[8], dropout=0.5), pooled_length(pool, 8, 10, 10), 5)
    network = SPPNet(Tiny(4), pool, head).eval()
    nn.init.normal_(cast(nn.Linear, network.head.classifier).weight)
    return network


@pytest.mark.parametrize("pooling", [*(name for name in POOLINGS if name != "flatten"), "own"])
@torch.no_grad()
def test_views_from_the_map_are_its_windows(pooling: str) -> None:
    network, protocol = net(pooling), views(scales=[48, 56], base_size=40, positions=9, full=56)
    images = [torch.rand(2, 3, 48, 60), torch.rand(2, 3, 56, 70)]
    scorer = Scorer(network, protocol, 40)
    began = time.monotonic()
    small, large = scorer(images)
    took = time.monotonic() - began
    assert small.shape == (2, 18, 5)
    assert large.shape == (2, 20, 5)
    field = receptive_field(network.backbone)
    for logits, x in zip((small, large), images, strict=True):
        expected = []
        for variant in (x, x.flip(3)):
            maps = network.backbone(variant)
            cells = map_windows(protocol.windows(x.shape[2], x.shape[3], 40), field, *maps.shape[2:])
            crops = [maps[:, :, c.top : c.bottom, c.left : c.right] for c in cells]
            expected += [network.head(network.pooling(crop)) for crop in crops]
            expected += [network(variant)] if logits is large else []
        assert torch.allclose(logits, torch.stack(expected, 1), atol=1e-6)
    costs = scorer.costs()
    assert {side: cost["views"] for side, cost in costs.items()} == {"48": 18, "56": 20}
    assert 0 < 2 * sum(cost["seconds"] for cost in costs.values()) <= took + 1e-5  # each is for one of two images


@torch.no_grad()
def test_a_view_that_is_the_whole_image_is_the_same_from_map_and_pixels() -> None:
    images = [torch.rand(3, 3, 40, 40)]
    of_map, of_pixels = (
        Scorer(net(), views(scales=[40], base_size=40, source=source), 40)(images)[0] for source in ("map", "image")
    )
    assert of_map.shape == (3, 2, 5)
    assert torch.allclose(of_map, of_pixels, atol=1e-6)


@torch.no_grad()
def test_views_from_the_pixels_are_crops() -> None:
    network, x = net("flatten"), torch.rand(2, 3, 46, 55)
    (logits,) = Scorer(network, views(scales=[46], base_size=40, mirror=False, source="image"), 40)([x])
    crops = [x[:, :, w.top : w.bottom, w.left : w.right] for w in views().windows(46, 55, 40)]
    assert torch.equal(logits, torch.stack([network(crop) for crop in crops], 1))


def trained_network(run: Path) -> tuple[Classifier, DataModule]:
    """The trained network of a run, and its data."""
    cfg = load(Config, load_stored_config(run))
    sets = load_splits(cfg.data)
    return load_classifier(read_checkpoint(run / "checkpoints/best.ckpt"), cfg, sets, run).eval(), build_data(cfg, sets)


@torch.no_grad()
def test_whole_images_score_as_the_plain_network_does_to_the_bit(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "trainer.max_epochs=1", "views=full", "sizes.test=[32]").run
    classifier, data = trained_network(run)
    (loader,) = data.test_dataloader()
    for batch in cast(Iterable[Batch], loader):
        height, width = batch["image"].shape[2:]
        for n, index in enumerate(batch["index"].tolist()):
            resized = data.sets.images.read(index).resize((width, height), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
            assert torch.equal(batch["image"][n], pixels)
        assert torch.equal(classifier.scores(batch), classifier.network(classifier.prepare(batch)))


@torch.no_grad()
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_probabilities_of_views_are_averaged(sppnet: Caller, loss: str) -> None:
    words = (f"loss={loss}", "trainer.max_epochs=1", "views=multi_full", "sizes.test=[24]")
    run = sppnet("train", *SMALL, *words).run
    classifier, data = trained_network(run)
    batch = next(iter(data.test_dataloader()[0]))
    assert [min(x.shape[2:]) for x in (batch["image"], *batch["more"])] == [24, 27, 32, 39, 48, 60]
    scores = classifier.scores(batch)
    images = [
        (x / 255 - classifier.normalise.mean) / classifier.normalise.std for x in (batch["image"], *batch["more"])
    ]
    logits = torch.cat(classifier.scorers[24](images), 1)
    if loss == "cross_entropy":
        assert torch.allclose(scores.softmax(1), logits.softmax(2).mean(1), atol=1e-6)
    else:
        assert torch.allclose(scores.sigmoid().float(), logits.sigmoid().mean(1), atol=1e-6)


def test_a_test_in_ten_views_prints_what_each_scale_costs(sppnet: Caller, trained: Called) -> None:
    run = trained.run
    words = ("views=ten", "views.scales=[256,320]", "sizes.test=[24,32]")
    done = sppnet("test", f"checkpoint={run}", *words)
    assert done.code == 0, done.err
    assert "test/top5" in done.out
    for size, side in ((24, 27), (24, 34), (32, 37), (32, 46)):
        assert f"{size} px  10 views of the image at {side} px: 0." in done.out
    again = sppnet("test", f"checkpoint={run}", *words)
    assert again.out == done.out
    assert sppnet("test", f"checkpoint={run}", *words, "views.source=image").code == 0
    results = [json.loads(path.read_text()) for path in (run / "tests").glob("*.json")]
    costs = [result["views"] for result in results if result["views"]]
    assert [{size: sorted(sides) for size, sides in cost.items()} for cost in costs] == [
        {"24": ["27", "34"], "32": ["37", "46"]}
    ] * 2
    assert len({result["metrics"]["test/loss"] for result in results}) == len(results)  # all differ


def test_a_head_of_one_size_is_viewed_in_pixels_only(sppnet: Caller) -> None:
    network = ("pooling=flatten", "pooling.output_size=2", "sizes=single", "sizes.train=[24]")
    words = (*SMALL, *network, "trainer.max_epochs=1")
    refused = sppnet("train", *words, "views=ten")
    assert (refused.code, refused.out) == (2, "")
    assert "views.source=image" in refused.err
    assert sppnet("train", *words, "views=ten", "views.source=image").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["views.scales=[200,256]"], "views.base_size=224"),
        (["views.full=300"], "views.full=300"),
        (["views.positions=7"], "one of 5, 9"),
        (["views.source=film"], "map, image"),
        (["pooling.rule=sliding", "sizes=single", "sizes.train=[24]"], "pooling.rule=adaptive"),
    ],
)
def test_invalid_views_are_refused_in_one_line(sppnet: Caller, words: list[str], message: str) -> None:
    small = [word for word in SMALL if not word.startswith("sizes.train=")]
    refused = sppnet("train", *small, "views=ten", *words)
    assert refused.code == 2
    [line] = refused.err.strip().splitlines()
    assert message in line
    assert not list(Path.cwd().iterdir())
