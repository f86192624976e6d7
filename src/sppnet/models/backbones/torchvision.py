"""Backbones from torchvision's classification networks, cut before the last pooling, which the pyramid replaces."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import fx, nn
from torchvision import models

from sppnet.errors import UserError
from sppnet.models.backbones.cut import CUT_KEYS
from sppnet.models.probe import FIRST, SECOND, grows, meta_copy, run_on_meta
from sppnet.storage.tensors import check_download


def torchvision_trunk(arch: str, weights: str | None = None, **options: Any) -> nn.Module:
    """Build the trunk of torchvision's network `arch`. Its state dict has torchvision's keys.

    The trunk ends before the classifier, before global pooling and before any final max pooling (alexnet, vgg), because
    pyramid pooling *replaces the last pooling layer* (section 2.2). Two runs on the meta device find the place to cut.

    Args:
        arch: a name from `torchvision.models.list_models(module=torchvision.models)`.
        weights: name of torchvision weights, such as `DEFAULT`; downloaded if they are not in torch's cache.
        **options: further arguments of torchvision's constructor.

    Raises:
        UserError: the network, the weights or an option is unknown, the download fails, or the network accepts only one
            input size (vit, maxvit); the message then quotes the network's own error.
    """
    names = models.list_models(module=models)
    if arch not in names:
        similar = ", ".join(difflib.get_close_matches(str(arch), names, n=4))
        similar = similar or "resnet18, vgg16, densenet121 and others"
        raise UserError(
            f"backbone.name={arch} is not a torchvision classification network; valid names include {similar}"
        )
    if weights is not None and arch in ("googlenet", "inception_v3") and "transform_input" not in options:
        raise UserError(
            f"backbone.weights={weights}: torchvision's {arch} then converts its input to a mean and std of 0.5, but a"
            " checkpoint does not say so; use +backbone.transform_input=true, or =false with data.mean and data.std of"
            " [0.5,0.5,0.5]"
        )
    entry = None if weights is None else _download(arch, weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # inception and googlenet warn about their initialisation
            model = models.get_model(arch, weights=entry, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"backbone: torchvision's {arch} rejects an argument: {error}") from error
    return _cut(model, arch)


def find_weights(arch: str, weights: str) -> models.WeightsEnum:
    """Return the torchvision weights of `arch` named `weights`, or raise a UserError that lists the valid names."""
    names = models.get_model_weights(arch).__members__
    if weights not in names:
        raise UserError(f"backbone.weights={weights} is neither a file nor one of {arch}'s weights: {', '.join(names)}")
    return names[weights]


def _download(arch: str, weights: str) -> models.WeightsEnum:
    """Download weights to torch's cache, and make sure that they can be loaded with `weights_only`.

    Torchvision later loads the cached file without `weights_only`, which would execute any code pickled in the file.
    """
    entry = find_weights(arch, weights)
    cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    if cached.exists():
        check_download(cached, f"backbone.weights={weights}")
    try:
        entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"backbone.weights={weights}: {entry.url} cannot be loaded ({reason}); use backbone.weights=FILE"
        ) from error
    return entry


class _Tracer(fx.Tracer):
    """Traces only into the network and its `Sequential`s.

    Every other module is called by a single node, so the module still follows training and evaluation mode.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return not isinstance(m, nn.Sequential)


class _ValueKeeper(fx.Interpreter):
    """Runs a graph and keeps the value of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _cut(model: nn.Module, arch: str) -> nn.Module:
    shadow = meta_copy(model)
    try:
        for size in (FIRST, SECOND):
            run_on_meta(shadow, size, size)
    except UserError as error:
        raise UserError(f"backbone.name={arch} does not accept images of every size ({error})") from error
    graph = _Tracer().trace(shadow)
    last = _input_of_last_pooling(fx.GraphModule(shadow, graph), arch)
    for node in reversed(list(graph.nodes)):
        if node is last:
            break
        graph.erase_node(node)
    graph.output(last)
    trunk = fx.GraphModule(model, graph, class_name=arch)  # keeps only the modules that the graph still uses
    trunk.meta[CUT_KEYS] = frozenset(model.state_dict()) - frozenset(trunk.state_dict())
    return trunk


def _input_of_last_pooling(whole: fx.GraphModule, arch: str) -> fx.Node:
    """Return the node whose output goes into the last pooling.

    Walks back from the classifier (the last module with parameters) to a node whose output grows with the image and
    that is neither pooling nor dropout.
    """
    runs = [_ValueKeeper(whole) for _ in range(2)]
    for run, size in zip(runs, (FIRST, SECOND), strict=True):
        run.run(torch.empty(1, 3, size, size, device="meta"))
    modules = {n: whole.get_submodule(str(n.target)) for n in whole.graph.nodes if n.op == "call_module"}
    node = [n for n, module in modules.items() if any(True for _ in module.parameters())][-1].args[0]
    while isinstance(node, fx.Node):
        small, large = (run.values[node] for run in runs)
        skipped = isinstance(modules.get(node), nn.Dropout | nn.MaxPool2d | nn.AvgPool2d)
        if isinstance(small, torch.Tensor) and grows(small, large) and not skipped:
            return node
        node = node.args[0] if node.args else None
    raise UserError(f"backbone.name={arch} has no feature map that grows with the image")
