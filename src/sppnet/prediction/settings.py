"""The settings with which a network sees images outside a test: one size, and whole images if it can take them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from sppnet.config import compose
from sppnet.config.load import replace
from sppnet.config.schema import Config, Pooling
from sppnet.errors import UserError
from sppnet.runs.identity import ONE_DEVICE

Cfg = TypeVar("Cfg", bound=Config)


def prediction_config(cfg: Cfg, typed: Collection[str] = (), any_shape: bool | None = None) -> Cfg:
    """Return the configuration for prediction: one device, one size, and whole images unless `views` was typed.

    Networks that take only squares see every image warped to a square.

    Args:
        cfg: the configuration of the network's run, with what was typed.
        typed: the keys that were typed.
        any_shape: whether images of any shape are taken; None if the network's own pooling decides.

    Raises:
        UserError: several sizes were typed.
    """
    sizes, views = cfg.sizes.test, cfg.views
    if "sizes.test" in typed and len(sizes) > 1:
        raise UserError(f"sizes.test={sizes} is not allowed: predict takes one size, such as [{sizes[0]}]")
    if not any(key.split(".")[0] == "views" for key in typed):
        any_shape = _takes_any_shape(cfg) if any_shape is None else any_shape
        views = compose.compose_plain("predict", [f"views={'full' if any_shape else 'warp'}"])["views"]
    # all weights come from the checkpoint
    return replace(
        cfg, {"views": views, "sizes.test": sizes[:1], "backbone.weights": None, "metrics": {}, **ONE_DEVICE}
    )


def _takes_any_shape(cfg: Config) -> bool:
    if isinstance(cfg.pooling, Pooling):
        return cfg.pooling.takes_any_shape
    from sppnet.models.fit_check import takes_any_shape  # imports torch

    return takes_any_shape(cfg.backbone, cfg.pooling, cfg.sizes.test[0])
