"""The user's own metrics (`metrics` in the configuration): built, and tried on random probabilities."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torchmetrics import Metric, MetricCollection

from sppnet.config.instantiate import instantiate
from sppnet.config.schema import OpenSection
from sppnet.errors import UserError
from sppnet.training.metrics import BUILT_IN
from sppnet.training.unsaved_state import remembers

NAME = re.compile(r"[A-Za-z]\w{0,39}")


def build_metrics(nodes: Mapping[str, OpenSection], classes: int, multilabel: bool) -> dict[str, Metric]:
    """Build the metrics of the section `metrics`, by name.

    A metric gets the argument `num_classes` (multi-label: `num_labels`) if it takes one.

    Raises:
        UserError: a name is not allowed, or a metric cannot be built, does not take probabilities and targets, or
            computes anything else than a number.
    """
    offered = {"num_labels" if multilabel else "num_classes": classes}
    metrics: dict[str, Metric] = {}
    for name, node in nodes.items():
        if not NAME.fullmatch(name) or name in BUILT_IN or name.endswith("_error") or _is_taken(name):
            raise UserError(
                f"metrics.{name} is not allowed: a name has at most 40 letters, digits and _, starts with a letter, and"
                " does not end in _error (which reports show as 1 - X); it is neither one of our metrics nor an"
                " attribute of torchmetrics.MetricCollection"
            )
        metric = instantiate(node.node(), Metric, f"metrics.{name}", offered=offered)  # type: ignore[type-abstract]
        if not metric.sync_on_compute:
            raise UserError(
                f"metrics.{name}.sync_on_compute=false is not allowed: each process would have another value"
            )
        _try(name, metric, classes, multilabel)
        metrics[name] = metric
    return metrics


def _is_taken(name: str) -> bool:
    """Whether torchmetrics or `SizeMetrics` use the name for something else."""
    return name in ("counts", "images", "confusion") or hasattr(MetricCollection({}), name)


def _try(name: str, metric: Metric, classes: int, multilabel: bool) -> None:
    generator, kind = torch.Generator().manual_seed(0), type(metric).__name__
    images = classes + 3 if classes < 100 else 64  # not K, because a target (N,) would then fit to (N, K)
    probabilities_NK = torch.rand(images, classes, generator=generator)
    target = torch.randint(classes, (images,), generator=generator)
    takes = f"probabilities (N, {classes}) and class indices (N,)"
    if multilabel:
        target = torch.randint(2, (images, classes), generator=generator)
        takes = f"probabilities (N, {classes}) and labels (N, {classes}) of 0 and 1"
    else:
        probabilities_NK = probabilities_NK.softmax(1)
    try:
        trial = metric.clone()
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            changed = remembers(trial, trial.update, (probabilities_NK, target), (probabilities_NK[1:], target[1:]))
            value = trial.compute()
            _ = trial.higher_is_better, trial.plot_lower_bound, trial.plot_upper_bound  # which may be properties
    except Exception as error:  # a user's class may raise any exception
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"metrics.{name}: {kind} must take {takes}, but fails: {problem}") from error
    if changed is not None:
        raise UserError(
            f"metrics.{name}: {kind}.{changed} changes in update, but is no state, so it would not be summed over"
            " processes; make it one with add_state"
        )
    if isinstance(value, int | float):
        return
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(
            f"metrics.{name}: {kind} must compute a number, not {shape}; a metric per class takes average=macro"
        )
