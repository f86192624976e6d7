"""A run that is stopped at any moment and resumed ends like an unbroken one: same bits, same records."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from calling import SMALL, Caller, command, flip, records, same_weights
from sppnet.data.datamodule import DataModule
from sppnet.slurm import job
from stop_at import PLUG

TESTS = str(Path(__file__).parents[1] / "helpers")
# Three epochs of six steps, with a save at every second step of an epoch.
RUN = (*SMALL, *PLUG, "trainer.max_epochs=3", "trainer.limit_train_batches=6", "checkpointing.every_n_steps=2")
KINDS = {
    "plateau": (
        *("optim=sgd", "optim.schedule.patience=0", "trainer.precision=bf16-true", "optim.ema=0.9"),
        "checkpointing.monitor=val/calibration_error",
    ),
    "cosine, ema": (
        *("optim.ema=0.9", "data.num_workers=1", "backbone._target_=stop_at.Draws", "augment=trivial"),
        *("augment.color=0.1", "mix=both", "mix.p=0.8", "optim.decay_norms=false"),
        "+callbacks.follows._target_=stop_at.Follows",
    ),
    "weighted": (
        *("sizes=weighted", "sizes.train=[24,20]", "sizes.weights=[0.5,0.5]", "trainer.accumulate_grad_batches=2"),
        *("augment=rand", "augment.erasing=0.5", "data.sampling=balanced"),
        *("mix=mixup", "loss=focal", "loss.class_weights=[1,2,1,1,1,1,1,1,1,3]"),
    ),
    "whole images": (  # saves and validates before the last batch of an epoch
        *("data.fit=full", "optim/schedule=constant", "trainer.precision=64-true", "augment=rand"),
        *("trainer.val_check_interval=5", "checkpointing.every_n_steps=5", "mix=cutmix", "loss=bce"),
    ),
    "validated every four batches": (
        *("trainer.val_check_interval=4", "augment.flip=true", "trainer.accumulate_grad_batches=2"),
        *("optim=sgd", "optim.schedule.patience=0", "optim.ema=0.5", "optim.lr=0.05", "optim.decay_norms=false"),
    ),
    "validated in every second epoch": (
        *("trainer.check_val_every_n_epoch=2", "optim=sgd", "optim.schedule.patience=0"),
        "checkpointing.monitor=val/kappa",
        "+metrics.kappa._target_=torchmetrics.classification.MulticlassCohenKappa",
    ),
    "overfit": ("trainer.overfit_batches=6", "data.num_workers=1", "augment=paper", "data.sampling=balanced"),
    "a limit of steps": (
        *("trainer.max_steps=7", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"),
        "data.sampling=balanced",
    ),
}
MOMENTS = ["batch 1", "batch 3", "validation of 0", "batch 6", "end of 0", "batch 7", "batch 9", "batch 11", "batch 17"]
KINDS_MOMENTS = {  # where not all of these moments come
    "validated in every second epoch": [moment for moment in MOMENTS if moment not in ("validation of 0", "batch 9")],
    "a limit of steps": [*MOMENTS[:7], "batch 13", "validation of 2"],
}
DAMAGED = ("batch 9", "batch 17")  # a bit of last.ckpt flips afterwards


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TESTS)


def assert_same_end(run: Path, unbroken: Path) -> None:
    assert same_weights(run / "checkpoints/last.ckpt", unbroken / "checkpoints/last.ckpt")
    assert same_weights(run / "checkpoints/best.ckpt", unbroken / "checkpoints/best.ckpt")
    assert records(run) == records(unbroken)
    summary, unbroken_summary = (json.loads((path / "summary.json").read_text()) for path in (run, unbroken))
    assert {**summary, "seconds": 0} == {**unbroken_summary, "seconds": 0}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "cosine, ema" else pytest.mark.slow) for kind in KINDS]
)
def test_a_run_stopped_at_every_moment_ends_like_an_unbroken_one(
    sppnet: Caller, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is stopped at each moment in turn. After some stops, a bit of last.ckpt flips."""
    unbroken = sppnet("train", *RUN, *KINDS[kind], "paths.runs=unbroken")
    assert unbroken.code == 0, unbroken.err
    run = Path("runs/default") / unbroken.run.name
    expected = ""  # on standard error
    for moment in [*KINDS_MOMENTS.get(kind, MOMENTS), "test"]:
        with monkeypatch.context() as context:
            context.setenv("STOP_AT", moment)
            stopped = sppnet("train", *RUN, *KINDS[kind])
        assert stopped.code == 1, moment
        assert moment in stopped.err
        assert expected in stopped.err
        assert ("resuming from best.ckpt" in stopped.err) == bool(expected)
        expected = ""
        if moment in DAMAGED:
            step = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["global_step"]
            flip(run / "checkpoints/last.ckpt")
            expected = f"does not match its checksum; resuming from best.ckpt at step {step} ("
    resumed = sppnet("train", *RUN, *KINDS[kind])
    assert resumed.code == 0, resumed.err
    lines = resumed.err.splitlines()  # RUN limits the batches, which overfit_batches does instead
    assert not [line for line in lines if not line.endswith("has no effect with trainer.overfit_batches=6")]
    assert_same_end(run, unbroken.run)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_stop_signal_saves_the_step_it_came_at(sppnet: Caller, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    unbroken = sppnet("train", *RUN, "paths.runs=unbroken")
    with monkeypatch.context() as context:
        context.setenv("STOP_AT", "batch 9")
        context.setenv("STOP_BY", number)
        stopped = sppnet("train", *RUN)
    assert stopped.code == 1
    assert "the same command resumes it" in stopped.err
    run = Path("runs/default") / unbroken.run.name
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("preempted", 9)
    resumed = sppnet("train", *RUN, "progress=lines")
    assert "resumed at step 9" in resumed.out
    assert_same_end(resumed.run, unbroken.run)


def test_a_callback_state_that_is_not_plain_data_is_not_saved(sppnet: Caller) -> None:
    """Such a checkpoint could not be loaded again, and the run would be lost."""
    done = sppnet("train", *RUN, "+callbacks.own._target_=stop_at.Remembers")
    assert done.code == 1
    [line] = done.err.splitlines()
    assert "last.ckpt would hold numpy." in line
    assert "state_dict()" in line
    assert not list(Path("runs").rglob("*.ckpt*"))


@pytest.mark.slow
def test_the_last_part_of_a_run_that_was_stopped_is_the_whole_run_of_wandb(spawn: Caller, tmp_path: Path) -> None:
    """Each start writes an offline part with the same run id, in the group of the study.

    A part that is synced replaces the parts before it, so the last must be complete, whatever the others hold.
    """
    words = ("train", *RUN, "logger=wandb", "study=grouped")
    for moment, by, code in (("batch 9", "SIGTERM", 1), ("test", "SIGKILL", -9), ("", "", 0)):  # only the test remains
        done = spawn(*words, STOP_AT=moment, STOP_BY=by, PYTHONPATH=TESTS)
        assert done.code == code, done.err
        assert "anonymous" not in done.err
        if code != -9:  # the part of a killed process may hold anything
            parts = check_parts(tmp_path)
    assert len(parts) == 3
    assert len({part.name.rsplit("-", 1)[1] for part in parts}) == 1


def check_parts(folder: Path) -> list[Path]:
    """The parts of the run in the order of the README's command; the last must hold every record, each at its step."""
    [run] = folder.glob("runs/grouped/*/")
    parts = sorted(run.glob("wandb/offline-run-*"))
    read = wandb_records(next(parts[-1].glob("*.wandb")))
    rows: dict[int, dict[str, float]] = {}
    summary: dict[str, float] = {}
    for record in read:
        assert not record.run.run_group or record.run.run_group == "grouped"
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            assert items["_step"] not in rows
            rows[items["_step"]] = items
        changed = record.summary.update
        summary |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in changed}
    expected: dict[int, dict[str, float]] = {}
    for record in records(run):
        row = expected.setdefault(record["step"], {})
        expected[record["step"]] = {**record, **row, **{k: v for k, v in record.items() if k != "epoch"}}
        expected[record["step"]]["epoch"] = row.get("epoch", record["epoch"])
    assert rows.keys() == expected.keys()
    for step, row in expected.items():
        assert {key: rows[step][key] for key in row if key != "step"} == {k: v for k, v in row.items() if k != "step"}
    last = {key: value for record in records(run) for key, value in record.items() if key not in ("step", "epoch")}
    assert {key: summary[key] for key in last} == last
    return parts


