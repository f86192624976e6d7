"""Jobs on a real SLURM, stopped in every way that clusters know: they end with the weights of an unbroken run."""

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

WORDS = (
    *(word for word in SMALL if not word.startswith(("trainer.limit", "trainer.max", "trainer.checkpoint"))),
    *("trainer.max_epochs=4", "trainer.checkpoint_every_n_steps=1000", "trainer.accelerator=cpu", "study=mishaps"),
    *PLUG,
)
SLURM = (
    *("launch=slurm", "hydra.launcher.cpus=1", "hydra.launcher.time=15"),
    "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1']",  # n1 and n2 are names of this machine for SLURM alone
)


LONG = ("trainer.max_epochs=12",)  # still at it when it is stopped the second time


def states(where: Path) -> dict[int, dict[str, Any]]:
    """Status by seed."""
    found = {}
    for path in where.glob("runs/mishaps/*/status.json"):
        story = path.parent / "config.yaml"
        if not story.exists():  # queued, and has not begun
            continue
        seed = int(next(line for line in story.read_text().splitlines() if line.startswith("seed:")).split()[1])
        found[seed] = json.loads(path.read_text()) | {"run": path.parent}
    return found


def started(where: Path, seeds: range, step: int = 1) -> bool:
    """Whether the run of every seed is at `step` or beyond."""
    try:
        found = states(where)
    except (FileNotFoundError, StopIteration):
        return False
    return all(found.get(seed, {}).get("step", 0) >= step for seed in seeds)


def restarts(where: Path, seed: int) -> int:
    """How often SLURM has started the job of a run again."""
    return int(states(where).get(seed, {}).get("slurm", {}).get("restarts", 0))


def job_of(on: Caller, where: Path, seed: int) -> str:
    return str(states(where)[seed]["slurm"]["job"])


