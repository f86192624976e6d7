"""Which configurations name the same run, the lock of its directory, and what a full disk or a crash leaves."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calling import SMALL, Caller, command, same_weights
from sppnet.config import option_files
from sppnet.config.compose import compose_config
from sppnet.config.load import replace
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.runs import slurm_status
from sppnet.runs.identity import digest
from sppnet.runs.plan import plan_run
from sppnet.runs.run_directory import Run
from sppnet.storage.files import file_lock, write_text


@functools.cache
def default() -> Config:
    return compose_config([])


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The default configuration."""
    monkeypatch.chdir(tmp_path)
    return default()


FULL = {"name": "full", "fit": "full", "aspect_step": 0.125}
RESIZED = {"name": "random_resized", "scale": [0.35, 1.0], "ratio": [0.75, 1.3333333]}
RAND = {"_target_": "torchvision.transforms.v2.RandAugment"}
NOT_THE_RUN: list[dict[str, Any]] = [
    *({"trainer.accelerator": "cpu"}, {"progress": "none"}, {"trainer.log_every_n_steps": 3}, {"trainer.devices": [3]}),
    *({"checkpointing.every_n_steps": None}, {"data.num_workers": 4}, {"data.duplicates": "error"}, {"force": True}),
    *({"logger": {"tensorboard": {}}}, {"paths.cache": "elsewhere"}, {"debug.traceback": True}),
    *({"pooling.kernel": "plain"}, {"trainer.profiler": "simple"}, {"trainer.limit_test_batches": 3}),
    # as by default
    *({"loss.label_smoothing": 0}, {"augment.color": 0}, {"loss.name": "cross_entropy"}),
    *({"trainer.limit_train_batches": 1.0}, {"data.sampling": "uniform"}, {"augment.transforms": []}),
    *({"augment.erasing": 0}, {"data.interpolation": "bilinear"}, {"data.decode": "full"}),
    {"data.decode": "scaled"},  # digits are not files
]
THE_RUN: list[dict[str, Any]] = [
    *({"seed": 1}, {"compute.num_threads": 1}, {"trainer.precision": "bf16-mixed"}, {"trainer.devices": 2}),
    *({"sizes.train": [40]}, {"sizes.val": [40]}, {"pooling.bins": [1]}, {"optim.lr": 0.02}, {"augment.flip": True}),
    *({"trainer.max_epochs": 3}, {"backbone.width": 8}, {"data.split.seed": 1}, {"optim.ema": 0.9}),
    *({"data.short_side": 64}, {"data.resampler": "torch"}, {"data.crop": RESIZED}, {"trainer.limit_train_batches": 2}),
    *({"trainer.strategy": "ddp"}, {"trainer.detect_anomaly": True}),  # the latter is not in the schema
    *({"data.sampling": "balanced"}, {"augment.erasing": 0.5}, {"augment.transforms": [RAND]}),
    {"data.interpolation": "bicubic"},
]
THE_TEST: list[dict[str, Any]] = [
    *({"sizes.test": [64]}, {"views": FULL}, {"views.crop_pct": 0.5}, {"trainer.limit_test_batches": 2}),
]


def test_the_image_cache_is_not_part_of_a_run(cfg: Config) -> None:
    side = replace(cfg, {"data.short_side": 64})
    assert plan_run(replace(side, {"data.cache": True})).run == plan_run(side).run


@pytest.mark.parametrize("values", NOT_THE_RUN, ids=str)
def test_where_and_how_fast_is_not_part_of_a_run(cfg: Config, values: dict[str, Any]) -> None:
    assert plan_run(replace(cfg, values)).run == plan_run(cfg).run


@pytest.mark.parametrize("values", THE_RUN, ids=str)
def test_what_determines_the_weights_is_part_of_a_run(cfg: Config, values: dict[str, Any]) -> None:
    assert plan_run(replace(cfg, values)).run != plan_run(cfg).run


@pytest.mark.parametrize("values", THE_TEST, ids=str)
def test_a_test_has_a_hash_of_its_own(cfg: Config, values: dict[str, Any]) -> None:
    assert plan_run(replace(cfg, values)).run == plan_run(cfg).run
    assert plan_run(replace(cfg, values)).test != plan_run(cfg).test


