"""Reports of a study: rows, statistics, files, and the states of its runs."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]

from calling import OF_A_STUDY, SWEEP, Called, Caller, limits
from sppnet import statistics
from sppnet.config import option_files
from sppnet.config.compose import compose_config
from sppnet.report.run_results import _loss_measure, _measure, combine, hoist_configuration
from sppnet.report.table import Result as RunResult
from sppnet.runs.identity import FORMAT
from sppnet.runs.plan import plan_run
from sppnet.runs.run_directory import Run
from sppnet.studies.status import run_status

Result = dict[str, Any]
KAPPA = "+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa"


def summaries(name: str) -> dict[int, Result]:
    """By seed, the `summary.json` of the runs with `name` in their names."""
    paths = Path("runs/mine").glob(f"*-{name}*/summary.json")
    return {seed(path.parent): json.loads(path.read_text()) for path in paths}


def lines(name: str) -> list[dict[str, str]]:
    """The lines of a CSV of the report."""
    with Path(f"runs/mine/report/{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_report_agrees_with_its_runs(study: Caller) -> None:
    done = study("report", "study=mine", "latex=true", "html=true")
    assert done.code == 0, done.err
    by_setting = {line["setting"]: line for line in lines("mine")}
    assert list(by_setting) == ["spp", "gap"]
    for head, line in by_setting.items():
        values = [summary["test/top1"] for summary in summaries(head).values()]
        assert float(line["test/top1 mean"]) == pytest.approx(np.mean(values))
        assert float(line["test/top1 std"]) == pytest.approx(np.std(values, ddof=1))
        half = 4.3027 * np.std(values, ddof=1) / math.sqrt(3)  # Student's t of two degrees of freedom
        assert float(line["test/top1 high"]) - float(line["test/top1 mean"]) == pytest.approx(half, rel=1e-4)
        assert int(line["test/top1 n"]) == 3
        assert line["parameters"] == str(summaries(head)[0]["parameters"])
        assert len(line["runs"].split()) == 3
        assert f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}" in done.out
    runs = lines("mine_runs")
    assert sorted((line["setting"], line["seed"]) for line in runs) == sorted(
        (head, str(seed)) for head in ("spp", "gap") for seed in (0, 1, 2)
    )
    assert all(line["commit"] and line["machine"] and line["time"] and line["hash"] for line in runs)
    text = Path("runs/mine/report/mine.md").read_text()
    assert "![mine: top1](mine.svg)" in text
    assert "| spp † | 3 |" in text  # cut short by trainer.limit_train_batches
    assert "\\toprule" in Path("runs/mine/report/mine.tex").read_text()
    page = Path("runs/mine/report/index.html").read_text()
    links = [part.split('"')[0] for part in page.split('href="')[1:] if not part.startswith("#")]
    assert len(links) == 6
    assert all((Path("runs/mine/report") / link / "summary.json").is_file() for link in links)
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|url\((?!#)""", page)  # self-contained


