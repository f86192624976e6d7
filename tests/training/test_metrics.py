"""Metrics of a phase, against values computed by hand."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import own_parts
import ranks
from calling import SMALL, Caller, records
from sppnet.config.schema import OpenSection
from sppnet.errors import RunFailed, UserError
from sppnet.report.collect import _scale
from sppnet.report.confusion import draw_confusion
from sppnet.training.metrics import SizeMetrics
from sppnet.training.own_metrics import build_metrics
from tiers import some_quick


def test_a_class_without_images_does_not_drag_the_mean_average_precision() -> None:
    metrics = SizeMetrics("test", 3, multilabel=True)
    target = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]).float()
    metrics.update(48, target * 10 - 5, target, torch.zeros(4), torch.ones(4, dtype=torch.bool))
    assert metrics.compute()["test/map"] == 1.0
    first, second, third = metrics.per_class()["48"]
    assert first == second == 1.0
    assert math.isnan(third)


def test_average_precision_is_the_mean_precision_at_the_images_of_the_class() -> None:
    metrics = SizeMetrics("test", 2, multilabel=True)
    scores = torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
    target = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]]).float()
    for half in (slice(0, 2), slice(2, 4)):
        metrics.update(48, scores[half], target[half], torch.zeros(2), torch.ones(2, dtype=torch.bool))
    assert metrics.per_class()["48"] == [pytest.approx((1 + 2 / 3) / 2), 1.0]


def test_invalid_images_do_not_count() -> None:
    metrics = SizeMetrics("val", 3, multilabel=False)
    logits, target = torch.eye(3)[[0, 1, 2]] * 9, torch.tensor([0, 1, 0])
    losses, valid = torch.tensor([1.0, 2.0, 99.0]), torch.tensor([True, True, False])
    metrics.update(48, logits, target, losses, valid)
    values = metrics.compute()
    assert values["val/top1"] == values["val/48/top1"] == values["val/class_accuracy"] == 1.0
    assert values["val/loss"] == 1.5
    train = SizeMetrics("train", 3, multilabel=False)
    train.update(24, logits, target, losses, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(RunFailed, match=r"^none of the train images could be read; see data\.bad_files$"):
        train.compute()
    train.update(48, logits, target, losses, valid)
    of_size = {"top1": 1.0, "top5": 1.0, "loss": 1.5}  # there are none at 24 pixels
    assert train.compute() == {f"train/{key}{name}": x for key in ("", "48/") for name, x in of_size.items()}


def test_two_processes_compute_what_one_does_also_if_one_or_both_have_no_valid_image(tmp_path: Path) -> None:
    """torchmetrics gathers list states as tensors of the same dtype and number of dimensions."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        by_rank = list(processes.map(ranks.in_two_processes, (0, 1), (tmp_path / "store",) * 2))
    alone = ranks.in_one_process()
    assert alone["n, False"] == alone["n, True"] == "none of the val images could be read; see data.bad_files"
    for case, expected in alone.items():
        assert [values[case] for values in by_rank] == [pytest.approx(expected, abs=1e-6)] * 2, case


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_a_mean_over_many_images_is_right_whatever_type_the_network_computes_in(kind: torch.dtype) -> None:
    """In a step Lightning makes the precision's dtype the default, and bfloat16 counts to 256 only."""
    batch = (torch.zeros(7, 3), torch.zeros(7, dtype=torch.long), torch.full((7,), 1.1), torch.ones(7) > 0)
    train, test = SizeMetrics("train", 3, multilabel=False), SizeMetrics("test", 3, multilabel=False)
    torch.set_default_dtype(kind)
    try:
        for _ in range(150):
            train.update(24, *batch)
            test.update(24, *batch)
    finally:
        torch.set_default_dtype(torch.float32)
    resumed = SizeMetrics("train", 3, multilabel=False)
    resumed.load(train.state(), torch.device("cpu"), 0)
    for metrics in (train, resumed):
        metrics.update(24, *batch)
    assert train.compute() == resumed.compute()
    assert train.compute()["train/loss"] == pytest.approx(1.1, abs=1e-4)
    assert test.compute()["test/loss"] == pytest.approx(1.1, abs=1e-4)
    assert test.images() == {"24": 1050}


