"""DDP with two real processes on one machine (gloo, on the CPU), started by `sppnet train`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import remix
from calling import SMALL, Caller, command, limits, records, same_weights
from sppnet.config.compose import compose_config
from sppnet.data import load_splits
from trace_ranks import PLUG

pytestmark = pytest.mark.slow

TESTS = str(Path(__file__).parents[1] / "helpers")
TWO = (*SMALL, "trainer.accelerator=cpu", "trainer.devices=2", *limits(None))
ENV = {"PYTHONPATH": TESTS}


def traces(run: Path) -> list[list[dict[str, Any]]]:
    """The traces of rank 0 and rank 1."""
    return [[json.loads(line) for line in (run / f"trace-{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]


def assert_promises(run: Path, left_over: int = 1) -> None:
    """Check what two ranks must fulfil.

    No training image twice, none missing except those that do not divide by two; the same shape on all ranks at every
    step; every validation image once; equal weights at the end.
    """
    ranks = traces(run)
    assert ranks[0][-1]["weights"] == ranks[1][-1]["weights"]
    train = [[line for line in rank if line.get("phase") == "train"] for rank in ranks]
    val = [[line for line in rank if line.get("phase") == "val"] for rank in ranks]
    for steps in (train, val):
        assert len(steps[0]) == len(steps[1]) > 0
        assert [line["shape"] for line in steps[0]] == [line["shape"] for line in steps[1]]
    sets = load_splits(compose_config([]).data)
    for epoch in {line["epoch"] for line in train[0]}:
        trained = [i for rank in train for line in rank if line["epoch"] == epoch for i in line["index"]]
        assert len(trained) == len(set(trained)) >= len(sets.train) - left_over
        assert set(trained) <= set(sets.train.tolist())
        validated = [i for rank in val for line in rank if line["epoch"] == epoch for i in line["index"]]
        assert sorted(validated) == sets.val.tolist()


def test_two_processes_share_every_epoch(spawn: Caller, tmp_path: Path) -> None:
    done = spawn("train", *TWO, *PLUG, "sizes=weighted", "sizes.train=[24,20]", "sizes.weights=[0.5,0.5]", **ENV)
    assert done.code == 0, done.err
    run = tmp_path / done.run
    assert_promises(run)
    assert {line["shape"][-1] for line in traces(run)[0] if line.get("phase") == "train"} == {24, 20}
    tested = spawn("test", f"checkpoint={done.run}", "force=true", **ENV | {"SPPNET_ALLOW": "trace_ranks"})
    assert tested.code == 0, tested.err
    assert tested.figure("test/top1") == done.figure("test/top1")


def test_two_processes_mix_differently_at_the_same_sizes(spawn: Caller, tmp_path: Path) -> None:
    words = ("mix=both", "loss=focal", "loss.class_weights=balanced", "optim.decay_norms=false")
    done = spawn("train", *TWO, *remix.PLUG, *words, **ENV)
    assert done.code == 0, done.err
    ranks = [
        [json.loads(line) for line in (tmp_path / done.run / f"mix-{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    pairs = list(zip(*ranks, strict=True))
    assert len({line["size"] for line in ranks[0]}) == 2
    for one, other in pairs:
        assert one["size"] == other["size"]
        assert one["shares"] != other["shares"]


@pytest.mark.parametrize("cls", ["One", "OneOfSeveral"])
def test_a_process_may_have_no_image_to_validate(spawn: Caller, cls: str) -> None:
    own = ("allow=[own_losses,torchmetrics]", f"data._target_=own_losses.{cls}", "data.name=one")
    metric = "+metrics.roc._target_=torchmetrics.classification.MultilabelAUROC"
    metrics = (metric, "+metrics.roc.num_labels=3") if cls == "OneOfSeveral" else ()
    words = (*own, *metrics, "trainer.max_epochs=1")
    done = spawn("train", *TWO, *words, **ENV)
    assert done.code == 0, done.err
    tested = spawn("test", f"checkpoint={done.run}", "force=true", *own[:1], **ENV)
    assert tested.code == 0, tested.err
    assert tested.out.splitlines()[-1] == done.out.splitlines()[-1]


def test_two_processes_inside_a_sweep(spawn: Caller, tmp_path: Path) -> None:
    swept = spawn("train", "-m", *TWO, *PLUG, "seed=0,1", "data.fit=full", **ENV)
    assert swept.code == 0, swept.err
    runs = [path.parent for path in tmp_path.rglob("status.json")]
    assert len(runs) == 2
    for run in runs:
        assert_promises(run, left_over=6)  # at most one of each of the six shapes


def test_a_test_of_two_processes_that_is_cut_short_is_not_made_by_one(
    spawn: Caller, sppnet: Caller, tmp_path: Path
) -> None:
    words = (*TWO, "trainer.max_epochs=1", *limits(1))
    done = spawn("train", *words)
    assert done.code == 0, done.err
    refused = sppnet("train", *words, "views=full")
    assert refused.code == 2
    assert f"use sppnet test checkpoint={done.run}" in refused.err
    tested = sppnet("test", f"checkpoint={done.run}", "views=full")
    assert 2 * tested.figure("images") <= done.figure("images")
    assert len(list((tmp_path / done.run / "tests").iterdir())) == 2


def test_two_processes_resume_after_a_kill(spawn: Caller, tmp_path: Path) -> None:
    base = spawn("train", *SMALL, "study=base")
    start = (f"init={base.run}", "backbone.update_bn=true")
    words = (
        "train",
        *TWO,
        "trainer.max_epochs=6",
        "optim.ema=0.9",
        "augment=trivial",
        "data.sampling=balanced",
        *start,
    )
    whole = spawn(*words, "paths.runs=whole")
    assert whole.code == 0, whole.err
    assert "backbone.update_bn: estimating the statistics of 4 layers" in whole.err
    run = tmp_path / "runs/default" / whole.run.name
    for lines in (10, 60):
        child = subprocess.Popen(command(*words), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
        while not (run / "metrics.jsonl").exists() or len(records(run)) < lines:
            assert child.poll() is None
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)  # only the first process: the second must end with it
        child.wait()
        assert not group_lives(child.pid)
        shutil.rmtree(tmp_path / base.run, ignore_errors=True)  # no process needs it any more
    resumed = spawn(*words)
    assert resumed.code == 0, resumed.err
    assert same_weights(run / "checkpoints/last.ckpt", tmp_path / whole.run / "checkpoints/last.ckpt")
    assert records(run) == records(tmp_path / whole.run)


def test_the_error_of_the_second_process_is_the_reason(spawn: Caller, tmp_path: Path) -> None:
    (tmp_path / "options/pooling").mkdir(parents=True)
    (tmp_path / "options/pooling/own.yaml").write_text("_target_: own_parts.FailsOnRank1\n")
    failed = spawn("train", "--config-dir=options", "pooling=own", "allow=own_parts", *TWO, **ENV)
    assert failed.code == 1
    reason = "rank 1: ValueError: out of luck"
    assert failed.err.splitlines()[-1] == f"sppnet train: {reason}"
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["reason"] == reason


def group_lives(group: int) -> bool:
    """Whether a process of the group still runs after five seconds; zombies do not count."""
    for _ in range(100):
        shown = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in shown.splitlines()]
        if not any(int(row[0]) == group and not row[1].startswith("Z") for row in rows):
            return False
        time.sleep(0.05)
    return True
