"""Builds Lightning's Trainer from the arguments in the configuration and those that every run has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import Config
from sppnet.data.batch_samplers import used_batches
from sppnet.data.datamodule import DataModule
from sppnet.errors import UserError, format_value
from sppnet.runs.identity import strategy, world_size
from sppnet.slurm import job
from sppnet.training.checkpointing import Checkpoints, DurableIO

# The types that an argument of the Trainer may have if it is an object, named by `_target_`.
OBJECTS: dict[str, type] = {"strategy": Strategy, "profiler": Profiler}
PLUGINS = (LayerSync,)


def make_trainer(cfg: Config, callbacks: list[Callback], loggers: list[Logger], root: Path | None = None) -> L.Trainer:
    """Build Lightning's Trainer with the arguments in `cfg.trainer` and those that every run has.

    Raises:
        UserError: the Trainer refuses an argument.
    """
    settings = cfg.trainer
    devices = settings.devices
    arguments = settings.plain() | {
        "devices": devices if settings.accelerator != "cpu" or isinstance(devices, int) else len(devices),
        "strategy": strategy(cfg),
        "max_steps": -1,  # see FinalValidation
        "log_every_n_steps": 1,  # not trainer.log_every_n_steps, which `Classifier.training_step` applies
    }
    for name, kind in OBJECTS.items():
        if isinstance(arguments.get(name), Mapping):
            arguments[name] = instantiate(arguments[name], kind, f"trainer.{name}")
    plugins = _build_plugins(arguments.pop("plugins", None))
    try:
        trainer = L.Trainer(
            **arguments,
            callbacks=callbacks,
            logger=loggers or False,
            default_root_dir=root,
            plugins=[DurableIO(), _cluster_environment(), *plugins],
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the batch samplers already divide the data among the ranks
            enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
            enable_progress_bar=any("Progress" in base.__name__ for c in callbacks for base in type(c).__mro__),
        )
    except Exception as error:  # Lightning checks few values before it uses them
        raise UserError(f"trainer: lightning.Trainer refuses its arguments: {' '.join(str(error).split())}") from error
    if job.inside_slurm():
        # Lightning's handler of SIGTERM, set at the start of fit() and test(), would end a job that is being preempted,
        # and SLURM would not requeue it. `sppnet.slurm.job` handles the signal instead.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _build_plugins(listed: Any) -> list[Any]:
    """Build the objects that `trainer.plugins` describes, as one mapping or a list of them."""
    nodes = listed if isinstance(listed, list) else [] if listed is None else [listed]
    plugins = []
    for number, node in enumerate(nodes):
        slot = f"trainer.plugins[{number}]"
        if not isinstance(node, Mapping):
            raise UserError(f"{slot}={node} is not allowed: must be a mapping with _target_")
        plugin = instantiate(node, object, slot)
        if not isinstance(plugin, PLUGINS):
            kinds = " or ".join(kind.__name__ for kind in PLUGINS)
            raise UserError(
                f"{slot}._target_={node['_target_']} is not allowed: must be a {kinds}; a run has a CheckpointIO and a"
                " ClusterEnvironment of its own, and trainer.precision sets the precision"
            )
        plugins.append(plugin)
    return plugins


def _cluster_environment() -> SLURMEnvironment | LightningEnvironment:
    """Return the SLURM environment inside a job of `launch=slurm`, and Lightning's own environment elsewhere.

    `sppnet.slurm.job` requeues jobs, so Lightning must not. Lightning's detection is not used, because it mistakes
    stale SLURM variables in the environment for a cluster.
    """
    return SLURMEnvironment(auto_requeue=False) if job.inside_slurm() else LightningEnvironment()


def check_limits(cfg: Config, trainer: L.Trainer, data: DataModule, parts: Sequence[str]) -> None:
    """Check that each of the `parts` has batches, and that an epoch is long enough to be validated.

    Raises:
        UserError: a share of the batches rounds to none, or `trainer.val_check_interval` is longer than an epoch.
    """
    for part in parts:
        if part == "train":
            batches = len(data.train_batches(world=data.world))
        else:
            batches = min(map(len, data.val_dataloader() if part == "val" else data.test_dataloader()))
        limit = getattr(trainer, f"limit_{part}_batches")
        key = "overfit_batches" if cfg.trainer.overfit_batches and part != "test" else f"limit_{part}_batches"
        if used_batches(batches, limit) < 1:
            raise UserError(f"trainer.{key}={limit} is not allowed: {part} has only {batches} batches, so none is used")
        interval = trainer.val_check_interval
        used = used_batches(batches, limit)
        if part == "train" and isinstance(interval, int) and trainer.check_val_every_n_epoch and interval > used:
            raise UserError(
                f"trainer.val_check_interval={interval} is not allowed: an epoch has {used} batches; with"
                " trainer.check_val_every_n_epoch=null, the interval goes on over several epochs"
            )


def check_strategy(cfg: Config, trainer: L.Trainer, network: nn.Module) -> None:
    """Check that the strategy starts the processes of the run, and that it works with their devices and the network.

    Raises:
        UserError: it does not.
    """
    chosen, processes, on_cpu = trainer.strategy, world_size(cfg), isinstance(trainer.accelerator, CPUAccelerator)
    if trainer.world_size != processes or getattr(chosen, "_start_method", "popen") != "popen":
        raise UserError(
            f"trainer.strategy={format_value(strategy(cfg))} is not allowed: it does not start {processes} process(es)"
            " with a command line each; use ddp"
        )
    if isinstance(chosen, ModelParallelStrategy):
        raise UserError("trainer.strategy: ModelParallelStrategy needs a module that shards itself; use ddp or fsdp")
    if on_cpu and chosen.root_device.type != "cpu":
        raise UserError(f"trainer.strategy: its device is {chosen.root_device}, and not that of trainer.accelerator")
    if getattr(chosen, "_layer_sync", None):
        _check_synchronised_norms(network)
        if on_cpu:
            raise UserError("trainer: torch synchronises batch norm on GPUs only (sync_batchnorm and its plugins)")
    if cfg.backbone.update_bn and isinstance(chosen, FSDPStrategy | ModelParallelStrategy):
        raise UserError(
            f"trainer.strategy={format_value(strategy(cfg))} and backbone.update_bn=true are not allowed together: each"
            " process has only a part of the backbone; use trainer.strategy=ddp"
        )
    for kind, arguments, wrapper in (
        (DDPStrategy, "_ddp_kwargs", DistributedDataParallel),
        (FSDPStrategy, "kwargs", FullyShardedDataParallel),
    ):
        if isinstance(chosen, kind):
            try:
                inspect.signature(wrapper).bind("module", **getattr(chosen, arguments))
            except TypeError as error:
                raise UserError(f"trainer.strategy: {wrapper.__name__} refuses its arguments: {error}") from None
    backend = getattr(chosen, "process_group_backend", None)
    if backend is not None and not torch.distributed.is_backend_available(backend):
        raise UserError(f"trainer.strategy: this torch has no process_group_backend {backend}")
    if on_cpu and backend is not None and "cpu" not in torch.distributed.Backend.backend_capability.get(backend, "cpu"):
        raise UserError(f"trainer.strategy: process_group_backend={backend} does not work on CPUs; use gloo")


def _check_synchronised_norms(network: nn.Module) -> None:
    """Check that torch can synchronise the batch normalisation of a network without changing what it computes."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and not type(module).forward.__module__.startswith("torch."):
            raise UserError(
                f"trainer: torch cannot synchronise batch norm in {type(module).__name__} {name}, because it would"
                " replace the layer by one that only normalises (sync_batchnorm and its plugins)"
            )
