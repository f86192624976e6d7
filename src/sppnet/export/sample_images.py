"""Reads a few images of a run's data, as `sppnet predict` gives them to the network."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor

from sppnet.config.command_schemas import ExportConfig
from sppnet.config.load import replace
from sppnet.data import DataError, build_images_from_config, load_splits
from sppnet.export.from_pretrained import Preprocess
from sppnet.prediction.settings import prediction_config


def read_samples(cfg: ExportConfig, count: int) -> tuple[list[Tensor], int]:
    """Return up to `count` images of the test part, and how many of them cannot be read and are left out.

    The images are uint8 (1, H, W, 3): whole ones, or squares of the side `size`.

    Raises:
        UserError: the data are not at hand.
    """
    members = load_splits(cfg.data, images := build_images_from_config(cfg)).test
    prediction = prediction_config(cfg, any_shape=cfg.size is None)
    if cfg.size is not None:
        prediction = replace(prediction, {"sizes.test": [cfg.size]})
    preprocess = Preprocess(prediction, torch.float32)
    positions = np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)
    samples = []
    for index in members[positions].tolist():
        with contextlib.suppress(DataError):
            samples.append(preprocess.pixels(images.read(index)).permute(1, 2, 0)[None].contiguous())
    return samples, len(positions) - len(samples)
