"""Several sizes under torch.compile: how many graphs are compiled, and whether any is compiled later on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._dynamo.utils import counters

from sppnet.bench.rows import Row, Setting, took
from sppnet.network import SPPNet, build_network
from sppnet.recompose import again

SIZES = (64, 48, 80, 56, 72, 96)


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of the group `compile`; compiled by inductor, forward and backward."""
    cfg = again("train", [])
    one, first = _graphs(build_network(cfg["backbone"], cfg["head"], 10).to(setting.device), SIZES[:1])
    network = build_network(cfg["backbone"], cfg["head"], 10).to(setting.device)
    several, seconds = _graphs(network, SIZES)
    again_, _ = _graphs(network, SIZES, reset=False)
    yield Row(
        "compile",
        f"graphs compiled for {len(SIZES)} sizes",
        "one size",
        several,
        one,
        several,
        2,
        most=True,
        limit=f"{again_} more in a second round; {seconds:.0f} s for all, {first:.0f} s for one size",
        detail={"second round": again_},
        unit="graphs",
    )
    torch.compiler.reset()


def _graphs(network: SPPNet, sizes: tuple[int, ...], reset: bool = True) -> tuple[int, float]:
    if reset:
        torch.compiler.reset()
        network.backbone.compile(dynamic=True)  # as `trainer.compile` does
        network.head.compile(dynamic=True)
    counters.clear()
    device = next(network.parameters()).device

    def run() -> None:
        for size in sizes:
            network(torch.rand(16, 3, size, size, device=device)).sum().backward()

    seconds = took(run, device.type)
    return int(counters["stats"]["unique_graphs"]), seconds
