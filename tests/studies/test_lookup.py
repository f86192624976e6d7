"""Which runs share a row, which studies are looked up, and runs that were copied, changed or damaged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from calling import OF_A_STUDY, SWEEP, Caller
from tiers import some_quick


def table(name: str) -> dict[str, dict[str, str]]:
    """The lines of a report's CSV, by setting."""
    with Path(f"runs/mine/report/{name}.csv").open() as file:
        return {line["setting"]: line for line in csv.DictReader(file)}


def change(path: Path, edit: Any) -> None:
    """Rewrite a JSON file."""
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def run_of(head: str, seed: int) -> Path:
    for path in Path("runs/mine").glob(f"*-{head}*"):
        if json.loads((path / "provenance.json").read_text())["identity"]["config"]["seed"] == seed:
            return path
    raise AssertionError


def test_runs_of_a_changed_configuration_are_separate_rows(study: Caller) -> None:
    """A configuration file changed between two seeds: the same overrides mean another network."""

    def change_rate(provenance: dict[str, Any]) -> dict[str, Any]:
        provenance["identity"]["config"]["optim"]["lr"] = 0.5
        return provenance

    change(run_of("spp", 2) / "provenance.json", change_rate)
    assert study("report", "study=mine").code == 0
    counts = {name: line["test/top1 n"] for name, line in table("mine").items()}
    assert sorted(counts.values()) == ["1", "2", "3"]
    assert {name.split(" [")[0] for name in counts} == {"spp", "gap"}


def test_the_same_runs_under_other_overrides_are_one_row(study: Caller) -> None:
    def add_renamed(plan: dict[str, Any]) -> dict[str, Any]:
        more = [
            {**point, "words": [override.replace("pooling=spp", "pooling.kind=x") for override in point["words"]]}
            for point in plan["cells"]
            if "pooling=spp" in point["words"]
        ]
        return {"cells": plan["cells"] + more}

    change(Path("runs/mine/study.json"), add_renamed)
    assert study("report", "study=mine").code == 0
    assert [line["test/top1 n"] for line in table("mine").values()] == ["3", "3"]
    assert all("+0.00" not in line["test/top1 difference"] for line in table("mine").values())


def test_any_swept_key_makes_points(sppnet: Caller) -> None:
    for name in ("a", "b"):
        assert sppnet("train", *OF_A_STUDY, f"name={name}").code == 0
    assert sppnet("train", "-m", *OF_A_STUDY, "name=a,b").out.count("(already done)") == 2
    assert "2 runs: 2 done" in sppnet("status").out


def test_runs_are_read_without_checkpoints_and_provenance(study: Caller) -> None:
    """As after copying the small files alone."""
    shutil.rmtree(run_of("spp", 0) / "checkpoints")
    (run_of("gap", 1) / "provenance.json").unlink()
    done = study("report", "study=mine")
    assert done.code == 0, done.err
    assert sum(int(line["test/top1 n"]) for line in table("mine").values()) == 6
    assert "6 runs: 6 done" in study("status").out
    assert study(*SWEEP).out.count("(already done)") == 6


@pytest.mark.parametrize(
    "text", some_quick(["{}", "[]", '{"metrics": null, "identity": {}}', '{"metrics": {"test/to'], 4)
)
def test_an_incomplete_record_counts_as_missing(study: Caller, text: str) -> None:
    spp, gap = run_of("spp", 0), run_of("gap", 1)
    next(spp.glob("tests/*.json")).write_text(text)
    (gap / "summary.json").write_text(text)
    (gap / "provenance.json").write_text('{"identity": {}, "starts": []}')
    done = study("report", "study=mine")
    assert done.code == 0, done.err
    assert "missing: spp, seed 0: missing (trained, but this test is missing)" in done.out
    assert "6 runs: 5 done, 1 missing" in study("status").out
    assert study("test", f"checkpoint={spp}").code == 0
    assert "6 runs: 6 done" in study("status").out


def test_rows_with_different_test_sizes_share_a_column(study: Caller) -> None:
    """As in the paper's table 3: a crop of one size against the whole image at another."""
    for seed in range(3):
        assert study("train", *OF_A_STUDY, "pooling=spp", f"seed={seed}", "sizes.test=[20]").code == 0
    swept = study("train", "-m", *OF_A_STUDY, "pooling=spp", "sizes.test=[20]", "seed=0,1,2")
    assert swept.out.count("(already done)") == 3
    done = study("report", "study=mine")
    assert done.code == 0, done.err
    lines = table("mine")
    assert len(lines) == 3
    assert {line["test/top1 n"] for line in lines.values()} == {"3"}
    assert sum(bool(line["test/top1 difference"]) for line in lines.values()) == 2


