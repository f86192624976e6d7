"""Reads a few images of a run's data, as `sppnet predict` gives them to the network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sppnet.config.command_schemas import ExportConfig
from sppnet.config.load import replace
from sppnet.data import DataError, build_images_from_config, load_splits
from sppnet.export.from_pretrained import Preprocess
from sppnet.prediction.settings import prediction_config


def read_samples(cfg: ExportConfig, count: int) -> Iterator[Tensor]:
    """Yield up to `count` images of the test part, uint8 (1, H, W, 3): whole ones, or squares of the side `size`.

    Those that cannot be read are left out.

    Raises:
        UserError: the data are not at hand.
    """
    members = load_splits(cfg.data, images := build_images_from_config(cfg)).test
    prediction = prediction_config(cfg, any_shape=cfg.size is None)
    if cfg.size is not None:
        prediction = replace(prediction, {"sizes.test": [cfg.size]})
    preprocess = Preprocess(prediction, torch.float32)
    positions = np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int)
    for index in members[positions].tolist():
        try:
            image = images.read(index)
        except DataError:
            continue
        yield preprocess.pixels(image).permute(1, 2, 0)[None].contiguous()
