"""Loss and scores of one phase, for each input size and over all of them, by torchmetrics.

The states live outside the module tree: checkpoints then hold weights alone in `state_dict`, averaged copies of the
weights carry no counters, and a size that turns up for the first time needs no key in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.aggregation import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from sppnet.errors import RunFailed

Phase = Literal["train", "val", "test"]
OVERALL = "all"
ORDER = ("top1", "top5", "map", "loss", "class_accuracy")  # in which figures are shown


class AveragePrecision(MultilabelAveragePrecision):
    """Average precision of each class, NaN for a class without images (torchmetrics gives 0, which drags a mean)."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """(K,), of all ranks' images: the states are gathered when this is called."""
        value: Tensor = super().compute()
        return value.masked_fill(dim_zero_cat(self.target).sum(0) == 0, torch.nan)


class SizeMetrics:
    """Metrics of a phase by input size (pixels of the shorter side).

    Single-label: `loss`, `top1`, `top5` and, outside training, `class_accuracy` (mean over classes of the accuracy in
    the class). Multi-label: `loss` and, outside training, `map`. In training, where a size is only part of an epoch,
    the overall figures are over all samples; in validation and test, where each size sees every image, they are those
    of the first size.
    """

    def __init__(self, phase: Phase, classes: int, multilabel: bool) -> None:
        self.phase, self.classes, self.multilabel = phase, classes, multilabel
        self._by_size: dict[str, MetricCollection] = {}

    @property
    def score(self) -> str:
        """The metric that says which weights are best."""
        return "map" if self.multilabel else "top1"

    def update(self, size: int, logits_NK: Tensor, target: Tensor, losses_N: Tensor, valid_N: Tensor) -> None:
        """Count one batch; what is not valid (a file that could not be read, padding between ranks) does not count.

        Args:
            size: input size of the batch in pixels.
            logits_NK: (N, K).
            target: (N,) class indices, or (N, K) of 0 and 1.
            losses_N: (N,) loss of each image.
            valid_N: (N,) bool.
        """
        keys = (OVERALL, str(size)) if self.phase == "train" else (str(size),)
        logits_NK, target, losses_N = logits_NK[valid_N].detach().float(), target[valid_N], losses_N[valid_N].detach()
        for key in keys:
            metrics = self._of(key, logits_NK.device)
            if len(losses_N) == 0:
                continue
            for name, metric in metrics.items(copy_state=False):
                if name == "loss":
                    metric.update(losses_N)
                elif name == "images":
                    metric.update(len(losses_N))
                elif name == "map":
                    metric.update(logits_NK.sigmoid(), target.long())
                else:
                    metric.update(logits_NK, target)

    def compute(self) -> dict[str, float]:
        """All figures as `<phase>/<name>` and `<phase>/<size>/<name>`; a collective call under DDP."""
        found: dict[str, float] = {}
        for key, metrics in self._by_size.items():
            if not _counted(metrics["loss"]):
                raise RunFailed(f"none of the {self.phase} images could be read; see data.bad_files")
            values = {name: float(_figure(name, metrics[name]).nanmean()) for name in ORDER if name in metrics}
            if key == OVERALL or (self.phase != "train" and not found):
                found |= {f"{self.phase}/{name}": value for name, value in values.items()}
            if key != OVERALL:
                found |= {f"{self.phase}/{key}/{name}": value for name, value in values.items()}
        return found

    def per_class(self) -> dict[str, list[float]]:
        """For each size, the accuracy (multi-label: average precision) of every class, NaN where the class has no
        image; a collective call under DDP."""
        name = "map" if self.multilabel else "class_accuracy"
        return {key: _figure(name, metrics[name]).tolist() for key, metrics in self._by_size.items()}

    def images(self) -> dict[str, int]:
        """How many images were counted at each size of a test; a collective call under DDP."""
        return {key: int(metrics["images"].compute()) for key, metrics in self._by_size.items()}

    def names(self, sizes: Sequence[int]) -> list[str]:
        """What `compute` will call its figures once images of these `sizes` are counted."""
        prefixes = [f"{self.phase}/", *(f"{self.phase}/{size}/" for size in sizes)]
        return [f"{prefix}{name}" for prefix in prefixes for name in ORDER if name in self._new()]

    def reset(self) -> None:
        """Forget all."""
        self._by_size = {}

    def state(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """What was counted so far, as plain tensors with one row per rank; a collective call under DDP."""
        assert self.phase == "train"  # whose states are tensors of a fixed shape, not lists
        return {
            key: {name: {part: _of_all_ranks(v) for part, v in _parts(metric).items()} for name, metric in m.items()}
            for key, m in self._by_size.items()
        }

    def load(self, state: dict[str, dict[str, dict[str, Tensor]]], device: torch.device, rank: int) -> None:
        """Take up this rank's row of `state`: summed in another order, the figures would differ in the last bit."""
        self.reset()
        for key, metrics in state.items():
            mine = self._of(key, device)
            for name, parts in metrics.items():
                for part, value in parts.items():
                    if name == "loss":
                        mine[name].set_dtype(value.dtype)  # that of the run, which the step sets
                    setattr(mine[name], part, value[rank].to(device))
                mine[name]._update_count = 1  # else compute() warns that nothing was counted

    def _of(self, key: str, device: torch.device) -> MetricCollection:
        if key not in self._by_size:
            collection = MetricCollection(self._new(), compute_groups=False).to(device)
            for name, metric in collection.items(copy_state=False):
                if name in ("loss", "images"):
                    # in a step the default type is the precision's, and bfloat16 counts to 256; `to` resets it
                    metric.set_dtype(torch.promote_types(torch.get_default_dtype(), torch.float32))
            self._by_size[key] = collection
        return self._by_size[key]

    def _new(self) -> dict[str, Metric | MetricCollection]:
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(nan_strategy="disable")}
        options: dict[str, Any] = {"num_classes": self.classes, "validate_args": False}
        if self.phase == "test":
            metrics["images"] = SumMetric()
        if not self.multilabel:
            metrics["top1"] = MulticlassAccuracy(average="micro", **options)
            metrics["top5"] = MulticlassAccuracy(average="micro", top_k=min(5, self.classes), **options)
            if self.phase != "train":
                metrics["class_accuracy"] = MulticlassStatScores(average="none", **options)
        elif self.phase != "train":
            metrics["map"] = AveragePrecision(self.classes, average="none", validate_args=False)
        return metrics


def _figure(name: str, metric: Metric) -> Tensor:
    """What a metric found: a number, or one per class, NaN for a class without images."""
    value: Tensor = metric.compute()
    if name == "class_accuracy":
        return value[:, 0] / value[:, 4]  # true positives over support
    return value


def _counted(loss: Metric) -> bool:
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return not alone or float(loss.weight) > 0  # type: ignore[arg-type]


def _parts(metric: Metric) -> dict[str, Tensor]:
    return {name: getattr(metric, name) for name in metric._defaults}


def _of_all_ranks(value: Tensor) -> Tensor:
    """(...) on each rank -> (ranks, ...) on the CPU, the same on all."""
    value = value.detach().clone()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value[None].cpu()
    found = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, value)
    return torch.stack(found).cpu()