def test_a_study_survives_what_clusters_do_to_jobs(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    """Of eight jobs one raises, one is cancelled, one requeued by hand, one comes to its limit, some are preempted."""
    (tmp_path / "slow").touch()
    sent = ("train", "-m", *WORDS, *SLURM, "seed=0,1,2,3,4,5,6")
    sender = subprocess.Popen(
        command(*sent), cwd=tmp_path, env=cluster.for_sppnet(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    cluster.wait(lambda: len(cluster.jobs()) == 7)
    os.killpg(sender.pid, signal.SIGKILL)  # the terminal is gone as soon as the jobs are queued
    sender.wait()
    late = on("train", "-m", *WORDS, *SLURM, "seed=7", "hydra.launcher.time=1", "hydra.launcher.warning=35")
    assert late.code == 0, late.err
    again = on(*sent)  # somebody else starts the same study
    assert "queued  seed" not in again.out
    assert again.out.count("left") == 7
    cluster.wait(lambda: started(tmp_path, range(7), 4))
    (tmp_path / "raise-0").touch()
    cluster.call("scancel", job_of(on, tmp_path, 1))
    cluster.call("scontrol", "requeue", job_of(on, tmp_path, 2))
    cluster.call("sbatch", "-p", "high", "-w", "n1", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    for seeds in ((7,), range(3, 7)):  # the limit; preempted, of which some may end in the time of grace
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
    rest = on("train", "-m", *WORDS, "launch=processes", "seed=0,1,2,3,4,5,6,7")  # the laptop finishes what is missing
    assert rest.code == 0, rest.out
    assert rest.out.count("(was done)") == 6
    reported = on("report")
    assert reported.code == 0, reported.err
    assert "missing" not in reported.out
    unbroken = on("train", "-m", *WORDS, "launch=processes", "seed=0,1,2,3,4,5,6,7", "paths.runs=unbroken")
    assert unbroken.code == 0, unbroken.out
    for one in states(tmp_path).values():
        for name in ("best", "last"):
            other = tmp_path / "unbroken" / one["run"].relative_to(tmp_path / "runs") / f"checkpoints/{name}.ckpt"
            assert same_weights(one["run"] / f"checkpoints/{name}.ckpt", other), one


def test_tasks_of_one_node_and_of_two_go_on_where_they_were(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    """Stopped by USR2 and by a preemption that says TERM alone."""
    (tmp_path / "slow").touch()
    shapes = {1: ("trainer.devices=2",), 2: ("trainer.devices=1", "trainer.num_nodes=2")}
    for seed, shape in shapes.items():
        assert on("train", *WORDS, *LONG, *SLURM, *shape, f"seed={seed}").code == 0
    cluster.wait(lambda: started(tmp_path, range(1, 3), 2))
    for seed in shapes:
        cluster.call("scancel", "--signal=USR2", job_of(on, tmp_path, seed))
    cluster.wait(lambda: all(one["slurm"].get("restarts") == 1 for one in states(tmp_path).values()))
    steps = {seed: one["step"] for seed, one in states(tmp_path).items()}
    cluster.wait(lambda: all(one.get("step", 0) > steps[seed] for seed, one in states(tmp_path).items()))
    cluster.call("sbatch", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")
    cluster.wait(lambda: "PENDING" in cluster.jobs().values())
    cluster.wait(lambda: all(one["slurm"].get("restarts") == 2 for one in states(tmp_path).values()))
    (tmp_path / "slow").unlink()
    cluster.wait(lambda: not cluster.jobs())
    ended = states(tmp_path)
    assert [ended[seed]["state"] for seed in shapes] == ["done", "done"]
    for seed in shapes:
        assert on("train", *WORDS, *LONG, "trainer.devices=2", f"seed={seed}", "paths.runs=unbroken").code == 0
        run = ended[seed]["run"]
        other = tmp_path / "unbroken" / run.relative_to(tmp_path / "runs")
        assert same_weights(run / "checkpoints/last.ckpt", other / "checkpoints/last.ckpt")
        assert same_weights(run / "checkpoints/best.ckpt", other / "checkpoints/best.ckpt")


def test_a_rank_that_fails_fails_the_job(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "raise-rank-1").touch()
    assert on("train", *WORDS, *SLURM, "trainer.devices=2").code == 0
    cluster.wait(lambda: not cluster.jobs())
    shown = on("status").out
    assert "1 failed" in shown
    assert "rank 1: RuntimeError: a mishap after step 10" in shown
    (tmp_path / "raise-rank-1").unlink()
    assert on("train", *WORDS, "trainer.devices=2").code == 0  # by hand, on this machine
    assert "1 done" in on("status").out


def test_mistakes_are_found_before_anything_is_queued(on: Caller, cluster: Cluster, tmp_path: Path) -> None:
    wrong = {
        ("hydra.launcher.cpus=0",): "hydra.launcher.cpus=0 is not allowed",
        ("hydra.launcher.time=soon",): "minutes",
        ("head.rule=sliding", "head.bins=[6,1]"): "sliding",
        ("hydra.launcher.partition=fly",): "sbatch:",
    }
    for words, said in wrong.items():
        refused = on("train", "-m", *WORDS, *SLURM, "seed=1,2", *words)
        assert refused.code in {1, 2}, (words, refused.out)
        assert said in refused.err, (words, refused.err)
    assert not cluster.jobs()
    assert not list(tmp_path.rglob("status.json"))
    assert not list(tmp_path.rglob("job.sh"))


def test_accounting_knows_of_jobs_that_the_controller_has_forgotten(
    booked: Caller, accounting: Cluster, tmp_path: Path
) -> None:
    """Of three jobs one raises, one is cancelled before it starts, one is killed without a word; then all go on.

    In a folder with a blank in its name; two people send them at the same moment.
    """
    where = tmp_path / "a folder"
    (where / "slow").touch()
    (where / "raise-0").touch()
    words = ("train", "-m", *WORDS, *SLURM, "seed=0,1,2")
    more = ("+hydra.launcher.options.comment='of two'", "+hydra.launcher.options.no-kill=true")
    first = command(*words, *more, "hydra.launcher.parallel=2")
    senders = [subprocess.Popen(first, cwd=where, env=accounting.for_sppnet(), stdout=-1, text=True) for _ in range(2)]
    said = "".join(sender.communicate()[0] for sender in senders)
    assert [sender.returncode for sender in senders] == [0, 0]
    assert (said.count("] queued"), said.count("] left")) == (3, 3), said
    accounting.wait(lambda: started(where, range(1), 1) and started(where, range(1, 2), 4))
    waiting = next(job for job in accounting.jobs() if job.endswith("_2"))
    accounting.call("scancel", waiting)
    os.kill(int(states(where)[1]["pid"]), signal.SIGKILL)  # as the kernel does where memory is short
    accounting.wait(lambda: not accounting.call("squeue", "-h", "-t", "all"))
    shown = booked("status").out
    assert "a mishap after step 10" in shown
    assert "CANCELLED" in shown
    assert "killed, or the machine is down (its SLURM job is FAILED" in shown
    for name in ("slow", "raise-0"):
        (where / name).unlink()
    again = booked(*words)
    assert again.out.count("] queued") == 3, again.out
    accounting.wait(lambda: not accounting.jobs())
    assert "3 runs: 3 done" in booked("status").out
    summaries = {path: path.read_text() for path in where.glob("runs/mishaps/*/summary.json")}
    tested = booked("train", "-m", *WORDS, *SLURM, "seed=0,1", "sizes.test=[20]")  # a further test of what is done
    assert tested.out.count("] queued") == 2, tested.out
    assert "3 done" in booked("status").out
    accounting.wait(lambda: not accounting.jobs())
    assert "5 runs: 5 done" in booked("status").out
    assert summaries == {path: path.read_text() for path in summaries}
