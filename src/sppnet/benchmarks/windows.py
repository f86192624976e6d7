"""Times 2,000 windows of one photograph: pooled from one feature map, against R-CNN's crops (group `windows`).

As in section 4 of the paper, the shorter side of the image is 688 pixels. The speedup is compared with the ratio of
multiply-adds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_pool

from sppnet.benchmarks.measurement import Row, Setting, compare
from sppnet.config.compose import compose_config
from sppnet.data.views import Window
from sppnet.models.network import SPPNet, build_network
from sppnet.models.receptive_field import receptive_field
from sppnet.pyramid import pool_windows
from sppnet.training.multi_view import map_windows

BINS = (6, 3, 2, 1)
COUNT = 2000
SHORT, LONG = 688, 917  # sides of the photograph in pixels, an aspect ratio of 4:3
SAMPLE = 32  # number of crops that are timed; their time is scaled up to all windows


def build_paper_network(quick: bool = False) -> SPPNet:
    """Build ZF-5 with 50 bins and two fully connected layers of 4,096 units, or a tiny network if `quick`."""
    overrides = ["backbone=tiny", "head.hidden=[64]"] if quick else ["backbone=zf5", "head.hidden=[4096,4096]"]
    cfg = compose_config([*overrides, "pooling.bins=[6,3,2,1]"])
    return build_network(cfg.backbone, cfg.pooling, cfg.head, 20, 224).eval()


def random_windows(height: int, width: int, count: int = COUNT) -> list[Window]:
    """Return random windows with sides of at least 40 pixels, like region proposals.

    Every call returns the same windows.
    """
    generator = torch.Generator().manual_seed(0)
    sides = 40 + torch.rand(count, 2, generator=generator) ** 2 * (torch.tensor([height, width]) - 40)
    corners = torch.rand(count, 2, generator=generator) * (torch.tensor([height, width]) - sides)
    boxes = torch.cat([corners, corners + sides], 1).long().tolist()
    return [Window(left, top, right, bottom) for top, left, bottom, right in boxes]


@torch.no_grad()
def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `windows`."""
    device = setting.device.type
    network = build_paper_network(setting.quick).to(setting.device)
    height, width, count = (300, 400, 64) if setting.quick else (SHORT, LONG, COUNT)
    photograph = torch.rand(1, 3, height, width, device=setting.device)
    maps = network.backbone(photograph)
    windows = random_windows(height, width, count)
    map_boxes = map_windows(windows, receptive_field(network.backbone), *maps.shape[2:])
    boxes = torch.tensor([[0, *box] for box in map_boxes])
    yield _compare_pooling(maps, boxes, device)
    yield from _compare_networks(network, photograph, boxes, windows, device)


def _compare_pooling(maps: Tensor, boxes: Tensor, device: str) -> Row:
    # roi_pool treats the right and bottom edges as inclusive. Its bins equal those of the adaptive rule, apart from the
    # rounding of their edges.
    inclusive = torch.cat([boxes[:, :3], boxes[:, 3:] - 1], 1).to(maps)

    def level_by_level() -> Tensor:
        return torch.cat([roi_pool(maps, inclusive, n).flatten(1) for n in BINS], 1)

    time = compare(lambda: pool_windows(maps, boxes, BINS), level_by_level, 3.0, 3, device)
    what = f"pool_windows, {len(boxes)} windows x 50 bins x {maps.shape[1]} channels"
    target = 1.5 if device == "cuda" else 2.0
    return Row("windows", what, "torchvision.ops.roi_pool", time.ours, time.theirs, time.ratio, target)


def _compare_networks(
    network: SPPNet, photograph: Tensor, boxes: Tensor, windows: list[Window], device: str
) -> Iterator[Row]:
    def from_map() -> Tensor:
        logits: Tensor = network.head(pool_windows(network.backbone(photograph), boxes, BINS))
        return logits

    def crop_all() -> Tensor:
        return torch.cat([
            F.interpolate(photograph[:, :, w.top : w.bottom, w.left : w.right], (224, 224), mode="bilinear")
            for w in windows[:SAMPLE]
        ])  # fmt: skip

    crops, scale = crop_all(), len(boxes) / SAMPLE
    for name, ours, theirs in (
        ("convolutions alone", lambda: network.backbone(photograph), lambda: network.backbone(crops)),
        ("with pooling and fully connected layers", from_map, lambda: network(crop_all())),
    ):
        fc = name != "convolutions alone"
        time = compare(ours, theirs, 4.0, 3, device)
        our_cost = _multiply_adds(network, photograph, len(boxes), fc)
        their_cost = _multiply_adds(network, crops[:1], 1, fc) * len(boxes)
        allowed, speedup = their_cost / our_cost, time.ratio * scale
        yield Row(
            "windows",
            f"{len(boxes)} windows of a photograph on zf5, {name} (share of what multiply-adds allow)",
            "each window warped to 224",
            time.ours,
            time.theirs * scale,
            speedup / allowed,
            0.75,
            limit=f"{speedup:.0f}x as fast; multiply-adds allow {allowed:.0f}x",
            detail={"speedup": speedup, "allowed": allowed, "sample": SAMPLE},
        )


def _multiply_adds(network: SPPNet, image: Tensor, windows: int, fc: bool) -> float:
    """Return the multiply-adds of the convolutions on `image` and, if `fc`, of the head's layers for all windows."""
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(network.backbone).to("meta")(image.to("meta"))
    convolutions = float(counter.get_total_flops()) / 2
    return convolutions + (count_head_multiply_adds(network) * windows if fc else 0)


def count_head_multiply_adds(network: SPPNet) -> float:
    """Return the multiply-adds of the fully connected layers per window."""
    return float(sum(m.in_features * m.out_features for m in network.head.modules() if isinstance(m, nn.Linear)))
