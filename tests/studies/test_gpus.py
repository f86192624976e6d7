"""Each job of a sweep gets its own GPUs through `CUDA_VISIBLE_DEVICES`; these tests need no GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from calling import Caller
from sppnet.config import compose
from sppnet.studies import gpus
from sppnet.studies.local_launcher import LocalSweep
from sppnet.studies.sweep import SweepJob

# A data set that writes down the GPUs a job sees and ends the job; in the parent, which plans the jobs, it does not.
SPY = """
import os, sys
from pathlib import Path

from PIL import Image
from sppnet.data import ImageSet
from sppnet.errors import UserError


class Spy(ImageSet):
    classes = ("a", "b")

    def __init__(self):
        if "hydra.mode=RUN" in sys.argv:
            Path(f"seen-{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            raise UserError("seen")

    def __len__(self):
        return 40

    def label(self, index):
        return index % 2

    def read(self, index):
        return Image.new("RGB", (40, 40))
"""


def test_every_job_of_a_sweep_has_a_gpu_of_its_own(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8a5c")
    sppnet("train", "-m", "launch=processes", "allow=spy", "data._target_=spy.Spy", "compute.num_threads=1", "seed=0,1")
    assert sorted(path.read_text() for path in tmp_path.glob("seen-*")) == ["3", "GPU-8a5c"]


# Writes the GPUs a job sees, and when it began and ended.
NOTE = """
import json, os, sys, time
began = time.time()
time.sleep(0.15)
seen = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": began, "ended": time.time()}
open(sys.argv[1], "w").write(json.dumps(seen))
"""


class RecordingSweep(LocalSweep):
    """Starts real processes that record what they see instead of training."""

    def command_line(self, group: list[SweepJob], job: SweepJob) -> list[str]:
        return [sys.executable, "-S", "-c", NOTE, f"{job.number}.json"]


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, n: int | None, *jobs: str) -> list[Any]:
    """Run `jobs` (values of `trainer.devices`, or `cpu`); returns what each recorded."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    overrides = [
        [f"seed={i}", *(["trainer.accelerator=cpu"] if job == "cpu" else [f"trainer.devices={job}"])]
        for i, job in enumerate(jobs)
    ]
    sweep_jobs = [
        SweepJob(i, of_job, OmegaConf.create(compose.compose_plain("train", of_job)))
        for i, of_job in enumerate(overrides)
    ]
    RecordingSweep("train", sweep_jobs, n).run()
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(len(jobs))]


def shared_gpus(jobs: list[Any]) -> list[set[str]]:
    """For each pair of jobs that overlapped in time, the GPUs that both had."""
    pairs = [
        (a, b) for i, a in enumerate(jobs) for b in jobs[:i] if a["began"] < b["ended"] and b["began"] < a["ended"]
    ]
    return [set(filter(None, a["gpus"].split(","))) & set(b["gpus"].split(",")) for a, b in pairs]


def test_as_many_jobs_run_at_a_time_as_gpus_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = run(tmp_path, monkeypatch, "0,1,2,3", None, *["1"] * 6)
    assert len(shared_gpus(jobs)) >= 3
    assert not any(shared_gpus(jobs))


def test_a_job_of_two_devices_has_two_gpus_and_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = run(tmp_path, monkeypatch, "GPU-a,GPU-b,GPU-c,-1,GPU-d", None, "1", "2", "cpu", "2", "1")  # CUDA stops at -1
    assert [len(job["gpus"].split(",")) for job in jobs] == [1, 2, 1, 2, 1]
    assert jobs[2]["gpus"] == ""
    assert not any(shared_gpus(jobs))


def test_gpus_requested_by_index_are_reserved_for_their_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = run(tmp_path, monkeypatch, "0,1,2", None, "1", "[0,2]", "[0]", "1", "4")
    assert [job["gpus"] for job in jobs[1:3]] == ["0,1,2"] * 2
    assert jobs[4]["gpus"] == "0,1,2"  # a job that requests too many sees all and reports the error itself
    first, second = sorted(jobs[1:3], key=lambda job: float(job["began"]))
    assert first["ended"] <= second["began"]


@pytest.mark.parametrize(
    ("visible", "n", "seen", "message"),
    [
        (
            *("0,1", 3, {"0", "1"}),
            "hydra.launcher.n=3: up to 3 jobs at a time share 2 GPU(s); each new job gets the least busy of them",
        ),
        ("0,1", 2, {"0", "1"}, ""),
        ("0,1", 1, {"0,1"}, ""),  # launch=local is this
        ("", None, {""}, ""),
        (None, None, None, ""),
    ],
)
def test_typed_n_and_visible_gpus_decide_the_sharing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str | None,
    n: int | None,
    seen: set[str] | None,
    message: str,
) -> None:
    jobs = run(tmp_path, monkeypatch, visible, n, *["1"] * 4)
    expected: set[str | None] = {*gpus.visible_gpus()} or {None} if seen is None else {*seen}
    assert {job["gpus"] for job in jobs} == expected
    assert capsys.readouterr().err.removeprefix("sppnet: ").partition(",")[0].strip() == message


CARDS = "GPU 0: NVIDIA H100 (UUID: GPU-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-bb)\n"
PARTS = CARDS.replace("GPU 1", "  MIG 1g Device 0: (UUID: MIG-1)\n  MIG 1g Device 1: (UUID: MIG-2)\nGPU 1")


@pytest.mark.parametrize(
    ("listed", "visible", "expected"),
    [
        (CARDS, None, ["0", "1"]),
        (CARDS, "1", ["1"]),
        (CARDS, "1,7,0", ["1"]),  # as CUDA reads it
        (CARDS, "GPU-bb", ["GPU-bb"]),
        (CARDS, "", []),
        (PARTS, None, ["MIG-1", "MIG-2", "GPU-bb"]),
        ("No devices were found", None, []),
        ("No devices were found", "NoDevFiles", []),  # SLURM's value for a job without GPUs
    ],
)
def test_visible_gpus_are_those_of_the_driver_within_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, visible: str | None, expected: list[str]
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<END\n{listed}\nEND\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible_gpus() == expected
