"""Counts the graphs that torch.compile builds for several input sizes (group `compile`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._dynamo.utils import counters

from sppnet.benchmarks.measurement import Row, Setting, time_call
from sppnet.config.compose import compose_config
from sppnet.models.network import SPPNet, build_network

SIZES = (64, 48, 80, 56, 72, 96)


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `compile`: the number of graphs for each module that `compute.compile` compiles."""
    cfg = compose_config(["backbone.width=4"] if setting.quick else [])
    sizes = SIZES[: 2 if setting.quick else None]

    def build() -> SPPNet:
        return build_network(cfg.backbone, cfg.pooling, cfg.head, 10, SIZES[0]).to(setting.device)

    for part, description in (("backbone", "the trunk"), ("pooling", "the pyramid"), ("head", "the head")):
        single_graphs, single_time = _count_graphs(build(), part, sizes[:1])
        network = build()
        graphs, seconds = _count_graphs(network, part, sizes)
        later_graphs, _ = _count_graphs(network, part, sizes, compile_anew=False)
        yield Row(
            "compile",
            f"graphs of {description} for {len(sizes)} sizes",
            "one size",
            graphs,
            single_graphs,
            graphs,
            2,
            most=True,
            limit=f"{later_graphs} more in a second round; {seconds:.0f} s for all, {single_time:.0f} s for one size",
            detail={"second round": later_graphs},
            unit="graphs",
        )
    torch.compiler.reset()


def _count_graphs(network: SPPNet, part: str, sizes: tuple[int, ...], compile_anew: bool = True) -> tuple[int, float]:
    """Run forward and backward on one batch per size; return the number of graphs compiled and the seconds taken."""
    if compile_anew:
        torch.compiler.reset()
        getattr(network, part).compile(dynamic=True)  # as `compute.compile` does
    counters.clear()
    device = next(network.parameters()).device

    def train_on_all_sizes() -> None:
        for size in sizes:
            network(torch.rand(16, 3, size, size, device=device)).sum().backward()

    seconds = time_call(train_on_all_sizes, device.type)
    return int(counters["stats"]["unique_graphs"]), seconds
