"""The parts of a backbone that are frozen, and those whose batch normalisation statistics can be estimated anew."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sppnet.errors import UserError


def frozen_modules(backbone: nn.Module, freeze: bool | Sequence[str]) -> list[nn.Module]:
    """Return the modules of `backbone` that `backbone.freeze` names: all of it, none, or a list by name.

    A name is the path of a module, such as `layer1.0`. If the backbone only wraps another module, the path may begin
    inside that module.

    Raises:
        UserError: a name is not that of a module with parameters.
    """
    if isinstance(freeze, bool):
        return [backbone] if freeze else []
    children = [name for name, _ in backbone.named_children()]
    prefix = f"{children[0]}." if len(children) == 1 else ""
    modules = {name: part for name, part in backbone.named_modules() if name and any(True for _ in part.parameters())}
    modules = {name.removeprefix(prefix): part for name, part in modules.items()} | modules
    for name in freeze:
        if name not in modules:
            near = get_close_matches(name, modules, n=3)
            outer = [each for each in modules if "." not in each]
            hint = f"did you mean {' or '.join(near)}?" if near else f"such as {', '.join(outer[:12]) or 'none'}"
            raise UserError(f"backbone.freeze: the backbone has no module {name!r} with parameters; {hint}")
    return [modules[name] for name in freeze]


def batch_norms(backbone: nn.Module) -> list[_BatchNorm]:
    """Return the batch normalisations of `backbone` that keep running statistics, for `backbone.update_bn`.

    Raises:
        UserError: there are none.
    """
    layers = [part for part in backbone.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]
    if not layers:
        raise UserError(
            "backbone.update_bn=true is not allowed: the backbone has no batch normalisation with running statistics"
        )
    return layers
