"""Training that starts from a trained network: what is taken over and frozen, and which run a study starts from."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import update_bn

from calling import OF_A_STUDY, SMALL, Called, Caller, command, flip, limits, records, same_weights, weights
from sppnet.config import option_files
from sppnet.config.compose import compose_config
from sppnet.data import load_splits
from sppnet.errors import UserError
from sppnet.models import timm_trunk
from sppnet.models.freezing import batch_norms
from sppnet.models.network import build_network
from sppnet.runs.plan import plan_run
from sppnet.studies.study import SweepPoint, load_points
from sppnet.studies.warm_start import with_init
from sppnet.training.batch_norm import estimate_statistics
from sppnet.training.trainer import build_data
from sppnet.training.warm_start import load_init
from stop_at import PLUG

TESTS = str(Path(__file__).parents[1] / "helpers")
# The head alone, for an epoch, at a larger size.
FIXRES = (*SMALL, "sizes=single", "sizes.train=[32]", "backbone.freeze=true", "trainer.max_epochs=1")


LIMITS = limits(2)


def backbone_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights(checkpoint).items() if key.startswith("network.backbone.")}


def differing(first: Path, second: Path) -> set[str]:
    """The names of the backbone's modules whose weights or buffers differ."""
    old, new = backbone_of(first), backbone_of(second)
    return {key.split(".")[2] for key in old if not torch.equal(old[key], new[key])}


def pooling(point: SweepPoint) -> str:
    return next(word for word in point.setting if word.startswith("pooling="))


def notes(done: Called) -> list[str]:
    assert done.code == 0, done.err
    return done.err.splitlines()


def test_a_run_starts_from_all_weights_of_another_and_leaves_a_frozen_backbone_as_it_is(
    sppnet: Caller, trained: Called
) -> None:
    """To the bit, also with averaged weights and in bfloat16, and whichever way the weights are named."""
    best = trained.run / "checkpoints/best.ckpt"
    tuned = sppnet("train", *FIXRES, f"init={trained.run}", "optim.ema=0.9", "trainer.precision=bf16-mixed")
    assert not notes(tuned)  # everything fits
    for name in ("best", "last"):
        assert not differing(best, tuned.run / f"checkpoints/{name}.ckpt")
    assert not same_weights(best, tuned.run / "checkpoints/best.ckpt")  # the head has been trained

    shutil.copytree(trained.run, "elsewhere/renamed")
    shutil.copy(best, "copy.ckpt")
    plans = [
        plan_run(compose_config([*FIXRES, f"init={init}"])).run.hash
        for init in (trained.run, best, "elsewhere/renamed", "copy.ckpt", trained.run / "checkpoints/last.ckpt")
    ]
    assert len(set(plans[:3])) == 1  # a run is known by its hash, a file by its content
    assert len(set(plans)) == 3
    hash_before = plans[0]
    shutil.rmtree(trained.run)
    assert plan_run(compose_config([*FIXRES, f"init={trained.run}"])).run.hash == hash_before


def test_frozen_modules_keep_weights_and_statistics_and_the_others_do_not(sppnet: Caller, trained: Called) -> None:
    best = trained.run / "checkpoints/best.ckpt"
    tuned = sppnet("train", *SMALL, f"init={trained.run}", "backbone.freeze=[conv1,conv3.0]")
    assert not notes(tuned)
    old, new = backbone_of(best), backbone_of(tuned.run / "checkpoints/last.ckpt")
    changed = {key.removeprefix("network.backbone.") for key in old if not torch.equal(old[key], new[key])}
    assert {name.rpartition(".")[0] for name in changed} == {"conv2.0", "conv2.1", "conv3.1", "conv4.0", "conv4.1"}


