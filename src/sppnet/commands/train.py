"""`sppnet train`: train the run that the configuration names, go on with it, or show the result it has.

Order: names and values (no torch), identity and what is already done, network against sizes (no Lightning), lock,
data, training, test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sppnet.commands import hydra_app
from sppnet.commands.rank import join
from sppnet.config.compose import Job
from sppnet.errors import RunFailed, UserError, notice
from sppnet.runs import ranks
from sppnet.runs.identity import world_size
from sppnet.runs.plan import Plan, check_duplicates, plan
from sppnet.runs.result_text import print_result
from sppnet.runs.run_directory import Run
from sppnet.runs.slurm_status import mark
from sppnet.slurm import job as slurm_job
from sppnet.storage.files import write_json

if TYPE_CHECKING:
    from sppnet.training.checkpointing import Preempted


def main(words: Sequence[str]) -> None:
    """Compose `conf/train.yaml` with the command line and train."""
    hydra_app.run("train", words, train)


def train(job: Job) -> None:
    """Do what `job` asks for and print, last, the run directory and the test result."""
    if slurm_job.restarts():
        job.cfg["force"] = False
    planned = plan(job.cfg)
    ranks.check(planned.cfg)
    check_duplicates(planned)
    if slurm_job.rank() > 0:
        join(planned, job.overrides)
        return
    if planned.result is not None and not job.cfg["force"]:
        print(
            "; ".join(
                filter(
                    None, (f"{planned.run.path} is done (force=true does it again)", planned.run.status.get("stopped"))
                )
            )
        )
    elif planned.run.done and not job.cfg["force"]:
        _test(planned)
        return
    else:
        _train(planned, job)
    assert planned.result is not None
    print_result(planned.run, planned.result)


def _test(planned: Plan) -> None:
    """The run is trained, this test of it is not done: other sizes or views.

    Raises:
        UserError: it would be named after several processes, and cut short in one.
    """
    from sppnet.commands.test import score_run

    if planned.cfg["trainer"]["limit_batches"] and world_size(planned.cfg) > 1:
        raise UserError(
            f"{planned.run.path} was trained by several processes, and trainer.limit_batches would show a single one"
            f" other images; for other views or sizes type sppnet test checkpoint={planned.run.path}"
        )
    slurm_job.test_is_left()
    print(f"{planned.run.path} is trained; scoring it with other views or sizes", flush=True)
    found = score_run(planned.cfg, planned.run.best, "best", planned.images)
    print_result(planned.run, found)  # before it is kept: a run of somebody else's may not be ours to write to
    write_json(planned.run.test_file(planned.test), found)


def _train(planned: Plan, job: Job) -> None:
    """Check and build everything, take the directory, train from where the run stands, test."""
    run, cfg = planned.run, planned.cfg
    from sppnet.training.preflight import check_job  # imports torch

    check_job(cfg)
    from sppnet.training.trainer import fit, prepare  # imports Lightning

    prepared = prepare(cfg, job.overrides, planned.images)
    for line in prepared.notices:
        notice(line)
    with run.locked():
        _log_to_file(run)
        if cfg["force"]:
            run.clear()
        if planned.result is not None:
            return  # another process was faster
        for line in planned.images.notices():
            notice(line)
        print(f"{run.path}{' goes on from its last checkpoint' if run.begun else ''}", flush=True)
        with _status(run):
            run.begin(cfg, job.overrides, planned.identity)
            found, totals = fit(prepared, run)
            write_json(run.test_file(planned.test), found)
            write_json(run.path / "summary.json", found["metrics"] | totals)
            run.write_status("done", bad_files=totals["bad_files"], stopped=totals["stopped"])
            if bad := totals["bad_files"]:
                notice(f"{bad} image(s) could not be read and were left out; {run.path / 'bad_files.txt'} lists them")


@contextlib.contextmanager
def _status(run: Run) -> Iterator[None]:
    """Write how the work ended, whichever way it did."""
    from sppnet.training.checkpointing import Preempted

    def stop(*_: object) -> None:
        raise KeyboardInterrupt  # outside training, where `Checkpoints` listens, there is nothing to save

    before = signal.signal(signal.SIGTERM, stop)
    run.write_status("running", **mark())
    try:
        yield
    except Preempted as stopped:
        raise RunFailed(_stopped(run, stopped)) from None
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the second of the first
        run.write_status("preempted", "interrupted")
        raise KeyboardInterrupt from None
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk may be full
            run.write_status("failed", _last_line(error))
        if isinstance(error, UserError):  # a file that cannot be read, say: the run has begun, so it is a failure
            raise RunFailed(str(error)) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(run: Run, stopped: Preempted) -> str:
    """Write that a run was stopped, and ask SLURM to queue it again if it warned of its limit."""
    why = None
    if stopped.number == slurm_job.WARNING and slurm_job.inside():
        run.write_status("queued", f"{stopped}; queued again")
        if (why := slurm_job.requeue()) is None:
            return f"{stopped}; queued again"
        why = f"{stopped}; SLURM does not queue it again: {why}"
    run.write_status("preempted", why or str(stopped))
    return f"{why or stopped}; the same command goes on from there"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if isinstance(error, RunFailed | UserError) else f"{type(error).__name__}: {lines[-1]}"


def _log_to_file(run: Run) -> None:
    """A job of a sweep writes to its own `log.txt`; the launcher asks for that, the terminal shows its summary."""
    if os.environ.pop("SPPNET_JOB_LOG", None):
        sys.stdout.flush()
        sys.stderr.flush()
        handle = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