def test_what_a_run_or_a_test_does_not_use_does_not_count(cfg: Config) -> None:
    full = replace(cfg, {"data.fit": "full"})
    assert plan_run(full).run != plan_run(cfg).run
    assert plan_run(replace(full, {"data.crop_pct": 0.5, "data.crop": RESIZED})).run == plan_run(full).run
    for values in (
        *({"data.aspect_step": 0.5}, {"data.crop": RESIZED}, {"augment.flip": True}),
        *({"data.sampling": "balanced"}, {"augment.transforms": [RAND]}),
    ):
        assert plan_run(replace(cfg, values)).test == plan_run(cfg).test
    for disabling, values in (
        # with a fixed exponent, that of every channel is the same
        ({"pooling.pool": "gem", "pooling.learn_p": False}, {"pooling.per_channel": True}),
        ({"head.hidden": []}, {"head.dropout": 0.9}),
        ({"optim.weight_decay": 0}, {"optim.decay_norms": False}),
    ):
        disabled = replace(cfg, disabling)
        assert plan_run(replace(disabled, values)).run == plan_run(disabled).run


def test_the_order_and_the_type_of_arguments_of_ones_own_count(cfg: Config) -> None:
    """A class may take 1 as a number and 1.0 as a share, and Lightning calls callbacks in the order given."""
    timer = {"_target_": "lightning.pytorch.callbacks.Timer"}
    one, two = (
        replace(cfg, {"callbacks": {name: timer | {"interval": name} for name in names}}) for names in ("ab", "ba")
    )
    assert plan_run(one).run != plan_run(two).run
    assert set(plan_run(one).identity["config"]["callbacks"]) == {"a", "b"}, "a report names rows by these keys"
    whole, share = (replace(cfg, {"backbone": {**cfg.backbone.plain(), "width": width}}) for width in (8, 8.0))
    assert plan_run(whole).run != plan_run(share).run
    mappings = ({"a": 8, "b": 16}, {"b": 16, "a": 8}, {1: 32}, {"1": 32}, [{1: 32}], [{"1": 32}])
    widths = [replace(cfg, {"backbone": {**cfg.backbone.plain(), "widths": mapping}}) for mapping in mappings]
    assert len({plan_run(each).run.hash for each in widths}) == len(mappings)
    nodes = [RAND | {"x": {"a": 8, "b": 16}}, RAND | {"x": {"b": 16, "a": 8}}, RAND | {"x": {1: 8}}, RAND]
    lists = [
        replace(cfg, {"augment.transforms": transforms})
        for transforms in (nodes, nodes[::-1], *([node] for node in nodes))
    ]
    assert len({plan_run(each).run.hash for each in lists}) == len(lists)
    assert plan_run(replace(cfg, {"optim.lr": 1})).run == plan_run(replace(cfg, {"optim.lr": 1.0})).run
    absent = {key: value for key, value in cfg.backbone.plain().items() if key not in ("weights", "freeze")}
    assert plan_run(replace(cfg, {"backbone": absent})).run == plan_run(cfg).run


def test_names_are_names_only(cfg: Config) -> None:
    before, after = plan_run(cfg).run, plan_run(replace(cfg, {"backbone.name": "tiny-wide", "data.name": "scans"})).run
    assert before.hash == after.hash
    assert after.path.name.startswith("scans-tiny-wide-")


