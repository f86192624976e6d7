"""One run in one process: `prepare` builds data, network and callbacks; `fit` trains or resumes, then tests.

Under DDP, every rank makes the same calls.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from sppnet.config.instantiate import instantiate, is_own
from sppnet.config.schema import Config, Loss, OwnLoss
from sppnet.config.timm_networks import TIMM, check_name
from sppnet.data import ImageSet, Progressive, Splits, build_images_from_config, build_sizes, load_splits
from sppnet.data.batch_samplers import used_batches
from sppnet.data.build import decoding_notices, describe_missing_classes
from sppnet.data.datamodule import DataModule
from sppnet.data.duplicates import describe_duplicates
from sppnet.errors import RunFailed, UserError, format_value
from sppnet.models.network import build_network
from sppnet.runs.identity import eval_identity, world_size
from sppnet.runs.provenance import code_state
from sppnet.runs.run_directory import Run
from sppnet.slurm import job
from sppnet.training.batch_norm import BatchNormUpdate
from sppnet.training.callbacks import BadFiles, FinalValidation, StatusFile, progress_display
from sppnet.training.checkpointing import Checkpoints
from sppnet.training.ema import Averages
from sppnet.training.lightning_trainer import check_limits, check_strategy, make_trainer
from sppnet.training.lit_module import Classifier
from sppnet.training.loggers import MetricsFile, build_mirrors, build_replays
from sppnet.training.loss_check import check_own_loss
from sppnet.training.losses import class_weights
from sppnet.training.metrics import SizeMetrics
from sppnet.training.optim import build_optimizer
from sppnet.training.own_parts import check_own_parts, has_own_parts
from sppnet.training.preflight import gem_notices, network_dtype, sizes_for_pairs
from sppnet.training.resume import RESTART, checkpoint_to_resume, read_own_checkpoint
from sppnet.training.user_callbacks import EarlyEnd, check_kinds, check_monitored, check_monitors
from sppnet.training.warm_start import load_init

HARMLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*srun.*command is available.*",
    ".*in eval mode at the start of training.*",  # a frozen backbone is in eval mode on purpose
    ".*checkpoint directory .* exists and is not empty.*",
    ".*LeafSpec.*is deprecated.*",
    ".*No positive samples found in target.*",  # the average precision is then NaN, which the mean ignores
)
OWN_CALLBACKS = (MetricsFile, BadFiles, StatusFile, EarlyEnd, Checkpoints, Averages, BatchNormUpdate)


@dataclass(frozen=True)
class PreparedRun:
    """Everything a run needs, built before the run directory is created, so that an error leaves nothing behind."""

    cfg: Config
    classifier: Classifier
    data: DataModule
    callbacks: list[Callback]
    notices: list[str]  # notices about the data, printed by the first process


def prepare(cfg: Config, images: ImageSet | None = None, starts_anew: bool = True) -> PreparedRun:
    """Split the data, build the network with its initial weights, and build the user's callbacks.

    Args:
        cfg: the configuration.
        images: the data set, if its images have already been listed; None to list them.
        starts_anew: whether training starts from these weights. Otherwise, `init` is not read.

    Raises:
        UserError: the data set, the weights, the loss, the optimizer or a callback is invalid.
    """
    set_threads_and_filter_warnings(cfg)
    sets = load_splits(cfg.data, build_images_from_config(cfg) if images is None else images)
    if len(sets.train) < world_size(cfg):
        raise UserError(
            f"the number of training images ({len(sets.train)}) is smaller than the number of processes"
            f" ({world_size(cfg)})"
        )
    notices = [
        *decoding_notices(cfg.data, sets.images),
        *describe_missing_classes(sets),
        *describe_duplicates(cfg.data, sets.images, sets.parts()),
    ]
    if sets.val is sets.test:
        notices.append(
            "data.split.val=0: the test split is also the validation split, so the test metrics come from weights that"
            " were selected on the test images"
        )
    if isinstance(cfg.loss, Loss) and (cfg.loss.class_weights, cfg.data.sampling) == ("balanced", "balanced"):
        notices.append("loss.class_weights=balanced and data.sampling=balanced both favour rare classes; one is enough")
    L.seed_everything(cfg.seed, verbose=False)
    data = build_data(cfg, sets)
    data.prepare_data()  # if the run uses whole images, this reads every image's shape, so broken headers are found now
    classifier = build_classifier(cfg, sets)
    if cfg.init is not None and starts_anew:
        notices += load_init(classifier.network, cfg, sets.images)
    if has_own_parts(cfg):
        check_own_parts(classifier.network, min(data.schedule.sizes), cfg, len(sets.images.classes))
    _check_classifier(classifier)
    network = classifier.network
    if (
        cfg.backbone.target == TIMM
        and cfg.backbone.weights is None
        and (tag := check_name(cfg.backbone.node()["arch"])[1])
    ):
        notices.append(f"backbone.weights=null: random weights; backbone.weights=DEFAULT loads {tag} of backbone.name")
    notices += gem_notices(network.backbone, network.pooling, min(data.schedule.sizes), network_dtype(cfg))
    data.pairs = sizes_for_pairs(classifier.network, data.schedule.sizes)
    batches = data.train_batches(world=world_size(cfg))  # raises if there are too few images
    limit = cfg.trainer.overfit_batches or cfg.trainer.limit_train_batches
    epochs = _epochs(cfg, max(1, used_batches(len(batches), limit)))
    if is_own(data.schedule):
        batches.check_schedule(build_sizes(cfg.sizes), epochs)
    if isinstance(data.schedule, Progressive) and (last := data.schedule.size_at(cfg.seed, epochs - 1)) < max(
        data.schedule.train
    ):
        notices.append(
            f"sizes=progressive: training ends at size {last}, in epoch {epochs} of sizes.epochs={data.schedule.epochs}"
        )
    callbacks = _build_callbacks(cfg, classifier.metrics["val"])
    data.world = world_size(cfg)
    trainer = make_trainer(cfg, [], [])
    check_limits(cfg, trainer, data, ("train", "val", "test"))
    check_strategy(cfg, trainer, network)
    return PreparedRun(cfg, classifier, data, callbacks, notices)


def _epochs(cfg: Config, batches: int) -> int:
    """The number of epochs, the last of which may be cut short by `trainer.max_steps`."""
    epochs, steps = cfg.trainer.max_epochs, cfg.trainer.max_steps
    per_epoch = math.ceil(batches / cfg.trainer.accumulate_grad_batches)
    return epochs if steps < 0 else min(epochs, math.ceil(steps / per_epoch))


def fit(prepared: PreparedRun, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train from the start or from the checkpoint that `checkpoint_to_resume` chooses, then test best.ckpt.

    Returns:
        The record of the test (see `run_test`) and the totals of the run: `epochs`, `seconds` (training time, including
        the time before the run was resumed), `parameters`, `bad_files`, `stopped` (why training ended early, or None).

    Raises:
        RunFailed: the loss is not finite, or the checkpoints are damaged.
    """
    cfg, classifier, data = prepared.cfg, prepared.classifier, prepared.data
    metrics_file, bad_files = MetricsFile(run.path / "metrics.jsonl"), BadFiles(run.path / "bad_files.txt")
    status = StatusFile(run, bad_files, cfg.trainer.max_steps)
    loggers, early_end = [metrics_file, *build_mirrors(cfg, run)], EarlyEnd(cfg.trainer.max_steps)
    checkpoints = Checkpoints(run.last.parent, cfg.checkpointing.every_n_steps, early_end)
    own_callbacks = [metrics_file, bad_files, status, *build_replays(cfg, loggers, metrics_file.path)]
    callbacks = [*own_callbacks, *prepared.callbacks, FinalValidation(cfg.trainer.max_steps), early_end, checkpoints]
    trainer = make_trainer(cfg, callbacks, loggers, run.path)
    if trainer.is_global_zero:
        data.notice_stretched(trainer.world_size)
    resume_from = checkpoint_to_resume(run)
    if resume_from is None:
        metrics_file.truncate(0)
    sys.argv[1:] = ["rank", str(run.path)]  # noqa: TID251  (the command line with which Lightning starts other ranks)
    try:
        trainer.fit(classifier, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except RuntimeError as error:
        # If the data loaders cannot start, Lightning's teardown fails as well, and this second error hides the first.
        first = error.__context__
        if first is None or "iter(combined_loader)" not in str(error):
            raise
        raise first from first.__cause__
    best, problem = read_own_checkpoint(run, run.best)
    if best is None:
        raise RunFailed(f"nothing to test: {problem or f'{run.best} is missing'}; {RESTART}")
    classifier.load_state_dict(best["state_dict"])
    record = run_test(trainer, classifier, data, eval_identity(cfg, "best", data.sets.images))
    bad_files.read()
    totals = {
        "epochs": trainer.current_epoch,
        "seconds": round(status.seconds, 1),
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "bad_files": len(bad_files.names),
        "stopped": early_end.reason,
    }
    return record, totals


def run_test(
    trainer: L.Trainer, classifier: Classifier, data: DataModule, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Test the classifier and return the record that `RUN/tests` stores.

    The record holds the `metrics`, the `per_class` metrics for each size, and what was tested and how (`identity`).
    """
    job.requeue_on_warning()  # a test has no state to save
    start, tested = time.monotonic(), classifier.metrics["test"]
    trainer.test(classifier, datamodule=data, verbose=False)
    per_class = {  # None for a class without images, whose metric is NaN
        size: {name: None if v != v else v for name, v in zip(classifier.classes, values, strict=True)}
        for size, values in classifier.test_per_class.items()
    }
    return {
        "metrics": classifier.test_metrics,
        "per_class": per_class,
        "own_metrics": {name: {"better": tested.mode(name), "percent": tested.is_share(name)} for name in tested.own},
        "identity": dict(identity),
        "images": next(iter(classifier.test_images.values())),
        "images_per_size": classifier.test_images,
        "confusion": classifier.test_confusion,  # `write_test` moves it to files of its own
        "test_seconds": round(time.monotonic() - start, 2),
        "views": {str(size): scorer.costs() for size, scorer in classifier.scorers.items()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": code_state()["commit"],
    }


def build_data(cfg: Config, sets: Splits) -> DataModule:
    schedule, cache = build_sizes(cfg.sizes), Path(cfg.paths.cache).expanduser()
    return DataModule(sets, schedule, cfg.data, cfg.augment, cfg.views, cfg.seed, cache, cfg.progress)


def build_classifier(cfg: Config, sets: Splits, trains: bool = True) -> Classifier:
    """Build the network of `cfg`, with an output for each class of `sets`, and wrap it in its LightningModule.

    Args:
        cfg: the configuration.
        sets: the data.
        trains: whether the classifier will be trained, so that the loss needs the class weights of the training images.
    """
    network = build_network(cfg.backbone, cfg.pooling, cfg.head, len(sets.images.classes), cfg.sizes.train[0])
    if cfg.compute.compile:
        for part in network.children():  # compiled separately: multi-view tests pool windows between them
            # Compiling in place keeps "_orig_mod." out of the state_dict keys. Image sizes change, hence dynamic=True.
            part.compile(dynamic=True)
    images = sets.images
    weights = class_weights(cfg.loss, sets) if trains else None
    classifier = Classifier(network, cfg, images.classes, images.multilabel, images.fingerprint(), weights)
    # Lightning would convert the network to float64 only after loading a checkpoint, so loading would round the weights
    # to float32.
    return classifier.double() if cfg.trainer.precision == "64-true" else classifier


def _check_classifier(classifier: Classifier) -> None:
    """Check that the optimizer takes the network's parameters, and that the user's own loss can be trained with."""
    cfg = classifier.cfg
    if not any(parameter.requires_grad for parameter in classifier.parameters()):
        raise UserError(
            f"backbone.freeze={format_value(cfg.backbone.freeze)} leaves nothing to train: neither pooling nor head has"
            " parameters"
        )
    build_optimizer(cfg.optim, classifier.named_parameters(), classifier.undecayed)
    if isinstance(cfg.loss, OwnLoss):
        dtype = torch.float64 if cfg.trainer.precision == "64-true" else torch.float32
        soft, classes = classifier.mix is not None, len(classifier.classes)
        check_own_loss(cfg.loss, classifier.loss, classes, classifier.multilabel, soft, dtype)


def set_threads_and_filter_warnings(cfg: Config) -> None:
    """Apply `compute.num_threads`, overriding the launcher; hide Lightning's log messages and harmless warnings."""
    threads = cfg.compute.num_threads
    os.environ["OMP_NUM_THREADS"] = str(threads)  # otherwise, Lightning would choose a number under DDP
    torch.set_num_threads(threads)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers.profiler").setLevel(logging.INFO)  # it prints what it has measured
    for pattern in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", pattern)


def _build_callbacks(cfg: Config, metrics: SizeMetrics) -> list[Callback]:
    """Build and check the user's callbacks, and build those for `backbone.update_bn`, `optim.ema` and
    `progress`.
    """
    by_name = {name: instantiate(node.node(), Callback, f"callbacks.{name}") for name, node in cfg.callbacks.items()}
    check_kinds(by_name, (kind.__qualname__ for kind in OWN_CALLBACKS))
    logged = {name: metrics.mode(name) for name in metrics.names(cfg.sizes.val)}
    for name in logged:  # these values have already been reduced over all ranks
        warnings.filterwarnings("ignore", rf".*self\.log\('{re.escape(name)}'.*sync_dist=True.*")
    check_monitored(cfg.checkpointing, logged)
    check_monitors(by_name, logged, cfg.trainer.check_val_every_n_epoch)
    callbacks = list(by_name.values())
    if cfg.backbone.update_bn:
        callbacks.append(BatchNormUpdate())
    if cfg.optim.ema is not None:
        callbacks.append(Averages(decay=cfg.optim.ema))
    return callbacks + progress_display(cfg.progress)
