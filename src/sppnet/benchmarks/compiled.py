"""Several sizes under torch.compile: how many graphs are compiled, and whether any is compiled later on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch._dynamo.utils import counters

from sppnet.benchmarks.measurement import Row, Setting, took
from sppnet.config.compose import compose_config
from sppnet.models.network import SPPNet, build_network

SIZES = (64, 48, 80, 56, 72, 96)


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of the group `compile`: inductor, forward and backward, of each part that `trainer.compile` compiles."""
    cfg, sizes = (
        compose_config("train", ["backbone.width=4"] if setting.quick else []),
        SIZES[: 2 if setting.quick else None],
    )
    for name, what in (("backbone", "the trunk"), ("head", "the head with its pyramid")):
        one, first = _graphs(build_network(cfg["backbone"], cfg["head"], 10).to(setting.device), name, sizes[:1])
        network = build_network(cfg["backbone"], cfg["head"], 10).to(setting.device)
        several, seconds = _graphs(network, name, sizes)
        more, _ = _graphs(network, name, sizes, anew=False)
        yield Row(
            "compile",
            f"graphs of {what} for {len(sizes)} sizes",
            "one size",
            several,
            one,
            several,
            2,
            most=True,
            limit=f"{more} more in a second round; {seconds:.0f} s for all, {first:.0f} s for one size",
            detail={"second round": more},
            unit="graphs",
        )
    torch.compiler.reset()


def _graphs(network: SPPNet, part: str, sizes: tuple[int, ...], anew: bool = True) -> tuple[int, float]:
    """How many graphs are compiled while batches of these sizes go through, and how long that takes."""
    if anew:
        torch.compiler.reset()
        getattr(network, part).compile(dynamic=True)  # as `trainer.compile` does
    counters.clear()
    device = next(network.parameters()).device

    def run() -> None:
        for size in sizes:
            network(torch.rand(16, 3, size, size, device=device)).sum().backward()

    seconds = took(run, device.type)
    return int(counters["stats"]["unique_graphs"]), seconds
