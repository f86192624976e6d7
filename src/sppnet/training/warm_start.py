"""Starts training from a trained network (`init`): takes over every tensor that fits, and says which do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.config.keys import key_named, value_of
from sppnet.config.merge import ABSENT, differences
from sppnet.config.schema import AnyHead, Config, OwnHead
from sppnet.data.datasets.base import ImageSet
from sppnet.errors import UserError, format_value
from sppnet.models.network import SPPNet
from sppnet.models.pretrained import abbreviate
from sppnet.runs.checkpoint_files import init_weights, read_checkpoint

PREFIX = "network."  # of the network's keys in a checkpoint


@torch.no_grad()
def load_init(network: SPPNet, cfg: Config, images: ImageSet) -> list[str]:
    """Copy the weights of the network that `cfg.init` names into `network`, in place, as far as they fit.

    A tensor fits if it has the same name and shape. If the classes differ, the last layer of the head is left out, even
    if their number is the same: its rows belong to classes by their order. Of a head of the user's own, all layers are
    left out.

    Args:
        network: the network at its initial values.
        cfg: the configuration of the new run.
        images: the data set of the new run.

    Returns:
        Notices: what does not fit, and what fits but means something else.

    Raises:
        UserError: the run is not done, the file is damaged or not an sppnet checkpoint, a value is not finite, or no
            parameter of the backbone fits.
    """
    assert cfg.init is not None
    path = init_weights(cfg.init)
    checkpoint = read_checkpoint(path, "init")
    own, state = _tensors(network.state_dict()), checkpoint["state_dict"]
    stored = {key.removeprefix(PREFIX): value for key, value in _tensors(state).items() if key.startswith(PREFIX)}
    same_classes = list(checkpoint["sppnet"]["classes"]) == list(images.classes)
    left_out = frozenset() if same_classes else _classifier_keys(network.head, own, cfg.head)
    fitting = {key: stored[key] for key in stored.keys() & own.keys() - left_out if _fits(stored[key], own[key])}
    if not any(f"backbone.{name}" in fitting for name, _ in network.backbone.named_parameters()):
        raise UserError(
            f"init={cfg.init} has another architecture: no parameter of its backbone"
            f" ({_describe_backbone(checkpoint['sppnet']['config'])}) has the name and shape of one of this backbone"
            f" ({_describe_backbone(cfg.plain())})"
        )
    if infinite := [key for key, value in fitting.items() if not value.float().isfinite().all()]:
        raise UserError(f"init={cfg.init} holds values that are not finite: {abbreviate(infinite)}")
    for key, value in fitting.items():
        own[key].copy_(value)
    return [
        *_describe_rest(cfg.init, path, own, stored, fitting, left_out),
        *_describe_meanings(cfg, checkpoint["sppnet"]["config"]),
        *_describe_images(cfg, images, checkpoint["sppnet"]),
    ]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict without extra state, which may be anything."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _classifier_keys(head: nn.Module, own: Collection[str], cfg: AnyHead) -> frozenset[str]:
    """The keys of the layers whose rows belong to classes: the last layer, or all layers of the user's own head."""
    in_head = [name for name, part in head.named_modules() if any(True for _ in part.parameters(recurse=False))]
    prefix = "head." if isinstance(cfg, OwnHead) or not in_head else f"head.{in_head[-1]}.".replace("..", ".")
    return frozenset(key for key in own if key.startswith(prefix))


def _describe_rest(
    init: str,
    path: Path,
    own: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
    left_out: frozenset[str],
) -> list[str]:
    """Say which tensors of the new network keep their initial values, and which of the old one are not used."""
    initial = []
    for key in own.keys() - fitting.keys():
        shape = tuple(own[key].shape)
        problem = f" {shape}, not {tuple(stored[key].shape)}" if key in stored and stored[key].shape != shape else ""
        initial.append(key + (" (other classes)" if key in left_out and not problem else problem))
    unused = sorted(stored.keys() - own.keys())
    if not initial and not unused:
        return []
    parts = [f"{len(fitting)} of {len(own)} tensors are taken over"]
    parts += [f"these keep their initial values: {abbreviate(sorted(initial))}"] if initial else []
    parts += [f"the new network lacks {abbreviate(unused)}"] if unused else []
    return [f"init={init}: {'; '.join(parts)} ({path})"]


def _describe_meanings(cfg: Config, stored: Mapping[str, Any]) -> list[str]:
    """Say which settings differ that change what the weights mean, although they fit."""
    before, now = _meaning(stored), _meaning(cfg.plain())
    kinds = [{name: each["pooling"].get(name) for name in ("name", "_target_")} for each in (before, now)]
    if kinds[0] != kinds[1]:  # their other keys have nothing to do with each other
        before["pooling"], now["pooling"] = kinds
    differing = [f"{name}={_format(old)}, not {_format(new)}" for name, old, new in differences(before, now)]
    return [f"init={cfg.init} was trained with {'; '.join(differing)}"] if differing else []


def _describe_images(cfg: Config, images: ImageSet, trained: Mapping[str, Any]) -> list[str]:
    """Say if the weights may come from images that the new run is tested on."""
    then, now = trained["config"]["data"]["split"], cfg.data.split.plain()
    if trained["fingerprint"] != images.fingerprint():
        return [
            f"init={cfg.init} was trained on other images; make sure that no test images of this run were among them"
        ]
    if then == now or "test" in (images.split() or {}):
        return []
    before, after = (
        format_value({name: each[name] for name in now if then[name] != now[name]}) for each in (then, now)
    )
    return [f"init={cfg.init} was trained with data.split={before}, not {after}, so perhaps on test images of this run"]


def _meaning(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The normalisation of the images, and how maps are pooled, apart from what determines only the speed."""
    pooling = value_of(plain, "pooling") or {}
    keys = {name: key_named(Config, f"pooling.{name}", plain) for name in pooling}
    used = {name: pooling[name] for name, key in keys.items() if key is None or key.affects.weights}
    return {"data": {name: value_of(plain, f"data.{name}") for name in ("mean", "std")}, "pooling": used}


def _format(value: object) -> str:
    return "no such key" if value is ABSENT else format_value(value)


def _describe_backbone(plain: Mapping[str, Any]) -> str:
    return str(value_of(plain, "backbone.name") or value_of(plain, "backbone._target_"))