def wandb_records(path: Path) -> list[Any]:
    """The records of a `.wandb` file: 32 KiB blocks after a header of 7 bytes, as in a LevelDB log."""
    from wandb.proto import wandb_internal_pb2  # the other tests run without wandb

    content, position, parsed, pieces = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        piece = content[position + 7 : position + 7 + length]
        position += 7 + length
        pieces = piece if kind in (1, 2) else pieces + piece  # whole, first, middle, last: 1, 2, 3, 4
        if kind in (1, 4):
            record = vars(wandb_internal_pb2)["Record"]()
            record.ParseFromString(pieces)
            parsed.append(record)
    return parsed


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_nothing(spawn: Caller, tmp_path: Path) -> None:
    """Ten times `kill -9` at a random moment, also while the process starts; then to the end."""
    words = (*SMALL, "trainer.max_epochs=10", "trainer.limit_train_batches=null", "data.num_workers=1", "optim.ema=0.9")
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
    time.sleep(1)
    assert not processes_in(tmp_path), "a killed run's workers outlive it"
    resumed = spawn("train", *words)
    assert resumed.code == 0, resumed.err
    assert_same_end(run, tmp_path / unbroken.run)


def processes_in(folder: Path) -> list[str]:
    """The processes that work in a folder."""
    here = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "cwd").readlink() == folder:
                here.append(process.name)
    return here


