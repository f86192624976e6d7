"""Features of all images in a data set, computed in one pass and stored on disk for all splits and later table rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sppnet.config.schema import MLP, Pooling
from sppnet.data import ImageSet, Splits
from sppnet.data.datamodule import DataModule
from sppnet.data.datasets.base import digest
from sppnet.data.jpeg import notice_remarks
from sppnet.data.loader import Loader
from sppnet.data.size_schedules import Single
from sppnet.errors import RunFailed, UserError
from sppnet.progress import meter
from sppnet.training.trainer import set_threads_and_filter_warnings
from sppnet.transfer import feature_file
from sppnet.transfer.extractor import Runner
from sppnet.transfer.svm import Array
from sppnet.transfer.task import Task, pooling_changes

ROOM = 224  # in pixels; for images larger than this, batches are smaller than `data.batch_size`


def load_features(task: Task, images: ImageSet) -> Array:
    """Load or compute the features of all images, as memory-mapped float32 (N, D). Unreadable images get rows of NaN.

    One pass computes all pooled and fully connected layers, because they cost little compared with the convolutions.
    `conv`, by far the largest layer, is computed only on request.

    Raises:
        UserError: the weights do not fit the network, or an image cannot be read and `data.bad_files` is `error`.
        RunFailed: a feature is not finite.
    """
    paths = {name: _path(task, images, name) for name in _layers_to_compute(task)}
    path = paths[task.cfg.layer]
    features_ND = feature_file.load(path, len(images))
    # If a stored file lacks images that this run must not skip, computing the features again reports these images.
    if features_ND is None or (find_unreadable(features_ND) and not task.skip):
        # keyed by path, because pool and spp may share a file, which is then written only once
        missing = {p: name for name, p in paths.items() if p == path or not p.exists()}
        _compute(task, images, {name: p for p, name in missing.items()})
        features_ND = feature_file.load(path, len(images))
    assert features_ND is not None
    return features_ND


def find_unreadable(features_ND: Array) -> list[int]:
    """Return the indices of the images that could not be read."""
    indices: list[int] = np.flatnonzero(np.isnan(features_ND[:, 0])).tolist()
    return indices


def features_digest(task: Task, images: ImageSet) -> str:
    """Return a digest of the stored features; it is the same for two views that give the same pixels."""
    return feature_file.seal(_path(task, images, task.cfg.layer))


def _path(task: Task, images: ImageSet, layer: str) -> Path:
    identity = task.features(images, task.describe(layer)) | {"state": images.state()}
    key = digest([json.dumps(identity, sort_keys=True)])[:32]
    return Path(task.cfg.paths.cache).expanduser() / f"features-{key}.npy"


def _layers_to_compute(task: Task) -> list[str]:
    """Return the requested layer and all other layers that are cheap to compute and cannot fail."""
    cfg, trained = task.cfg, task.trained
    names = ["pool", "gap"]
    if task.describe("spp")["rule"] == "adaptive":
        names.append("spp")
        ours = isinstance(cfg.pooling, Pooling) and cfg.pooling.takes_any_shape
        if trained is not None and ours and isinstance(cfg.head, MLP) and not pooling_changes(cfg, trained):
            names += [f"fc{i}" for i in range(1, min(2, len(cfg.head.hidden)) + 1)]
    return list(dict.fromkeys([cfg.layer, *names]))


def _compute(task: Task, images: ImageSet, paths: dict[str, Path]) -> None:
    """Compute the layers named in `paths` for all images, and write each to its file."""
    set_threads_and_filter_warnings(task.cfg)
    run = Runner(task, list(paths))
    remarks: dict[str, str] = {}
    with (
        feature_file.writing(paths, len(images)) as files,
        meter("transfer", task.cfg.progress, len(images)) as tick,
    ):
        for batch in _loader(task, images, run.fabric.device):
            tick(len(batch["index"]) + len(batch["bad"]))
            remarks |= batch["remarks"]
            keep = batch["valid"]
            if not keep.any():
                continue
            indices = batch["index"][keep].tolist()
            for (name, rows), features_ND in zip(files.items(), run(batch["image"][keep]), strict=True):
                infinite = (~torch.isfinite(features_ND)).any(1).nonzero().flatten().tolist()
                if infinite:
                    file = images.name(indices[infinite[0]])
                    raise RunFailed(f"layer={name}: the features of {file} are not all finite")
                rows.put(indices, features_ND.numpy())
        if not any(rows.width for rows in files.values()):
            raise UserError(f"data={task.cfg.data.name}: none of the {len(images)} image(s) can be read")
    notice_remarks(remarks)


def _loader(task: Task, images: ImageSet, device: torch.device) -> Loader:
    cfg, cache = task.cfg, Path(task.cfg.paths.cache).expanduser()
    data = cfg.data.model_copy(update={"cache": False})
    none, sizes = np.arange(0), Single([ROOM], [ROOM], [task.size])
    sets = Splits(images, none, none, np.arange(len(images)))
    data_module = DataModule(sets, sizes, data, cfg.augment, cfg.views, cfg.seed, cache)
    data_module.device = device
    [loader] = data_module.test_dataloader()
    return loader
