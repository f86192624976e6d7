"""What can be known about a job with torch alone: is the hardware there, do network and sizes fit together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sppnet.data import build_sizes
from sppnet.data.views import Views
from sppnet.errors import UserError
from sppnet.models.fit_check import check_network
from sppnet.models.network import SPPNet
from sppnet.models.probe import meta_copy
from sppnet.runs.identity import world_size
from sppnet.slurm import job
from sppnet.training.optim import build_optimizer


def check_job(cfg: Mapping[str, Any]) -> None:
    """Check what needs torch but neither the data nor Lightning.

    Raises:
        UserError: one line on what does not fit.
    """
    check_fit(cfg)
    check_hardware(cfg["trainer"], world_size(cfg) // int(cfg["trainer"]["num_nodes"]))


def check_fit(cfg: Mapping[str, Any]) -> None:
    """Check whether optimiser, network, sizes and views fit together, wherever the job will run.

    Raises:
        UserError: one line on what does not fit.
    """
    build_optimizer(cfg["optim"], [nn.Parameter(torch.zeros(1))])
    views = Views.build(cfg["views"])
    whole = "full" in (cfg["data"]["fit"], cfg["views"]["fit"])
    if views is not None:
        views.check_head(cfg["head"])
        for size in cfg["sizes"]["test"]:
            views.sides(size)
        whole = whole or views.full is not None
    sizes = {**cfg["sizes"], "train": build_sizes(cfg["sizes"]).sizes}  # all that may be drawn, not only the ends
    from_map = views is not None and views.source == "map"
    check_network(cfg["backbone"], cfg["head"], sizes, whole_images=whole, follow=from_map)


def sizes_for_pairs(network: SPPNet, sizes: Iterable[int]) -> frozenset[int]:
    """Those of the training `sizes` at which `network` cannot be trained on one image alone, as batch normalisation of
    a single value per channel cannot; a frozen backbone has none in training. Found by running it on shapes: the
    smallest first, as larger images only have more values.
    """
    shadow = meta_copy(network).train()
    kind = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)

    def trains_on(images: int, size: int) -> bool:
        try:
            with torch.no_grad():
                shadow(torch.empty(images, 3, size, size, device="meta", dtype=kind))
        except Exception:  # a network of one's own raises what it likes
            return False
        return True

    return frozenset(itertools.takewhile(lambda s: not trains_on(1, s) and trains_on(2, s), sorted(sizes)))


def check_hardware(trainer: Mapping[str, Any], wanted: int) -> None:
    """Raise UserError if what `trainer` asks for is not there, or not often enough."""
    kind, devices = trainer["accelerator"], trainer["devices"]
    there, apple = torch.cuda.device_count(), torch.backends.mps.is_available()
    if (kind == "gpu" and not there and not apple) or (kind == "cuda" and not there):
        raise UserError(f"trainer.accelerator={kind}: torch sees no GPU here; use trainer.accelerator=cpu or auto")
    if kind == "mps" and not apple:
        raise UserError("trainer.accelerator=mps: torch sees no Apple GPU here; use trainer.accelerator=cpu or auto")
    if trainer["num_nodes"] > 1 and not job.inside():
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: nothing here starts the processes of other nodes, they would be"
            " waited for; launch=slurm sends a job whose tasks srun starts on all of them"
        )
    if kind == "cpu" or not (there or apple):
        _check_cpu(trainer)
    elif there and isinstance(devices, list) and max(devices) >= there:
        raise UserError(f"trainer.devices={devices}: there are GPUs 0 to {there - 1}")
    elif there and wanted > there:
        raise UserError(f"trainer.devices={devices}: there {'is' if there == 1 else 'are'} {there} GPU(s) here")


def _check_cpu(trainer: Mapping[str, Any]) -> None:
    """What a GPU could do and a CPU cannot; Lightning would change the first in silence."""
    if trainer["precision"] == "16-mixed":
        raise UserError("trainer.precision=16-mixed needs a GPU; on a CPU use trainer.precision=bf16-mixed")
    devices = trainer["devices"]
    if isinstance(devices, list):
        raise UserError(
            f"trainer.devices={devices} are indexes of GPUs, and this would train on the CPU;"
            f" use trainer.devices={len(devices)} for {len(devices)} process{'es' if len(devices) > 1 else ''}"
        )
