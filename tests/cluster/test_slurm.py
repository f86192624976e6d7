"""Jobs on a real SLURM, stopped in every way a cluster can; they end with the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from calling import SMALL, Caller, command, same_weights
from mishaps import PLUG
from private_slurm import Cluster

pytestmark = pytest.mark.slow

OVERRIDES = (
    *(override for override in SMALL if not override.startswith(("trainer.limit", "trainer.max", "checkpointing"))),
    *("trainer.max_epochs=4", "checkpointing.every_n_steps=1000", "trainer.accelerator=cpu", "study=mishaps"),
    *PLUG,
)
SLURM = (
    *("launch=slurm", "hydra.launcher.cpus=1", "hydra.launcher.time=15"),
    "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1']",  # only SLURM knows the host names n1 and n2
)


LONG = ("trainer.max_epochs=12",)  # long enough to be stopped twice


def states(folder: Path) -> dict[int, dict[str, Any]]:
    """Status by seed."""
    by_seed = {}
    for path in folder.glob("runs/mishaps/*/status.json"):
        config = path.parent / "config.yaml"
        if not config.exists():  # queued, not yet started
            continue
        seed = int(next(line for line in config.read_text().splitlines() if line.startswith("seed:")).split()[1])
        by_seed[seed] = json.loads(path.read_text()) | {"run": path.parent}
    return by_seed


def started(folder: Path, seeds: range, step: int = 1) -> bool:
    """Whether the run of every seed has reached `step`."""
    try:
        by_seed = states(folder)
    except (FileNotFoundError, StopIteration):
        return False
    return all(by_seed.get(seed, {}).get("step", 0) >= step for seed in seeds)


def restarts(folder: Path, seed: int) -> int:
    """How often SLURM has restarted the job of a run."""
    return int(states(folder).get(seed, {}).get("slurm", {}).get("restarts", 0))


def job_of(on: Caller, folder: Path, seed: int) -> str:
    return str(states(folder)[seed]["slurm"]["job"])


def test_a_study_survives_what_clusters_do_to_jobs(
    on: Caller, sppnet: Caller, cluster: Cluster, tmp_path: Path
) -> None:
    """Of eight jobs, one raises, one is cancelled, one is requeued by hand, one hits its limit, some are preempted."""
    (tmp_path / "slow").touch()
    sent = ("train", "-m", *OVERRIDES, *SLURM, "seed=0,1,2,3,4,5,6")
    sender = subprocess.Popen(
        command(*sent), cwd=tmp_path, env=cluster.for_sppnet(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    cluster.wait(lambda: len(cluster.jobs()) == 7)
    os.killpg(sender.pid, signal.SIGKILL)  # the terminal closes as soon as the jobs are queued
    sender.wait()
    late = on("train", "-m", *OVERRIDES, *SLURM, "seed=7", "hydra.launcher.time=1", "hydra.launcher.warning=35")
    assert late.code == 0, late.err
    again = on(*sent)  # another user starts the same study
    assert "queued  seed" not in again.out
    assert again.out.count("left") == 7
    cluster.wait(lambda: started(tmp_path, range(7), 4))
    (tmp_path / "raise-0").touch()
    cluster.call("scancel", job_of(on, tmp_path, 1))
    cluster.call("scontrol", "requeue", job_of(on, tmp_path, 2))
    cluster.call("sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    for seeds in ((7,), range(3, 7)):  # the limit; preemption, in whose grace time some may end
        cluster.wait(lambda among=seeds: any(restarts(tmp_path, seed) for seed in among))
    (tmp_path / "slow").unlink()
    cluster.wait(lambda: not cluster.jobs())
    ended = states(tmp_path)
    assert [ended[seed]["state"] for seed in range(2, 8)] == ["done"] * 6, ended
    assert restarts(tmp_path, 2) >= 1
    shown = on("status").out
    assert "6 done" in shown
    assert "RuntimeError: a mishap after step 10" in shown
    assert "CANCELLED" in shown
    (tmp_path / "raise-0").unlink()
    rest = on("train", "-m", *OVERRIDES, "launch=processes", "seed=0,1,2,3,4,5,6,7")  # a laptop runs what is missing
    assert rest.code == 0, rest.out
    assert rest.out.count("(already done)") == 6
    reported = on("report")
    assert reported.code == 0, reported.err
    assert "missing" not in reported.out
    for seed in range(8):
        assert sppnet("train", *OVERRIDES, f"seed={seed}", "paths.runs=unbroken").code == 0
    for status in states(tmp_path).values():
        for name in ("best", "last"):
            expected = tmp_path / "unbroken" / status["run"].relative_to(tmp_path / "runs") / f"checkpoints/{name}.ckpt"
            assert same_weights(status["run"] / f"checkpoints/{name}.ckpt", expected), status


def test_tasks_on_one_node_and_on_two_resume(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    """Stopped by USR2, then by preemptions that send TERM alone: in training, and in the test."""
    (tmp_path / "slow").touch()
    shapes = {1: ("trainer.devices=2",), 2: ("trainer.devices=1", "trainer.num_nodes=2")}
    for seed, shape in shapes.items():
        assert on("train", *OVERRIDES, *LONG, *SLURM, *shape, f"seed={seed}").code == 0
    cluster.wait(lambda: started(tmp_path, range(1, 3), 2))
    for seed in shapes:
        cluster.call("scancel", "--signal=USR2", job_of(on, tmp_path, seed))
    cluster.wait(lambda: all(status["slurm"].get("restarts") == 1 for status in states(tmp_path).values()))
    steps = {seed: status["step"] for seed, status in states(tmp_path).items()}
    cluster.wait(lambda: all(status.get("step", 0) > steps[seed] for seed, status in states(tmp_path).items()))
    (tmp_path / "slow-test").touch()
    for restarted in (2, 3):
        cluster.call("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
        cluster.wait(lambda: "PENDING" in cluster.jobs().values())
        cluster.wait(lambda n=restarted: all(restarts(tmp_path, seed) == n for seed in shapes))
        (tmp_path / "slow").unlink(missing_ok=True)
        cluster.wait(lambda: all((tmp_path / f"testing-{seed}").exists() for seed in shapes))
    (tmp_path / "slow-test").unlink()
    cluster.wait(lambda: not cluster.jobs())
    ended = states(tmp_path)
    assert [ended[seed]["state"] for seed in shapes] == ["done", "done"]
    for seed in shapes:
        assert on("train", *OVERRIDES, *LONG, "trainer.devices=2", f"seed={seed}", "paths.runs=unbroken").code == 0
        run = ended[seed]["run"]
        expected = tmp_path / "unbroken" / run.relative_to(tmp_path / "runs")
        assert same_weights(run / "checkpoints/last.ckpt", expected / "checkpoints/last.ckpt")
        assert same_weights(run / "checkpoints/best.ckpt", expected / "checkpoints/best.ckpt")
    words = (f"checkpoint={ended[1]['run']},{ended[2]['run']},gone", "views=warp", "allow=mishaps")
    tested = on("test", "-m", *SLURM, *words)
    assert tested.out.count("refused") == 1, tested.out  # on the command line, although the other two are queued
    cluster.wait(lambda: not cluster.jobs())
    assert [len(list((ended[seed]["run"] / "tests").iterdir())) for seed in shapes] == [2, 2]
    assert [folder.parent.name for folder in tmp_path.glob("runs/*/.slurm")] == ["mishaps"], "beside the runs"


def test_a_rank_that_fails_fails_the_job(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "raise-rank-1").touch()
    assert on("train", *OVERRIDES, *SLURM, "trainer.devices=2").code == 0
    cluster.wait(lambda: not cluster.jobs())
    shown = on("status").out
    assert "1 failed" in shown
    assert "rank 1: RuntimeError: a mishap after step 10" in shown
    (tmp_path / "raise-rank-1").unlink()
    assert on("train", *OVERRIDES, "trainer.devices=2").code == 0  # by hand, on this machine
    assert "1 done" in on("status").out


def test_mistakes_are_found_before_anything_is_queued(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    wrong = {
        ("hydra.launcher.cpus=0",): "hydra.launcher.cpus=0 is not allowed",
        ("hydra.launcher.time=soon",): "minutes",
        ("pooling.rule=sliding", "pooling.bins=[6,1]"): "sliding",
        ("hydra.launcher.partition=fly",): "sbatch:",
    }
    for overrides, message in wrong.items():
        refused = on("train", "-m", *OVERRIDES, *SLURM, "seed=1,2", *overrides)
        assert refused.code in {1, 2}, (overrides, refused.out)
        assert message in refused.err, (overrides, refused.err)
    assert not cluster.jobs()
    assert not list(tmp_path.rglob("status.json"))
    assert not list(tmp_path.rglob("job.sh"))


def test_accounting_reports_jobs_that_the_controller_forgot(
    booked: Caller, accounting: Cluster, tmp_path: Path
) -> None:
    """Of three jobs, one raises, one is cancelled before it starts, one is killed by SIGKILL; then all resume.

    The folder has a blank in its name, and two users submit at the same moment.
    """
    folder = tmp_path / "a folder"
    (folder / "slow").touch()
    (folder / "raise-0").touch()
    words = ("train", "-m", *OVERRIDES, *SLURM, "seed=0,1,2")
    more = ("+hydra.launcher.options.comment='of two'", "+hydra.launcher.options.no-kill=true")
    first = command(*words, *more, "hydra.launcher.parallel=2")
    senders = [subprocess.Popen(first, cwd=folder, env=accounting.for_sppnet(), stdout=-1, text=True) for _ in range(2)]
    output = "".join(sender.communicate()[0] for sender in senders)
    assert [sender.returncode for sender in senders] == [0, 0]
    assert (output.count("] queued"), output.count("] left")) == (3, 3), output
    accounting.wait(lambda: started(folder, range(1), 1) and started(folder, range(1, 2), 4))
    waiting = next(job for job in accounting.jobs() if job.endswith("_2"))
    accounting.call("scancel", waiting)
    os.kill(int(states(folder)[1]["pid"]), signal.SIGKILL)  # as the kernel's out-of-memory killer does
    accounting.wait(lambda: not accounting.call("squeue", "-h", "-t", "all"))
    shown = booked("status").out
    assert "a mishap after step 10" in shown
    assert "CANCELLED" in shown
    assert "killed, or the machine is down (its SLURM job is FAILED" in shown
    for name in ("slow", "raise-0"):
        (folder / name).unlink()
    again = booked(*words)
    assert again.out.count("] queued") == 3, again.out
    accounting.wait(lambda: not accounting.jobs())
    assert "3 runs: 3 done" in booked("status").out
    summaries = {path: path.read_text() for path in folder.glob("runs/mishaps/*/summary.json")}
    further = ("seed=0,1", "sizes.test=[20]", "+hydra.launcher.options.hold=true")  # a test of runs that are done
    tested = booked("train", "-m", *OVERRIDES, *SLURM, *further)
    assert tested.out.count("] queued") == 2, tested.out
    assert "5 runs: 3 done" in (shown := booked("status").out), shown
    accounting.call("scontrol", "release", next(iter(accounting.jobs())).split("_")[0])
    accounting.wait(lambda: not accounting.jobs())
    assert "5 runs: 5 done" in booked("status").out
    assert summaries == {path: path.read_text() for path in summaries}
