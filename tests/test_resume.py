"""A run stopped at any moment and started again ends as one that was never stopped: to the bit, record by record."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from calling import SMALL, Caller, command, records, same_weights
from stop_at import PLUG

TESTS = str(Path(__file__).parent)
# Three epochs of six steps, a save at every second step of an epoch; all kinds of state in one run.
RUN = (*SMALL, *PLUG, "trainer.max_epochs=3", "trainer.limit_batches=6", "trainer.checkpoint_every_n_steps=2")
KINDS = {
    "plateau": ("optim=sgd", "optim.schedule.patience=0"),
    "cosine, ema": ("trainer.ema=0.9", "data.workers=1", "data.color=0.1"),
    "weighted": ("sizes=weighted", "sizes.train=[24,20]", "sizes.weights=[0.5,0.5]", "trainer.accumulate=2"),
    "whole images": ("data.fit=full", "optim.schedule.kind=constant"),
}
SLOW = ("plateau", "weighted", "whole images")
MOMENTS = ["batch 1", "batch 3", "batch 6", "validation of 0", "end of 0", "batch 7", "batch 11", "end of 1", "test"]


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TESTS)


def assert_same_end(run: Path, unbroken: Path) -> None:
    assert same_weights(run / "checkpoints/last.ckpt", unbroken / "checkpoints/last.ckpt")
    assert same_weights(run / "checkpoints/best.ckpt", unbroken / "checkpoints/best.ckpt")
    assert records(run) == records(unbroken)
    one, two = (json.loads((path / "summary.json").read_text()) for path in (run, unbroken))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    sppnet: Caller, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = sppnet("train", *RUN, *KINDS[kind], "paths.runs=unbroken")
    assert unbroken.code == 0, unbroken.err
    for moment in MOMENTS:
        where = f"paths.runs={moment.replace(' ', '_')}"
        with monkeypatch.context() as context:
            context.setenv("STOP_AT", moment)
            stopped = sppnet("train", *RUN, *KINDS[kind], where)
        assert stopped.code == 1
        assert moment in stopped.err
        resumed = sppnet("train", *RUN, *KINDS[kind], where)
        assert resumed.code == 0, (moment, resumed.err)
        assert_same_end(resumed.run, unbroken.run)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_stop_signal_saves_the_step_it_came_at(sppnet: Caller, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    unbroken = sppnet("train", *RUN, "paths.runs=unbroken")
    with monkeypatch.context() as context:
        context.setenv("STOP_AT", "batch 9")
        context.setenv("STOP_BY", number)
        stopped = sppnet("train", *RUN)
    assert stopped.code == 1
    assert "the same command goes on from there" in stopped.err
    run = Path("runs/default") / unbroken.run.name
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("preempted", 9)
    resumed = sppnet("train", *RUN, "trainer.progress=lines")
    assert "resumed at step 9" in resumed.out
    assert_same_end(resumed.run, unbroken.run)


@pytest.mark.slow
def test_a_run_that_was_stopped_is_one_run_of_wandb(spawn: Caller, tmp_path: Path) -> None:
    """Of one name, in the group of its study; its parts lie in the order in which they are to be sent."""
    words = ("train", *RUN, "logger=wandb", "study=grouped")
    for moment in ("batch 9", "batch 8", ""):  # of each start
        done = spawn(*words, STOP_AT=moment, STOP_BY="SIGTERM", PYTHONPATH=TESTS)
        assert done.code == bool(moment), done.err
    parts = sorted(tmp_path.glob("runs/grouped/*/wandb/offline-run-*"))  # as the README's command lists them
    assert len(parts) == 3
    assert len({part.name.rsplit("-", 1)[1] for part in parts}) == 1
    whole = [next(part.glob("*.wandb")).read_bytes() for part in parts]
    message = vars(wandb_internal_pb2)["RunRecord"](run_group="grouped").SerializeToString()
    assert all(message in content for content in whole)
    assert [b"test/top1" in content for content in whole] == [False, False, True]


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_nothing(spawn: Caller, tmp_path: Path) -> None:
    """`kill -9` from outside, at any moment from the start of the process on: ten times, then to the end."""
    words = (*SMALL, "trainer.max_epochs=10", "trainer.limit_batches=null", "data.workers=1", "trainer.ema=0.9")
    unbroken = spawn("train", *words, "paths.runs=unbroken")
    assert unbroken.code == 0, unbroken.err
    took = json.loads((tmp_path / unbroken.run / "summary.json").read_text())["seconds"]
    rng = random.Random(20140618)
    run = tmp_path / "runs/default" / unbroken.run.name
    killed: list[int] = []
    while len(killed) < 10:
        child = subprocess.Popen(
            command("train", *words), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
        )
        if rng.random() < 0.8:  # most kills while it trains, some while it starts
            _wait_for_a_step(run, child)
        time.sleep(rng.uniform(0, took / 8))
        assert child.poll() is None, f"the run ended after {len(killed)} kills; make it longer"
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        killed.append(len(records(run)) if (run / "metrics.jsonl").exists() else 0)
    print("records at the kills:", killed)
    resumed = spawn("train", *words)
    assert resumed.code == 0, resumed.err
    assert_same_end(run, tmp_path / unbroken.run)


def _wait_for_a_step(run: Path, child: subprocess.Popen[bytes]) -> None:
    """Until this process has taken its first step: the file of records grows or is cut."""
    path = run / "metrics.jsonl"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while child.poll() is None and not (path.exists() and path.stat().st_mtime_ns != before):
        time.sleep(0.02)
