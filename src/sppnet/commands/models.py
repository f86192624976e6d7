"""`sppnet models`: print feature map sizes, parameters and multiply-adds of every backbone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from sppnet.commands import hydra_app
from sppnet.config.command_schemas import ModelsConfig
from sppnet.config.compose import Job, compose_config
from sppnet.config.option_files import options
from sppnet.errors import UserError


def main(words: Sequence[str]) -> None:
    hydra_app.run("models", words, models)


def models(job: Job[ModelsConfig]) -> None:
    """Print one row per option of the group `backbone`.

    Raises:
        UserError: a size is too small for a backbone.
    """
    sizes = job.cfg.sizes.test
    table = Table(box=None)
    table.add_column("backbone")
    for title in ("channels", "stride", "offset", "M parameters"):
        table.add_column(title, justify="right")
    for size in sizes:
        table.add_column(f"{size} px", justify="right")
        table.add_column("G mult-adds", justify="right")
    for row in _rows(sizes):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 1000).print(table)  # outside a terminal, no line may wrap


def _rows(sizes: Sequence[int]) -> Iterator[list[str]]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sppnet.models.network import build_backbone
    from sppnet.models.probe import map_size, on_meta, probe, smallest_input
    from sppnet.models.receptive_field import receptive_field

    # they do not name a network; they are the bases of other option files
    names = {path.stem for path in options("backbone")} - {"timm", "torchvision"}
    for name in sorted(names):
        backbone = compose_config([f"backbone={name}"]).backbone
        with on_meta(), torch.no_grad():
            trunk = build_backbone(backbone.model_copy(update={"weights": None})).eval()
            columns = []
            for size in sizes:
                try:
                    height, width = map_size(trunk, size, size)
                except UserError:
                    least = smallest_input(trunk)
                    raise UserError(
                        f"sizes.test: {size} is too small for {name}; the smallest size is {least}"
                    ) from None
                with FlopCounterMode(display=False) as counter:
                    trunk(torch.empty(1, 3, size, size, device="meta"))
                columns += [f"{height}x{width}", f"{counter.get_total_flops() / 2e9:.2f}"]
        facts, offset = probe(trunk), "-"
        with contextlib.suppress(UserError):  # of attention, for example
            offset = str(receptive_field(trunk).offset)
        parameters = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
        yield [name, *map(str, (facts.out_channels, facts.stride, offset)), f"{parameters:.2f}", *columns]
