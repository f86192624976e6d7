"""Where a run stands, from run directories that are written by hand: every state, and what is said of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calling import Caller
from sppnet.runs.identity import FORMAT
from sppnet.runs.run_directory import FAILED_RANK, Run
from sppnet.slurm import queue
from sppnet.studies.status import RunStatus, run_status

TEST = "0123456789"
HERE = {"host": "here", "pid": 7, "step": 30, "steps": 40, "seconds": 15.0}
JOB: dict[str, Any] = {"slurm": {"job": "12_3", "restarts": 0}}
RESULT = {"metrics": {"test/top1": 0.5}, "identity": {"format": FORMAT}}


def write(run: Path, state: str | None, reason: str | None = None, **more: Any) -> Run:
    """A run directory of nothing but its status."""
    run.mkdir(exist_ok=True)
    if state is not None:
        (run / "status.json").write_text(json.dumps({"state": state, "reason": reason} | HERE | more))
    return Run(run)


def result(run: Run, **record: Any) -> None:
    """The record of the test, and no checkpoints."""
    (run.path / "tests").mkdir()
    (run.path / f"tests/{TEST}.json").write_text(json.dumps(RESULT | record))


def standing(run: Run) -> tuple[str, str]:
    status = run_status(run, TEST)
    return status.state, status.reason


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only programs are in this folder; none is there at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    queue.clear_cached_states()
    yield folder
    queue.clear_cached_states()


def says(folder: Path, squeue: str, sacct: str = "") -> None:
    """Let SLURM's programs print this, from now on."""
    for name, text in (("squeue", squeue), ("sacct", sacct)):
        (folder / name).write_text(f"#!/bin/sh\nprintf '%s' '{text}'\n")
        (folder / name).chmod(0o755)
    queue.clear_cached_states()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_without_a_status_that_can_be_read_a_run_is_missing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        write(tmp_path / "run", None)
        (tmp_path / "run/status.json").write_text(text)
    assert run_status(Run(tmp_path / "run"), TEST) == RunStatus("missing", "", json.loads("{}"), None)
    assert (tmp_path / "run").exists() == (text is not None)  # looking creates nothing


def test_a_run_is_done_with_its_test_and_missing_without(tmp_path: Path) -> None:
    run = write(tmp_path / "run", "done")
    assert standing(run) == ("lost", "its best.ckpt is gone")
    (run.path / "checkpoints").mkdir()
    run.best.touch()
    assert standing(run) == ("missing", "trained, but this test is missing")
    result(run)
    assert standing(run) == ("done", "")
    assert run_status(run, TEST).result == RESULT
    run.best.unlink()  # copied without its checkpoints
    assert standing(run) == ("done", "")
    assert run_status(run, "another").state == "lost"


def test_what_is_to_be_said_of_a_run_that_is_done(tmp_path: Path) -> None:
    run = write(tmp_path / "run", "done", stopped="training ended after epoch 2 of 9")
    result(run, identity={"format": FORMAT - 1})
    state, reason = standing(run)
    assert state == "done"
    assert reason.startswith(f"training ended after epoch 2 of 9; results in format {FORMAT - 1}, from a version")


def test_a_single_run_is_shown_with_its_own_test(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "runs/main").mkdir(parents=True)
    run = write(tmp_path / "runs/main/run", "done")
    result(run)
    own = {"test/top1": 0.25, "test/loss": math.nan}
    for name, metrics in (("00", {"test/top1": 0.75}), (TEST, own), ("ff", own | {"test/loss": 1.0})):
        (run.path / f"tests/{name}.json").write_text(json.dumps(RESULT | {"metrics": metrics}))
    (run.path / "summary.json").write_text(json.dumps(own | {"seconds": 1.0}))
    assert "top1 0.2500" in sppnet("status").out


@pytest.mark.parametrize("state", ["failed", "preempted", "queued"])
def test_a_run_that_says_why_it_stands_still_is_believed(tmp_path: Path, state: str) -> None:
    assert standing(write(tmp_path / "run", state, "because")) == (state, "because")
    assert standing(write(tmp_path / "run", state)) == (state, "")


def test_a_run_runs_while_its_directory_is_held_and_is_lost_after(tmp_path: Path) -> None:
    run = write(tmp_path / "run", "running")
    hold = "import fcntl, sys; file = open(sys.argv[1], 'wb'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True)"
    words = [sys.executable, "-ISc", f"{hold}; input()", str(run.path / "lock")]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"\n"
    running = run_status(run, TEST)
    holder.communicate(b"\n")
    assert (running.state, running.reason, running.speed, running.seconds_left) == ("running", "", 2.0, 5.0)
    assert standing(run) == ("lost", "process 7 on here was killed, or the machine is down")


