"""What timm knows of its networks: their names, their trained weights, and the images that these expect.

timm, and torch with it, are imported only if a configuration chooses a network of timm.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.errors import UserError, notice

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

TIMM = "sppnet.models.timm_trunk"
DEFAULT = "DEFAULT"  # the value of backbone.weights that means a network's first weights, as torchvision calls them
RESAMPLINGS = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "bicubic"}  # by timm's name


def import_timm() -> ModuleType:
    """Import timm.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(
            "backbone=timm needs the package timm, which is not installed: run uv sync --extra timm (a later uv sync"
            " without the extra removes it), or put it on the command: uv run --extra timm sppnet ..."
        ) from None
    return timm


def check_name(name: object) -> tuple[str, str]:
    """Split the name of one of timm's networks into the network and the tag of its weights, or "".

    Raises:
        UserError: timm has no such network or no such weights; the message lists the nearest names.
    """
    models = import_timm().models
    arch, _, tag = str(name).partition(".")
    if not isinstance(name, str) or ":" in arch or "/" in arch or name.endswith("."):
        raise UserError(
            f"backbone.name={name} is not the name of a network of timm, such as resnet18 or resnet18.a1_in1k"
        )
    names = models.list_models()
    if arch not in names:
        renamed = models.get_deprecated_models().get(arch)
        nearest = difflib.get_close_matches(arch, names, n=4) or ["resnet18", "convnext_atto", "vit_tiny_patch16_224"]
        hint = f"it is now called {renamed}" if renamed else f"the nearest names are {', '.join(nearest)}"
        raise UserError(f"backbone.name={name} is not a network of timm; {hint}")
    if tag and f"{arch}.{tag}" not in models.get_arch_pretrained_cfgs(arch):
        raise UserError(f"backbone.name={name}: timm's {arch} has no weights {tag}; {_list_tags(arch)}")
    return arch, tag


def weights_tag(name: str, weights: str) -> str:
    """Return the tag of the weights that `backbone.weights` names, such as `a1_in1k`.

    Args:
        name: `backbone.name`, perhaps with a tag of its own (`resnet18.a1_in1k`).
        weights: a tag or `DEFAULT`, which means the tag in the name or, without one, timm's first.

    Raises:
        UserError: there are no such weights, or the name has another tag.
    """
    arch, named = check_name(name)
    tags = _tags(arch)
    tag = (named or next(iter(tags), "")) if weights == DEFAULT else weights
    if tag not in tags:
        raise UserError(
            f"backbone.weights={weights} is neither a file nor weights of timm's {arch}; {_list_tags(arch)}"
        )
    if named and tag != named:
        raise UserError(f"backbone.name={name} and backbone.weights={weights} name different weights; drop one of them")
    return tag


def trained_config(name: str, weights: str | None) -> PretrainedCfg:
    """Return timm's description of trained weights: where they are, and which images they expect.

    They are those that `backbone.weights` names; if it is null or a file, those that `name` names, or timm's first.

    Raises:
        UserError: timm has no such network or no such weights.
    """
    arch, tag = check_name(name)
    if weights is not None and not Path(weights).expanduser().is_file():
        tag = weights_tag(name, weights)
    cfg: PretrainedCfg = import_timm().models.get_pretrained_cfg(f"{arch}.{tag}" if tag else arch)
    return cfg


def of_backbone(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """Return what a network of timm expects of its images; `default` for every other backbone.

    The resolver `sppnet.backbone` of the option files in `conf/data`.

    Args:
        key: `mean`, `std` or `interpolation`.
        default: the value with other backbones.

    Raises:
        UserError: timm is not installed, or has no such network or weights.
    """
    backbone = _resolved(_root_.get("backbone"))
    name, weights, value = backbone.get("arch"), backbone.get("weights"), default
    if backbone.get("_target_") == TIMM and isinstance(name, str):
        cfg = trained_config(name, weights if isinstance(weights, str) else None)
        value = _resampling(name, cfg.interpolation) if key == "interpolation" else getattr(cfg, key)
    # `--resolve` of Hydra takes no plain list
    return value if isinstance(value, str) else OmegaConf.create([float(each) for each in value])


def register() -> None:
    """Make the resolver `sppnet.backbone` known to OmegaConf."""
    OmegaConf.register_new_resolver("sppnet.backbone", of_backbone, replace=True)


def _resolved(section: Any) -> Mapping[str, Any]:
    """The keys of the section `backbone` that interpolations can use; a missing name is reported elsewhere."""
    values = {}
    for name in ("_target_", "arch", "weights"):
        try:
            values[name] = OmegaConf.select(section, name) if isinstance(section, DictConfig) else None
        except OmegaConfBaseException:
            values[name] = None
    return values


@functools.cache
def _resampling(name: str, interpolation: str) -> str:
    nearest = RESAMPLINGS.get(interpolation, "bilinear")
    if interpolation not in ("bilinear", "bicubic"):
        notice(f"timm's {name} was trained with {interpolation} interpolation; the nearest here is {nearest}")
    return nearest


def _tags(arch: str) -> dict[str, PretrainedCfg]:
    """The trained weights of a network, by tag, the default first."""
    models = import_timm().models
    by_tag = {name.partition(".")[2]: cfg for name, cfg in models.get_arch_pretrained_cfgs(arch).items()}
    first = models.get_pretrained_cfg(arch)
    ordered = {first.tag: first, **by_tag} if first is not None and first.tag in by_tag else by_tag
    return {tag: cfg for tag, cfg in ordered.items() if cfg.hf_hub_id}


def _list_tags(arch: str) -> str:
    tags = ", ".join(_tags(arch))
    return f"it has {tags}, and DEFAULT, which is the first" if tags else "timm knows no trained weights of it"