def test_macro_f1_and_calibration_are_those_of_scikit_learn_and_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(200, 6, generator=generator) * 3, torch.randint(4, (200,), generator=generator)
    logits[:, 5] = -100.0  # a class that neither occurs nor is predicted; class 4 is predicted alone
    metrics = SizeMetrics("val", 6, multilabel=False)
    for part in (slice(0, 90), slice(90, 200)):
        metrics.update(48, logits[part], target[part], torch.zeros(len(target[part])), None)
    values = metrics.compute()
    predicted = logits.argmax(1)
    assert values["val/macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"), abs=1e-6)
    confidence, right = logits.softmax(1).amax(1), predicted == target
    bins = (confidence * 15).ceil().clamp(1, 15)
    gaps = [
        abs(float(right[bins == b].float().mean() - confidence[bins == b].mean())) * float((bins == b).float().mean())
        for b in set(bins.tolist())
    ]
    assert values["val/calibration_error"] == pytest.approx(sum(gaps), abs=1e-5)
    sure = SizeMetrics("val", 2, multilabel=False)  # half of the images have a confidence of 1, the others of 0.95
    two, first = torch.tensor([[50.0, 0.0]] * 50 + [[2.944439, 0.0]] * 50), torch.zeros(100, dtype=torch.long)
    first[:5] = 1
    sure.update(48, two, first, torch.zeros(100), None)
    assert sure.compute()["val/calibration_error"] == pytest.approx(abs(0.95 - 0.975), abs=1e-5)
    labels = (torch.randn(50, 6, generator=generator) > 0).float()
    labels[:, 5] = 0
    several = SizeMetrics("test", 6, multilabel=True)
    several.update(48, logits[:50], labels, torch.zeros(50), None)
    expected = f1_score(labels[:, :5], logits[:50, :5] > 0, average="macro")
    assert several.compute()["test/macro_f1"] == pytest.approx(expected, abs=1e-6)
    single = SizeMetrics("test", 1, multilabel=True)
    single.update(48, torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]]), torch.zeros(2), None)
    assert single.per_class() == {"48": [1.0]}


SMALL_RUN = (*SMALL, "trainer.max_epochs=2", "sizes.test=[24,32]")
KAPPA = "+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa"