def test_only_missing_runs_are_shown_and_run_again(study: Caller) -> None:
    [gone] = [path for path in Path("runs/mine").glob("*-gap-*") if seed(path) == 1]
    shutil.rmtree(gone)
    stamps = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.ckpt")}
    done = study("report", "study=mine")
    assert done.code == 0
    assert "missing: gap, seed 1: missing" in done.out
    assert "| gap † | 2 of 3 |" in Path("runs/mine/report/mine.md").read_text()
    assert not any(int(line["test/top1 best"]) for line in lines("mine"))  # two pairs are too few for a mark
    shown = study("status", "study=mine").out
    assert "6 runs: 5 done, 1 missing" in shown
    again = study(*SWEEP)
    assert again.code == 0, again.out
    assert again.out.count("(already done)") == 5
    assert stamps.items() <= {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.ckpt")}.items()
    assert "6 runs: 6 done" in study("status").out


def seed(run: Path) -> int:
    return int(json.loads((run / "provenance.json").read_text())["identity"]["config"]["seed"])


def test_states_reasons_and_what_retry_starts(study: Caller) -> None:
    runs = {seed(path): path for path in Path("runs/mine").glob("*-spp_*")}
    states = {0: ("failed", "the loss is nan"), 1: ("preempted", "stopped by SIGTERM at step 3"), 2: ("running", None)}
    for number, (state, reason) in states.items():
        status = json.loads((runs[number] / "status.json").read_text())
        (runs[number] / "status.json").write_text(json.dumps(status | {"state": state, "reason": reason}))
    shown = study("status", "study=mine").out
    assert "3 done, 1 failed, 1 lost, 1 preempted" in shown
    for reason in ("the loss is nan", "stopped by SIGTERM", "was killed, or the machine is down"):
        assert reason in shown
    skipped = study(*SWEEP, "retry=none")
    assert skipped.code == 0, skipped.out
    assert skipped.out.count("(retry=none)") == 3
    assert {json.loads((run / "status.json").read_text())["state"] for run in runs.values()} == {
        "failed",
        "preempted",
        "running",
    }
    assert study("train", "-m", "retry=some", "seed=0,1").code == 2


def test_a_run_that_a_process_holds_is_running_and_skipped(study: Caller) -> None:
    [run] = [path for path in Path("runs/mine").glob("*-gap-*") if seed(path) == 0]
    status = json.loads((run / "status.json").read_text())
    now = {"state": "running", "step": 10, "steps": 40, "seconds": 5.0}
    (run / "status.json").write_text(json.dumps(status | now))
    code = "import pathlib, time\nfrom sppnet.runs.run_directory import Run\n"
    code += f"with Run(pathlib.Path({str(run)!r})).locked():"
    holder = subprocess.Popen([sys.executable, "-c", f"{code}\n  print('held', flush=True); time.sleep(60)"], stdout=-1)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        running = run_status(Run(run), "")
        assert (running.state, running.speed, running.seconds_left) == ("running", 2.0, 15.0)
        shown = study("status", "study=mine").out
        assert "10/40" in shown
        assert time.strftime("%H:", time.localtime(time.time() + 15)) in shown
        swept = study(*SWEEP)
        assert swept.code == 0, swept.out
        assert "left" in swept.out
    finally:
        holder.kill()
        holder.wait()
    assert run_status(Run(run), "").state == "lost"


def test_rows_with_equal_short_names_get_long_ones(study: Caller) -> None:
    plan = Path("runs/mine/study.json")
    plan.write_text(plan.read_text().replace('"pooling=spp"', '"a.kind=x"').replace('"pooling=gap"', '"b.kind=x"'))
    assert study("report", "study=mine").code == 0
    assert [line["setting"] for line in lines("mine")] == ["a.kind=x", "b.kind=x"]


def test_one_study_in_two_folders_is_two_tables(study: Caller) -> None:
    plan = Path("runs/mine/study.json")
    plan.write_text(plan.read_text().replace('"experiments": null', '"experiments": "heads"'))
    shutil.copytree("runs/mine", "runs/other")
    done = study("report", "output=out")
    assert done.code == 0, done.err
    assert {"mine_heads.csv", "other_heads.csv"} <= {path.name for path in Path("out").iterdir()}
    assert not Path("out/heads.csv").exists()


def test_runs_of_another_format_are_separate_rows_and_reported(study: Caller) -> None:
    for path in Path("runs/mine").glob("*/provenance.json"):
        provenance = json.loads(path.read_text())
        if provenance["identity"]["config"]["seed"] == 0:
            for record in (path, *path.parent.glob("tests/*.json")):
                record.write_text(record.read_text().replace(f'"format": {FORMAT}', '"format": 1'))
    done = study("report", "study=mine", "report.compare=spp", "output=out")
    assert done.code == 0, done.err
    assert "versions of sppnet that train differently (format 1 and 2), so no row is marked" in done.err
    with Path("out/mine.csv").open() as file:
        rows = {line["setting"]: line["test/top1 n"] for line in csv.DictReader(file)}
    assert rows == {"spp [format 1]": "1", "spp": "2", "gap [format 1]": "1", "gap": "2"}
    shown = study("status", "study=mine").out
    assert shown.count("in format 1") == 2


def test_retry_is_for_sweeps(sppnet: Caller) -> None:
    done = sppnet("train", *OF_A_STUDY, "retry=all")
    assert done.code == 0
    assert "retry has no effect with a single job" in done.err


@pytest.mark.slow
def test_runs_without_a_sweep_are_named_by_what_differs(sppnet: Caller) -> None:
    for overrides in (
        ["optim.lr=0.01", "seed=0"],
        ["optim.lr=0.01", "seed=1"],
        ["optim.lr=0.02", "pooling.bins=[3,1]"],
    ):
        run = sppnet("train", *OF_A_STUDY, *overrides).run
    sppnet("test", f"checkpoint={run}", "sizes.test=[20]")
    sppnet("test", f"checkpoint={run}", "sizes.test=[20]", KAPPA)  # the same test with a further metric
    done = sppnet("report", "report.metrics=[top1_error,loss,kappa]", "output=out")
    assert done.code == 0, done.err
    with Path("out/mine.csv").open() as file:
        rows = {line["setting"]: line for line in csv.DictReader(file)}
    assert set(rows) == {  # a row holds all seeds; bins are shown as a pyramid
        "bins=2, 1 lr=0.01 sizes=24",
        "bins=3, 1 lr=0.02 sizes=24",
        "bins=3, 1 lr=0.02 sizes=20",
    }
    assert sorted(line["test/loss n"] for line in rows.values()) == ["1", "1", "2"]
    assert rows["bins=3, 1 lr=0.02 sizes=20"]["test/kappa n"] == "1"
    first = rows["bins=2, 1 lr=0.01 sizes=24"]
    values = [1 - json.loads(path.read_text())["test/top1"] for path in summaries_with_rate(Path("runs/mine"), 0.01)]
    assert float(first["test/top1_error mean"]) == pytest.approx(np.mean(values))
    assert first["note"] == ", ".join(limits(2))


def test_only_tests_that_define_their_metrics_alike_are_combined() -> None:
    def tested(run: str, **defined: Any) -> RunResult:
        measures = {name: str(value) for name, value in defined.items()}
        facts = {"protocol": "same", "measures": measures, "own_metrics": {name: {} for name in defined}}
        return RunResult(run, {f"test/{name}": float(value) for name, value in defined.items()}, facts)

    plain = {0: tested("a"), 1: tested("b")}
    with_f = {0: tested("a", f=1), 1: tested("b", f=1)}
    first = combine(plain, with_f)
    assert first is not None
    both = combine(first, {0: tested("a", k=5), 1: tested("b", k=5)})
    assert both is not None
    assert [dict(result.metrics) for result in both.values()] == [{"test/f": 1.0, "test/k": 5.0}] * 2
    assert combine(with_f, {0: tested("a", f=2, k=1), 1: tested("b", f=2, k=1)}) is None
    some = combine(with_f, {0: tested("a", k=1), 2: tested("c", k=1)})
    assert some is not None
    assert [sorted(result.metrics) for result in some.values()] == [["test/f", "test/k"], ["test/f"], ["test/k"]]
    assert combine(with_f, {0: tested("a", k=1), 1: tested("c", k=1)}) is None


def test_losses_are_alike_if_tests_compute_the_same() -> None:
    def measure(*words: str) -> dict[str, str]:
        return _loss_measure(hoist_configuration(plan_run(compose_config(["data=digits", *words])).identity))

    for words in ("loss=cross_entropy", "loss.label_smoothing=0.1", "loss.class_weights=balanced", "optim.lr=1"):
        assert measure(words) == measure(), words
    losses = [(), ("loss=bce",), ("loss=focal",), ("loss=focal", "loss.gamma=1")]
    assert len({measure(*words)["loss"] for words in losses}) == len(losses)
    assert _loss_measure({}) == {}


def test_a_metric_of_ones_own_is_alike_if_arguments_and_code_are() -> None:
    one, other = ({"code": {"mine.F": code, "mine.G": code}} for code in "ab")
    assert _measure({"_target_": "mine.F"}, one) != _measure({"_target_": "mine.F"}, other)
    assert _measure({"_target_": "mine.F"}, one) != _measure({"_target_": "mine.F", "k": 2}, one)
    assert _measure({"_target_": "mine.H"}, one) == _measure({"_target_": "mine.H"}, other)
    losses: list[dict[str, Any]] = [{}, {"name": "mine", "activation": "sigmoid"}, {"k": 2}]
    measures = [_loss_measure({"loss": {"_target_": "mine.F", **more}, **one})["loss"] for more in losses]
    assert measures[0] == measures[1] != measures[2]
    assert measures[0] != _loss_measure({"loss": {"_target_": "mine.F"}, **other})["loss"]


@pytest.mark.slow
def test_a_metric_that_is_added_to_a_sweep_makes_no_rows_of_its_own(study: Caller) -> None:
    added = study(*SWEEP, KAPPA)
    assert added.code == 0, added.err
    done = study("report", "study=mine", "report.metrics=[top1,kappa]")
    assert [line["setting"] for line in lines("mine")] == ["spp", "gap"]
    assert all(line["test/kappa n"] == line["test/top1 n"] == "3" for line in lines("mine"))
    assert done.code == 0, done.err


def summaries_with_rate(folder: Path, rate: float) -> list[Path]:
    """The summaries of the runs with one learning rate."""
    return [
        path
        for path in folder.glob("*/summary.json")
        if json.loads((path.parent / "provenance.json").read_text())["identity"]["config"]["optim"]["lr"] == rate
    ]


@pytest.mark.slow
def test_a_study_that_was_never_started_is_all_missing(sppnet: Caller) -> None:
    shown = sppnet("status", "experiments=pooling")
    assert shown.code == 0, shown.err
    assert "10 runs: 10 missing" in shown.out
    assert not Path("runs").exists()
    refused = sppnet("report", "experiments=pooling")
    assert (refused.code, refused.out) == (2, "")
    assert "no run of pooling is done yet" in refused.err
    assert not Path("experiments").exists()


MISTAKES: list[tuple[list[str], str]] = [
    (["report"], "paths.runs=runs contains no studies"),
    (["status", "study=fly"], "study=fly: there is no such study in runs"),
    (["status", "watch=maybe"], "watch=maybe is not allowed"),
    (["report", "experiments=fly"], "experiments/fly"),
    (["report", "report.figure=pie"], "rows, bins, sizes"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistake_is_one_line(sppnet: Caller, tmp_path: Path, arguments: list[str], message: str) -> None:
    called: Called = sppnet(*arguments)
    assert called.code == 2
    assert message in called.err
    assert len(called.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_holm_and_the_paired_test_by_hand() -> None:
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert statistics.holm({}) == {}
    # differences 1, 2, 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3) = 3.4641, p of two degrees of freedom 0.0742
    gap = statistics.differences({"base": {0: 1.0, 1: 1.0, 2: 1.0}, "x": {0: 2.0, 1: 3.0, 2: 4.0}}, "base")["x"]
    assert gap is not None
    assert (gap.spread.mean, gap.spread.deviation) == (2.0, 1.0)
    assert gap.p == pytest.approx(0.0742, abs=1e-4)
    assert gap.spread.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


def test_intervals_and_paired_tests_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for n in range(3, 12):
        a, b = rng.normal(0.7, 0.1, n), rng.normal(0.72, 0.1, n)
        values = {"a": dict(enumerate(a.tolist())), "b": dict(enumerate(b.tolist()))}
        gap = statistics.differences(values, "b")["a"]
        assert gap is not None
        assert gap.p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
        low, high = scipy.stats.t.interval(0.95, n - 1, np.mean(a - b), scipy.stats.sem(a - b))
        assert gap.spread.half == pytest.approx((high - low) / 2)


def test_the_best_row_is_marked_only_if_significant() -> None:
    def seeds(*values: float) -> dict[int, float]:
        return dict(enumerate(values))

    low, high = seeds(0.50, 0.52, 0.51, 0.49, 0.5), seeds(0.71, 0.7, 0.69, 0.72, 0.7)
    near = seeds(0.70, 0.71, 0.68, 0.72, 0.71)
    assert statistics.best({"low": low, "high": high}, lower=False) == "high"
    assert statistics.best({"low": low, "high": high}, lower=True) == "low"
    assert statistics.best({"low": low, "high": high, "near": near}, lower=False) is None
    two = {"low": {0: 0.5, 1: 0.52}, "high": {0: 0.7, 1: 0.72}}
    assert statistics.best(two, lower=False) is None  # below three seeds nothing is marked
    apart = {"low": low, "high": {seed + 10: value for seed, value in high.items()}}
    assert statistics.best(apart, lower=False) is None  # no common seeds

    # equal differences at every seed, as a small test set yields: the sign test needs six seeds
    def same(n: int) -> dict[str, dict[int, float]]:
        return {"a": dict.fromkeys(range(n), 0.5), "b": dict.fromkeys(range(n), 0.6)}

    assert statistics.best(same(3), lower=False) is None
    assert statistics.best(same(6), lower=False) == "b"
    assert statistics.best({"a": low}, lower=False) is None
    # a row with a NaN, as of a metric that is not defined, does not touch the others
    rows = {"low": low, "broken": low | {2: math.nan}, "high": high}
    assert statistics.best(rows, lower=False) == "high"
    gaps = statistics.differences(rows, "high")
    assert gaps["low"] == statistics.differences({"low": low, "high": high}, "high")["low"]
    assert gaps["broken"] is not None
    assert gaps["broken"].p is None


def test_figures_show_every_row(study: Caller) -> None:
    for kind in ("rows", "bins", "sizes"):
        done = study("report", "study=mine", f"report.figure={kind}")
        assert done.code == 0, done.err
        first = Path("runs/mine/report/mine.svg").read_bytes()
        ElementTree.fromstring(first)
        assert "<!-- gap † -->".encode() in first
        assert study("report", "study=mine", f"report.figure={kind}").code == 0
        assert Path("runs/mine/report/mine.svg").read_bytes() == first  # no date inside: a diff means a change


def read_tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_replaces_nothing_of_other_runs(study: Caller, tmp_path: Path) -> None:
    done = study("report", "study=mine", "output=out", "html=true")
    assert done.code == 0, done.err
    assert study("report", "study=mine", "output=out", "html=true").code == 0  # its own files
    shutil.copytree("runs/mine", "runs/second")
    records = [*Path("runs/mine").glob("*-gap-*/tests/*.json")]
    for path in records:  # as if these runs were trained anew
        path.write_text(path.read_text().replace('"time": "2', '"time": "3'))
    before = read_tree(tmp_path)
    for arguments in (["study=mine"], ["study=mine", "html=true"], ["html=true"], []):
        refused = study("report", *arguments, "output=out")
        assert (refused.code, refused.out) == (2, "")
        [line] = refused.err.splitlines()
        assert "mine.csv" in line
        assert "force=true" in line
    assert read_tree(tmp_path) == before  # nor was the second study written
    assert study("report", "study=mine", "output=out", "force=true").code == 0
    only_page = study("report", "study=mine", "output=out", "html=true")
    assert (only_page.code, "out/index.html is not a report on these runs" in only_page.err) == (2, True)
    Path("out/second.md").write_text("Of my own")
    assert study("report", "study=second", "output=out").code == 2
    assert Path("out/second.md").read_text() == "Of my own"
    assert not Path("out/second.csv").exists()


def test_evidence_is_written_for_a_study_run_as_filed(study: Caller) -> None:
    plan = Path("runs/mine/study.json")
    points = json.loads(plan.read_text())["cells"]
    filed = [  # as if the six runs were all points of heads.yaml
        {**points[first + seed % 3], "words": [f"pooling={head}", f"seed={seed}"], "experiments": "heads"}
        for head, first in (("spp", 0), ("gap", 3), ("flatten", 3))
        for seed in range(5)
    ]
    Path("experiments/results").mkdir(parents=True)
    shutil.copy(option_files.root() / "experiments/heads.yaml", "experiments")

    def report(points: list[dict[str, Any]]) -> Called:
        plan.write_text(json.dumps({"cells": points}))
        return study("report", "study=mine")

    evidence = Path("experiments/results")
    assert report(filed[:-1]).code == 0  # incomplete
    typed = report([{**point, "words": [*point["words"], "trainer.max_epochs=1"]} for point in filed])
    assert typed.code == 0, typed.err
    by_hand = report([{**point, "experiments": None} for point in filed])
    assert by_hand.code == 0, by_hand.err
    assert not read_tree(evidence)
    assert {path.name for path in Path("runs/mine/report").glob("*.csv")} >= {"heads.csv", "mine.csv"}
    done = report(filed)
    assert done.code == 0, done.err
    assert {path.name for path in evidence.iterdir()} == {"heads.csv", "heads_runs.csv", "heads.md", "heads.svg"}
    (evidence / "heads_runs.csv").write_text("hash,time\n0123456789,2026\n")
    before = read_tree(evidence)
    beside = report(filed)
    assert beside.code == 0, beside.err
    assert "from different runs; force=true replaces" in beside.err
    assert "written: runs/mine/report/heads_runs.csv" in beside.out
    assert read_tree(evidence) == before
    assert study("report", "study=mine", "force=true").code == 0
    assert read_tree(evidence) != before


def test_a_pyramid_is_named_by_its_levels_and_a_long_name_becomes_the_runs(study: Caller) -> None:
    plan, long = Path("runs/mine/study.json"), "data.root=/home/somebody/a/very/long/folder/of/photographs"
    plan.write_text(
        plan.read_text().replace('"pooling=spp"', '"pyramid=l3_3_2_1"').replace('"pooling=gap"', f'"{long}"')
    )
    assert study("report", "study=mine", "report.compare=l3_3_2_1").code == 0
    first, second = [line["setting"] for line in lines("mine")]
    assert first == "3, 2, 1"
    assert Path("runs/mine", second, "status.json").is_file()
