"""Features of every image of a set: one pass through the network, kept on disk for all splits and later rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sppnet.data import ImageSet, Splits
from sppnet.data.datamodule import DataModule
from sppnet.data.datasets.base import digest
from sppnet.data.jpeg import notice_remarks
from sppnet.data.loader import Loader
from sppnet.data.size_schedules import Single
from sppnet.errors import RunFailed, UserError
from sppnet.progress import meter
from sppnet.runs.from_checkpoint import TrainedNetwork, load_stored_config
from sppnet.training.trainer import set_threads_and_filter_warnings
from sppnet.transfer import feature_file
from sppnet.transfer.extractor import Runner
from sppnet.transfer.svm import Array
from sppnet.transfer.task import PYRAMID, Task

ROOM = 224  # pixels; batches of `data.batch_size` images up to this side, of fewer above


def features_of(task: Task, images: ImageSet) -> Array:
    """(N, D) float32 of all images, on disk; rows of NaN are images that could not be read.

    A pass over the images makes the features of all pooled and fully connected layers there are, as pooling costs
    little beside the convolutions; `conv`, the largest by far, only where it is asked for.

    Raises:
        UserError: a file of weights is not as it must be; an image cannot be read, and `data.bad_files` is `error`.
        RunFailed: a feature is not finite.
    """
    paths = {name: _path(task, images, name) for name in _worthwhile(task)}
    path = paths[task.own["layer"]]
    kept = feature_file.load(path, len(images))
    if kept is None or (unreadable(kept) and not task.skip):  # an error is found again, and raised
        wanted = {p: name for name, p in paths.items() if p == path or not p.exists()}  # pool and spp may be one
        _pass(task, images, {name: p for p, name in wanted.items()})
        kept = feature_file.load(path, len(images))
    assert kept is not None
    return kept


def unreadable(features_ND: Array) -> list[int]:
    """Positions of the images that could not be read."""
    found: list[int] = np.flatnonzero(np.isnan(features_ND[:, 0])).tolist()
    return found


def content_of(task: Task, images: ImageSet) -> str:
    """What tells the features of `features_of`, which are there, from all others: two views may be the same pixels."""
    return feature_file.seal(_path(task, images, task.own["layer"]))


def _path(task: Task, images: ImageSet, layer: str) -> Path:
    named = task.features(images, task.describe(layer)) | {"state": images.state()}
    key = digest([json.dumps(named, sort_keys=True)])[:32]
    return Path(task.cfg["paths"]["cache"]).expanduser() / f"features-{key}.npy"


def _worthwhile(task: Task) -> list[str]:
    """The layer that is asked for and those that cost little more and cannot fail."""
    head, asked = task.cfg["head"], task.own["layer"]
    names = ["pool", "gap"]
    if head.get("rule", "adaptive") == "adaptive":
        names.append("spp")
        if task.trained is not None and head["name"] != "flatten" and _pyramid_is_trained(task, task.trained):
            names += [f"fc{i}" for i in range(1, min(2, len(head["hidden"])) + 1)]
    return list(dict.fromkeys([asked, *names]))


def _pass(task: Task, images: ImageSet, paths: dict[str, Path]) -> None:
    """Compute the layers of `paths` for all images and keep them."""
    settings = task.cfg["trainer"]
    set_threads_and_filter_warnings(task.cfg)
    run = Runner(task, list(paths))
    remarks: dict[str, str] = {}
    with (
        feature_file.writing(paths, len(images)) as files,
        meter("transfer", settings["progress"], len(images)) as tick,
    ):
        for batch in _loader(task, images):
            tick(len(batch["index"]) + len(batch["bad"]))
            remarks |= batch["remarks"]
            keep = batch["valid"]
            if not keep.any():
                continue
            indices = batch["index"][keep].tolist()
            for (name, rows), found in zip(files.items(), run(batch["image"][keep]), strict=True):
                odd = (~torch.isfinite(found)).any(1).nonzero().flatten().tolist()
                if odd:
                    raise RunFailed(f"layer={name} of {images.name(indices[odd[0]])} has values that are not finite")
                rows.put(indices, found.numpy())
        if not any(rows.width for rows in files.values()):
            raise UserError(f"data={task.cfg['data']['name']}: not one of its {len(images)} images can be read")
    notice_remarks(remarks)


def _pyramid_is_trained(task: Task, trained: TrainedNetwork) -> bool:
    """Whether the pyramid is the checkpoint's, as its fully connected layers need."""
    before, now = load_stored_config(trained.checkpoint)[0]["head"], task.cfg["head"]
    return all(before.get(key.partition(".")[2]) == now.get(key.partition(".")[2]) for key in PYRAMID)


def _loader(task: Task, images: ImageSet) -> Loader:
    data, cache = {**task.cfg["data"], "cache": False}, Path(task.cfg["paths"]["cache"]).expanduser()
    none, sizes = np.arange(0), Single([ROOM], [ROOM], [task.size])
    sets = Splits(images, none, none, np.arange(len(images)))
    [loader] = DataModule(sets, sizes, data, task.cfg["views"], task.cfg["seed"], cache).test_dataloader()
    return loader
