"""Metrics of two processes, each of which adds valid and invalid batches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MultilabelAUROC

import own_parts
from sppnet.errors import RunFailed
from sppnet.training.metrics import SizeMetrics

# Batches with (v) and without (i) valid images of the second process, beside valid ones of the first; none (n) of both.
PATTERNS = ("i", "ii", "iv", "vi", "ivi", "vv", "n")


def metrics_of(multilabel: bool) -> SizeMetrics:
    own: dict[str, Metric] = {
        "auroc": MultilabelAUROC(3) if multilabel else MulticlassAUROC(3),
        "costs": own_parts.Costs(),
        "marked": own_parts.Marked(),
        "merged": own_parts.Merged(),
        "batches": own_parts.Batches(),
        "wrong": own_parts.Wrong(),
    }
    return SizeMetrics("val", 3, multilabel=multilabel, own=own)


def add(metrics: SizeMetrics, batch: int, valid: bool) -> None:
    """Add a batch in a step with the precision bf16-mixed and, for what is not under autocast, bf16-true."""
    generator = torch.Generator().manual_seed(batch)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float32)
    number = torch.tensor([0, 1, 2, batch % 3])
    target = torch.eye(3, dtype=torch.float32)[number] if metrics.multilabel else number
    mask = torch.tensor([valid, valid, valid, False])
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            metrics.update(24, logits, target, logits.abs().sum(1), mask)
    finally:
        torch.set_default_dtype(torch.float32)


def each_case(use: Callable[[SizeMetrics, str], None]) -> dict[str, dict[str, float] | str]:
    """Return the values of each case, or why there are none."""
    values: dict[str, dict[str, float] | str] = {}
    for multilabel in (False, True):
        for pattern in PATTERNS:
            metrics = metrics_of(multilabel)
            use(metrics, pattern)
            try:
                values[f"{pattern}, {multilabel}"] = metrics.compute()
            except RunFailed as error:
                values[f"{pattern}, {multilabel}"] = str(error)
    return values


def in_two_processes(rank: int, store: Path) -> dict[str, dict[str, float] | str]:
    """Return what process `rank` of two computes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(minutes=1)
    )

    def use(metrics: SizeMetrics, pattern: str) -> None:
        for i, kind in enumerate(pattern):
            add(metrics, 2 * i + rank, kind == "v" or (kind == "i" and rank == 0))

    return each_case(use)


def in_one_process() -> dict[str, dict[str, float] | str]:
    """Return what one process computes from the batches of both, those of the second first."""

    def use(metrics: SizeMetrics, pattern: str) -> None:
        for i, kind in enumerate(pattern):
            add(metrics, 2 * i + 1, kind == "v")
        for i in range(len(pattern)):
            add(metrics, 2 * i, pattern != "n")

    return each_case(use)
