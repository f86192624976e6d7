"""Loads pretrained weights into a backbone, from a file that is read as data and never executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from sppnet.config.schema import Backbone
from sppnet.config.timm_networks import TIMM, weights_tag
from sppnet.errors import UserError
from sppnet.models.backbones.cut import cut_keys
from sppnet.models.backbones.torchvision import find_weights
from sppnet.storage.tensors import read_tensor_file

SHOWN = 8  # a message names at most this many keys
OURS = "network.backbone."  # prefix of the backbone's keys in an sppnet checkpoint
TORCHVISION = "sppnet.models.torchvision_trunk"


def resolve_weights(cfg: Backbone) -> Path | str | None:
    """Return `backbone.weights` as an existing file, the name of weights of torchvision or timm, or None.

    Raises:
        UserError: the value is neither an existing file nor the name of such weights of the network.
    """
    weights = cfg.weights
    if weights is None:
        return None
    file = Path(weights).expanduser()
    if file.is_file():
        return file
    if cfg.target == TIMM:
        return weights_tag(cfg.node()["arch"], weights)
    if cfg.target != TORCHVISION:
        raise UserError(
            f"backbone.weights={weights}: no such file (only networks of torchvision and timm accept names of weights)"
        )
    find_weights(cfg.node()["arch"], weights)
    return weights


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a state dict into `backbone`, in place.

    The file may contain the keys of:

    - the backbone;
    - one of its children, such as `torchvision.models.alexnet().features` (its `0.weight` is `features.0.weight`);
    - for a trunk of torchvision or timm, the full network, whose classifier is ignored;
    - an sppnet checkpoint, from which only the backbone is loaded.

    Any other key is an error.

    Raises:
        UserError: the file does not exist, is damaged, is not a file of tensors, or contains a pickled object (which is
            never executed); or its keys, shapes or dtypes do not fit the backbone, or a value is not finite.
    """
    loaded = _rename_densenet_keys(read_tensors(path))
    own = backbone.state_dict()
    prefixes = ["", *(f"{name}." for name, _ in backbone.named_children())]
    prefix = max(prefixes, key=lambda p: sum(p + key in own for key in loaded))
    state = {prefix + key: value for key, value in loaded.items()}
    cut = cut_keys(backbone)
    # Files from before 2018 lack num_batches_tracked. It may be missing, because batch normalisation uses it only with
    # momentum=None.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own and key not in cut]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    integers = [k for k in own if k in state and own[k].is_floating_point() and not state[k].is_floating_point()]
    infinite = [k for k in own if k in state and state[k].is_floating_point() and not state[k].float().isfinite().all()]
    problems = [("missing", missing), ("unknown", unknown), ("wrong shape", shapes)]
    problems += [("not floating-point", integers), ("not finite", infinite)]
    if any(keys for _, keys in problems):
        listing = "; ".join(f"{problem}: {abbreviate(keys)}" for problem, keys in problems if keys)
        raise UserError(f"backbone.weights={path} does not fit the backbone: {listing}")
    backbone.load_state_dict({key: state.get(key, own[key]) for key in own})


def read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """Read the state dict in `path` onto the CPU, or raise a UserError if the file does not hold one."""
    loaded = read_tensor_file(path, "backbone.weights")
    if isinstance(loaded, Mapping) and isinstance(loaded.get("sppnet"), Mapping):
        loaded = {k.removeprefix(OURS): v for k, v in loaded["state_dict"].items() if k.startswith(OURS)}
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"backbone.weights={path} must hold a state dict with at least one tensor; its content has type"
            f" {type(loaded).__name__}"
        )
    invalid = [str(key) for key, value in loaded.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if invalid:
        raise UserError(
            f"backbone.weights={path} must map names to tensors, but these entries do not: {abbreviate(invalid)}"
        )
    return loaded


def _rename_densenet_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename keys of published densenet files to the names that torchvision has used since 2018.

    For example, `norm.1.weight` becomes `norm1.weight`.
    """
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): value for key, value in state.items()}


def abbreviate(keys: Iterable[str]) -> str:
    """The first names of a list as text, and how many more there are."""
    names = list(keys)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
