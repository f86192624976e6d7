"""Weights of a backbone from a file, which is data and never code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from sppnet.errors import UserError
from sppnet.models.backbones.torchvision import CUT_KEYS, find_weights
from sppnet.storage.tensors import read_tensor_file

SHOWN = 8  # keys named in a message
OURS = "network.backbone."  # what the backbone's keys begin with in a checkpoint of ours
TORCHVISION = "sppnet.models.torchvision_trunk"


def resolve_weights(cfg: Mapping[str, Any]) -> Path | str | None:
    """`backbone.weights` as an existing file or a name that torchvision knows."""
    weights = cfg.get("weights")
    if weights is None:
        return None
    file = Path(weights).expanduser()
    if file.is_file():
        return file
    if cfg["_target_"] != TORCHVISION:
        raise UserError(f"backbone.weights={weights}: no such file (only torchvision's networks know names of weights)")
    find_weights(cfg["arch"], weights)
    return str(weights)


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a state dict into `backbone`, in place.

    The keys may be the backbone's own, those of one of its parts (`torchvision.models.alexnet().features` has
    `0.weight` for `features.0.weight`) or, for a torchvision trunk, those of the whole network, whose classifier is
    left out; of a checkpoint of ours the backbone's are taken. Every other key has to fit.

    Raises:
        UserError: no such file; not a file of tensors, or a truncated one; pickled objects in it (not executed);
            keys or shapes that do not fit, integers for fractions, and numbers that are not finite, listed.
    """
    found = _rename(read_tensors(path))
    own = backbone.state_dict()
    prefixes = ["", *(f"{name}." for name, _ in backbone.named_children())]
    prefix = max(prefixes, key=lambda p: sum(p + key in own for key in found))
    state = {prefix + key: value for key, value in found.items()}
    cut = backbone.meta.get(CUT_KEYS, ()) if isinstance(backbone, fx.GraphModule) else ()
    # files from before 2018 lack batch normalisation's counter of batches, which only averaging without momentum uses
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own and key not in cut]
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    rounded = [k for k in own if k in state and own[k].is_floating_point() and not state[k].is_floating_point()]
    infinite = [k for k in own if k in state and state[k].is_floating_point() and not state[k].float().isfinite().all()]
    problems = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    problems += [("of no floating-point numbers", rounded), ("not finite", infinite)]
    if any(keys for _, keys in problems):
        text = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems if keys)
        raise UserError(f"backbone.weights={path} does not fit the backbone: {text}")
    backbone.load_state_dict({key: state.get(key, own[key]) for key in own})


def read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in the file `path`, on the CPU (UserError as in `load_weights`)."""
    loaded = read_tensor_file(path, "backbone.weights")
    if isinstance(loaded, Mapping) and isinstance(loaded.get("sppnet"), Mapping):
        loaded = {k.removeprefix(OURS): v for k, v in loaded["state_dict"].items() if k.startswith(OURS)}
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"backbone.weights={path} holds a {type(loaded).__name__}, not a state dict of tensors")
    odd = [str(key) for key, value in loaded.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if odd:
        raise UserError(f"backbone.weights={path} is not a state dict of tensors: {_some(odd)}")
    return loaded


def _rename(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published densenet files say `norm.1.weight` where the network has said `norm1.weight` since 2018."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value for key, value in state.items()}


def _some(keys: Iterable[str]) -> str:
    names = list(keys)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