def _wait_for_a_step(run: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait for the first step of this process, when metrics.jsonl grows or is cut."""
    path = run / "metrics.jsonl"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while child.poll() is None and not (path.exists() and path.stat().st_mtime_ns != before):
        time.sleep(0.02)


@pytest.mark.slow
def test_a_signal_to_the_process_group_spares_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends it. In a validation, the run needs more batches from its workers before it can stop."""
    monkeypatch.chdir(tmp_path)
    env = os.environ | {"PYTHONPATH": TESTS, "STOP_AT": "validation batch 5", "STOP_BY": "SIGTERM", "STOP_GROUP": "1"}
    words = command("train", *RUN, "data.num_workers=2", "trainer.limit_val_batches=20", "data.batch_size=4")
    stopped = subprocess.run(words, env=env, start_new_session=True, capture_output=True, text=True)
    assert "stopped by SIGTERM after epoch 1; the same command resumes it" in stopped.stderr, stopped.stderr
    assert stopped.returncode == 1


@pytest.fixture
def at_loader_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Calls a function once, when the data loaders start; `Checkpoints` has not set its signal handlers yet.

    An error there makes Lightning's teardown raise another one.
    """
    taken = DataModule._taken

    def let(happen: Callable[[], object]) -> None:
        due = [happen]

        def start(self: DataModule) -> int:
            if due:
                due.pop()()
            return taken(self)

        monkeypatch.setattr(DataModule, "_taken", start)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    yield let
    for number, handler in handlers.items():  # Lightning leaves SIGINT ignored
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_data_loaders_start_is_no_failure(
    sppnet: Caller, at_loader_start: Callable[[Callable[[], object]], None], number: signal.Signals
) -> None:
    at_loader_start(lambda: signal.raise_signal(number))
    stopped = sppnet("train", *SMALL)
    assert (stopped.code, stopped.err) == (1, "sppnet train: interrupted\n")
    assert state() == "preempted"


def test_the_reason_why_data_loaders_cannot_start_is_said(
    sppnet: Caller, at_loader_start: Callable[[Callable[[], object]], None]
) -> None:
    at_loader_start(lambda: Path("gone").stat())
    failed = sppnet("train", *SMALL)
    assert failed.code == 1
    assert "No such file or directory: 'gone'" in failed.err
    assert "iter(combined_loader)" not in failed.err
    assert state() == "failed"


def state() -> str:
    (status,) = Path("runs").rglob("status.json")
    return str(json.loads(status.read_text())["state"])


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[str]]:
    """This process is a job of SLURM, whose state `squeue` prints; returns the commands that SLURM has got."""
    numbers = {"JOB_ID": 7, "ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": 0, "NTASKS": 1, "NTASKS_PER_NODE": 1, "NNODES": 1}
    for name, number in (numbers | {"PROCID": 0, "LOCALID": 0, "NODEID": 0}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(number))
    monkeypatch.setenv("SPPNET_SUBMISSION", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(job, "pending_signals", [])
    monkeypatch.setattr(job, "training_finished", False)
    asked = tmp_path / "asked"

    def says(text: str) -> list[str]:
        for name in ("squeue", "scontrol"):
            (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {asked}\necho {text}\n")
            (tmp_path / name).chmod(0o755)
        return asked.read_text().split() if asked.exists() else []

    return says


@pytest.mark.parametrize("answer", ["RUNNING", "SIGNALING", "COMPLETING"])
def test_a_job_that_is_preempted_goes_on_and_a_cancelled_one_ends(
    sppnet: Caller,
    monkeypatch: pytest.MonkeyPatch,
    slurm: Callable[[str], list[str]],
    at_loader_start: Callable[[Callable[[], object]], None],
    answer: str,
) -> None:
    """SIGTERM at the start of the data loaders, within training and in the final test."""
    slurm(answer)
    monkeypatch.setenv("STOP_BY", "SIGTERM")
    at_loader_start(lambda: signal.raise_signal(signal.SIGTERM))  # in the first of the runs
    for points in ("batch 3, test",) if answer != "COMPLETING" else ("", "batch 3", "test"):
        monkeypatch.setenv("STOP_AT", points)
        ended = sppnet("train", *SMALL, *PLUG)
        assert (ended.code, state()) == ((0, "done") if answer != "COMPLETING" else (1, "preempted")), ended.err
    assert slurm(answer) == 3 * ["squeue"]


def test_a_job_that_is_warned_when_only_its_test_remains_is_queued_again(
    sppnet: Caller,
    monkeypatch: pytest.MonkeyPatch,
    slurm: Callable[[str], list[str]],
    at_loader_start: object,
) -> None:
    slurm("RUNNING")
    monkeypatch.setenv("STOP_AT", "end of 1")
    monkeypatch.setenv("STOP_BY", "SIGUSR2")
    assert (sppnet("train", *SMALL, *PLUG).code, state()) == (1, "queued")
    monkeypatch.setenv("STOP_AT", "")
    job.pending_signals.append(signal.SIGUSR2)  # as when it comes during the imports
    assert (sppnet("train", *SMALL, *PLUG).code, state()) == (0, "done")
    assert slurm("") == 2 * ["scontrol"]
