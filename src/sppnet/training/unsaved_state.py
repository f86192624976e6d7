"""Finds what a module of the user's own remembers of earlier calls without a checkpoint holding it."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from sppnet.data.seeding import preserved_generators, seed_generators

# Types of attributes that are compared.
KEPT = (int, float, list, tuple, set, dict, deque, Tensor, torch.Generator, np.ndarray, np.generic, np.random.Generator)
LIBRARIES = ("sppnet", "torch", "torchvision", "torchmetrics", "lightning", "timm")  # they keep state in buffers
INTERNAL = {"training", *vars(nn.Module())}
OF_METRICS = {name for name in vars(MeanMetric()) if name.startswith("_")}  # which every metric has


def remembers(module: nn.Module, call: Callable[..., Any], first: Sequence[Any], second: Sequence[Any]) -> str | None:
    """Return the name of an attribute of `module` that depends on earlier calls; None if there is none.

    Parameters, persistent buffers and the states of a metric do not count, because checkpoints hold them, nor does what
    the last call alone has left, such as a grid for the size of its map.

    Args:
        module: the module, which may change.
        call: calls it. It is called with `first`, `second` and `first` again, each time with the same seed.
        first: arguments of `call`.
        second: other arguments of `call`.

    Raises:
        Exception: whatever `call` raises.
    """
    kept = []
    for arguments in (first, second, first):
        with preserved_generators():
            seed_generators(0)
            call(*arguments)
        kept.append(_unsaved(module))
    return next((name for name, value in kept[2].items() if kept[0].get(name) != value), None)


def describe(module: str, attribute: str) -> str:
    """Describe the attribute that `module` (`pooling: Pool`) remembers."""
    return (
        f"{module}.{attribute} changes when the module is called, but a checkpoint does not hold it, so a resumed run"
        " may differ; a persistent buffer would be saved"
    )


def _unsaved(module: nn.Module) -> dict[str, bytes]:
    """The attributes that no checkpoint holds, by name; pickled, because a later call may change them in place."""
    registered, unsaved = {id(part) for part in module.modules()}, {}
    for path, part in module.named_modules():
        if type(part).__module__.split(".")[0] in LIBRARIES:
            continue
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            continue  # what it keeps, it may save there
        known, buffers = set(INTERNAL), part._non_persistent_buffers_set
        if isinstance(part, Metric):  # over processes, it sums its states, but no buffer
            known, buffers = {*INTERNAL, *OF_METRICS, *part._defaults}, set(part._buffers)
        for name, value in (vars(part) | {name: part._buffers[name] for name in buffers}).items():
            if isinstance(value, KEPT) and name not in known:
                with contextlib.suppress(Exception):  # it may hold what cannot be pickled
                    unsaved[f"{path}.{name}".lstrip(".")] = _to_bytes(value, registered)
    return unsaved


class _Values(pickle.Pickler):
    """Pickles the values of tensors (usually, pickle also writes the address of their storage), and no `registered`
    modules, whose attributes are compared by themselves."""

    registered: Set[int]

    def reducer_override(self, value: Any) -> Any:
        if id(value) in self.registered:
            return str, ("module",)
        if isinstance(value, torch.Generator):
            value = value.get_state()
        if not isinstance(value, Tensor):
            return NotImplemented
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return tuple, ((str(value.dtype), tuple(value.shape), raw),)


def _to_bytes(value: Any, registered: Set[int]) -> bytes:
    file = io.BytesIO()
    pickler = _Values(file)
    pickler.fast = True  # equal values give equal bytes, whether or not they are the same object
    pickler.registered = registered
    pickler.dump(value)
    return file.getvalue()
