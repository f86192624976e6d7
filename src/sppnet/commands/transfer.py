"""`sppnet transfer`: fit a linear SVM to a network's features and add a row to the study's comparison of features.

The cheapest checks come first: names and values (without torch), whether the row exists, and whether the network
accepts its image size. Then come the features and the SVM.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.commands import checkpoint_app, hydra_app
from sppnet.commands.test import warn_of_training_keys
from sppnet.config import command_line
from sppnet.config.command_schemas import TransferConfig
from sppnet.config.compose import Job
from sppnet.config.schema import LAYOUT
from sppnet.data import ImageSet, build_images_from_config
from sppnet.data.build import decoding_notices
from sppnet.errors import UserError, notice
from sppnet.runs.from_checkpoint import TrainedNetwork, refuse_untyped
from sppnet.runs.identity import digest
from sppnet.runs.provenance import provenance
from sppnet.storage.files import read_json, write_json
from sppnet.transfer.comparison import format_rows, load_comparable_rows
from sppnet.transfer.protocols import check_protocol, evaluate
from sppnet.transfer.task import FORMAT, Task, make_task, refuse_ineffective, warn_ineffective


def main(words: Sequence[str]) -> None:
    """Evaluate the trained network that `checkpoint=` names or, without that key, the network in `backbone`."""
    checkpoint = command_line.last_override("checkpoint", hydra_app.normalise("transfer", words))
    if checkpoint is None or checkpoint.value() is None:
        hydra_app.run("transfer", words, _transfer_backbone)
    else:
        checkpoint_app.run("transfer", words, _transfer_trained)


def _transfer_backbone(job: Job[TransferConfig]) -> None:
    """Evaluate the features of `backbone` with its own `weights`; no trained run is involved."""
    if job.cfg.checkpoint is not None:
        refuse_untyped(job.cfg.checkpoint)
    if job.cfg.init is not None:
        raise UserError(f"init={job.cfg.init} is not allowed: sppnet transfer does not train; use checkpoint=RUN")
    refuse_ineffective(job.overrides)
    transfer(make_task(job.cfg, None), [word.partition("=")[0].lstrip("+") for word in job.overrides])


def _transfer_trained(trained: TrainedNetwork[TransferConfig]) -> None:
    transfer(make_task(trained.cfg, trained), trained.typed_keys)


def transfer(task: Task, typed: Sequence[str]) -> None:
    """Print the task's row and all rows comparable with it. If the task's row is not stored yet, compute it first."""
    cfg, images = task.cfg, build_images_from_config(task.cfg)
    warn_of_training_keys(typed, "in sppnet transfer")
    warn_ineffective(task, images, typed)
    identity = task.identity(images)
    # A stored row is checked, too: it may have been computed with a different value of `data.duplicates`.
    protocol = check_protocol(task, images)
    for line in [*images.notices(), *decoding_notices(cfg.data, images)]:
        notice(line)
    folder = Path(cfg.paths.runs).expanduser() / cfg.study / "transfer"
    file = folder / f"{digest(identity)}.json"
    row = None if cfg.force else read_json(file)
    if isinstance(row, dict) and row.get("identity") == identity:
        print(f"{file} exists (force=true computes it again)")
    else:
        row = _compute(task, images, protocol) | {"identity": identity, "hash": file.stem}
        _write(file, row)
    print(*format_rows(row, load_comparable_rows(folder, row)), sep="\n")


def _compute(task: Task, images: ImageSet, protocol: str) -> dict[str, Any]:
    """Extract the features, fit the SVMs and return the row."""
    from sppnet.transfer import features as feature_files  # imports torch
    from sppnet.transfer.extractor import check_extraction

    check_extraction(task)
    _warn_of_meaningless_figures(task, images)
    print(f"{task.cfg.data.name}: {protocol}", flush=True)
    began = time.monotonic()
    features = feature_files.load_features(task, images)
    extracted = time.monotonic()
    unreadable = feature_files.find_unreadable(features)
    bad_files = [images.name(index) for index in unreadable]
    for name in bad_files:
        notice(f"{name} could not be read and was left out")
    if bad_files:
        notice(f"unreadable images left out: {len(bad_files)} of {len(images)}")
    outcome = evaluate(task, images, features, unreadable)
    fitted, origin = time.monotonic(), provenance()
    return {
        "row": _describe(task, features.shape[1]) | {"protocol": outcome.protocol},
        "figures": outcome.figures,
        "splits": outcome.splits,
        "compare": digest({**task.protocol(images), "bad_files": bad_files, "format": FORMAT, "layout": LAYOUT}),
        "features": feature_files.features_digest(task, images),
        "images": len(images),
        "bad_files": bad_files,
        "seed": None if images.multilabel or task.own_parts(images) else task.splits["seed"],
        "seconds": {"features": round(extracted - began, 2), "svm": round(fitted - extracted, 2)},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": origin["code"]["commit"],
        "dirty": bool(origin["code"]["dirty"]),
        "machine": origin["machine"],
        "packages": {name: origin["packages"].get(name) for name in ("torch", "torchvision", "numpy", "scikit-learn")},
    }


def _describe(task: Task, length: int) -> dict[str, Any]:
    """Return the values that identify the row in the printed table, by column title."""
    layer, cfg = task.cfg.layer, task.cfg
    bins = task.layer.get("bins")
    network = cfg.backbone.name or "net"
    if task.trained is not None:
        network = task.trained.run.path.resolve().name if task.trained.run else task.trained.checkpoint.name
    elif task.has_random_weights:
        network += f" (random, seed {cfg.seed})"
    return {
        "network": network,
        "layer": f"{layer} {', '.join(map(str, bins))}" if bins else layer,
        "view": cfg.views.name,
        "size": task.size,
        "length": length,
        "C": float(cfg.svm.C),
        "data": cfg.data.name,
    }


def _warn_of_meaningless_figures(task: Task, images: ImageSet) -> None:
    """Warn about random weights, and about test images that the network was trained on."""
    if task.trained is None:
        if task.cfg.backbone.weights is None:
            notice("warning: backbone.weights is null, so the features come from a network with random weights")
        return
    from sppnet.transfer.extractor import load_checkpoint_metadata  # imports torch

    same_split = task.cfg.data.split.plain() == task.trained.stored["data"]["split"]
    own_parts = task.own_parts(images) is not None or (images.multilabel and same_split)
    if load_checkpoint_metadata(task.trained)["fingerprint"] == images.fingerprint() and not own_parts:
        notice(f"warning: the network was trained on some of the test images of data={task.cfg.data.name}")


def _write(file: Path, row: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, row)
    except OSError as error:
        print(*format_rows(row, [row]), sep="\n")  # otherwise the computed row would be lost
        raise UserError(f"paths.runs: {file.parent} cannot be written to: {error.strerror}") from None
