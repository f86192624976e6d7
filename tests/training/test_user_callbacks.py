"""Training that a callback or a signal ends early says so and when; the user's callbacks are checked."""

from __future__ import annotations

import json
from pathlib import Path

from calling import SMALL, Caller, records

STOP = "+callbacks.stop._target_=lightning.pytorch.callbacks"
EARLY = (*SMALL, "trainer.max_epochs=30", f"{STOP}.EarlyStopping", "+callbacks.stop.patience=1")


def test_early_stopping_says_that_it_stopped_and_is_not_trained_past(sppnet: Caller) -> None:
    words = ("train", *EARLY, "+callbacks.stop.monitor=val/top1", "progress=lines", "optim.lr=1e-9")
    done = sppnet(*words)
    assert done.code == 0, done.err
    epoch = records(done.run)[-1]["epoch"] + 1
    assert f"epoch {epoch}/30" in done.out
    reason = f"training ended after epoch {epoch} of 30, EarlyStopping: Monitored metric val/top1 did not improve"
    assert reason in done.err
    assert "callbacks.stop.mode=min: a higher val/top1 is better" in done.err
    for file in ("status.json", "summary.json"):
        assert json.loads((done.run / file).read_text())["stopped"].startswith(reason)
    assert reason in sppnet(*words).out
    shown = sppnet("status").out
    assert reason in shown
    assert f"top1 {done.figure('test/top1'):.4f}" in shown

    before = records(done.run)
    status = json.loads((done.run / "status.json").read_text())
    (done.run / "status.json").write_text(json.dumps(status | {"state": "running"}))  # as if killed before its test
    again = sppnet(*words)
    assert (again.code, records(done.run)) == (0, before)
    assert reason in again.err


def test_a_time_limit_says_that_it_stopped(sppnet: Caller) -> None:
    limit = (f"{STOP}.Timer", "+callbacks.stop.duration={milliseconds:1}")
    for epochs in (1, 2):  # also within the last epoch
        done = sppnet("train", *SMALL, *limit, f"trainer.max_epochs={epochs}")
        assert done.code == 0, done.err
        assert f"training ended within epoch 1 of {epochs}, Timer: the time is up" in done.err


OWN = """
import os, signal
from lightning.pytorch.callbacks import Callback


class Own(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("mine/figure", 1.0)

    def on_train_epoch_end(self, trainer, pl_module):
        assert str(trainer.checkpoint_callback.folder).endswith("checkpoints")
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_stop_counts_epochs_from_one_and_a_callback_may_follow_what_another_logs(
    sppnet: Caller, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    words = ("allow=[own]", "+callbacks.own._target_=own.Own", "+callbacks.stop.monitor=mine/figure")
    done = sppnet("train", *EARLY, *words, "++callbacks.stop.patience=3", "progress=lines")
    assert done.code == 1
    assert done.out.splitlines()[-1].startswith("epoch 2/30")
    assert "stopped by SIGTERM after epoch 2" in done.err