GONE = "RuntimeError: [third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5"


@pytest.mark.parametrize("state", ["running", "failed", "preempted"])
def test_the_rank_that_failed_says_why(tmp_path: Path, state: str) -> None:
    """The first process saw no more than that another was gone, or was killed itself."""
    run = write(tmp_path / "run", state, GONE)
    (run.path / FAILED_RANK).write_text("rank 1: RuntimeError: no memory\n")
    stopped = ("preempted", GONE)  # that was asked for
    assert standing(run) == (stopped if state == "preempted" else ("failed", "rank 1: RuntimeError: no memory"))
    if state == "failed":
        assert standing(write(run.path, state, "the loss is nan")) == ("failed", "the loss is nan")


QUEUE = "12_2|RUNNING|None\n12_3|{}\n"
OF_A_JOB = [  # what status.json says, what squeue says of the job; the state, what is said
    ("queued", "PENDING|Priority", "queued", "waits; PENDING (Priority) (12_3)"),
    ("queued", "RUNNING|None", "queued", "waits; RUNNING (12_3)"),
    ("queued", "CANCELLED|None", "lost", "its SLURM job is CANCELLED (12_3)"),
    ("running", "RUNNING|None", "queued", "preempted at step 30; RUNNING (12_3)"),
    ("running", "REQUEUED|None", "queued", "preempted at step 30; REQUEUED (12_3)"),
    ("running", "FAILED|NonZeroExitCode", "lost", "machine is down (its SLURM job is FAILED (NonZeroExitCode) (12_3))"),
    ("preempted", "PENDING|BeginTime", "queued", "waits (its SLURM job is PENDING (BeginTime) (12_3))"),
    ("preempted", "TIMEOUT|None", "preempted", "waits (its SLURM job is TIMEOUT (12_3))"),
    ("failed", "FAILED|None", "failed", "waits"),
    ("done", "RUNNING|None", "lost", "its best.ckpt is gone"),
]


@pytest.mark.parametrize(("state", "job", "expected", "message"), OF_A_JOB)
def test_what_slurm_says_of_the_job_decides(
    tmp_path: Path, slurm: Path, state: str, job: str, expected: str, message: str
) -> None:
    run = write(tmp_path / "run", state, "waits", **JOB)
    says(slurm, QUEUE.format(job))
    status, reason = standing(run)
    assert status == expected
    assert reason.endswith(message)


@pytest.mark.parametrize(
    ("sacct", "message"), [("12_3|OUT_OF_MEMORY\n", "OUT_OF_MEMORY (12_3)"), ("", "no longer known to SLURM (12_3)")]
)
def test_a_job_that_the_queue_has_forgotten_is_looked_up_in_the_books(
    tmp_path: Path, slurm: Path, sacct: str, message: str
) -> None:
    says(slurm, "12_2|RUNNING|None\n", sacct)
    assert standing(write(tmp_path / "run", "queued", **JOB)) == ("lost", f"its SLURM job is {message}")


@pytest.mark.parametrize("state", ["queued", "preempted"])
def test_where_slurm_cannot_be_asked_the_run_is_believed(tmp_path: Path, state: str) -> None:
    assert standing(write(tmp_path / "run", state, "waits", **JOB)) == (state, "waits")


def test_a_run_whose_submission_was_never_sent_is_lost(tmp_path: Path, slurm: Path) -> None:
    says(slurm, QUEUE.format("PENDING|None"))
    (tmp_path / "sent").mkdir()
    run = write(tmp_path / "run", "queued", slurm={"submission": str(tmp_path / "sent"), "index": 3})
    assert standing(run) == ("lost", "its SLURM job is not submitted")
    (tmp_path / f"sent/{queue.NUMBER_FILE}").write_text("12;cluster\n")
    assert standing(run) == ("queued", "PENDING (12_3)")


def test_a_run_that_has_not_begun_has_no_speed_and_no_end(tmp_path: Path) -> None:
    begun = run_status(write(tmp_path / "run", "running", step=0, seconds=0.0), TEST)
    assert (begun.speed, begun.seconds_left, begun.ends_at) == (None, None, "")
