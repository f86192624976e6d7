"""Every study under `experiments/` composes and can start; the tests cover every file of the folder."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator
from PIL import Image

from calling import SMALL, Caller, limits, records
from sppnet.config import compose, option_files
from sppnet.config.command_schemas import COMMANDS, TransferConfig
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.data import build_images
from sppnet.runs.identity import run_identity
from sppnet.studies.study import read_header, study_command
from sppnet.training.preflight import check_job
from sppnet.transfer.extractor import check_extraction
from sppnet.transfer.task import make_task

STUDIES = sorted((option_files.root() / "experiments").glob("*.yaml"))
PAPER = [path.stem for path in STUDIES if path.stem.startswith("paper_")]


def listed_rows(study: str) -> dict[str, dict[str, Any]]:
    cfg = yaml.safe_load((option_files.root() / f"experiments/{study}.yaml").read_text())
    rows: dict[str, dict[str, Any]] = cfg.get("hydra", {}).get("sweeper", {}).get("rows", {})
    return rows


def compose_row(study: str, name: str) -> Config:
    """The configuration of a listed row."""
    command = study_command(study)
    plain = compose.compose_plain(command, [f"experiments={study}", *listed_rows(study)[name]["set"]])
    cfg = load(COMMANDS[command], plain)
    assert isinstance(cfg, Config)
    return cfg


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_states_its_question_and_how_to_run_it(sppnet: Caller, path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# @package _global_", "# yaml-language-server: $schema=schema.json"]
    names = [line.split()[1] for line in lines[2:] if line.startswith("# ") and not line.startswith("#  ")]
    assert names == ["Question:", "Command:", "Expected:", "Cost:"]
    shown = sppnet(study_command(path.stem), f"experiments={path.stem}", "--cfg", "job", "--resolve")
    assert shown.code == 0, shown.err
    assert yaml.safe_load(shown.out)["study"] == ("paper" if path.stem.startswith("paper") else path.stem)


ROWS = [
    (path.stem, name) if name in (rows[0], rows[-1]) else pytest.param(path.stem, name, marks=pytest.mark.slow)
    for path in STUDIES
    if (rows := list(listed_rows(path.stem)))
    for name in rows
]


@pytest.mark.parametrize(("study", "name"), ROWS, ids=str)
def test_every_row_of_a_study_is_a_job_that_can_start(study: str, name: str) -> None:
    cfg = compose_row(study, name)
    if isinstance(cfg, TransferConfig):
        check_extraction(make_task(cfg, None))
    else:
        check_job(cfg)


def test_published_values_agree_with_each_other() -> None:
    """Table 2 also prints the gains over no pyramid; table 3 uses single views, so its errors are larger."""
    errors = {name: row["paper"] for study in PAPER for name, row in listed_rows(study).items()}
    gains = {
        "zf5": [(1.01, 1.39), (0.62, 1.12)],
        "convnet5": [(0.55, 0.99), (0.38, 0.59)],
        "overfeat5": [(1.26, 1.87), (0.72, 1.19)],
        "overfeat7": [(1.65, 2.33), (0.85, 1.02)],
    }
    for net, by_kind in gains.items():
        for kind, printed in zip(("top1_error", "top5_error"), by_kind, strict=True):
            base = errors[f"{net}_no_spp"][kind]
            computed = [round(base - errors[f"{net}_{sizes}"][kind], 2) for sizes in ("single", "multi")]
            assert computed == list(printed), (net, kind)
    for name in listed_rows("paper_table3"):
        net = name.rpartition("_")[0]
        assert 1.5 < errors[name]["top1_error"] - errors[net]["top1_error"] < 4
        assert errors[name]["top5_error"] is None  # the paper prints none
    assert errors["overfeat7_multi"] == errors["ten_views"]


@pytest.mark.slow
def test_a_network_that_several_tables_show_is_trained_once(tmp_path: Path) -> None:
    write_imagenet_tree(tmp_path, 1)

    def trained(study: str, name: str) -> dict[str, Any]:
        cfg = compose_row(study, name)
        return run_identity(cfg, build_images(cfg.data.model_copy(update={"root": str(tmp_path)})))

    assert all(
        trained("paper_table4", name) == trained("paper_table2", "overfeat7_multi")
        for name in listed_rows("paper_table4")
    )
    for name in listed_rows("paper_table3"):
        assert trained("paper_table3", name) == trained("paper_table2", name.rpartition("_")[0])
    kinds = [trained(study, name) for study in ("paper_table2", "paper_variants") for name in listed_rows(study)]
    assert len({str(kind) for kind in kinds}) == 14


def write_imagenet_tree(root: Path, count: int) -> None:
    """Write `count` images per class and split in ImageNet's folder layout."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040", "n03000684"):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (rng.integers(20, 30), rng.integers(20, 40), 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                image.resize((image.width * 10, image.height * 10)).save(root / part / wnid / f"{wnid}_{i}.JPEG")


TWO_STEPS = (
    *("data.batch_size=2", *limits(2), "trainer.max_epochs=1", "progress=none"),
    *("compute.num_threads=1", "data.num_workers=0"),
)


@pytest.mark.slow
def test_rows_are_picked_and_what_is_typed_wins(spawn: Caller, sppnet: Caller, tmp_path: Path) -> None:
    write_imagenet_tree(tmp_path / "photos", 4)
    narrow = ("backbone=tiny", "backbone.width=4", "head.hidden=[8]", "sizes=single", "sizes.train=[64]")
    arguments = ("train", "-m", "experiments=paper_table2", "data.root=photos", "views.source=map", *TWO_STEPS, *narrow)
    refused = sppnet(*arguments, "hydra.sweeper.only=zf6")
    assert (refused.code, refused.out) == (2, "")
    [line] = refused.err.strip().splitlines()
    assert line.startswith("sppnet train: hydra.sweeper.only=zf6 is not allowed: must be one of zf5_no_spp, zf5_single")
    # the typed network and size make these three rows equal, so they are one job
    swept = spawn(*arguments, "hydra.sweeper.only=[zf5_single,zf5_multi,overfeat7_multi]", "trainer.max_epochs=1")
    assert swept.code == 0, swept.err
    assert "[1/1] done" in swept.out


