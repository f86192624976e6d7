"""Jobs of a sweep have GPUs of their own: what their environment names is theirs alone. No GPU is needed to see it."""

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
from sppnet.studies.local_launcher import Processes
from sppnet.studies.sweep import SweepJob

# A data set that notes what a job sees, and then ends the job; its parent, which plans the jobs, is passed over.
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
    sppnet("train", "-m", "launch=processes", "allow=spy", "data._target_=spy.Spy", "trainer.threads=1", "seed=0,1")
    assert sorted(path.read_text() for path in tmp_path.glob("seen-*")) == ["3", "GPU-8a5c"]


# What a job sees, from when and until when.
NOTE = """
import json, os, sys, time
began = time.time()
time.sleep(0.15)
seen = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": began, "ended": time.time()}
open(sys.argv[1], "w").write(json.dumps(seen))
"""


class Noting(Processes):
    """Real processes, which note what they see in place of training."""

    def command_line(self, group: list[SweepJob], job: SweepJob) -> list[str]:
        return [sys.executable, "-S", "-c", NOTE, f"{job.number}.json"]


def run(where: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, n: int | None, *jobs: str) -> list[Any]:
    """What each of `jobs` (a value of `trainer.devices`, `cpu` for none) saw."""
    monkeypatch.chdir(where)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    words = [
        [f"seed={i}", *(["trainer.accelerator=cpu"] if job == "cpu" else [f"trainer.devices={job}"])]
        for i, job in enumerate(jobs)
    ]
    made = [SweepJob(i, word, OmegaConf.create(compose.compose_config("train", word))) for i, word in enumerate(words)]
    Noting("train", made, n).run()
    return [json.loads((where / f"{i}.json").read_text()) for i in range(len(jobs))]


def at_once(jobs: list[Any]) -> list[set[str]]:
    """For every two jobs that ran at the same time, the GPUs that both had."""
    pairs = [
        (a, b) for i, a in enumerate(jobs) for b in jobs[:i] if a["began"] < b["ended"] and b["began"] < a["ended"]
    ]
    return [set(filter(None, a["gpus"].split(","))) & set(b["gpus"].split(",")) for a, b in pairs]


def test_as_many_run_at_a_time_as_there_are_gpus_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = run(tmp_path, monkeypatch, "0,1,2,3", None, *["1"] * 6)
    assert len(at_once(jobs)) >= 3
    assert not any(at_once(jobs))


def test_a_job_of_two_devices_has_two_gpus_and_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = run(tmp_path, monkeypatch, "GPU-a,GPU-b,GPU-c,-1,GPU-d", None, "1", "2", "cpu", "2", "1")  # CUDA stops at -1
    assert [len(job["gpus"].split(",")) for job in jobs] == [1, 2, 1, 2, 1]
    assert jobs[2]["gpus"] == ""
    assert not any(at_once(jobs))


def test_certain_gpus_are_counted_among_all_and_kept_for_their_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = run(tmp_path, monkeypatch, "0,1,2", None, "1", "[0,2]", "[0]", "1", "4")
    assert [job["gpus"] for job in jobs[1:3]] == ["0,1,2"] * 2
    assert jobs[4]["gpus"] == "0,1,2"  # it asks for too many, and says so itself
    one, two = sorted(jobs[1:3], key=lambda job: float(job["began"]))
    assert one["ended"] <= two["began"]


@pytest.mark.parametrize(
    ("visible", "n", "wanted", "said"),
    [
        ("0,1", 3, {"0", "1"}, "hydra.launcher.n=3: up to 3 jobs at a time share the 2 GPU(s) here"),
        ("0,1", 2, {"0", "1"}, ""),
        ("0,1", 1, {"0,1"}, ""),  # launch=local is this
        ("", None, {""}, ""),
        (None, None, None, ""),
    ],
)
def test_what_is_typed_and_what_is_there_decide(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    visible: str | None,
    n: int | None,
    wanted: set[str] | None,
    said: str,
) -> None:
    jobs = run(tmp_path, monkeypatch, visible, n, *["1"] * 4)
    expected: set[str | None] = {*gpus.visible()} or {None} if wanted is None else {*wanted}
    assert {job["gpus"] for job in jobs} == expected
    assert capsys.readouterr().err.removeprefix("sppnet: ").partition(",")[0].strip() == said


CARDS = "GPU 0: NVIDIA H100 (UUID: GPU-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-bb)\n"
PARTS = CARDS.replace("GPU 1", "  MIG 1g Device 0: (UUID: MIG-1)\n  MIG 1g Device 1: (UUID: MIG-2)\nGPU 1")


@pytest.mark.parametrize(
    ("listed", "visible", "found"),
    [
        (CARDS, None, ["0", "1"]),
        (CARDS, "1", ["1"]),
        (CARDS, "1,7,0", ["1"]),  # as CUDA reads it
        (CARDS, "GPU-bb", ["GPU-bb"]),
        (CARDS, "", []),
        (PARTS, None, ["MIG-1", "MIG-2", "GPU-bb"]),
        ("No devices were found", None, []),
        ("No devices were found", "NoDevFiles", []),  # as SLURM has it where a job has none
    ],
)
def test_the_gpus_are_those_that_the_driver_lists_and_the_environment_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, visible: str | None, found: list[str]
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<END\n{listed}\nEND\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible() == found