def test_an_own_metric_is_in_records_summaries_tests_and_reports_and_selects_the_weights(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers"))
    plain = sppnet("train", *SMALL_RUN)
    distance = "+metrics.distance._target_=torchmetrics.classification.MulticlassHammingDistance"
    words = (*SMALL_RUN, KAPPA, distance, "+metrics.sharpness._target_=own_parts.Sharpness", "allow=own_parts")
    done = sppnet("train", *words)
    assert done.code == 0, done.err
    assert done.run == plain.run, "a metric does not change what is trained"
    record = json.loads(max((done.run / "tests").glob("*.json"), key=lambda p: p.stat().st_mtime_ns).read_text())
    matrix = np.array([row[1:] for row in confusion(done.run, record, 32)[1:]], dtype=int)
    share = matrix.sum(0) @ matrix.sum(1) / matrix.sum() ** 2
    kappa = (matrix.trace() / matrix.sum() - share) / (1 - share)
    assert record["metrics"]["test/32/kappa"] == pytest.approx(kappa, abs=1e-5)
    kinds: dict[str, Any] = {
        "kappa": {"better": "max", "percent": True},
        "distance": {"better": "min", "percent": True},
    }
    kinds["sharpness"] = {"better": None, "percent": False}
    assert record["own_metrics"] == kinds
    monitored = sppnet("train", *words, "checkpointing.monitor=val/24/distance", "study=monitored")
    assert monitored.run.name != done.run.name
    lines = [line for line in records(monitored.run) if "val/24/distance" in line]
    state = torch.load(monitored.run / "checkpoints/best.ckpt", weights_only=True)["callbacks"]["Checkpoints"]
    assert state["best_score"] == min(line["val/24/distance"] for line in lines)
    shown = sppnet("report", "study=monitored", "report.metrics=[distance,calibration_error,sharpness]")
    assert shown.code == 0, shown.err
    page = (tmp_path / "runs/monitored/report/monitored.md").read_text()
    assert "in percent except for losses and sharpness. Marked" in page
    assert "sharpness: whether higher values are better is not known, so nothing is marked." in page
    assert "test/32/distance mean" in (tmp_path / "runs/monitored/report/monitored.csv").read_text()


def test_the_metric_that_selects_the_weights_anyway_may_be_named(sppnet: Caller) -> None:
    plain, named = (sppnet("train", *SMALL_RUN, *words) for words in ((), ("checkpointing.monitor=val/top1",)))
    assert named.run == plain.run
    assert "is done" in named.out
    highest = sppnet("train", *SMALL_RUN, "checkpointing.monitor=val/top1", "checkpointing.mode=max")
    assert highest.run == plain.run
    lowest = sppnet("train", *SMALL_RUN, "checkpointing.monitor=val/top1", "checkpointing.mode=min")
    assert lowest.run != plain.run
    assert "checkpointing.mode=min: a higher val/top1 is better; use checkpointing.mode=max" in lowest.err


def test_what_a_metric_counts_is_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", "own_parts")
    for name, attribute in (("Plain", "_seen"), ("Buffered", "seen")):
        node = OpenSection.model_validate({"_target_": f"own_parts.{name}"})
        with pytest.raises(UserError, match=rf"^metrics\.x: {name}\.{attribute} changes in update, but is no state"):
            build_metrics({"x": node}, 3, multilabel=False)
    build_metrics({"x": OpenSection.model_validate({"_target_": "own_parts.Both"})}, 3, multilabel=False)


def test_an_own_metric_cannot_change_what_the_others_get() -> None:
    logits, target = torch.eye(3)[[0, 1, 2]] * 9, torch.tensor([0, 1, 0])
    values = []
    for own in ({}, {"a": own_parts.Forgetful()}):
        metrics = SizeMetrics("val", 3, multilabel=False, own=own)
        metrics.update(48, logits, target, torch.zeros(3), None)
        values.append({name: value for name, value in metrics.compute().items() if not name.endswith("/a")})
    assert values[0] == values[1]
    with pytest.raises(RunFailed, match=r"^metrics\.a: Forgetful raises ValueError for 41 images: too many$"):
        metrics.update(48, logits[:1].expand(41, 3), target[:1].expand(41), torch.zeros(41), None)


@pytest.mark.parametrize(
    ("name", "better", "percent"),
    [
        *(("top1", "max", True), ("loss", "min", False), ("calibration_error", "min", True)),
        *(("top1_error", "min", True), ("loss_error", "max", False), ("calibration_error_error", "max", True)),
        *(("calibration", "max", False), ("unknown", None, False), ("unknown_error", None, False)),
    ],
)
def test_which_values_of_a_metric_are_better(name: str, better: str | None, percent: bool) -> None:
    own: dict[str, dict[str, Any]] = {
        "calibration": {"better": "max", "percent": False},
        "unknown": {"better": None, "percent": False},
    }
    assert _scale(name, ["top1", "loss", "calibration_error", *own], own) == (better, percent)


def test_a_confusion_matrix_shows_names_in_every_script() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_confusion(["犬", "a\x01<b>", "$x"], [[1, 0, 0], [2, 1, 0], [0, 0, 3]])
    texts = {element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {"犬", "a�<b>", "$x"} <= texts


def confusion(run: Path, record: dict[str, Any], size: int) -> list[list[str]]:
    """The rows of the confusion matrix that belongs to a test's record."""
    [path] = [path for path in (run / "tests").glob("*.json") if json.loads(path.read_text()) == record]
    with (run / f"confusion/{path.stem}_{size}.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_test_writes_its_confusion_matrices(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL_RUN).run
    tested = sppnet("test", f"checkpoint={run}")
    assert (tested.code, tested.err) == (0, "")
    [record] = [json.loads(path.read_text()) for path in (run / "tests").glob("*.json")]
    for size in (24, 32):
        head, *rows = confusion(run, record, size)
        assert head[1:] == [row[0] for row in rows] == [str(digit) for digit in range(10)]
        matrix = np.array([row[1:] for row in rows], dtype=int)
        assert matrix.sum() == record["images_per_size"][str(size)]
        assert matrix.trace() / matrix.sum() == pytest.approx(record["metrics"][f"test/{size}/top1"])
        assert len(list((run / "confusion").glob(f"*_{size}.svg"))) == 1


REFUSED = [
    (["+metrics.x._target_=torchmetrics.MeanSquaredError"], "metrics.x: MeanSquaredError must take probabilities"),
    (["+metrics.x._target_=torchmetrics.classification.BinaryAccuracy"], "metrics.x: BinaryAccuracy must take"),
    ([KAPPA.replace("kappa", "top1")], "metrics.top1 is not allowed: a name has at most"),
    (
        [KAPPA, "+metrics.kappa.wheights=1"],
        "metrics.kappa: torchmetrics.classification.MulticlassCohenKappa refuses",
    ),
    (
        ["+metrics.x._target_=torchmetrics.classification.MulticlassF1Score", "+metrics.x.average=none"],
        "metrics.x: MulticlassF1Score must compute a number, not shape (10,)",
    ),
    (["+metrics.x._target_=torch.nn.Linear"], "metrics.x._target_=torch.nn.Linear is neither a subclass of Metric"),
    ([KAPPA.replace("kappa", "counts")], "metrics.counts is not allowed"),
    ([KAPPA.replace("kappa", "compute")], "metrics.compute is not allowed"),
    (
        ["checkpointing.monitor=val/top2"],
        "checkpointing.monitor=val/top2 is not allowed; it must be one of val/top1,",
    ),
    (["checkpointing.monitor=test/top1"], "checkpointing.monitor=test/top1 is not allowed"),
    (["checkpointing.mode=lowest"], "checkpointing.mode=lowest is not allowed: must be null or one of max, min"),
]


@pytest.mark.parametrize(("words", "message"), some_quick(REFUSED))
def test_a_metric_that_cannot_be_used_is_refused_before_training(
    sppnet: Caller, tmp_path: Path, words: list[str], message: str
) -> None:
    refused = sppnet("train", *SMALL_RUN, *words)
    assert refused.code == 2
    assert message in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not list(tmp_path.rglob("status.json"))