def test_statistics_are_estimated_anew_on_the_training_images_at_their_size(sppnet: Caller, trained: Called) -> None:
    tuned = sppnet("train", *FIXRES, f"init={trained.run}", "backbone.update_bn=true", "trainer.limit_train_batches=5")
    assert notes(tuned) == ["sppnet: backbone.update_bn: estimating the statistics of 4 layers on 5 batches"]
    cfg = compose_config([*FIXRES, "trainer.limit_train_batches=5"])
    network = build_network(cfg.backbone, cfg.pooling, cfg.head, 10, 32)
    state = {k.removeprefix("network."): v for k, v in weights(trained.run / "checkpoints/best.ckpt").items()}
    network.load_state_dict({key: value for key, value in state.items() if key in network.state_dict()})
    loader = iter(build_data(cfg, load_splits(cfg.data)).train_dataloader())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cfg.data.mean, cfg.data.std))
    images = [(next(loader)["image"].contiguous() / 255 - mean) / std for _ in range(5)]
    expected, ours = copy.deepcopy(network.backbone), copy.deepcopy(network.backbone)
    update_bn(images, expected)
    estimate_statistics(ours, batch_norms(ours), images)
    stored = backbone_of(tuned.run / "checkpoints/best.ckpt")
    for key, value in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
        torch.testing.assert_close(stored[f"network.backbone.{key}"], value, rtol=1e-5, atol=1e-6)
    moved = {key for key, value in expected.state_dict().items() if not torch.equal(value, state[f"backbone.{key}"])}
    assert {key.rpartition(".")[2] for key in moved} == {"running_mean", "running_var", "num_batches_tracked"}


def test_nothing_random_changes_the_statistics_and_training_goes_on_with_its_own(sppnet: Caller) -> None:
    trunk = timm_trunk("test_resnet", drop_path=0.9)
    images = [torch.rand(4, 3, 32, 32) for _ in range(2)]
    estimates = []
    for _ in range(2):
        estimate_statistics(trunk, batch_norms(trunk), images)
        estimates.append({key: value.clone() for key, value in trunk.state_dict().items()})
    assert all(torch.equal(value, estimates[1][key]) for key, value in estimates[0].items())
    runs = [sppnet("train", *SMALL, "backbone.update_bn=true", f"trainer.max_epochs={n}").run for n in (1, 2)]
    stored = [backbone_of(run / "checkpoints/last.ckpt") for run in runs]
    key = "network.backbone.conv1.1.running_mean"
    assert not torch.equal(stored[0][key], stored[1][key])


def test_what_does_not_fit_is_listed_and_what_means_something_else_is_said(sppnet: Caller, trained: Called) -> None:
    words = ("trainer.max_epochs=1", f"init={trained.run}", "pyramid.bins=[3,1]", "data.mean=[0.5,0.5,0.5]")
    first, second, third = notes(sppnet("train", *SMALL, *words, "data.split.seed=7"))
    assert third.endswith("was trained with data.split={seed: 0}, not {seed: 7}, so perhaps on test images of this run")
    assert "27 of 28 tensors are taken over; these keep their initial values: head.fc1.linear.weight (8, 80)," in first
    assert "not (8, 40)" in first
    assert second.endswith("was trained with data.mean=[0.138, 0.138, 0.138], not [0.5, 0.5, 0.5]; pooling.bins=[2, 1],"
                           " not [3, 1]")  # fmt: skip


def test_the_last_layer_of_other_classes_is_not_taken_over(sppnet: Caller, trained: Called) -> None:
    """Ten other classes have a layer of the same shape, whose rows would belong to the wrong classes."""
    path = trained.run / "checkpoints/best.ckpt"
    content = torch.load(path, weights_only=True)
    content["sppnet"]["classes"] = [*content["sppnet"]["classes"][1:], "ten"]
    content["sppnet"]["fingerprint"] = "another"
    torch.save(content, "other.ckpt")
    line, other = notes(sppnet("train", *SMALL, "trainer.max_epochs=1", "init=other.ckpt", "backbone.freeze=true"))
    assert other.endswith("other images; make sure that no test images of this run were among them")
    assert "26 of 28 tensors are taken over" in line
    assert "head.classifier.bias (other classes), head.classifier.weight (other classes)" in line


