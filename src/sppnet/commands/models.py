"""`python -m sppnet.commands.models [SIZE ...]`: map sizes, parameters and multiply-adds of every backbone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from sppnet.config.compose import again
from sppnet.config.option_files import root
from sppnet.models.network import build_backbone
from sppnet.models.probe import on_meta, probe
from sppnet.models.receptive_field import receptive_field

SIZES = (180, 224, 392)  # the paper's training sizes, and the best of its table 6


def rows(sizes: Sequence[int]) -> Iterator[list[str]]:
    """Name, channels, stride, offset, million parameters, and for each size map and thousand million multiply-adds."""
    for path in sorted((root() / "conf/backbone").glob("*.yaml")):
        if path.stem == "torchvision":
            continue  # it has no name of its own
        cfg = again("train", [f"backbone={path.stem}"])["backbone"]
        with on_meta(), torch.no_grad():
            trunk = build_backbone({**cfg, "weights": None}).eval()
            cells = []
            for size in sizes:
                with FlopCounterMode(display=False) as counter:
                    height, width = trunk(torch.empty(1, 3, size, size, device="meta")).shape[2:]
                cells += [f"{height}x{width}", f"{counter.get_total_flops() / 2e9:.2f}"]
        facts, field = probe(trunk), receptive_field(trunk)
        parameters = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
        yield [path.stem, *map(str, (facts.out_channels, facts.stride, field.offset)), f"{parameters:.2f}", *cells]


def main(sizes: Sequence[int]) -> None:
    """Print the table."""
    table = Table(box=None)
    table.add_column("backbone")
    for title in ("channels", "stride", "offset", "M parameters"):
        table.add_column(title, justify="right")
    for size in sizes:
        table.add_column(f"{size} px", justify="right")
        table.add_column("G mult-adds", justify="right")
    for row in rows(sizes):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 1000).print(table)  # a file's lines are not wrapped


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or SIZES)
