"""One run in one process: data, network, Lightning's Trainer; fit (or go on) and score. Every rank calls the same."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from sppnet.config.instantiate import instantiate
from sppnet.data import ImageSet, Splits, build_sizes, images_of, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.data.duplicates import describe_duplicates
from sppnet.errors import RunFailed, UserError, notice
from sppnet.models.network import build_network
from sppnet.runs.identity import eval_identity, world_size
from sppnet.runs.provenance import code
from sppnet.runs.run_directory import Run
from sppnet.slurm import job
from sppnet.training.callbacks import BadFiles, StatusFile, progress_display
from sppnet.training.checkpointing import Checkpoints, DurableIO, read_checkpoint
from sppnet.training.ema import Averages
from sppnet.training.lit_module import Classifier
from sppnet.training.loggers import MetricsFile, mirrors, replays
from sppnet.training.preflight import sizes_for_pairs
from sppnet.training.user_callbacks import EarlyEnd, check_kinds, check_monitors

HARMLESS = (
    ".*does not have many workers.*",
    ".*srun.*command is available.*",
    ".*in eval mode at the start of training.*",  # a frozen trunk is meant to be
    ".*checkpoint directory .* exists and is not empty.*",
    ".*sync_dist=True.*",  # what is logged is already over all ranks
    ".*LeafSpec.*is deprecated.*",
    ".*No positive samples found in target.*",  # its average precision is NaN and left out
)


@dataclass(frozen=True)
class Prepared:
    """What a run needs, built before its directory is: whatever is wrong with it leaves nothing behind."""

    cfg: Mapping[str, Any]
    classifier: Classifier
    data: DataModule
    callbacks: list[Callback]
    notices: list[str]  # of the data, for the first process to say


def prepare(cfg: Mapping[str, Any], overrides: Sequence[str], images: ImageSet | None = None) -> Prepared:
    """Split the data (`images`, if they are listed already), build the network with its initial weights and the
    user's callbacks.

    Raises:
        UserError: the data set, the weights or a callback is not as it must be.
    """
    settle(cfg)
    sets = load_splits(cfg["data"], images_of(cfg) if images is None else images)
    if len(sets.train) < world_size(cfg):
        raise UserError(f"{len(sets.train)} training images are too few for {world_size(cfg)} processes")
    notices = describe_duplicates(cfg["data"], sets.images, sets.parts())
    if sets.val is sets.test:
        notices.append("data.split.val=0: the test part validates, so its figures are of the weights that it picked")
    L.seed_everything(cfg["seed"], verbose=False)
    data = build_data(cfg, sets)
    data.prepare_data()  # reads the shapes of whole images: a header that is broken is found now
    classifier = build_classifier(cfg, sets, overrides)
    data.pairs = sizes_for_pairs(classifier.network, data.schedule.sizes)
    data.train_batches(world=world_size(cfg))  # too few images are found now
    callbacks = _callbacks(cfg, classifier.metrics["val"].names(cfg["sizes"]["val"]))
    return Prepared(cfg, classifier, data, callbacks, notices)


def fit(prepared: Prepared, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train from the start or from `last.ckpt` (`best.ckpt`, if that is damaged), then score `best.ckpt`.

    Returns:
        The record of the test (see `score`) and the run's totals: `epochs`, `seconds` (of training, over all starts),
        `parameters`, `bad_files`, `stopped` (why training ended before its last epoch, or None).

    Raises:
        RunFailed: the loss is not finite, or the checkpoints to go on from are damaged.
    """
    cfg, classifier, data = prepared.cfg, prepared.classifier, prepared.data
    records, bad_files = MetricsFile(run.path / "metrics.jsonl"), BadFiles(run.path / "bad_files.txt")
    status = StatusFile(run, bad_files)
    loggers, early = [records, *mirrors(cfg, run)], EarlyEnd()
    checkpoints = Checkpoints(run.last.parent, cfg["trainer"]["checkpoint_every_n_steps"], early)
    ours = [records, bad_files, status, *replays(cfg, loggers, records.path)]
    callbacks = [*ours, *prepared.callbacks, early, checkpoints]
    trainer = make_trainer(cfg, callbacks, loggers, run.path)
    if trainer.is_global_zero:
        data.say_joined(trainer.world_size)
    start = _resume_from(run)
    if start is None:
        records.truncate(0)
    sys.argv[1:] = ["rank", str(run.path)]  # noqa: TID251  (Lightning starts the further ranks of this machine so)
    trainer.fit(classifier, datamodule=data, ckpt_path=start, weights_only=True)
    best, best_is = _read_whole(run, run.best)
    if best is None:
        raise RunFailed(f"nothing to test: {best_is or f'{run.best} is missing'}; force=true begins the run anew")
    classifier.load_state_dict(best["state_dict"])
    found = score(trainer, classifier, data, eval_identity(cfg, "best", data.sets.images))
    bad_files.read()
    totals = {
        "epochs": trainer.current_epoch,
        "seconds": round(status.seconds, 1),
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "bad_files": len(bad_files.names),
        "stopped": early.why,
    }
    return found, totals