def test_no_layer_of_an_own_head_is_taken_over_if_the_classes_differ(
    sppnet: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of its layers has the classes cannot be known: here, it is the one that is registered first."""
    Path("early.py").write_text(
        "from torch import nn\n\n\nclass Early(nn.Module):\n"
        "    def __init__(self, in_features, num_classes):\n        super().__init__()\n"
        "        self.classifier, self.hidden = nn.Linear(8, num_classes), nn.Linear(in_features, 8)\n\n"
        "    def forward(self, x):\n        return self.classifier(self.hidden(x))\n"
    )
    monkeypatch.syspath_prepend(".")
    small = [word for word in SMALL if not word.startswith("head.")]
    words = ("allow=early", "head=class", "head._target_=early.Early", *small, "trainer.max_epochs=1")
    base = sppnet("train", *words)
    assert base.code == 0, base.err
    content = torch.load(base.run / "checkpoints/best.ckpt", weights_only=True)
    content["sppnet"]["classes"] = [*content["sppnet"]["classes"][1:], "ten"]
    torch.save(content, "other.ckpt")
    [line] = notes(sppnet("train", *words, "init=other.ckpt"))
    for layer in ("classifier", "hidden"):
        assert f"head.{layer}.bias (other classes), head.{layer}.weight (other classes)" in line


def _damaged(run: Path) -> tuple[str, str]:
    flip(run / "checkpoints/best.ckpt")
    return str(run), "does not match its checksum"


def _unfinished(run: Path) -> tuple[str, str]:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "preempted"}))
    return str(run), "is not done (status: preempted)"


def _of_another_width(run: Path) -> tuple[str, str]:
    return f"{run} backbone.width=8", "has another architecture: no parameter of its backbone (tiny)"


def _state_dict(run: Path) -> tuple[str, str]:
    torch.save(weights(run / "checkpoints/best.ckpt"), "plain.pth")
    return "plain.pth", "is not an sppnet checkpoint"


def _not_finite(run: Path) -> tuple[str, str]:
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    content["state_dict"]["network.backbone.conv1.0.weight"].fill_(torch.inf)
    torch.save(content, "infinite.ckpt")
    return "infinite.ckpt", "holds values that are not finite: backbone.conv1.0.weight"


REFUSED: dict[str, Callable[[Path], tuple[str, str]]] = {
    "damaged": _damaged,
    "unfinished": _unfinished,
    "another architecture": _of_another_width,
    "state dict": _state_dict,
    "not finite": _not_finite,
    "missing": lambda _: ("runs/nothing", "no such file or directory; give a run directory or a checkpoint file"),
    "no run": lambda _: (".", "is not an sppnet run"),
    "with weights": lambda run: (f"{run} backbone.weights=x.pth", "are not allowed together"),
    "frozen name": lambda run: (f"{run} backbone.freeze=[conv1,convv2]", "no module 'convv2' with parameters; did you"),
    "no study": lambda _: (
        "study:none",
        "there is no study 'none' in runs that was started as a sweep; existing studies: none",
    ),
    "bfloat16 statistics": lambda run: (f"{run} backbone.update_bn=true trainer.precision=bf16-true", "bf16-mixed"),
    "best weights so far": lambda run: (f"{_unfinished(run)[0]}/checkpoints/best.ckpt", "is not done (status: pree"),
    "single images": lambda run: (f"{run} backbone.update_bn=true data.batch_size=1", "at least two images"),
    "no batch norm": lambda _: ("null backbone=zf5 backbone.update_bn=true sizes.train=[96]", "no batch normalisation"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_started_from_is_refused_in_one_line(
    sppnet: Caller, trained: Called, make: Callable[[Path], tuple[str, str]]
) -> None:
    value, problem = make(trained.run)
    small = [word for word in SMALL if not (word.startswith("backbone.") and "backbone=" in value)]
    done = sppnet("train", *small, *f"init={value}".split(), "study=new")
    assert (done.code, done.out) == (2, "")
    [line] = done.err.splitlines()
    assert problem in line
    assert not Path("runs/new").exists()


def test_freezing_everything_is_refused(sppnet: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fixed.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Fixed(nn.Module):\n"
        "    def forward(self, x):\n        return x[:, :10]\n"
    )
    monkeypatch.syspath_prepend(".")
    words = ("allow=fixed", "head=class", "head._target_=fixed.Fixed", "backbone.freeze=true")
    small = [word for word in SMALL if not word.startswith("head.")]
    done = sppnet("train", *small, *words)
    assert done.code == 2
    assert "backbone.freeze=true leaves nothing to train: neither pooling nor head has parameters" in done.err


def test_a_study_starts_from_the_run_of_the_same_row_and_seed(study: Caller, tmp_path: Path) -> None:
    points = load_points(Path("runs/mine"))
    assert len(points) == 6
    shared = (*FIXRES, "init=study:mine")
    for point in points:
        words = [*shared, pooling(point), f"seed={point.seed}"]
        cfg = with_init(compose_config(words), "", words, shared)
        assert cfg.init == f"runs/mine/{point.run}"
        assert plan_run(cfg).run.hash != point.run.rsplit("-", 1)[1]
    for words, problem in (
        (["seed=0"], "has no run of this setting with seed 0; its runs differ in pooling"),
        (["seed=7", "pooling=gap"], "has no run of pooling=gap with seed 7"),
        (
            ["init=study:yours", "seed=0"],
            "there is no study 'yours' in runs that was started as a sweep; existing studies: mine",
        ),
    ):
        done = study("train", *FIXRES, "init=study:mine", *words)
        assert done.code == 2
        assert problem in done.err
    # a second sweep with another setting of the training: which of the two is meant cannot be known
    content = json.loads(Path("runs/mine/study.json").read_text())
    content["cells"] += [{**cell, "words": [*cell["words"], "optim.lr=1"], "run": f"{cell['run'][:-1]}_"}
                         for cell in content["cells"]]  # fmt: skip
    Path("runs/mine/study.json").write_text(json.dumps(content))
    done = study("train", *FIXRES, "init=study:mine", "pooling=gap", "seed=1")
    assert done.code == 2
    assert "has 2 runs of pooling=gap with seed 1; runs/mine/" in done.err


def test_rows_of_a_study_are_found_by_their_names(study: Caller, tmp_path: Path) -> None:
    """The rows of the two studies may set different keys."""
    content = json.loads(Path("runs/mine/study.json").read_text())
    for cell in content["cells"]:
        cell["row"] = "pyramid" if "pooling=spp" in cell["words"] else "mean"
    Path("runs/mine/study.json").write_text(json.dumps(content))
    for point in load_points(Path("runs/mine")):
        words = [*FIXRES, "init=study:mine", f"seed={point.seed}"]
        assert with_init(compose_config(words), point.row, words, words[:-1]).init == f"runs/mine/{point.run}"
    with pytest.raises(UserError, match="study mine has no row max; its rows are mean, pyramid"):
        with_init(compose_config([*FIXRES, "init=study:mine"]), "max", [], [])


def test_jobs_of_a_file_in_the_studys_own_folder_do_not_start_from_each_other(
    study: Caller, request: pytest.FixtureRequest
) -> None:
    """Else the same command would name other runs each time."""
    content = json.loads(Path("runs/mine/study.json").read_text())
    tuned = [{**cell, "experiments": "tuned", "run": f"{cell['run'][:-1]}_"} for cell in content["cells"]]
    Path("runs/mine/study.json").write_text(json.dumps({"cells": content["cells"] + tuned}))
    words = [*FIXRES, "study=mine", "init=study:mine", "pooling=gap", "seed=2"]
    of_file = [word for word in words if not word.startswith("init=")]
    folder = own_experiments(request)
    (folder / "tuned.yaml").write_text("# @package _global_\ninit: study:mine\n")
    init = with_init(compose_config(words), "", [*of_file, "experiments=tuned"], words).init
    assert init in {f"runs/mine/{cell['run']}" for cell in content["cells"]}
    with pytest.raises(UserError, match="study mine has 2 runs of pooling=gap with seed 2"):
        with_init(compose_config(words), "", words, words)
    Path("runs/mine/study.json").write_text(json.dumps({"cells": tuned}))
    with pytest.raises(UserError, match="all runs of study mine start from it"):
        with_init(compose_config(words), "", [*words, "experiments=tuned"], words)
    for other in ("null", "study:other"):  # what the file starts is then no job of this kind
        (folder / "tuned.yaml").write_text(f"# @package _global_\ninit: {other}\n")
        init = with_init(compose_config(words), "", [*words, "experiments=tuned"], words).init
        assert init in {f"runs/mine/{cell['run']}" for cell in tuned}


def own_experiments(request: pytest.FixtureRequest) -> Path:
    """An empty folder for files of studies, as with `--config-dir own`."""
    folder = Path("own/experiments")
    folder.mkdir(parents=True)
    option_files.use_config_dir(["--config-dir", "own"])
    request.addfinalizer(lambda: option_files.use_config_dir([]))
    return folder


def test_a_study_is_its_folder_and_without_one_its_file(study: Caller, request: pytest.FixtureRequest) -> None:
    """A variant in another folder does not count, and one file may hold a study and the jobs that start from it."""
    (own_experiments(request) / "both.yaml").write_text("# @package _global_\ninit: null\n")
    mine = Path("runs/mine/study.json")
    cells = json.loads(mine.read_text())["cells"]
    cells = [{**cell, "experiments": "both"} for cell in cells]
    mine.write_text(json.dumps({"cells": cells}))
    shutil.copytree("runs/mine", "runs/variant")
    for name, folder in (("mine", "mine"), ("variant", "variant")):
        words = [*FIXRES, f"init=study:{name}", "study=tuned", "pooling=gap", "seed=2"]
        init = with_init(compose_config(words), "", [*words, "experiments=both"], words).init
        assert init is not None
        assert Path(init).parent == Path("runs") / folder
    words[-4:-2] = ["init=study:both", "study=tuned"]
    with pytest.raises(UserError, match="study both has 2 runs of pooling=gap with seed 2"):
        with_init(compose_config(words), "", words, words)
    words[-4:-2] = ["init=study:mine", "study=mine"]  # typed, and in the study's own folder
    assert str(with_init(compose_config(words), "", [*words, "experiments=both"], words).init).startswith("runs/mine/")
    shutil.rmtree("runs/variant")
    Path("runs/both").mkdir()
    words[-4:-2] = ["init=study:both", "study=tuned"]
    own = [{**cell, "words": [*cell["words"], "init=study:both"]} for cell in cells]
    Path("runs/both/study.json").write_text(json.dumps({"cells": own}))  # the jobs themselves, at the second start
    assert str(with_init(compose_config(words), "", words, words).init).startswith("runs/mine/")
    own = [{**cell, "words": [*cell["words"], "init=study:mine"]} for cell in cells]
    mine.write_text(json.dumps({"cells": own}))
    with pytest.raises(UserError, match="all runs of study mine start from it"):
        with_init(compose_config([*FIXRES, "init=study:mine"]), "", [], [])


def test_runs_that_start_from_several_seeds_are_kept_apart_and_outlive_what_they_started_from(study: Caller) -> None:
    bases = [f"runs/mine/{point.run}" for point in load_points(Path("runs/mine")) if pooling(point) == "pooling=gap"]
    words = (*FIXRES, "pooling=gap", "study=tuned", *LIMITS)
    runs = [study("train", *words, f"init={base}") for base in bases[:2]]
    assert [done.code for done in runs] == [0, 0], runs[1].err
    table = study("report", "study=tuned")
    assert table.code == 0, table.err
    with Path("runs/tuned/report/tuned_runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["hash"] for row in rows} == {done.run.name.rsplit("-")[-1] for done in runs}
    assert len({row["setting"] for row in rows}) == 2

    of_seed = records(runs[0].run), json.loads((runs[0].run / "provenance.json").read_text())["starts"]
    for base in bases:
        shutil.rmtree(base)
    sweep = study("train", "-m", *words, f"init={bases[0]}", "sizes.test=[28]")
    assert sweep.code == 0, sweep.out
    status = runs[0].run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))
    resumed = study("train", *words, f"init={bases[0]}")
    assert resumed.code == 0, resumed.err
    assert "resumes from its last checkpoint" in resumed.out
    starts = json.loads((runs[0].run / "provenance.json").read_text())["starts"]
    assert [start["init"] for start in starts] == [of_seed[1][0]["init"]] * 2  # or reports would change
    refused = study("train", *words, f"init={bases[0]}", "force=true")
    assert (refused.code, "no such file or directory" in refused.err) == (2, True)
    assert records(runs[0].run)[: len(of_seed[0])] == of_seed[0]

    queued = Path(bases[0])  # by a scheduler
    queued.mkdir()
    (queued / "status.json").write_text(json.dumps({"state": "queued"}))
    refused = study("train", *words, f"init={queued}", "seed=5")
    assert (refused.code, "(status: queued)" in refused.err) == (2, True)


def test_jobs_of_one_setting_that_start_from_unlike_runs_are_said_and_repeats_keep_their_log(study: Caller) -> None:
    file = Path("runs/mine/study.json")
    cells = json.loads(file.read_text())["cells"]
    cells = [cell for cell in cells if "pooling=gap" in cell["words"] and "seed=1" not in cell["words"]]
    file.write_text(json.dumps({"cells": cells}))
    words = (*FIXRES, "pooling=gap", *LIMITS)
    assert study("train", "-m", *OF_A_STUDY, "pooling=gap", "optim.lr=0.5", "seed=1").code == 0  # unlike the others
    swept = study("train", "-m", *words, "study=tuned", "init=study:mine", "data.mean=[0.5,0.5,0.5]", "seed=0,1")
    assert swept.code == 0, swept.out
    assert "jobs that differ only in their seeds start from unlike runs: runs/mine/" in swept.err
    log = next(Path("runs/tuned").glob("*/log.txt"))
    notices = [line for line in log.read_text().splitlines() if line.startswith("sppnet: ")]
    assert any("was trained with data.mean" in line for line in notices)
    assert study("train", "-m", *words, "study=tuned", "init=study:mine", "data.mean=[0.5,0.5,0.5]",
                 "seed=0,1", "force=true").code == 0  # fmt: skip
    assert [line for line in log.read_text().splitlines() if line.startswith("sppnet: ")] == notices


def test_a_file_that_changes_while_it_is_read_starts_no_run(
    sppnet: Caller, trained: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run would have the hash of other weights."""
    shutil.copy(trained.run / "checkpoints/last.ckpt", "x.ckpt")
    Path("runs/default").rename("base")

    def replaced_before(*args: Any) -> list[str]:
        shutil.copy(Path("base") / trained.run.name / "checkpoints/best.ckpt", "x.ckpt")
        os.utime("x.ckpt", (1, 1))
        return load_init(*args)

    monkeypatch.setattr("sppnet.training.trainer.load_init", replaced_before)
    done = sppnet("train", *FIXRES, "init=x.ckpt")
    assert done.code == 2
    assert "init=x.ckpt has changed while it was read" in done.err
    assert not list(Path("runs").glob("default/*"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["batch 1", "batch 3", "validation of 0", "test"])
def test_a_run_that_starts_from_another_is_resumed_exactly(
    sppnet: Caller, trained: Called, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """With new statistics, which a resumed run must not estimate again, and with averaged weights."""
    monkeypatch.syspath_prepend(TESTS)
    kept = shutil.copytree(trained.run, "base")
    words = ("train", *FIXRES, *PLUG, f"init={kept}", "backbone.update_bn=true", "optim.ema=0.9",
             "checkpointing.every_n_steps=1")  # fmt: skip
    unbroken = sppnet(*words, "paths.runs=unbroken")
    assert unbroken.code == 0, unbroken.err
    with monkeypatch.context() as context:
        context.setenv("STOP_AT", moment)
        assert sppnet(*words).code == 1
    resumed = sppnet(*words)
    assert resumed.code == 0, resumed.err
    assert ("estimating" in resumed.err) == (moment == "batch 1" and "resumes" not in resumed.out)
    for name in ("best", "last"):
        assert same_weights(resumed.run / f"checkpoints/{name}.ckpt", unbroken.run / f"checkpoints/{name}.ckpt")
    assert records(resumed.run) == records(unbroken.run)


@pytest.mark.slow
def test_a_study_that_starts_from_another_is_killed_and_resumed(study: Caller, tmp_path: Path) -> None:
    """FixRes over a study: its table has a row for each pooling, with all seeds."""
    sweep = ("train", "-m", *FIXRES, "study=tuned", "init=study:mine", "pooling=spp,gap", "seed=0,1",
             "launch=processes", "checkpointing.every_n_steps=1", "data.mean=[0.5,0.5,0.5]")  # fmt: skip
    process = subprocess.Popen(command(*sweep), cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(Path("runs/tuned").glob("*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command(*sweep), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in Path("runs/tuned").glob("*/log.txt"):
        assert "was trained with data.mean=[0.138, 0.138, 0.138], not [0.5, 0.5, 0.5]" in path.read_text()
    assert "was trained with data.mean=" in done.stdout
    base = {(pooling(point), point.seed): point.run for point in load_points(Path("runs/mine"))}
    for point in load_points(Path("runs/tuned")):
        run = Path("runs/tuned") / point.run
        start = base[pooling(point), point.seed]
        assert not differing(Path("runs/mine") / start / "checkpoints/best.ckpt", run / "checkpoints/best.ckpt")
    report = study("report", "study=tuned")
    rows = [line.split()[:3] for line in report.out.splitlines() if line.split()[:1] in (["spp"], ["gap"])]
    assert rows == [["spp", "†", "2"], ["gap", "†", "2"]]
    again = subprocess.run(command(*sweep), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.stdout.count("(already done)") == 4
