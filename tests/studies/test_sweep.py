"""A sweep runs each job in its own process and directory, isolates failures and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from calling import SMALL, Caller, command, limits, records

ONE_EPOCH = (*SMALL, "trainer.max_epochs=1", *limits(2))


def states(folder: Path) -> dict[str, str]:
    """Run directory -> state."""
    return {path.parent.name: json.loads(path.read_text())["state"] for path in folder.rglob("status.json")}


def test_a_failed_job_stops_no_other_and_no_job_is_repeated(spawn: Caller, sppnet: Caller, tmp_path: Path) -> None:
    arguments = ("train", "-m", "allow=mine", *ONE_EPOCH, "launch=processes", "optim.lr=0.01,1e30,-1")
    # a cluster's shell, or an sbatch script without srun, may set these; each job is rank 0 all the same
    inherited = (
        "RANK",
        "LOCAL_RANK",
        "SLURM_PROCID",
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
        "JSM_NAMESPACE_RANK",
        "NODE_RANK",
    )
    swept = spawn(*arguments, SLURM_JOB_ID="7", SLURM_NTASKS="4", SLURM_LOCALID="1", **dict.fromkeys(inherited, "1"))
    assert swept.code == 1, swept.err
    assert [line.split()[1] for line in swept.out.splitlines() if line.startswith("[")].count("started") == 2
    assert sorted(states(tmp_path).values()) == ["done", "failed"]
    assert "optim.lr=-1 is not allowed" in swept.out
    assert "the loss is" in swept.out
    assert "log.txt" in swept.out
    provenance = json.loads(next(tmp_path.rglob("provenance.json")).read_text())
    assert len(records(next(tmp_path.rglob("summary.json")).parent)) == 4  # two steps, the validation, the epoch
    assert provenance["starts"][0]["command"] == ["sppnet", *arguments]
    assert provenance["starts"][0]["job"][:2] == ["sppnet", "train"]
    assert provenance["starts"][0]["allowed"] == ["mine"]
    cores = len(os.sched_getaffinity(0))
    assert provenance["starts"][0]["machine"]["cores"] == max(
        1, cores // 2
    )  # one of two at a time: half of the cores each
    again = sppnet("train", "-m", *ONE_EPOCH, "optim.lr=0.01", "loss=auto,cross_entropy")
    assert again.code == 0, again.err
    assert again.out.count("(already done)") == 2
    assert "jobs 1, 2 are one run (" in again.err


@pytest.mark.slow
def test_jobs_that_differ_in_their_test_share_one_training(spawn: Caller, tmp_path: Path) -> None:
    swept = spawn("train", "-m", *ONE_EPOCH, "launch=processes", "views=center,full")
    assert swept.code == 0, swept.err
    assert len(states(tmp_path)) == 1
    assert len(list(tmp_path.rglob("tests/*.json"))) == 2


@pytest.mark.slow
def test_notices_about_the_data_are_printed_once_and_in_every_log(spawn: Caller, tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (30, 30)).save(tmp_path / f"photos/{name}/{i}.png")
    swept = spawn("train", "-m", *ONE_EPOCH, "data=folder", "data.root=photos", "data.num_workers=0", "seed=0,1")
    assert swept.code == 0, swept.out
    logs = [path.read_text() for path in tmp_path.rglob("log.txt")]
    assert [text.count("the 8 images of val/ are its test part") for text in (swept.err, *logs)] == [1, 1, 1]


@pytest.mark.slow
def test_a_sweep_of_tests_prints_every_result(sppnet: Caller, spawn: Caller) -> None:
    run = sppnet("train", *ONE_EPOCH).run
    swept = spawn("test", f"checkpoint={run}", "-m", "views=center,warp")
    assert swept.code == 0, swept.err
    assert swept.out.count("test/top1") == 2


@pytest.mark.slow
def test_four_jobs_four_processes_four_directories(spawn: Caller, sppnet: Caller, tmp_path: Path) -> None:
    without_bins = [word for word in ONE_EPOCH if not word.startswith("pyramid.bins")]
    words = ["train", "-m", *without_bins, "pyramid=l1_1,l4_6_3_2_1", "seed=0,1"]
    swept = spawn(*words)
    assert swept.code == 0, swept.err
    starts = [json.loads(path.read_text()) for path in tmp_path.rglob("status.json")]
    assert len(starts) == len({s["pid"] for s in starts}) == 4
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = sppnet(*words)
    assert again.code == 0
    assert again.out.count("(already done)") == 4
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_sweep_that_is_stopped_saves_its_jobs_and_goes_on(spawn: Caller, tmp_path: Path) -> None:
    arguments = ("train", "-m", *SMALL, "trainer.max_epochs=8", *limits(None), "seed=0,1")
    child = subprocess.Popen(command(*arguments), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("metrics.jsonl")):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 1
    (status,) = (json.loads(path.read_text()) for path in tmp_path.rglob("status.json"))
    assert status["state"] == "preempted", status
    swept = spawn(*arguments)
    assert swept.code == 0, swept.err
    assert list(states(tmp_path).values()) == ["done", "done"]