def score(trainer: L.Trainer, classifier: Classifier, data: DataModule, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a test, as it is kept in `RUN/tests`.

    `metrics` and, for each size, `per_class` are the figures; `identity` says what was tested and how; then images
    scored, seconds, time and commit.
    """
    began = time.monotonic()
    trainer.test(classifier, datamodule=data, verbose=False)
    classes = {
        size: {name: None if v != v else v for name, v in zip(classifier.classes, values, strict=True)}  # NaN: no image
        for size, values in classifier.tested_by_class.items()
    }
    return {
        "metrics": classifier.tested,
        "per_class": classes,
        "identity": dict(identity),
        "images": next(iter(classifier.tested_images.values())),
        "images_per_size": classifier.tested_images,
        "test_seconds": round(time.monotonic() - began, 2),
        "views": {str(size): scorer.costs() for size, scorer in classifier.scorers.items()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": code()["commit"],
    }


def _resume_from(run: Run) -> Path | None:
    """The checkpoint that training goes on from: `last.ckpt`, `best.ckpt` if that is damaged, None if there is none.

    Raises:
        RunFailed: there are some, but training cannot go on from any.
    """
    anew, say = "force=true begins the run anew", rank_zero_only(notice)
    last, last_is = _read_whole(run, run.last)
    scored = last is not None and last["callbacks"][Checkpoints.__name__]["best_score"] is not None
    there, last = last is not None, None  # one of them in memory is enough
    best, best_is = _read_whole(run, run.best)
    if there:
        if best is None and scored:
            best_is = best_is or f"{run.best} is missing"
            say(f"{best_is}; a later epoch has to score higher, or there is nothing to test ({anew})")
        return run.last
    last_is = last_is or f"{run.last} is missing"
    if best is None:
        if run.begun:
            raise RunFailed("; ".join(filter(None, (last_is, best_is, anew))))
        return None
    if not best["callbacks"][Checkpoints.__name__]["whole"]:
        raise RunFailed(f"{last_is}; best.ckpt was saved between two batches of one step, too early to go on; {anew}")
    say(f"{last_is}; going on from best.ckpt, from step {best['global_step']} (epoch {best['epoch'] + 1})")
    return run.best


def _read_whole(run: Run, path: Path) -> tuple[dict[str, Any] | None, str]:
    """A checkpoint of `run`, or why it is none; neither, if there is none."""
    try:
        found = read_checkpoint(path) if path.exists() else None
    except UserError as error:
        return None, str(error)
    whose = run.hash if found is None else found["callbacks"][Checkpoints.__name__].get("run", run.hash)
    return (found, "") if whose == run.hash else (None, f"{path} is of another run ({whose})")


def build_data(cfg: Mapping[str, Any], sets: Splits) -> DataModule:
    """The DataModule that `cfg` describes over `sets`."""
    schedule, cache = build_sizes(cfg["sizes"]), Path(cfg["paths"]["cache"]).expanduser()
    return DataModule(sets, schedule, cfg["data"], cfg["views"], cfg["seed"], cache, cfg["trainer"]["progress"])


def build_classifier(cfg: Mapping[str, Any], sets: Splits, overrides: Sequence[str] = ()) -> Classifier:
    """The network that `cfg` describes for the classes of `sets`, in its LightningModule."""
    network = build_network(cfg["backbone"], cfg["head"], len(sets.images.classes), cfg["sizes"]["train"][0])
    if cfg["trainer"]["compile"]:
        for part in (network.backbone, network.head):  # views are pooled between them
            part.compile(dynamic=True)  # in place: no _orig_mod. in the keys; dynamic: sizes change
    images = sets.images
    classifier = Classifier(network, cfg, images.classes, images.multilabel, overrides, images.fingerprint())
    # Lightning would do so after it has loaded a checkpoint, whose last bits would be lost
    return classifier.double() if cfg["trainer"]["precision"] == "64-true" else classifier


def make_trainer(
    cfg: Mapping[str, Any], callbacks: list[Callback], loggers: list[Logger], root: Path | None = None
) -> L.Trainer:
    """Lightning's Trainer with our settings; what it would print about itself is left out."""
    settings = cfg["trainer"]
    devices = settings["devices"]
    return L.Trainer(
        accelerator=settings["accelerator"],
        devices=devices if settings["accelerator"] != "cpu" or isinstance(devices, int) else len(devices),
        num_nodes=settings["num_nodes"],
        strategy="ddp" if world_size(cfg) > 1 else "auto",
        precision=settings["precision"],
        max_epochs=settings["max_epochs"],
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=settings["gradient_clip"],
        deterministic=settings["deterministic"],
        limit_train_batches=settings["limit_batches"],
        limit_val_batches=settings["limit_batches"],
        limit_test_batches=settings["limit_batches"],
        log_every_n_steps=1,  # the module records by itself (trainer.log_every_n_steps)
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=root,
        plugins=[DurableIO(), _cluster()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the batch samplers shard themselves
        enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in callbacks),
        enable_model_summary=False,
        enable_progress_bar=any("Progress" in base.__name__ for c in callbacks for base in type(c).__mro__),
    )


def _cluster() -> SLURMEnvironment | LightningEnvironment:
    """Tasks of a SLURM job find each other by it; when to stop and to be queued again is for `sppnet.slurm.job`.

    Anywhere else the first process starts the others: Lightning's own search would take what is left over of a cluster
    in the environment for one.
    """
    return SLURMEnvironment(auto_requeue=False) if job.inside() else LightningEnvironment()


def settle(cfg: Mapping[str, Any]) -> None:
    """Threads as configured, whatever the launcher set, and a quiet Lightning."""
    threads = cfg["trainer"]["threads"]
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or Lightning sets its own number under DDP
    torch.set_num_threads(threads)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in HARMLESS:
        warnings.filterwarnings("ignore", pattern)


def _callbacks(cfg: Mapping[str, Any], logged: Sequence[str]) -> list[Callback]:
    by_name = {name: instantiate(node, Callback, f"callbacks.{name}") for name, node in cfg["callbacks"].items()}
    check_kinds(by_name, (c.__qualname__ for c in (MetricsFile, BadFiles, StatusFile, EarlyEnd, Checkpoints, Averages)))
    check_monitors(by_name, logged)
    made = list(by_name.values())
    if cfg["trainer"]["ema"] is not None:
        made.append(Averages(decay=cfg["trainer"]["ema"]))
    return made + progress_display(cfg["trainer"]["progress"])
