"""What trunks that are cut out of a full network have in common."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from sppnet.errors import UserError
from sppnet.models.probe import meta_copy, run_on_meta

CUT_KEYS = "cut_keys"  # entry of a trunk's `meta`: the state dict keys that only the full network has


def cut_keys(backbone: nn.Module) -> Collection[str]:
    """The state dict keys that only the network has out of which `backbone` was cut; none for any other module."""
    meta = getattr(backbone, "meta", None)
    keys: Collection[str] = meta.get(CUT_KEYS, ()) if isinstance(meta, dict) else ()
    return keys


def remove_unused(trunk: nn.Module, height: int, width: int) -> None:
    """Remove the parameters that do not influence the output for an image of `height` x `width` pixels.

    Distributed training would wait for their gradients, and they would count as the trunk's. A module that is never
    called becomes an `nn.Identity`; a parameter of a module that is called becomes None.

    Raises:
        UserError: the trunk does not work without them.
    """
    used, called, shape = _run(meta_copy(trunk), height, width)
    for path, module in list(trunk.named_modules()):
        inside = {f"{path}.{name}".rstrip(".") for name, _ in module.named_modules()}
        owned = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if path and module.state_dict() and called.isdisjoint(inside) and used.isdisjoint(owned):
            trunk.set_submodule(path, nn.Identity())
    for name, parameter in list(trunk.named_parameters()):
        if parameter.requires_grad and name not in used:
            path, _, last = name.rpartition(".")
            trunk.get_submodule(path).register_parameter(last, None)
    if run_on_meta(meta_copy(trunk), height, width).shape != shape:
        raise UserError("the map depends on parameters that get no gradient")


def _run(shadow: nn.Module, height: int, width: int) -> tuple[set[str], set[str], torch.Size]:
    """The parameters of a `meta_copy` that get a gradient and the modules that are called, by name; and the shape."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: called.add(path))
        for path, module in shadow.named_modules()
    ]
    parameters = {name: parameter for name, parameter in shadow.named_parameters() if parameter.requires_grad}
    dtype = next(iter(parameters.values())).dtype
    with torch.enable_grad():
        output = shadow(torch.empty(1, 3, height, width, device="meta", dtype=dtype))
        gradients = torch.autograd.grad(output.sum(), list(parameters.values()), allow_unused=True)
    for hook in hooks:
        hook.remove()
    used = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return used, called, output.shape
