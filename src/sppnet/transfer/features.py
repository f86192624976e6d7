"""Features of every image of a set: one pass through the network, kept on disk for all splits and later rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sppnet.commands.checkpoint_app import Trained, stored
from sppnet.data import ImageSet
from sppnet.data.aspect_buckets import shape_buckets, square_bucket
from sppnet.data.batch_samplers import EvalBatches
from sppnet.data.crops import EvalRegions
from sppnet.data.datasets.base import digest
from sppnet.data.image_shapes import load_shapes
from sppnet.data.jpeg import notice_remarks
from sppnet.data.loader import Loader, Samples
from sppnet.data.readers import source_of
from sppnet.data.size_schedules import level_batch
from sppnet.errors import RunFailed, UserError
from sppnet.progress import meter
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
    if kept is None:
        raise UserError(f"data={task.cfg['data']['name']}: not one of its {len(images)} images can be read")
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
    torch.set_num_threads(settings["threads"])
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
    notice_remarks(remarks)


def _pyramid_is_trained(task: Task, trained: Trained) -> bool:
    """Whether the pyramid is the checkpoint's, as its fully connected layers need."""
    before, now = stored(trained.where)[0]["head"], task.cfg["head"]
    return all(before.get(key.partition(".")[2]) == now.get(key.partition(".")[2]) for key in PYRAMID)


def _loader(task: Task, images: ImageSet) -> Loader:
    data, views = task.cfg["data"], task.cfg["views"]
    members = np.arange(len(images))
    buckets = square_bucket(members)
    if views["fit"] == "full":
        shapes = load_shapes(images, Path(task.cfg["paths"]["cache"]).expanduser(), task.skip)
        buckets = shape_buckets(members, shapes, views["aspect_step"])
    batch_size = min(data["batch_size"], level_batch(data["batch_size"], task.size, ROOM))
    batches = EvalBatches(buckets, task.size, [task.size], batch_size)
    regions = EvalRegions(views["fit"], views["ratio"])
    samples = Samples(images, regions, source_of(images, data, views["fit"]))
    return Loader(samples, batches, task.skip, data["workers"], torch.cuda.is_available())