def test_a_size_that_only_some_rows_are_tested_at(study: Caller) -> None:
    for seed in range(3):
        assert study("train", *OF_A_STUDY, "pooling=gap", f"seed={seed}", "sizes.test=[24,20]").code == 0
    assert study("train", "-m", *OF_A_STUDY, "pooling=gap", "sizes.test=[24,20]", "seed=0,1,2").code == 0
    assert study("report", "study=mine").code == 0
    text = Path("runs/mine/report/mine.md").read_text()
    assert "top1 at 20 px" in text
    assert "| - |" in text
    assert "missing" not in text


WRONG = {
    "report study=mine report.compare=ssp": "report.compare=ssp is not allowed: must be one of spp, gap",
    "report study=mine report.metrics=[top2]": "report.metrics=top2 is not allowed: must be one of calibration_error,",
    "report study=mine pooling=gap": "pooling=gap has no effect without experiments=NAME",
    "status seed=4": "seed=4 has no effect without experiments=NAME",
}


@pytest.mark.parametrize("command", WRONG)
def test_overrides_without_effect_are_refused(study: Caller, command: str) -> None:
    refused = study(*command.split())
    assert refused.code == 2, refused.out
    assert WRONG[command] in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    assert not Path("runs/mine/report").exists()


@pytest.mark.parametrize("text", some_quick(['{"cells": [', '{"cells": [{"words": []}]}', "[]"]))
def test_a_damaged_plan_is_an_error(study: Caller, text: str) -> None:
    Path("runs/mine/study.json").write_text(text)
    for arguments in (("report",), ("status",), SWEEP):
        refused = study(*arguments)
        assert refused.code == 2
        assert "study.json is not a valid study plan" in refused.err
    assert Path("runs/mine/study.json").read_text() == text


def test_runs_beside_a_plan_are_counted(study: Caller) -> None:
    assert study("train", *OF_A_STUDY, "seed=9").code == 0
    assert "6 runs: 6 done; runs that are not in the study's plan: 1" in study("status").out


@pytest.mark.parametrize(
    "name",
    ["caltech_transfer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("paper_table2", "views_agree"))],
)
def test_a_study_is_shown_without_its_data(sppnet: Caller, name: str) -> None:
    shown = sppnet("status", f"experiments={name}")
    assert shown.code == 0, shown.err
    assert name in shown.out
    refused = sppnet("report", f"experiments={name}")
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)
    assert f"no run of {name} is done yet" in refused.err


def test_a_study_can_be_shown_in_part(sppnet: Caller) -> None:
    shown = sppnet("status", "experiments=paper_table2", "hydra.sweeper.only=[zf5_multi]").out
    assert "1 runs: 1 missing" in shown
    assert "zf5_multi" in shown  # named by its row: the run's hash is unknown without the data
    assert (
        "2 runs: 2 missing" in sppnet("status", "experiments=depth", "hydra.sweeper.only=[same_1,same_2]", "seed=0").out
    )


def test_a_sweep_is_of_one_study(sppnet: Caller) -> None:
    refused = sppnet("train", "-m", "experiments=heads,pooling")
    assert refused.code == 2
    assert "a sweep can run only one study" in refused.err
    assert not Path("runs").exists()


def test_transfer_rows_have_distinct_names(sppnet: Caller) -> None:
    arguments = (
        "transfer",
        "compute.num_threads=1",
        "progress=none",
        "backbone.width=4",
        "layer=pooling",
        "sizes.test=[24]",
        "splits=2",
    )
    protocol = ("per_class.train=5", "per_class.test=5", "study=mine")
    for words in (["pooling=gem"], ["pooling=spp", "pooling.bins=[1]"], ["pooling=spp", "pooling.bins=[2,1]"]):
        assert sppnet(*arguments, *protocol, *words).code == 0
    done = sppnet("report", "study=mine")
    assert done.code == 0, done.err
    lines = table("mine")
    assert set(lines) == {"pooling gem", "pooling spp bins=[1]", "pooling spp bins=[2, 1]"}
    coarse, fine = (lines[f"pooling spp bins={bins}"]["transfer/accuracy mean"] for bins in ("[1]", "[2, 1]"))
    assert coarse != fine
