"""Backbones from timm's networks, cut before the pooling, which the pyramid replaces."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from sppnet.config.timm_networks import check_name, import_timm, trained_config, weights_tag
from sppnet.errors import UserError
from sppnet.models.backbones.cut import CUT_KEYS, remove_unused
from sppnet.models.hub import read_weights
from sppnet.models.probe import meta_copy, on_meta, run_on_meta

# Landscape images on which the axes of the output are told apart. Their sides are multiples of all usual patch sizes.
PROBES = ((224, 448), (448, 672))
# Arguments with which some of timm's networks take images of any size.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}
# Arguments of `timm.create_model` that would load weights past `backbone.weights`, or give another kind of module.
REFUSED = {
    "pretrained": "backbone.weights names the weights",
    "checkpoint_path": "backbone.weights names the weights",
    "pretrained_cfg": "backbone.weights names the weights",
    "pretrained_cfg_overlay": "backbone.weights names the weights",
    "cache_dir": "the variable HF_HOME moves the cache",
    "features_only": "the trunk gives the last map",
    "out_indices": "the trunk gives the last map",
    "in_chans": "images have three channels",
    "drop_path_rate": "it is called backbone.drop_path",
    "drop_rate": "it is the dropout of timm's classifier; head.dropout is that of the head",
    "num_classes": "the head has the classes",
    "global_pool": "pooling=NAME pools the map",
    "device": "trainer.accelerator chooses it",
    "dtype": "trainer.precision chooses it",
    "pretrained_strict": "weights must fit exactly",
}
Layout = Literal["NCHW", "NHWC", "tokens"]


class TimmTrunk(nn.Module):
    """A network of timm up to its pooling: images (N, 3, H, W) -> map (N, C, h, w).

    Args:
        model: the network; its state dict has timm's keys, after the prefix `model.`.
        layout: what `model.forward_features` returns: a map, a map with the channels last, or tokens (N, L, C).
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.meta: dict[str, Any] = {}  # as in `fx.GraphModule`

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of `images`; of tokens, those of the image's patches, without class or register tokens."""
        model: Any = self.model
        if self.layout == "tokens":
            maps: list[torch.Tensor] = model.forward_intermediates(
                images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )
            return maps[-1]
        features: torch.Tensor = model.forward_features(images)
        return features.permute(0, 3, 1, 2) if self.layout == "NHWC" else features


def timm_trunk(arch: str, weights: str | None = None, drop_path: float = 0.0, **options: Any) -> nn.Module:
    """Build the trunk of timm's network `arch`. Its state dict has timm's keys, after the prefix `model.`.

    The trunk is `forward_features` of the network. Runs on the meta device find the layout of its output and the
    parameters that only the classifier uses, which are removed.

    Args:
        arch: a name from `timm.list_models()`, perhaps with a tag, such as `resnet18.a1_in1k`.
        weights: tag of trained weights of timm, such as `a1_in1k`, or `DEFAULT`; downloaded if they are not in the
            cache.
        drop_path: probability that a sample skips the last residual block (timm's `drop_path_rate`).
        **options: further arguments of timm's constructor.

    Raises:
        UserError: timm is not installed; the network, the weights or an option is unknown; the download fails; or the
            network gives no map of images of any size. The message then quotes the network's own error.
    """
    name, _ = check_name(arch)
    _check_options(name, drop_path, options)
    if drop_path:
        options["drop_path_rate"] = drop_path
    tag = None if weights is None else weights_tag(arch, weights)
    model = _create(name, None if tag is None else f"{name}.{tag}", options)
    if drop_path and not any(getattr(module, "drop_prob", None) for module in model.modules()):
        raise _no_stochastic_depth(name, drop_path)
    whole = frozenset(model.state_dict())
    trunk = TimmTrunk(model, _find_layout(name, model, options))
    try:
        remove_unused(trunk, *PROBES[0])
    except UserError as error:
        raise UserError(f"backbone.name={name}: {error}") from error
    trunk.meta[CUT_KEYS] = frozenset(f"model.{key}" for key in whole) - frozenset(trunk.state_dict())
    return trunk


