"""Checks that need torch, but neither data nor Lightning.

They check whether the required hardware is available, and whether optimizer, network, sizes and views fit together.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from sppnet.config.schema import Config, Trainer
from sppnet.data import build_sizes
from sppnet.data.augmentation import Augmentation, build_augmentation
from sppnet.data.batch_samplers import Item
from sppnet.data.views import Views
from sppnet.errors import UserError
from sppnet.models.fit_check import check_network
from sppnet.models.network import SPPNet
from sppnet.models.probe import deep_copy, default_dtype, meta_copy
from sppnet.pyramid import SpatialPyramidPool2d
from sppnet.runs.identity import world_size
from sppnet.slurm import job
from sppnet.training.optim import build_optimizer, undecayed
from sppnet.training.unsaved_state import remembers

DRAWS = 8  # random images on which a transform is tried at each size


def check_job(cfg: Config) -> None:
    """Run all checks.

    Raises:
        UserError: a check fails (the first failure is reported).
    """
    check_fit(cfg)
    check_hardware(cfg)


def check_fit(cfg: Config) -> None:
    """Check that optimizer, network, sizes and views fit together, whatever machine the job will run on.

    Raises:
        UserError: they do not fit together.
    """
    dummy = nn.Linear(1, 1)  # two groups with optim.decay_norms=false
    build_optimizer(cfg.optim, dummy.named_parameters(), undecayed(cfg.optim, dummy))
    views = Views.build(cfg.views)
    whole_images = "full" in (cfg.data.fit, cfg.views.fit)
    if views is not None:
        views.check_pooling(cfg.pooling)
        for size in cfg.sizes.test:
            views.sides(size)
        whole_images = whole_images or views.full is not None
    # list every size of a range, not only its ends
    sizes = {"train": build_sizes(cfg.sizes).sizes, "val": cfg.sizes.val, "test": cfg.sizes.test}
    from_map = views is not None and views.source == "map"
    check_network(
        cfg.backbone, cfg.pooling, cfg.head, sizes, whole_images, from_map, network_dtype(cfg), _aspects(cfg, sizes)
    )


def _aspects(cfg: Config, sizes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, int, float]]:
    """Keys, shorter sides and steps of aspect ratios of the images that go whole through the network."""
    views = Views.build(cfg.views)
    if cfg.data.fit == "full":
        yield from (
            (f"sizes.{split}", size, cfg.data.aspect_step) for split in ("train", "val") for size in sizes[split]
        )
    for size in sizes["test"]:
        if views is None:
            sides = [size] if cfg.views.fit == "full" else []
        else:
            whole = views.full_side(size)
            sides = [*(views.sides(size) if views.source == "map" else []), *([] if whole is None else [whole])]
        yield from ((f"sizes.test, views={cfg.views.name}", side, cfg.views.aspect_step) for side in sides)


def network_dtype(cfg: Config) -> torch.dtype:
    """The dtype of the network's weights with `trainer.precision`."""
    return {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(cfg.trainer.precision, torch.float32)


def check_augmentation(cfg: Config) -> None:
    """Check the transforms of training images on random images at the training sizes; of a range, at its ends.

    A transform may still fail on other images. The run then stops with the same message.

    Raises:
        UserError: a transform cannot be built, does not return an image of the type and shape that it gets, or returns
            another one if it is called again with the same seed.
    """
    augmentation = build_augmentation(cfg.augment, cfg.data.mean, cfg.seed)
    if augmentation is None:
        return
    sizes = set(build_sizes(cfg.sizes).sizes)
    first = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, min(sizes), min(sizes)), dtype=np.uint8))
    for transform in augmentation.transforms:
        with torch.no_grad():
            kept = remembers(transform.module, lambda image, of=transform: of(image.clone()), (first,), (255 - first,))
        if kept:
            raise UserError(
                f"{transform.slot}: {transform.name}.{kept} changes when the transform is called, so a run could not be"
                " repeated; it must keep no state"
            )
    for height in sorted({min(sizes), max(sizes), *sizes.intersection(cfg.sizes.train)}):
        width = 2 * height if cfg.data.fit == "full" else height
        for index in range(DRAWS):
            pixels = np.random.default_rng(index).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
            image = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            items = [Item(index, height, ((height, width),), 0, True)]
            for transform in augmentation.transforms:
                alone, again = Augmentation((transform,), cfg.seed), image.clone()
                alone(again, items)
                alone(image, items)
                if not torch.equal(image, again):
                    raise UserError(
                        f"{transform.slot}: {transform.name} gives different images for the same image and seed, so a"
                        " run could not be repeated; it must keep no state, and draw from the global generators only"
                    )