def test_a_label_begins_with_the_name_of_the_network_that_it_labels(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whoever forgets `backbone=torchvision` must not publish the default network as resnet50."""
    override = "# @package _global_\ndefaults: [{override /backbone: %s}]"
    for name, text in {
        "backbone/slim8": "defaults: [tiny]\nname: slim-2\nwidth: 8",
        "backbone/net": "defaults: [tiny]\nname: net${.width}",
        "experiments/deep": override % "overfeat7",
        "experiments/narrow": override % "slim8",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "backbone/._slim8.yaml").write_bytes(b"\xff")  # as macOS writes them
    option_files.use_config_dir(["--config-dir", str(tmp_path)])
    request.addfinalizer(lambda: option_files.use_config_dir([]))
    for label, *words in (
        ["resnet50"],
        ["convnext_tiny"],
        ["tiny_vit_5m_224"],
        ["slim8"],
        ["overfeat5", "backbone=overfeat7"],
        ["overfeat5", "experiments=deep"],
        ["tiny", "experiments=narrow"],
        ["net32", "backbone=net", "backbone.width=8"],
        ["tiny-a", "~backbone.width", "backbone._target_=sppnet.models.ZF5"],
        ["zf5", "backbone=convnet5"],
    ):
        for typed in (f"backbone.name={label}", f"backbone={{name: {label}, freeze: false}}"):
            with pytest.raises(
                UserError, match=rf"backbone.name={label} does not choose a network.*backbone=torchvision"
            ):
                compose_config([*words, typed])
    for words in (
        ["backbone.name=tiny-wide"],
        ["backbone=overfeat7", "backbone.name=overfeat7"],
        ["experiments=deep", "backbone.name=overfeat7-x"],
        ["experiments=narrow", "backbone.name=slim-2"],
        ["backbone=slim8", "backbone.name=slim8-q"],
        ["backbone=net", "backbone={width: 8, name: net8-a}"],
        ["backbone.name=zf5-a", "~backbone.width", "backbone._target_=sppnet.models.ZF5"],
        ["backbone.name=null"],
        ["backbone={width: 8}", "backbone.name=tiny-${seed}"],
        ["backbone={name: tiny-x, width: 8}"],
        [],
    ):
        compose_config(words)


def test_a_changed_class_of_the_user_makes_another_run(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", "some_nets")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = replace(cfg, {"backbone": {"_target_": "some_nets.Two", "name": "two"}})
    inner = {"_target_": "torchvision.transforms.v2.RandomApply", "transforms": [{"_target_": "some_nets.Two"}]}
    transformed = replace(cfg, {"augment.transforms": [RAND, inner]})
    with pytest.raises(UserError, match="no module some_nets"):
        plan_run(own)
    code = "from torch import nn\n\n\nclass Two(nn.Conv2d):\n    def __init__(self): super().__init__(3, 4, {kernel})\n"
    (tmp_path / "some_nets.py").write_text("")
    profiled = replace(cfg, {"trainer.profiler": {"_target_": "some_nets.Profiler"}})
    assert plan_run(profiled).run == plan_run(cfg).run  # a profiler only prints
    for changed in (own, transformed):
        hashes = []
        for kernel in (5, 7, 5):
            (tmp_path / "some_nets.py").write_text(code.format(kernel=kernel))
            hashes.append(plan_run(changed).run.hash)
        assert hashes[0] == hashes[2] != hashes[1]
    (tmp_path / "some_nets.py").unlink()
    (tmp_path / "some_nets").mkdir()
    (tmp_path / "some_nets/__init__.py").write_text("from some_nets.two import Two\n")
    in_a_package = []
    for kernel in (5, 7, 5):
        (tmp_path / "some_nets/two.py").write_text(code.format(kernel=kernel))
        in_a_package.append(plan_run(own).run.hash)
    assert in_a_package[0] == in_a_package[2] != in_a_package[1]


def test_bins_that_a_pooling_does_not_use_do_not_count(cfg: Config) -> None:
    gap = replace(cfg, {"pooling": {"name": "gap"}})
    assert plan_run(gap).run == plan_run(replace(gap, {"pyramid.bins": [1]})).run


def test_data_and_weights_count_by_content_not_by_path(cfg: Config, tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / f"a/{'cat' if number % 2 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 40)).save(path)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "one.pth").write_bytes(b"1")
    (tmp_path / "two.pth").write_bytes(b"1")
    (tmp_path / "other.pth").write_bytes(b"2")
    data = replace(cfg, {"data.name": "folder", "data._target_": "sppnet.data.Folder", "data.root": "a"})
    run = plan_run(replace(data, {"backbone.weights": "one.pth"})).run
    moved = {"data.root": str(tmp_path / "b"), "backbone.weights": "two.pth"}
    assert plan_run(replace(data, moved)).run == run
    assert plan_run(replace(data, {"backbone.weights": "other.pth"})).run != run
    next((tmp_path / "b").rglob("*.png")).rename(tmp_path / "b/cat/renamed.png")
    assert plan_run(replace(data, moved)).run != run


def test_a_directory_has_one_process_and_a_dead_process_releases_it(tmp_path: Path, sppnet: Caller) -> None:
    words = ("train", *SMALL, "trainer.max_epochs=500", "trainer.limit_train_batches=null")
    child = subprocess.Popen(command(*words), cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        while not (metrics_files := list(tmp_path.rglob("metrics.jsonl"))):
            assert child.poll() is None
            time.sleep(0.05)
        second = sppnet(*words)
        assert second.code == 2
        assert f"in use by process {child.pid}" in second.err
        assert len(second.err.strip().splitlines()) == 1
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with Run(metrics_files[0].parent).locked():
        assert (metrics_files[0].parent / "status.json").exists()


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line_and_nothing_is_left(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.lockf", lockf)
    done = sppnet("train", *SMALL)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "runs/default/digits-" in done.err
    assert os.strerror(reason) in done.err
    assert "paths.runs" in done.err
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(UserError, match=rf"{tmp_path}/cache cannot be locked .*paths\.cache"),
        file_lock(tmp_path / "cache/x"),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").touch()
    with pytest.raises(UserError), file_lock(tmp_path / "there"):
        raise AssertionError
    assert (tmp_path / "there").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_text(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "two \ud800")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def fill(path: Path) -> None:
    """Write zeros until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
def test_a_disk_that_fills_up_is_a_failure_from_which_the_run_resumes(sppnet: Caller, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = sys.platform == "linux" and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]).returncode:
        pytest.skip("a small file system to fill up cannot be mounted here (it takes root)")
    try:
        words = ("train", *SMALL, "trainer.max_epochs=25", "checkpointing.every_n_steps=1")
        child = subprocess.Popen(
            command(*words, "paths.runs=disk/runs"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not (checkpoints := list(disk.rglob("last.ckpt"))):
            assert child.poll() is None
            time.sleep(0.01)
        fill(disk / "filler")
        _, err = child.communicate()
        assert child.returncode == 1, err.decode()
        assert "No space left" in err.decode().splitlines()[-1] or "disk full" in err.decode().splitlines()[-1]
        content = checkpoints[0].read_bytes()
        assert content
        assert not list(disk.rglob("*.tmp"))
        (disk / "filler").unlink()
        resumed = sppnet(*words, "paths.runs=disk/runs", "progress=lines")
        assert resumed.code == 0, resumed.err
        assert "resumed at step" in resumed.out
        whole = sppnet(*words)
        assert same_weights(tmp_path / whole.run / "checkpoints/last.ckpt", checkpoints[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


CODE = {"version": "0.2.0", "commit": "a" * 40, "dirty": "", "untracked": ""}


@pytest.mark.parametrize(
    ("before", "now", "note"),
    [
        ({}, {}, None),
        ({"dirty": "+"}, {}, "ran commit aaaaaaaaaa with uncommitted changes that differ from those at submission"),
        ({"commit": "0" * 40}, {}, "ran commit aaaaaaaaaa, but was submitted at commit 0000000000"),
        ({"commit": None}, {}, "ran commit aaaaaaaaaa, but was submitted at commit unknown"),
        ({"version": "0.1.0"}, {"commit": None}, "ran sppnet 0.2.0, but was submitted with sppnet 0.1.0"),
    ],
)
def test_a_job_that_runs_other_code_than_was_submitted_says_so(
    before: dict[str, Any], now: dict[str, Any], note: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_status, "code_state", lambda: CODE | now)
    submitted = CODE | before
    submission = {"code": submitted, "code_digest": digest(submitted)}
    (tmp_path / "submission.json").write_text(json.dumps(submission), encoding="utf-8")
    job = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    for key, value in (job | {"SPPNET_SUBMISSION": str(tmp_path)}).items():
        monkeypatch.setenv(key, value)
    assert slurm_status.slurm_fields()["note"] == note