def _check_options(name: str, drop_path: object, options: Mapping[str, Any]) -> None:
    if isinstance(drop_path, bool) or not isinstance(drop_path, int | float) or not 0 <= drop_path < 1:
        raise UserError(
            f"backbone.drop_path={drop_path} is not allowed: must be a number of at least 0 and less than 1"
        )
    for key, value in options.items():
        if key in REFUSED:
            raise UserError(f"backbone.{key} is not allowed with backbone=timm: {REFUSED[key]}")
        if value is None:
            raise UserError(f"backbone.{key}=null is not allowed: timm ignores such an argument; leave it out")
    if options.get("patch_drop_rate"):
        raise UserError(f"backbone.patch_drop_rate is not allowed: timm's {name} then gives no map in training")


def _create(name: str, tagged: str | None, options: Mapping[str, Any]) -> nn.Module:
    """Build the full network, with the weights that `tagged` names, such as `resnet18.a1_in1k`."""
    timm = import_timm()
    loaded: dict[str, Any] = {}
    if tagged is not None:
        state = read_weights(tagged, trained_config(tagged, None))
        loaded = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about what timm calls
            model: nn.Module = timm.create_model(tagged or name, **loaded, **options)
    except Exception as error:  # timm's constructors assert, and raise what their layers raise
        if "'drop_path_rate'" in str(error):
            raise _no_stochastic_depth(name, options["drop_path_rate"]) from error
        where = f"weights={tagged.partition('.')[2]}" if tagged else f"name={name}"
        raise UserError(f"backbone.{where}: timm cannot build {name}: {str(error) or type(error).__name__}") from error
    return model


def _no_stochastic_depth(name: str, drop_path: float) -> UserError:
    return UserError(f"backbone.drop_path={drop_path}: timm's {name} has no stochastic depth; use backbone.drop_path=0")


def _find_layout(name: str, model: nn.Module, options: Mapping[str, Any]) -> Layout:
    """Find what `forward_features` returns from its shapes for two images.

    Raises:
        UserError: it is no map, or the network takes only one input size.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        raise UserError(f"backbone.name={name} is recurrent, and a check for images of any size would take minutes")
    try:
        layout = _layout(meta_copy(model))
    except UserError as error:
        problem = f"backbone.name={name} gives no map for images of every size ({error})"
        raise UserError(f"{problem}{_hint(name, options)}") from error
    return layout


def _layout(shadow: nn.Module) -> Layout:
    small, large = (run_on_meta(TimmTrunk(shadow, "NCHW"), *size) for size in PROBES)
    if _grows(small, large):
        return "NCHW"
    if small.ndim == large.ndim == 4 and _grows(small.permute(0, 3, 1, 2), large.permute(0, 3, 1, 2)):
        return "NHWC"
    if small.ndim == large.ndim == 3 and hasattr(shadow, "forward_intermediates"):
        small, large = (run_on_meta(TimmTrunk(shadow, "tokens"), *size) for size in PROBES)
        if _grows(small, large):
            return "tokens"
    shapes = " and ".join(str(tuple(output.shape)) for output in (small, large))
    raise UserError(f"the output must be a map (N, C, h, w) that grows with the image, not {shapes}")


def _grows(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether the outputs for `PROBES` are maps (N, C, h, w) of equal channels, of which each side follows its own."""
    if not small.ndim == large.ndim == 4 or small.shape[1] != large.shape[1]:
        return False
    return small.shape[2] < large.shape[2] <= small.shape[3] < large.shape[3]


def _hint(name: str, options: Mapping[str, Any]) -> str:
    """Name the argument with which the network takes images of any size; "" if there is none."""
    for argument, value in ANY_SIZE.items():
        if argument not in options:
            with contextlib.suppress(UserError), on_meta():
                _layout(meta_copy(_create(name, None, {**options, argument: value})))
                return f"; use +backbone.{argument}={str(value).lower()}"
    return ""
