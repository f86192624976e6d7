"""Times multi-view testing: views pooled from one feature map per scale, against crops of the image (group `views`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sppnet.benchmarks.measurement import Row, Setting, compare, time_call
from sppnet.benchmarks.windows import build_paper_network, count_head_multiply_adds
from sppnet.config.compose import compose_config
from sppnet.data.views import Views
from sppnet.models.network import SPPNet
from sppnet.training.multi_view import Scorer

SIZE, ASPECT = 224, 4 / 3
BATCHES = (1, 4)  # photographs per batch; `map` and `image` each use whichever is faster


@torch.no_grad()
def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `views`."""
    network = build_paper_network(setting.quick).to(setting.device)
    for name in ("ten", "multi"):
        scorers = {source: _scorer(network, name, source) for source in ("map", "image")}
        batch_sizes = {source: _best_batch_size(scorer, setting) for source, scorer in scorers.items()}
        batches = {source: _photographs(scorers[source], batch_sizes[source], setting) for source in scorers}
        time = compare(
            lambda: scorers["map"](batches["map"]),  # noqa: B023
            lambda: scorers["image"](batches["image"]),  # noqa: B023
            3.0,
            2,
            setting.device.type,
        )
        speedup = time.ratio * batch_sizes["map"] / batch_sizes["image"]
        costs = {source: _multiply_adds(scorer) for source, scorer in scorers.items()}
        allowed = costs["image"] / costs["map"]
        count = sum(scorers["map"].count.values())
        yield Row(
            "views",
            f"a test in {count} views on zf5 (share of what multiply-adds allow)",
            "the same views cut out of the pixels",
            time.ours / batch_sizes["map"],
            time.theirs / batch_sizes["image"],
            speedup / allowed,
            0.85,
            limit=f"{speedup:.2f}x as fast; multiply-adds allow {allowed:.2f}x",
            detail={"speedup": speedup, "allowed": allowed, "batch": batch_sizes},
        )


def _scorer(network: SPPNet, name: str, source: str) -> Scorer:
    views = Views.build(compose_config([f"views={name}", f"views.source={source}"]).views)
    assert views is not None
    return Scorer(network, views, SIZE)


def _photographs(scorer: Scorer, count: int, setting: Setting) -> list[Tensor]:
    """Return one batch of random photographs per scale."""
    sides = scorer.views.sides(SIZE)
    return [torch.rand(count, 3, side, round(side * ASPECT), device=setting.device) for side in sides]


def _best_batch_size(scorer: Scorer, setting: Setting) -> int:
    def seconds(count: int) -> float:
        batch = _photographs(scorer, count, setting)
        scorer(batch)
        return time_call(lambda: scorer(batch), setting.device.type) / count

    return min(BATCHES, key=seconds)


def _multiply_adds(scorer: Scorer) -> float:
    """Return the number of multiply-adds for one photograph."""
    backbone, total = copy.deepcopy(scorer.network.backbone).to("meta"), 0.0
    for side in scorer.views.sides(SIZE):
        height, width = side, round(side * ASPECT)
        windows = len(scorer.views.windows(height, width, SIZE))
        shape = (1, 3, height, width) if scorer.field is not None else (windows, 3, SIZE, SIZE)
        with FlopCounterMode(display=False) as counter:
            backbone(torch.empty(shape, device="meta"))
        # twice, because each view is scored both plain and mirrored
        total += 2 * (counter.get_total_flops() / 2 + windows * count_head_multiply_adds(scorer.network))
    return total
