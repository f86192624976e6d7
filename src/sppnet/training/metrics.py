"""Metrics of one phase (training, validation or test), per input size and over all sizes.

The torchmetrics objects are not submodules of the LightningModule. Therefore the `state_dict` in a checkpoint holds
only weights, `optim.ema` averages no metric states, and a new input size needs no new key in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.aggregation import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MultilabelStatScores
from torchmetrics.utilities.distributed import gather_all_tensors

from sppnet.errors import RunFailed
from sppnet.runs.identity import LOWER_IS_BETTER
from sppnet.training.class_metrics import AveragePrecision, CalibrationError, ClassCounts, ConfusionMatrix

Phase = Literal["train", "val", "test"]
OVERALL = "all"
# The metrics that a phase may have, in the order of records and output. The user's own follow.
BUILT_IN = ("top1", "top5", "map", "loss", "class_accuracy", "macro_f1", "calibration_error")
OF_LOGITS = ("top1", "top5", "counts", "confusion")  # rounding could make two probabilities equal
MAX_CONFUSION = 3000  # classes; a larger matrix would take hundreds of megabytes, in memory and in its file


class SizeMetrics:
    """Metrics of one phase for each input size (shorter side in pixels).

    - Single-label: `loss`, `top1`, `top5`; in validation and test also `class_accuracy` (the mean of the per-class
      accuracies), `macro_f1` and `calibration_error` (the expected calibration error with 15 bins).
    - Multi-label: `loss`; in validation and test also `map` and `macro_f1` (at a probability of 1/2).
    - In validation and test, the user's own metrics, from probabilities.

    Means over classes leave out classes without images and, for `macro_f1`, that were not predicted either.

    In training, only some of the images are seen at each size, so the overall metrics are computed over all images. In
    validation and test, every image is scored at every size, and the overall metrics are those at the first size.
    """

    def __init__(
        self,
        phase: Phase,
        classes: int,
        multilabel: bool,
        sigmoid: bool | None = None,
        own: Mapping[str, Metric] | None = None,
    ) -> None:
        self.phase, self.classes, self.multilabel = phase, classes, multilabel
        self.sigmoid = multilabel if sigmoid is None else sigmoid  # how logits become probabilities
        self.own = {} if own is None or phase == "train" else dict(own)
        self._by_size: dict[str, MetricCollection] = {}

    @property
    def score(self) -> str:
        """The name of the metric that selects the best weights by default."""
        return "map" if self.multilabel else "top1"

    def mode(self, name: str) -> Literal["max", "min"] | None:
        """Whether a higher or a lower value of a metric, such as `val/48/top1`, is better; None if it does not say."""
        name = name.rpartition("/")[2]
        higher = self.own[name].higher_is_better if name in self.own else name not in LOWER_IS_BETTER
        return None if higher is None else "max" if higher else "min"

    def is_share(self, name: str) -> bool:
        """Whether torchmetrics says of one of the user's metrics that its values lie between 0 and 1."""
        metric = self.own[name]
        return (metric.plot_lower_bound, metric.plot_upper_bound) == (0.0, 1.0)

    def update(self, size: int, logits_NK: Tensor, target: Tensor, losses_N: Tensor, valid_N: Tensor | None) -> None:
        """Add the valid images of one batch.

        An image is invalid if it could not be read, or if it is a copy that was added to give all ranks the same number
        of images.

        Args:
            size: input size of the batch in pixels.
            logits_NK: logits (N, K).
            target: class indices (N,), or labels (N, K) of 0 and 1.
            losses_N: loss of each image (N,).
            valid_N: whether each image is valid, bool (N,); None if all are. On a GPU, selecting the valid images waits
                for the step's kernels.
        """
        keys = (OVERALL, str(size)) if self.phase == "train" else (str(size),)
        if valid_N is not None:
            logits_NK, target, losses_N = logits_NK[valid_N], target[valid_N], losses_N[valid_N]
        logits_NK, losses_N = logits_NK.detach().float(), losses_N.detach()
        for key in keys:
            metrics = self._of_size(key, logits_NK.device)  # all ranks compute those of the same sizes
            if len(losses_N) == 0:
                continue
            for name, metric in metrics.items(copy_state=False):
                if name == "loss":
                    metric.update(losses_N)
                elif name == "images":
                    metric.update(len(losses_N))
                elif name in OF_LOGITS and not self.multilabel:
                    metric.update(logits_NK, target)
                else:
                    self._update(name, metric, logits_NK, target)

    def _update(self, name: str, metric: Metric, logits_NK: Tensor, target: Tensor) -> None:
        """Add images to a metric that takes probabilities."""
        probabilities_NK, target = logits_NK.sigmoid() if self.sigmoid else logits_NK.softmax(1), target.long()
        if name not in self.own:
            metric.update(probabilities_NK, target)
            return
        try:
            metric.update(probabilities_NK, target.clone())  # it may change what it gets
        except Exception as error:  # a user's class may raise any exception
            kind = type(metric).__name__
            raise RunFailed(
                f"metrics.{name}: {kind} raises {type(error).__name__} for {len(target)} images: {error}"
            ) from error

    def compute(self) -> dict[str, float]:
        """Compute all metrics, named `<phase>/<name>` and `<phase>/<size>/<name>`. This is a collective call under DDP.

        Raises:
            RunFailed: no image of the phase could be read.
        """
        values: dict[str, float] = {}
        for key, metrics in self._by_size.items():
            if not _gather_ranks(metrics["loss"].weight).any():  # type: ignore[arg-type]
                if values and self.phase == "train":
                    continue  # images of other sizes could be read
                raise RunFailed(f"none of the {self.phase} images could be read; see data.bad_files")
            of_size = {name: _mean(value) for name, value in self._values(metrics).items()}
            if key == OVERALL or (self.phase != "train" and not values):
                values |= {f"{self.phase}/{name}": value for name, value in of_size.items()}
            if key != OVERALL:
                values |= {f"{self.phase}/{key}/{name}": value for name, value in of_size.items()}
        return values

    def per_class(self) -> dict[str, list[float]]:
        """Compute the accuracy (multi-label: average precision) of every class at each size.

        The value of a class without images is NaN. This is a collective call under DDP.
        """
        name = "map" if self.multilabel else "class_accuracy"
        return {key: self._values(metrics)[name].reshape(-1).tolist() for key, metrics in self._by_size.items()}

    def confusion(self) -> dict[str, list[list[int]]]:
        """Count the images of each class (row) that were predicted as each class (column), at each test size.

        There is none for multi-label data and for more than `MAX_CONFUSION` classes. This is a collective call under
        DDP.
        """
        return {key: m["confusion"].compute().tolist() for key, m in self._by_size.items() if "confusion" in m}

    def images(self) -> dict[str, int]:
        """Count the images scored at each test size. This is a collective call under DDP."""
        return {key: int(metrics["images"].compute()) for key, metrics in self._by_size.items()}

    def names(self, sizes: Sequence[int]) -> list[str]:
        """List the keys that `compute` will return for these `sizes`."""
        prefixes = [f"{self.phase}/", *(f"{self.phase}/{size}/" for size in sizes)]
        return [f"{prefix}{name}" for prefix in prefixes for name in self._names(self._new_metrics())]

    def reset(self) -> None:
        self._by_size = {}

    def state(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the metric states for a checkpoint, as plain tensors with one row per rank.

        This is a collective call under DDP.
        """
        # In the other phases, some states are lists, but gathering needs tensors of a fixed shape.
        assert self.phase == "train"
        return {
            key: {name: {part: _gather_ranks(v) for part, v in _states(metric).items()} for name, metric in m.items()}
            for key, m in self._by_size.items()
        }

    def load(self, state: dict[str, dict[str, dict[str, Tensor]]], device: torch.device, rank: int) -> None:
        """Restore this rank's row of `state`.

        Restoring the total on rank 0 and zeros on the others would change the order of the additions, and with it the
        last bit of the result.
        """
        self.reset()
        for key, metrics in state.items():
            restored = self._of_size(key, device)
            for name, parts in metrics.items():
                for part, value in parts.items():
                    if name == "loss":
                        restored[name].set_dtype(value.dtype)  # outside a step, `_of_size` may choose another dtype
                    setattr(restored[name], part, value[rank].to(device))
                restored[name]._update_count = 1  # otherwise, compute() warns that update() was never called

    def _of_size(self, key: str, device: torch.device) -> MetricCollection:
        if key not in self._by_size:
            collection = MetricCollection(self._new_metrics(), compute_groups=False).to(device)
            for name, metric in collection.items(copy_state=False):
                if name in ("loss", "images"):
                    # Accumulate in at least float32: during a step, the default dtype is that of trainer.precision, and
                    # bfloat16 can count only to 256. The dtype is set after `to`, because `to` resets it.
                    metric.set_dtype(torch.promote_types(torch.get_default_dtype(), torch.float32))
            for part in collection.modules():  # also a metric within a wrapper
                if isinstance(part, Metric) and any(isinstance(value, list) for value in part._defaults.values()):
                    part.dist_sync_fn = part.dist_sync_fn or _gather_lists
            self._by_size[key] = collection
        return self._by_size[key]

    def _new_metrics(self) -> dict[str, Metric | MetricCollection]:
        metrics: dict[str, Metric | MetricCollection] = {"loss": MeanMetric(nan_strategy="disable")}
        options: dict[str, Any] = {"num_classes": self.classes, "validate_args": False}
        if self.phase == "test":
            metrics["images"] = SumMetric()
            if not self.multilabel and self.classes <= MAX_CONFUSION:
                metrics["confusion"] = ConfusionMatrix(self.classes)
        if not self.multilabel:
            metrics["top1"] = MulticlassAccuracy(average="micro", **options)
            metrics["top5"] = MulticlassAccuracy(average="micro", top_k=min(5, self.classes), **options)
            if self.phase != "train":
                metrics["counts"] = ClassCounts(self.classes)
                metrics["calibration_error"] = CalibrationError(n_bins=15, **options)
        elif self.phase != "train":
            metrics["map"] = AveragePrecision(self.classes, average="none", validate_args=False)
            metrics["counts"] = MultilabelStatScores(self.classes, average="none", validate_args=False)
        return metrics | {name: metric.clone() for name, metric in self.own.items()}

    def _names(self, metrics: Mapping[str, object] | MetricCollection) -> list[str]:
        """List the metrics of a phase, in order; two of them come from the same counts."""
        of_counts = (
            () if "counts" not in metrics else ("macro_f1",) if self.multilabel else ("class_accuracy", "macro_f1")
        )
        return [*(name for name in BUILT_IN if name in metrics or name in of_counts), *self.own]

    def _values(self, metrics: MetricCollection) -> dict[str, Tensor]:
        """Compute each metric: a scalar, or (K,) with NaN for a class without images."""
        values: dict[str, Tensor] = {}
        if "counts" in metrics:
            counts_K4 = metrics["counts"].compute()
            if self.multilabel:  # true and false positives, true and false negatives, images
                counts_K4 = counts_K4[:, [0, 1, 3, 4]]
            true_K, false_K, missed_K, images_K = counts_K4.unbind(1)
            values["class_accuracy"] = true_K / images_K
            values["macro_f1"] = 2 * true_K / (2 * true_K + false_K + missed_K)
        names = self._names(metrics)
        return {name: values[name] if name in values else self._compute(name, metrics[name]) for name in names}

    def _compute(self, name: str, metric: Metric) -> Tensor:
        if name not in self.own:
            value: Tensor = metric.compute()
            return value
        try:
            value = torch.as_tensor(metric.compute())
        except Exception as error:  # a user's class may raise any exception
            raise RunFailed(f"metrics.{name}: {type(metric).__name__} fails: {error}") from error
        if value.numel() != 1:  # of several processes, if a state has no `dist_reduce_fx`
            raise RunFailed(f"metrics.{name}: {type(metric).__name__} computes {tuple(value.shape)} and not a number")
        return value


def _mean(value: Tensor) -> float:
    return float(value.nanmean() if value.is_floating_point() else value)


def _states(metric: Metric) -> dict[str, Any]:
    """The states of a metric: tensors, and lists of tensors."""
    return {name: getattr(metric, name) for name in metric._defaults}


def _gather_ranks(value: Tensor) -> Tensor:
    """Gather a tensor (...) from every rank into (ranks, ...) on the CPU; all ranks get the same result."""
    value = value.detach().clone()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value[None].cpu()
    by_rank = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(by_rank, value)
    return torch.stack(by_rank).cpu()


def _gather_lists(value: Tensor, group: Any = None) -> list[Tensor]:
    """Gather what a list state holds on each rank, also if a rank has no valid image.

    `gather_all_tensors` needs tensors of one dtype and number of dimensions. But torchmetrics makes an empty list a
    tensor (0,) of floats, and joins a list of scalars only if it has several.
    """
    kinds: list[Any] = [None] * torch.distributed.get_world_size(group)
    is_empty = value.ndim > 0 and len(value) == 0
    kind = (not is_empty, value.ndim, value.shape[1:], value.dtype)
    torch.distributed.all_gather_object(kinds, kind, group)
    if value.ndim == 0 and any(ndim > 0 for _, ndim, _, _ in kinds):
        value = value[None]
    elif is_empty:
        _, _, shape, dtype = max(kinds, key=lambda kind: kind[:2])
        value = value.new_empty((0, *shape), dtype=dtype)
    return gather_all_tensors(value, group)
