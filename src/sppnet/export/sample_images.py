"""Reads a few images of a run's data, as `sppnet predict` gives them to the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sppnet.config.schema import Config, Full
from sppnet.data import DataError, build_images_from_config, load_splits
from sppnet.data.aspect_buckets import shape_buckets
from sppnet.data.crops import EvalRegions, render


def read_samples(cfg: Config, side: int, count: int) -> list[Tensor]:
    """Read up to `count` images of the test part, resized: whole with `views=full`, else warped to a square.

    Args:
        cfg: the configuration; its data and views are used.
        side: shorter side of the images in pixels.
        count: number of images.

    Returns:
        Images, uint8 (1, H, W, 3). Those that cannot be read are left out.

    Raises:
        UserError: the data are not at hand.
    """
    images = build_images_from_config(cfg)
    members = load_splits(cfg.data, images).test
    chosen = members[np.unique(np.linspace(0, len(members) - 1, count).round().astype(int))] if len(members) else []
    samples = []
    for index in chosen:
        try:
            image = images.read(int(index)).convert("RGB")
        except DataError:
            continue
        height, width = side, side
        if isinstance(cfg.views, Full):
            shapes = np.array([(image.height, image.width)], dtype=np.int32)
            height, width = shape_buckets(np.arange(1), shapes, cfg.views.aspect_step)[0].shape(side)
        region = EvalRegions(cfg.views.fit, 1.0).region(image.width, image.height)
        pixels = render(image, region, height, width, cfg.data.interpolation)
        samples.append(torch.from_numpy(pixels).permute(1, 2, 0)[None].contiguous())
    return samples