@torch.no_grad()
def gem_notices(backbone: nn.Module, pooling: nn.Module, size: int, dtype: torch.dtype | None = None) -> list[str]:
    """What changes the meaning of a generalised mean without an error: negative maps, and an exponent in 16 bits.

    Args:
        backbone: maps images to feature maps; a random image shows their range. It does not change.
        pooling: what pools the maps.
        size: side, in pixels, of the image.
        dtype: dtype of the weights in training; None without a training.
    """
    if not isinstance(pooling, SpatialPyramidPool2d) or pooling.pool != "gem":
        return []
    floats = (parameter.dtype for parameter in backbone.parameters() if parameter.is_floating_point())
    own_dtype = next(floats, torch.float32)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(own_dtype)
    notices, negative = [], 0.0
    with contextlib.suppress(Exception), default_dtype(own_dtype):  # a backbone of the user's own may refuse the image
        negative = float((deep_copy(backbone).eval()(image) < 0).float().mean())
    if negative > 0:
        notices.append(
            f"gem takes negative values for 0, and {negative:.0%} of the backbone's map of a random image are negative:"
            " it does not end with a ReLU"
        )
    if dtype == torch.bfloat16 and isinstance(pooling.p, nn.Parameter):
        step = float(pooling.p.detach().max()) * torch.finfo(dtype).eps / 2
        notices.append(
            f"pooling.p is a bfloat16 number with trainer.precision=bf16-true: steps below about {step:.1g} are rounded"
            " away; with bf16-mixed, it is float32"
        )
    return notices


def sizes_for_pairs(network: SPPNet, sizes: Collection[int]) -> frozenset[int]:
    """Find the training sizes at which `network` needs a batch of at least two images.

    Batch normalisation in training mode rejects a single value per channel, and one small image may provide no more
    than that. (A frozen backbone stays in evaluation mode and has no such limit.)

    The network runs on the meta device, or on the CPU if it cannot run there. The search begins with the smallest size
    and ends at the first one that does not need two images, because larger images provide at least as many values.
    """
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    def runs(copied: nn.Module, device: str, images: int, size: int) -> bool:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                copied.train()(torch.zeros(images, 3, size, size, device=device, dtype=dtype))
        except Exception:  # the user's own network may raise any exception
            return False
        return True

    tried, device = meta_copy(network), "meta"
    if not runs(tried, device, 2, max(sizes)):
        tried, device = copy.deepcopy(network), "cpu"

    def needs_two(size: int) -> bool:
        return not runs(tried, device, 1, size) and runs(tried, device, 2, size)

    return frozenset(itertools.takewhile(needs_two, sorted(sizes)))


def check_hardware(cfg: Config) -> None:
    """Check that this machine has the devices that the section `trainer` names.

    Raises:
        UserError: a device is missing, or a setting does not work on this machine.
    """
    trainer = cfg.trainer
    kind, devices, devices_per_node = trainer.accelerator, trainer.devices, world_size(cfg) // trainer.num_nodes
    gpus, apple = torch.cuda.device_count(), torch.backends.mps.is_available()
    if (kind == "gpu" and not gpus and not apple) or (kind == "cuda" and not gpus):
        raise UserError(f"trainer.accelerator={kind}: torch sees no GPU here; use trainer.accelerator=cpu or auto")
    if kind == "mps" and not apple:
        raise UserError("trainer.accelerator=mps: torch sees no Apple GPU here; use trainer.accelerator=cpu or auto")
    if trainer.num_nodes > 1 and not job.inside_slurm():
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: nothing starts processes on the other nodes, so training would"
            " wait for them forever; use launch=slurm, which starts a task on every node with srun"
        )
    if kind == "cpu" or not (gpus or apple):
        _check_cpu(trainer)
    elif gpus and isinstance(devices, list) and max(devices) >= gpus:
        raise UserError(f"trainer.devices={devices}: the highest GPU index here is {gpus - 1}")
    elif gpus and devices_per_node > gpus:
        raise UserError(
            f"trainer.devices={devices} is too many: this machine has {gpus} {'GPU' if gpus == 1 else 'GPUs'}"
        )


def _check_cpu(trainer: Trainer) -> None:
    """Refuse settings that need a GPU. For precision 16-mixed, Lightning would only warn and then use bf16-mixed."""
    if trainer.precision == "16-mixed":
        raise UserError("trainer.precision=16-mixed needs a GPU; on a CPU, use trainer.precision=bf16-mixed")
    devices = trainer.devices
    if isinstance(devices, list):
        raise UserError(
            f"trainer.devices={devices} lists GPU indices, but training would run on the CPU;"
            f" use trainer.devices={len(devices)} for {len(devices)} process{'es' if len(devices) > 1 else ''}"
        )
