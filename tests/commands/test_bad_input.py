"""A user's mistake ends in one line (what is wrong, what is allowed) and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from calling import SMALL, Called, Caller, command, limits
from sppnet.config.compose import compose_config
from sppnet.errors import UserError
from tiers import some_quick


def assert_one_line(called: Called, *words: str) -> None:
    assert called.code == 2, called.err or called.out
    lines = called.err.strip().splitlines()
    assert len(lines) == 1, called.err
    assert lines[0].startswith("sppnet")
    for word in words:
        assert word in lines[0], lines[0]


NAMES_AND_VALUES = [
    (["fly"], ["unknown command 'fly'", "train"]),
    (["train", "--fly"], ["--fly", "KEY=VALUE"]),
    (["train", "fly=1"], ["fly", "backbone", "trainer"]),
    (["train", "trainer.threads=1"], ["trainer.threads", "now called compute.num_threads"]),
    (["train", "head=gap"], ["head=gap is now called pooling=gap"]),
    (["train", "trainer.epochs=1"], ["trainer.epochs", "trainer.max_epochs"]),
    (["train", "+trainer.fly=1"], ["trainer.fly", "max_epochs"]),
    (["train", "backbone=fly"], ["backbone/fly", "zf5"]),
    (["train", "experiments=fly"], ["experiments/fly"]),
    (["train", "seed=[1"], ["[1"]),
    (["train", "sizes.train=[024]"], ["sizes.train=[024] is not allowed", "without leading zeros"]),
    (["train", "paths.runs=~nobody.of.this.name/x"], ["no home directory ~nobody.of.this.name"]),
    (["train", "-m", "sizes.test=${.val}", "seed=-1,-2"], ["seed=-1 is not allowed"]),
    (["train", "seed=-1"], ["seed=-1", "at least 0"]),
    (["train", "hydra.sweeper.only=[x]"], ["hydra.sweeper.only=[x] has no effect without -m"]),
    (["train", "-m", "hydra.sweeper.only=[x]"], ["hydra.sweeper.only=x is not allowed: there are no rows"]),
    (["train", "hydra.searchpath=[x]"], ["--config-dir DIR"]),
    (["train", "--config-dir", "fly"], ["--config-dir", "no such folder"]),
    (["status", "launch=slurm"], ["launch=slurm is not allowed: sppnet status runs on this machine"]),
    (["train", "seed=010"], ["seed=010 is not allowed", "at least 0, without leading zeros"]),
    (["train", "study=${x}"], ["study: Interpolation key 'x' not found"]),
    (["train", "seed=${oc.env:NOT_SET}"], ["train: seed: Environment variable 'NOT_SET' not found"]),
    (
        ["train", "sizes.test=${.val}", "seed=-1"],
        ["seed=-1 is not allowed"],
    ),  # not the reference
    (["train", "data.root=new\nline"], [r"'data.root=new\nline' contains a line break"]),
    (["train", "data.root=caf\udce9"], [r"b'data.root=caf\xe9' is not valid UTF-8"]),
    (["train", "launch=slurm", "+hydra.launcher.node=2"], ["unknown key hydra.launcher.node", "partition", "options"]),
    (["train", "-m", "launch=processes", "hydra.launcher.n=two"], ["hydra.launcher.n=two is not allowed", "Integer"]),
    (["train", "study=a/b"], ["study=a/b", "letters"]),
    (["train", "trainer.max_epochs=ten"], ["trainer.max_epochs=ten", "must be an integer of at least 1"]),
    (["train", "trainer.precision=8"], ["trainer.precision=8", "bf16-mixed"]),
    (
        ["train", "pooling.bins=[]"],
        ["pooling.bins=[]", "must be a non-empty list, each item an integer from 1 to 1024"],
    ),
    (["train", "pooling.bins=[0]"], ["pooling.bins=[0]", "from 1 to 1024"]),
    (["train", "pooling.bins=[2.5]"], ["pooling.bins=[2.5]", "each item an integer"]),
    (["train", "pooling.bins=[1000000]"], ["pooling.bins=[1000000]", "from 1 to 1024"]),
    (["train", "optim.lr=-1"], ["optim.lr=-1", "must be a number greater than 0"]),
    (["train", "sizes.train=[]"], ["sizes.train=[]"]),
    (["train", "sizes.test=[32,32]"], ["sizes.test", "32"]),
    (["train", "data.fit=stretch"], ["data.fit=stretch", "crop", "full"]),
    (["train", "data.split.val=0.6", "data.split.test=0.5"], ["data.split.val"]),
    (["train", "backbone=torchvision"], ["backbone.name must be given"]),
    (["train", "backbone=timm"], ["backbone.name must be given"]),
    (["train", "backbone=timm", "backbone.name=resnet18", "backbone.drop_pth=0"], ["did you mean backbone.drop_path?"]),
    (["train", "sizes=uniform", "sizes.train=[16]"], ["sizes.train=[16] is not allowed", "its second size; give two"]),
    (["train", "optim.lr='0.1'"], ["optim.lr='0.1' is a quoted string", "a number greater than 0, without quotes"]),
    (["train", "force='true'"], ["force='true' is a quoted string", "true or false"]),
    (["train", "sizes.train='[24]'"], ["sizes.train='[24]' is a quoted string", "list, each item an integer"]),
    (["train", "optim.lr=fast"], ["optim.lr=fast is not allowed"]),
    (["train", "callbacks.stop.monitor=val/loss"], ["callbacks.stop", "+callbacks.stop._target_=CLASS"]),
    (["train", "metrics.f._target_=torchmetrics.F1Score"], ["metrics.f", "a new metric: +metrics.f._target_=CLASS"]),
    (["train", "+head._target_=torch.nn.Linear"], ["head._target_=torch.nn.Linear and head=mlp", "choose head=class"]),
    (["train", "pooling=gap", "+pooling._target_=torch.nn.Flatten"], ["pooling=gap are not allowed together"]),
    (["train", "loss=class"], ["loss._target_ must be given"]),
    (["models", "pooling=gem"], ["pooling cannot be chosen here: sppnet models has no such group"]),
    (["train", "optim.betas=[0.5,0.9]"], ["optim.betas", "+optim.betas=VALUE"]),
    (["train", "=5"], ["=5 is not of the form KEY=VALUE"]),
    (["train", "hydra=5"], ["Hydra cannot read the command line", "Got int"]),
    (["train", "-m", "seed=range(1,5,0)"], ["Hydra cannot read the command line", "must not be zero"]),
    (["train", "zf5"], ["zf5 is not of the form KEY=VALUE", "did you mean backbone=zf5?"]),
    (["predict", "FOLDER"], ["FOLDER is not of the form KEY=VALUE", "did you mean input=FOLDER?"]),
    (["predict", "runs/best.ckpt"], ["did you mean checkpoint=runs/best.ckpt?"]),
    (["test", "RUN"], ["did you mean checkpoint=RUN?"]),
    (["status", "heads"], ["did you mean experiments=heads?"]),
    (["report", "mine"], ["did you mean study=mine?"]),
    (["bench", "layer"], ["did you mean only=[layer]?"]),
    (["train", "allow=[a, b]", "optim._target_=c.D"], ["c.D is not allowed", "a.*, b.*"]),
    (["train", "allow=[a"], ["allow=[a is not allowed", "allow=mine"]),
    (["train", "allow="], ["allow= is not allowed"]),
    (["train", "data.name=null"], ["data.name=null", "letters"]),
    (["train", "data.name=a/b"], ["data.name=a/b", "letters"]),
    (["train", "data=folder", "data.root=2024_05"], ["2024_05 does not exist"]),
    (["train", "experiments=2024_05"], ["experiments/2024_05"]),
    (["train", "data.crop=5"], ["data.crop=5", "mapping"]),
    (["train", "data.split=null"], ["data.split=null", "mapping"]),
    (["train", "data.split=5"], ["data.split=5", "mapping"]),
    (["train", "callbacks=5"], ["callbacks=5", "mapping"]),
    (["train", "+logger.wandb=5"], ["logger.wandb=5", "mapping"]),
    (["train", "+logger.wandb={}"], ["logger.wandb.project is missing"]),
    (["train", "+logger.tensorboard=1"], ["logger.tensorboard=1", "mapping"]),
    (["train", "+logger.csv={}"], ["unknown key logger.csv", "tensorboard, wandb"]),
    (["train", "logger=wandb", "logger.wandb.tags=5"], ["logger.wandb.tags=5", "a list, each item a non-empty string"]),
    (["train", "sizes=null"], ["sizes=null", "alternating"]),
    (["train", "optim=null"], ["optim=null", "adamw"]),
    (["train", "pyramid=[4,2,1]"], ["pyramid=[4,2,1]", "l3_4_2_1"]),
    (["train", "-m", "pyramid=[l1_1,l1_2]"], ["pyramid=[l1_1,l1_2] is not allowed", "without brackets"]),
    (["train", "data/crop={name: paper}"], ["must be one of paper,", "data.crop={...} sets keys of the chosen option"]),
    (["train", "experiments=heads.yaml"], ["experiments=heads.yaml is not allowed: leave out .yaml"]),
    (["train", "-m", "pyramid=glob(zz*)"], ["the sweep has no jobs"]),
    (["train", "-m", "launch=local,processes"], ["launch=local, launch=processes: a sweep has one launcher"]),
    (["train", "trainer.max_epochs=99999999999"], ["trainer.max_epochs=99999999999", "must be at most 2147483647"]),
    (["train", "optim.lr=1e300"], ["optim.lr=1e+300", "must be less than 1e+300"]),
    (["train", "trainer.min_epochs=13"], ["trainer.min_epochs=13", "from 0 to trainer.max_epochs=12"]),
    (["train", "trainer.min_steps=-1"], ["trainer.min_steps=-1", "at least 0"]),
    (["train", "launch=slurm", "+hydra.launcher.options.array=0-5"], ["hydra.launcher.options={array: 0-5}", "output"]),
    (["train", "data.root=photos"], ["data.root", "it exists with data=folder"]),
    (["train", "mix=both", "mix.alpha=1"], ["mix.alpha with mix.name=both", "it exists with mix=cutmix"]),
    (["train", "-m", "mix=both,mixup", "mix.alpha=1"], ["mix.alpha", "it exists with mix=cutmix"]),
    (["train", "seed=x(1)"], ["seed=x(1)", "quote values"]),
    (["train", "-cn", "base"], ["--config-name"]),
    (["train", "data=folder", "data.root=~/no/such(1)"], ["~/no/such(1) does not exist"]),
    (["test", "checkpoint=no/such(1)"], ["checkpoint=no/such(1): no such file"]),
    (["test", "checkpoint='no=such'"], ["checkpoint=no=such: no such file"]),
    (["test", "checkpoint="], ["checkpoint= is empty"]),
    (["train", "backbone=true"], ["backbone/true", "zf5"]),
    (["train", "sizes=single", "sizes.train=[48,40]"], ["sizes.train=[48, 40]", "one size"]),
    (["train", "optim.lr=1e400"], ["optim.lr=inf", "greater than 0"]),
    (["train", "seed=1", "--info", "fly"], ["--info", "invalid choice"]),
    (["train", "views=fly"], ["available options are center, full, multi, multi_full, ten, ten_crops, warp"]),
    (["train", "backbone.weights=no/such.pth"], ["backbone.weights=no/such.pth", "no such file"]),
    (["train", "backbone._target_=os.system"], ["os.system", "sppnet.*", "SPPNET_ALLOW"]),
    (["train", "optim._target_=torch.load"], ["torch.load", "not allowed"]),
    (["train", "+callbacks.x._target_=subprocess.run"], ["subprocess.run", "not allowed"]),
    (["train", "+callbacks.x=1"], ["callbacks.x=1", "mapping"]),
    (["train", "data=folder", "data.root=no/such"], ["no/such"]),
    (["test"], ["checkpoint"]),
    (["test", "checkpoint=no/such"], ["no/such", "no such file or directory"]),
    (["train", "-m", "seed=-1,-2"], ["seed=-1", "at least 0"]),
    (["train", "experiments=multi_size"], ["experiments=multi_size is a sweep", "-m", "hydra.sweeper.only=[single]"]),
    (["train", "experiments=depth"], ["experiments=depth is a sweep", "-m"]),
    (["train", "-m", "experiments=multi_size", "hydra.sweeper.only=fly"], ["only=fly", "single, alternating, uniform"]),
    (["train", "-m", "experiments=multi_size", "hydra.sweeper.only=[fly]"], ["only=fly", "single, alternating"]),
]


CLOSED = (
    *("loss", "paths", "pooling", "head", "views", "trainer", "logger", "debug", "augment", "compute", "checkpointing"),
    *("data.split", "data.crop", "optim.schedule"),
)
NAMES_AND_VALUES += [
    (["train", f"~{key}"], [f"{key} is missing"])
    for key in (
        "data.crop",
        "data.split",
        "augment.flip",
        "data.mean",
        "optim.schedule",
        "trainer.devices",
        "loss",
        "seed",
    )
]
NAMES_AND_VALUES += [(["train", f"+{section}.foo=1"], [f"unknown key {section}.foo"]) for section in CLOSED]
NAMES_AND_VALUES += [(["train", f"+{key}=1"], ["unknown key", "the top level has"]) for key in ("foo", "x.y")]


@pytest.mark.parametrize(("words", "parts"), some_quick(NAMES_AND_VALUES, 4), ids=lambda v: " ".join(v))
def test_a_wrong_name_or_value(sppnet: Caller, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    assert_one_line(sppnet(*words), *parts)
    assert not list(tmp_path.iterdir())


# What is wrong in a study's file, after the line `# @package _global_`.
FILES = {
    "study: a: b": "mapping values are not allowed here in",
    "study: !foo x": "could not determine a constructor",
    "study: \xe9": "experiments/mine.yaml: 'utf-8' codec can't decode",
    "defaults: [mine]": "name each other in their defaults",
    "trainer.max_epochs: 1": "keys are nested, as in trainer: {max_epochs: 3}",
    "backbone: {_target_: mine.Net, extra: !!binary aGVsbG8=}": "backbone.extra is not allowed: must be text",
    "sweep: {a: {sett: [seed=1]}}": "hydra.sweeper.rows.a must be a mapping with overrides",
    "sweep: {a: [seed=1]}": "hydra.sweeper.rows.a must be a mapping with overrides",
    "sweep: {a: {set: [3]}}": "hydra.sweeper.rows.a must be a mapping with overrides",
    "sweep: {a: {set: seed=1}}": "hydra.sweeper.rows.a must be a mapping with overrides",
}


@pytest.mark.parametrize("text", some_quick(FILES))
def test_a_mistake_in_a_studys_file(sppnet: Caller, tmp_path: Path, text: str) -> None:
    (tmp_path / "conf/experiments").mkdir(parents=True)
    content = re.sub("sweep: (.*)", r"hydra: {sweeper: {rows: \1}}", text)
    (tmp_path / "conf/experiments/mine.yaml").write_bytes(f"# @package _global_\n{content}\n".encode("latin-1"))
    for name in ("status",) if text.startswith("sweep: ") else ("status", "train"):
        assert_one_line(sppnet(name, "--config-dir", "conf", "experiments=mine", "allow=mine"), FILES[text])
    assert not (tmp_path / "runs").exists()


def test_a_studys_file_begins_with_its_package(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "conf/experiments").mkdir(parents=True)
    (tmp_path / "conf/experiments/mine.yaml").write_text("seed: 1\n")
    assert_one_line(sppnet("train", "--config-dir", "conf", "experiments=mine"), "'# @package _global_'")


FIT = [
    (["views=ten", "views.scales=[256,257]"], ["[256, 257]", "55, 55 pixels", "sizes.test=48", "same side"]),
    (["backbone=zf5", "sizes=single", "sizes.train=[20]"], ["20", "the smallest size that works is"]),
    (["pooling.rule=sliding", "sizes=single", "sizes.train=[40]"], ["40", "10"]),
    (["backbone=torchvision", "backbone.name=vit_b_16"], ["vit_b_16", "every size", "224"]),
    (["backbone=torchvision", "backbone.name=resnet1"], ["resnet1"]),
    (["backbone=resnet18", "backbone.weights=FLY"], ["FLY"]),
    (["pooling.bins=[128]", "head.hidden=[1000000]"], ["GiB"]),
    (["optim._target_=torch.nn.Linear"], ["torch.nn.Linear", "Optimizer"]),
    (["pooling=flatten"], ["flatten", "sizes.train=[48, 40]"]),
    (["pooling=flatten", "sizes=single", "views=full"], ["flatten", "whole images"]),
    (["backbone.width=100000000"], ["backbone", "more memory than is available"]),
    (["+backbone.foo=1"], ["backbone", "foo"]),
    (["+data.foo=1"], ["data: sppnet.data.Digits refuses its arguments", "unexpected keyword argument 'foo'"]),
    (["+sizes.foo=1"], ["sizes", "foo"]),
    (["+optim.foo=1"], ["optim", "foo"]),
    (["+optim.betas=[0.9]"], ["optim", "torch.optim.AdamW refuses"]),
    (["+optim.fused=true", "+optim.foreach=true"], ["optim", "fused", "together"]),
    (["trainer.accelerator=cpu", "trainer.precision=16-mixed"], ["16-mixed", "bf16-mixed"]),
    (["trainer.accelerator=cpu", "trainer.devices=[0,1]"], ["trainer.devices=[0, 1]", "trainer.devices=2"]),
]


@pytest.mark.parametrize(("words", "parts"), some_quick(FIT), ids=lambda v: " ".join(v))
def test_what_does_not_fit_together(sppnet: Caller, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    assert_one_line(sppnet("train", *words), *parts)
    assert not list(tmp_path.iterdir())


def test_a_batch_of_one_on_which_batch_normalisation_cannot_train(sppnet: Caller, tmp_path: Path) -> None:
    """A frozen network keeps its batch statistics, so one image is enough."""
    words = ("train", *SMALL, "data.batch_size=1", *limits(2))
    small = ("sizes=single", "sizes.train=[4]")
    refused = sppnet(*words, *small)
    assert_one_line(refused, "data.batch_size=1:", "at size 4", "data.batch_size=2 or more", "sizes.train")
    assert not list(tmp_path.iterdir())
    assert sppnet(*words, *small, "backbone.freeze=true").code == 0
    assert sppnet(*words, "sizes.train=[5,8]").code == 0


STOPPING = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"
CALLBACKS = [
    ([STOPPING, "+callbacks.stop.monitor=a", "+callbacks.stop.mode=up"], ["EarlyStopping", "mode"]),
    (["+callbacks.x._target_=lightning.pytorch.callbacks.Timer", "+callbacks.x.duration=long"], ["Timer", "duration"]),
    ([STOPPING], ["EarlyStopping", "monitor"]),
    (
        [STOPPING, "+callbacks.stop.monitor=val_loss"],
        ["stop.monitor=val_loss is not allowed", "val/loss", "val/48/top1"],
    ),
    (
        [
            *(STOPPING, "+callbacks.stop.monitor=val/loss", "+callbacks.stop.check_on_train_epoch_end=true"),
            "trainer.check_val_every_n_epoch=2",
        ],
        ["stop.check_on_train_epoch_end=true is not allowed", "trainer.check_val_every_n_epoch=2"],
    ),
    ([STOPPING, "+callbacks.stop.monitor=step", "+callbacks.stop.strict=false"], ["stop.monitor=step is not allowed"]),
    (
        ["+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint", "+callbacks.x.monitor=train/loss"],
        ["x.monitor=train/loss is not allowed", "val/loss", "step"],
    ),
    (
        ["+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint", "+callbacks.x.save_last=true"],
        ["x.save_last=true would replace last.ckpt", "x.dirpath"],
    ),
    (
        [STOPPING, "+callbacks.stop.monitor=val/loss", "+callbacks.a=${callbacks.stop}"],
        ["callbacks.stop and callbacks.a have the same state_key", "'val/loss'"],
    ),
    (
        ["+callbacks.x={_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,scheduling:{0:2}}"],
        ["GradientAccumulationScheduler is not allowed", "use trainer.accumulate_grad_batches"],
    ),
    (
        ["allow=stop_at", "+callbacks.x._target_=stop_at.StatusFile"],
        ["the same state_key as one of sppnet's own callbacks, StatusFile; rename"],
    ),
]


@pytest.mark.parametrize(("words", "parts"), some_quick(CALLBACKS), ids=lambda v: " ".join(v))
def test_a_callback_that_refuses_its_arguments(
    sppnet: Caller, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    assert_one_line(sppnet("train", *words), "callbacks.", *parts)
    assert not list(tmp_path.iterdir())


def test_a_module_that_cannot_be_imported(sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half.py").write_text("class Half(\n")
    refused = sppnet("train", "allow=half", "augment.transforms=[{_target_: half.Half}]")
    assert_one_line(
        refused, "augment.transforms.0._target_=half.Half cannot be imported: SyntaxError", "half.py, line 1"
    )


def test_images_are_kept_only_at_a_shorter_side_and_only_where_a_change_would_be_seen(sppnet: Caller) -> None:
    assert_one_line(sppnet("train", *SMALL, "data.cache=true"), "data.cache=true", "data.short_side=256")
    assert_one_line(sppnet("train", *SMALL, "data.cache=true", "data.short_side=32"), "data.cache=true", "digits")


def test_several_nodes_that_nothing_starts(sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert_one_line(sppnet("train", "trainer.num_nodes=2"), "trainer.num_nodes=2", "launch=slurm")
    assert not list(tmp_path.iterdir())


LAUNCHERS = {
    "srun": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}, "SLURM_STEP_NUM_TASKS=4"),
    "torchrun": ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "0"}, "WORLD_SIZE=4"),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4"),
    "mpiexec": ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4"),
}


@pytest.mark.parametrize("starter", LAUNCHERS)
@pytest.mark.parametrize("words", [["train", *SMALL], ["train", "-m", *SMALL, "seed=0,1"], ["test", "checkpoint=x"]])
def test_several_processes_that_something_else_has_started(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starter: str, words: list[str]
) -> None:
    environment, variable = LAUNCHERS[starter]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert_one_line(sppnet(*words), variable, "started 4 processes", "trainer.devices=4", "launch=slurm")
    assert not list(tmp_path.iterdir())


def test_a_number_of_processes_in_the_environment_that_is_not_the_runs(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppnet.runs import ranks

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_one_line(sppnet("train", *SMALL), "WORLD_SIZE=2", "trainer.devices=1", "unset WORLD_SIZE")
    assert not list(tmp_path.iterdir())
    cfg = compose_config(["trainer.devices=2"])
    ranks.check_world_size(cfg)  # 2 processes, as WORLD_SIZE says
    for name, value in {"SPPNET_SUBMISSION": "x", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "5")
    ranks.check_world_size(cfg)  # in a job of ours, srun decides
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(UserError, match=r"SLURM_STEP_NUM_TASKS=3 .* require 2: let launch=slurm set"):
        ranks.check_world_size(cfg)


TRACEBACKS = {
    "experiment": ["experiments=mine", "seed=-1"],
    "file": ["debug=mine", "seed=-1"],
    "typed": ["debug.traceback=True", "seed=-1"],
    "not after all": ["debug=fast", "debug.traceback=false", "seed=-1"],
    "nor here": ["experiments=mine", "debug.traceback=false", "seed=-1"],
    "not at all": ["seed=-1"],
}


@pytest.mark.parametrize("words", TRACEBACKS.values(), ids=TRACEBACKS)
def test_a_traceback_is_shown_where_the_configuration_asks_for_it(
    sppnet: Caller, tmp_path: Path, words: list[str]
) -> None:
    for name, text in {"debug/mine": "traceback: true", "experiments/mine": "debug: {traceback: true}"}.items():
        path = tmp_path / f"conf/{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(f"# @package _global_\n{text}\n" if "exp" in name else f"{text}\n")
    done = sppnet("train", "--config-dir", "conf", *words)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("sppnet train: seed=-1 is not allowed")
    assert ("Traceback" in done.err) == (list(TRACEBACKS.values()).index(words) < 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_index_of_a_gpu_where_there_is_none(sppnet: Caller, tmp_path: Path) -> None:
    assert_one_line(sppnet("train", "trainer.devices=[0]"), "trainer.devices=[0]", "trainer.devices=1")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_where_there_is_none(sppnet: Caller, tmp_path: Path) -> None:
    assert_one_line(sppnet("train", "trainer.accelerator=gpu"), "trainer.accelerator=gpu", "no GPU", "cpu")
    assert not list(tmp_path.iterdir())


BROKEN_SHELLS = {
    "no output": ('exec "$@" >&-', "study"),
    "no working directory": ('mkdir gone; cd gone; rmdir ../gone; exec "$@"', "the working directory no longer exists"),
}


@pytest.mark.parametrize(("script", "message"), BROKEN_SHELLS.values(), ids=BROKEN_SHELLS)
def test_a_shell_without_output_or_working_directory(tmp_path: Path, script: str, message: str) -> None:
    words = ["sh", "-c", script, "sh", *command("status", "study=none")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert_one_line(Called(done.returncode, done.stdout, done.stderr), message)


def test_an_error_without_a_standard_error(tmp_path: Path) -> None:
    words = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command("test", "checkpoint=caf\udce9")]
    assert subprocess.run(words, cwd=tmp_path).returncode == 2


IMPORTED = """
import sys
from sppnet.cli import dispatch
sys.argv = ["sppnet", *sys.argv[1:]]
code = dispatch()
print(code, *(name in sys.modules for name in MODULES))
"""


def imported(tmp_path: Path, *words: str, modules: tuple[str, ...] = ("torch", "lightning")) -> str:
    """The exit code, and whether each of `modules` was imported."""
    code = IMPORTED.replace("MODULES", repr(modules))
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    some_quick(
        [
            ["seed=-1"],
            ["pooling.bins=[0]"],
            ["trainer.epochs=1"],
            ["sizes.train=[0]"],
            ["sizes.test=[32,32]"],
            ["+foo=1"],
        ]
    ),
)
def test_names_and_values_are_judged_before_torch_is_imported(tmp_path: Path, words: list[str]) -> None:
    assert imported(tmp_path, "train", *words) == "2 False False"


@pytest.mark.slow
def test_what_does_not_fit_is_judged_before_lightning_is_imported(tmp_path: Path) -> None:
    assert imported(tmp_path, "train", "backbone=zf5", "sizes=single", "sizes.train=[20]") == "2 True False"


def test_a_configuration_is_printed_without_numpy_or_torch(tmp_path: Path) -> None:
    assert imported(tmp_path, "train", "--cfg", "job", modules=("torch", "numpy")) == "0 False False"


def write_image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (color, 90, 200)).save(path)


def test_folders_that_are_not_a_data_set(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_one_line(sppnet("train", "data=folder", "data.root=empty"), "empty")
    (tmp_path / "no_images/cat").mkdir(parents=True)
    (tmp_path / "no_images/cat/notes.txt").write_text("nothing to see")
    assert_one_line(sppnet("train", "data=folder", "data.root=no_images"), "no_images")
    for name in "abcdef":
        write_image(tmp_path / f"one_class/cat/{name}.png")
        write_image(tmp_path / f"hole/cat/{name}.png")
        write_image(tmp_path / f"hole/dog/{name}.png")
    assert_one_line(sppnet("train", "data=folder", "data.root=one_class"), "one class", "cat")
    (tmp_path / "hole/bird").mkdir()
    assert_one_line(sppnet("train", "data=folder", "data.root=hole"), "bird")
    assert not (tmp_path / "runs").exists()


class Bomb:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_files_that_are_not_checkpoints(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("I am a checkpoint")
    assert_one_line(sppnet("test", "checkpoint=text.pt"), "text.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    assert_one_line(sppnet("test", "checkpoint=foreign.pt"), "foreign.pt", "not an sppnet checkpoint")
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"sppnet": Bomb()}, tmp_path / "bomb.pt")
        assert_one_line(sppnet("test", "checkpoint=bomb.pt"), "bomb.pt")
        assert not (tmp_path / "exploded").exists()
    (tmp_path / "folder").mkdir()
    assert_one_line(sppnet("test", "checkpoint=folder"), "folder", "best.ckpt")


def test_a_foreign_file_is_refused_in_one_line_without_an_error_number(
    sppnet: Caller, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "junk").write_text("hello junk")
    with zipfile.ZipFile(tmp_path / "script", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"a/{name}", "3")
    for name in ("junk", "script"):
        called = sppnet("test", f"checkpoint={name}")
        assert_one_line(called, f"checkpoint={name} cannot be read; it is damaged or not a tensor file")
        assert not called.err.strip()[-1].isdigit()
    assert not [str(warning.message) for warning in recwarn if "torch.load" in str(warning.message)]


def test_checkpoints_that_are_damaged_or_of_another_network(sppnet: Caller, trained: Called, tmp_path: Path) -> None:
    run = trained.run
    whole = (run / "checkpoints/best.ckpt").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/net.pt").write_bytes(whole[: len(whole) // 2])
    assert_one_line(sppnet("test", "checkpoint=cut/net.pt"), "cut/net.pt")
    loaded = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    loaded["sppnet"]["config"]["backbone"]["width"] = 8
    torch.save(loaded, tmp_path / "cut/other.pt")
    assert_one_line(sppnet("test", "checkpoint=cut/other.pt"), "different network")
    loaded["sppnet"]["config"]["backbone"]["_target_"] = "os.system"
    torch.save(loaded, tmp_path / "cut/evil.pt")
    assert_one_line(sppnet("test", "checkpoint=cut/evil.pt"), "os.system", "not allowed")


def test_a_broken_header_leaves_no_index_behind(sppnet: Caller, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos/cat/empty.jpg").touch()
    done = sppnet("train", "data=folder", "data.root=photos", "data.fit=full")
    assert done.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_more_processes_than_images(sppnet: Caller, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 20)).save(tmp_path / "photos" / name / f"{i}.png")
    words = ("data=folder", "data.root=photos", "trainer.accelerator=cpu", "trainer.devices=9", "sizes.train=[20,24]")
    done = sppnet("train", *words)
    assert (done.code, done.out) == (2, "")
    assert "the number of training images (2) is smaller than the number of processes (9)" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_data_set_with_other_classes(sppnet: Caller, trained: Called, tmp_path: Path) -> None:
    run = trained.run
    for name in "abcdef":
        write_image(tmp_path / f"pets/cat/{name}.png")
        write_image(tmp_path / f"pets/dog/{name}.png")
    assert_one_line(sppnet("test", f"checkpoint={run}", "data=folder", "data.root=pets"), "cat", "classes")


def test_a_run_directory_that_cannot_be_written(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(sppnet("train", *SMALL, "paths.runs=file/runs"), "file/runs")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert_one_line(sppnet("train", *SMALL, "paths.runs=locked/runs"), "locked/runs", "ermission denied")
    if Path("/proc/self").exists():
        assert_one_line(sppnet("train", *SMALL, "paths.runs=/proc/runs"), "/proc/runs")


@pytest.mark.parametrize("word", ["debug=traceback", "debug=fast", "debug.traceback=true"])
def test_debug_shows_the_traceback_too(sppnet: Caller, word: str) -> None:
    called = sppnet("train", "seed=-1", word)
    assert called.code == 2
    assert "Traceback" in called.err
    assert called.err.strip().splitlines()[-1].startswith("sppnet train: seed=-1")
