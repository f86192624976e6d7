"""`sppnet train`: train the run that the configuration describes, resume it, or show its result.

The cheapest checks come first: names and values (without torch), the run's identity and whether its result exists, and
whether the network accepts its image sizes (with torch, without Lightning). Then come the data, the lock, the
training and the test.
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
from sppnet.config.schema import Config
from sppnet.errors import RunFailed, UserError, notice
from sppnet.runs import ranks
from sppnet.runs.identity import init_identity, init_setting, world_size
from sppnet.runs.plan import PlannedRun, check_duplicates, check_init, plan_run
from sppnet.runs.result_text import print_result
from sppnet.runs.run_directory import Run
from sppnet.runs.slurm_status import slurm_fields
from sppnet.runs.test_record import write_test
from sppnet.slurm import job as slurm_job
from sppnet.storage.files import write_json
from sppnet.studies.warm_start import with_init

if TYPE_CHECKING:
    from sppnet.training.checkpointing import Preempted


def main(words: Sequence[str]) -> None:
    hydra_app.run("train", words, train)


def train(job: Job[Config]) -> None:
    """Train, resume or test the run that `job` describes, then print the run directory and the test result."""
    cfg = job.cfg.model_copy(update={"force": False}) if slurm_job.restarts() else job.cfg
    planned = plan_run(with_init(cfg, "", job.overrides, shared=job.overrides))  # a single job shares all of them
    ranks.check_world_size(cfg)
    check_duplicates(planned)
    if slurm_job.rank() > 0:
        join(planned)
        return
    if planned.result is not None and not cfg.force:
        line = f"{planned.run.path} is done (force=true trains it again)"
        print("; ".join(filter(None, (line, planned.run.status.get("stopped")))))
    elif planned.run.done and not cfg.force:
        _test(planned)
        return
    else:
        _train(planned, job.overrides)
    assert planned.result is not None
    print_result(planned.run, planned.result)


def _test(planned: PlannedRun) -> None:
    """Test a trained run at different sizes or with different views.

    Raises:
        UserError: several processes trained the run, and in a single process `trainer.limit_test_batches` would
            select different images.
    """
    from sppnet.commands.test import score_run

    if planned.cfg.trainer.limit_test_batches and world_size(planned.cfg) > 1:
        raise UserError(
            f"{planned.run.path} was trained by several processes, but this test would run in a single process, where"
            " trainer.limit_test_batches selects different images; to test with different views or sizes, use sppnet"
            f" test checkpoint={planned.run.path}"
        )
    print(f"{planned.run.path} is trained; testing it with other settings", flush=True)
    result = score_run(planned.cfg, planned.run.best, "best", planned.images)
    print_result(planned.run, result)  # print before writing, which may fail in another user's run directory
    write_test(planned.run, planned.test, result)


def _train(planned: PlannedRun, overrides: list[str]) -> None:
    """Check the network, lock the run directory, train (from the last checkpoint, if any) and test."""
    run, cfg = planned.run, planned.cfg
    check_init(planned)
    from sppnet.data.build import split_notices
    from sppnet.training.preflight import check_augmentation, check_job  # imports torch

    check_job(cfg)
    check_augmentation(cfg)
    from sppnet.training.trainer import fit, prepare  # imports Lightning

    starts_anew = planned.starts_anew
    prepared = prepare(cfg, planned.images, starts_anew)
    _check_init_unchanged(planned)
    with run.locked():
        if cfg.force:
            run.clear()
        elif planned.result is not None:
            return  # another process finished the run in the meantime
        elif planned.starts_anew and not starts_anew:
            raise UserError(f"{run.path} has lost its checkpoint in the meantime; repeat the command")
        _log_to_file(run)
        for line in prepared.notices:
            notice(line)
        for line in (*planned.images.notices(), *split_notices(overrides, planned.images)):
            notice(line)
        print(f"{run.path}{' resumes from its last checkpoint' if run.has_checkpoint else ''}", flush=True)
        with _status_file(run):
            run.begin(cfg, overrides, planned.identity, None if cfg.init is None else init_setting(cfg.init))
            result, totals = fit(prepared, run)
            write_test(run, planned.test, result)
            write_json(run.path / "summary.json", result["metrics"] | totals)
            run.write_status("done", test=planned.test, bad_files=totals["bad_files"], stopped=totals["stopped"])
            if bad := totals["bad_files"]:
                notice(f"unreadable images left out: {bad}; {run.path / 'bad_files.txt'} lists them")


def _check_init_unchanged(planned: PlannedRun) -> None:
    """Check that the weights that `prepare` has read are those in the run's identity.

    Raises:
        UserError: the file was replaced in the meantime.
    """
    init = planned.cfg.init
    if init is not None and init_identity(init) != planned.identity["init"]:
        raise UserError(f"init={init} has changed while it was read; repeat the command")


@contextlib.contextmanager
def _status_file(run: Run) -> Iterator[None]:
    """Write `running` to `status.json` and, if the run ends early, its final state and the reason."""
    from sppnet.training.checkpointing import Preempted

    # Before and after training, there is nothing to save, so SIGTERM ends the run. During training, `Checkpoints`
    # handles it. In a SLURM job, the handler of `sppnet.slurm.job` stays, because a preempted job must continue.
    previous_handler = signal.getsignal(signal.SIGTERM)
    if not slurm_job.inside_slurm():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    run.write_status("running", **slurm_fields())
    try:
        yield
    except Preempted as preempted:
        raise RunFailed(_write_preempted(run, preempted)) from None
    except BaseException as error:
        # Lightning turns KeyboardInterrupt into SystemExit, and an error in its teardown may hide it.
        if isinstance(error, KeyboardInterrupt | SystemExit) or isinstance(error.__context__, KeyboardInterrupt):
            run.write_status("preempted", "interrupted")
            raise KeyboardInterrupt from None
        other_rank = run.failed_rank if ranks.is_echo(f"{type(error).__name__}: {error}") else ""
        with contextlib.suppress(OSError):  # the disk may be full
            run.write_status("failed", other_rank or _last_line(error))
        if other_rank:
            raise RunFailed(other_rank) from error
        if isinstance(error, UserError):  # such as an unreadable file; exit code 2 would mean that nothing was written
            raise RunFailed(str(error)) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _write_preempted(run: Run, preempted: Preempted) -> str:
    """Write the status of a run that a signal has stopped, and return the error message.

    If the signal was SLURM's warning before the time limit, the run's SLURM job is requeued.
    """
    message = str(preempted)
    if preempted.number == slurm_job.WARNING and slurm_job.inside_slurm():
        run.write_status("queued", f"{preempted}; queued again")
        refusal = slurm_job.requeue()
        if refusal is None:
            return f"{preempted}; queued again"
        message = f"{preempted}; SLURM refuses to queue it again: {refusal}"
    run.write_status("preempted", message)
    return f"{message}; the same command resumes it"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[-1] if isinstance(error, RunFailed | UserError) else f"{type(error).__name__}: {lines[-1]}"


def _log_to_file(run: Run) -> None:
    """Redirect the output of a sweep's job to the run's `log.txt` if the launcher has set `SPPNET_JOB_LOG`.

    The terminal then shows only the summary of the sweep.
    """
    if os.environ.pop("SPPNET_JOB_LOG", None):
        sys.stdout.flush()
        sys.stderr.flush()
        handle = os.open(run.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