@pytest.mark.slow
def test_views_out_of_the_map_are_compared_with_crops_over_all_folds(sppnet: Caller, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    overrides = ("data=folder", "data.root=photos", "data.num_workers=0", "trainer.max_epochs=1", "views=ten")
    for fold in (0, 1):
        assert sppnet("train", *SMALL, *overrides, "data.split.test=0.5", f"data.split.fold={fold}").code == 0
    swept = sppnet("train", "-m", *SMALL, *overrides, "data.split.test=0.5", "data.split.fold=0,1")
    assert swept.out.count("(already done)") == 2  # the sweep's study.json lies beside the runs
    command = f"{sys.executable} {option_files.root() / 'experiments/views_agree.py'} runs/default/*"
    wrong = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "study.json is not the directory of a finished run" in wrong.stderr
    done = subprocess.run(f"{command}/", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("40 out-of-fold images")
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "±" in line][1:]
    assert [row[0] for row in table] == ["average of all", *(f"view {n}" for n in range(1, 11))]
    apart = [float(row[1]) for row in table]
    assert all(0 < value < 0.1 for value in apart)
    assert apart[0] < max(apart[1:])
    for _, _, of_map, of_pixels, difference in table:
        assert float(of_map) - float(of_pixels) == pytest.approx(float(difference.split()[0]), abs=0.011)


def test_every_study_states_its_question_expected_result_and_cost() -> None:
    for path in STUDIES:
        header = read_header(path.stem)
        assert list(header) == ["question", "command", "expected", "cost"], path.stem
        assert all(len(text) > 10 for text in header.values()), path.stem
        assert f"experiments={path.stem}" in header["command"]


def test_a_study_that_compares_has_five_seeds() -> None:
    for path in STUDIES:
        jobs = compose.expand_sweep(study_command(path.stem), [f"experiments={path.stem}"])[0]
        folds = any(
            override.startswith("data.split.fold=") for job in jobs for override in job.overrides
        )  # the sample is all images, not seeds
        compares = len(jobs) > 1 and not path.stem.startswith("paper")
        if study_command(path.stem) == "train" and compares and not folds:
            seeds = Counter(override for job in jobs for override in job.overrides if override.startswith("seed="))
            assert len(seeds) >= 5, path.stem
            assert len(set(seeds.values())) == 1, path.stem


@pytest.mark.slow
def test_the_papers_cells_train_two_steps_on_a_tree_like_imagenets(sppnet: Caller, tmp_path: Path) -> None:
    """Each network once, for all tables; the sweeps, which then start nothing, have every cell and its test."""
    write_imagenet_tree(tmp_path / "photos", 4)
    trained = {"paper_table2": 12, "paper_variants": 2, "paper_table3": 0, "paper_table4": 0}  # there: in table 2
    assert sorted(trained) == sorted(PAPER)
    for study, count in trained.items():
        runs = len(list(tmp_path.rglob("metrics.jsonl")))
        typed = (f"experiments={study}", "data.root=photos", "head.hidden=[8]")
        for cell in listed_rows(study).values():
            done = sppnet("train", *cell["set"], *typed, *TWO_STEPS, "hydra.mode=RUN")  # as a launcher starts it
            assert done.code == 0, done.err
            assert any(record["step"] == 2 for record in records(done.run))
        assert len(list(tmp_path.rglob("metrics.jsonl"))) == runs + count
        swept = sppnet("train", "-m", *typed, *TWO_STEPS)
        assert swept.code == 0, swept.err
        assert swept.out.count("(already done)") == len(listed_rows(study))
    assert sppnet("report").code == 0
    for study in trained:
        with (tmp_path / f"runs/paper/report/{study}.csv").open() as file:
            ours = {line["setting"]: line for line in csv.DictReader(file)}
        assert ours.keys() == listed_rows(study).keys()
        for name, row in listed_rows(study).items():
            for figure, printed in row["paper"].items():
                assert ours[name][f"paper {figure} (%)"] == ("" if printed is None else str(printed))
    results = [json.loads(path.read_text())["identity"] for path in tmp_path.rglob("tests/*.json")]
    assert len(results) == sum(len(listed_rows(study)) for study in PAPER) - 1  # a cell of table 2 is one of table 4


def test_an_editor_can_check_the_files_of_studies(sppnet: Caller) -> None:
    """experiments/schema.json is what `sppnet config schema` prints, and every study's file passes its check."""
    printed = sppnet("config", "schema")
    folder = option_files.root() / "experiments"
    assert printed.out == (folder / "schema.json").read_text(), "sppnet config schema > experiments/schema.json"
    validator = Draft202012Validator(json.loads(printed.out))
    for path in STUDIES:
        validator.validate(yaml.safe_load(path.read_text()))
    for wrong in (
        "seed: -1",
        "sed: 1",
        "pooling: {bin: [1]}",
        "trainer: {maxepochs: 1}",
        "views: {positions: 7}",
        "sizes: {val: [a]}",
    ):
        assert not validator.is_valid(yaml.safe_load(wrong)), wrong
    for right in (
        "seed: ${study}",
        "trainer: {profiler: simple}",
        "pooling: {pool: avg}",
        "sizes: {val: ['${..train[0]}']}",
    ):
        assert validator.is_valid(yaml.safe_load(right)), right
    assert sppnet("config", "scheme").code == 2
