"""Each callback of a run in a real Trainer, over a few batches that are written by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.utils.data import DataLoader

from sppnet.config.compose import compose_config
from sppnet.config.schema import Config
from sppnet.data import Splits, load_splits
from sppnet.runs.run_directory import Run
from sppnet.training import callbacks
from sppnet.training.callbacks import BadFiles, EpochBar, EpochLines, StatusFile, progress_display
from sppnet.training.checkpointing import Checkpoints
from sppnet.training.lit_module import Classifier
from sppnet.training.trainer import HARMLESS_WARNINGS, build_classifier
from sppnet.training.user_callbacks import EarlyEnd

pytestmark = [pytest.mark.filterwarnings(f"ignore:{pattern}") for pattern in HARMLESS_WARNINGS]

WORDS = ["backbone.width=2", "head.hidden=[2]", "pooling.bins=[1]", "optim/schedule=constant"]


def batch(*bad: str, remarks: Sequence[str] = ()) -> dict[str, Any]:
    """Two images, beside which those called `bad` could not be read."""
    images = {"image": torch.zeros(2, 3, 12, 12, dtype=torch.uint8), "target": torch.tensor([0, 1])}
    plain = {"size": 12, "bad": list(bad), "remarks": dict.fromkeys(remarks, "Corrupt JPEG data")}
    return {**images, "valid": torch.tensor([True, True]), "all_valid": True, **plain}


class Batches(L.LightningDataModule):
    """These batches and no others."""

    def __init__(self, train: list[Any], val: list[Any], test: list[Any]) -> None:
        super().__init__()
        self.train, self.val, self.test = train, val, test

    def images_per_step(self) -> float:
        return 2.0

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built() -> tuple[Config, Splits]:
    cfg = compose_config(WORDS)
    return cfg, load_splits(cfg.data)


Train = Callable[..., L.Trainer]


@pytest.fixture
def train(built: tuple[Config, Splits], tmp_path: Path) -> Train:
    """Train a new network of a few weights with these callbacks; three batches an epoch."""
    classifier: Classifier = build_classifier(*built)

    def fit(*ours: Callback, epochs: int = 1, data: Batches | None = None, resume: str | None = None) -> L.Trainer:
        data = data or Batches([batch(), batch(), batch()], [batch()], [batch()])
        progress = any(isinstance(callback, EpochLines | EpochBar) for callback in ours)
        trainer = L.Trainer(
            callbacks=list(ours),
            max_epochs=epochs,
            default_root_dir=tmp_path,
            accelerator="cpu",
            logger=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=progress,
            enable_checkpointing=any(isinstance(callback, Checkpoints) for callback in ours),
        )
        trainer.fit(classifier, datamodule=data, ckpt_path=resume, weights_only=True)
        return trainer

    return fit


class At(Callback):
    """Do this at the end of a batch or of an epoch."""

    def __init__(self, batch: Callable[[L.Trainer], object] = id, epoch: Callable[[L.Trainer], object] = id) -> None:
        self.batch, self.epoch = batch, epoch

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.batch(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.epoch(trainer)


# BadFiles


def test_a_file_that_cannot_be_read_is_listed_once_whichever_part_it_is_of(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "bad_files.txt"
    path.write_text("before.jpg\n")
    bad = BadFiles(path)
    assert bad.names == {"before.jpg"}  # a resumed run knows those of before
    with path.open("a") as file:
        file.write("other rank.jpg\n")
    odd = "line\u2028separator.jpg"
    steps = [batch("a.jpg", odd), batch(), batch("b.jpg", "a.jpg", "before.jpg", "other rank.jpg")]
    data = Batches(steps, [batch("val.jpg")], [batch("test.jpg", "val.jpg")])
    trainer = train(bad, epochs=2, data=data)
    trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    listed = ["before.jpg", "other rank.jpg", "a.jpg", odd, "b.jpg", "val.jpg", "test.jpg"]
    assert path.read_text() == "".join(f"{name}\n" for name in listed)
    assert bad.names == BadFiles(path).names == set(listed)


def test_without_a_list_files_are_counted_alone(train: Train, tmp_path: Path) -> None:
    bad = BadFiles(None)
    train(bad, data=Batches([batch("a.jpg"), batch("a.jpg", "b.jpg")], [batch()], []))
    assert bad.names == {"a.jpg", "b.jpg"}
    assert not list(tmp_path.iterdir())


def test_what_the_decoder_warns_of_is_said_after_an_epoch_that_has_new_ones(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[int] = []

    def count(trainer: L.Trainer) -> None:
        printed.append(capsys.readouterr().err.count(" decoder warnings "))

    steps = [batch(remarks=["a.jpg"]), batch(remarks=["a.jpg"])]
    data = Batches(steps, [batch(remarks=["b.jpg"])], [])
    later = At(epoch=lambda trainer: data.train.__setitem__(0, batch(remarks=["c.jpg"])) if len(printed) == 2 else None)
    train(BadFiles(None), At(epoch=count), later, epochs=4, data=data)
    assert printed == [1, 0, 1, 0]


# StatusFile


def test_the_status_says_how_far_a_run_is_at_its_start_and_its_end(train: Train, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run, bad = Run(tmp_path), BadFiles(None)
    run.write_status("failed", "an older start", slurm=None)
    data = Batches([batch("a.jpg"), batch(), batch("b.jpg")], [batch()], [])
    status = StatusFile(run, bad)
    train(bad, status, At(batch=lambda trainer: seen.append(run.status)), epochs=2, data=data)
    keys = ("state", "reason", "step", "steps", "epoch", "epochs", "bad_files", "slurm")
    assert [seen[0][key] for key in keys] == ["running", None, 0, 6, 0, 2, 0, None]
    assert [run.status[key] for key in keys] == ["running", None, 6, 6, 2, 2, 2, None]
    assert {status["step"] for status in seen} == {0}  # not at every step: this took less than five seconds
    assert status.seconds > 0
    assert run.status["seconds"] == pytest.approx(status.seconds, abs=0.15)  # written in tenths


def test_the_status_is_written_every_few_seconds_and_where_training_breaks_off(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "STATUS_INTERVAL", -1.0)
    seen: list[int] = []
    run = Run(tmp_path)

    def fail(trainer: L.Trainer) -> None:
        seen.append(run.status["step"])
        if trainer.global_step == 2:
            monkeypatch.setattr(callbacks, "STATUS_INTERVAL", 60.0)
        if trainer.global_step == 4:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        train(StatusFile(run, BadFiles(None)), At(batch=fail), epochs=2)
    assert seen == [1, 2, 2, 2]
    assert (run.status["step"], run.status["epoch"]) == (4, 1)


def test_the_seconds_of_a_run_are_those_of_all_its_starts(train: Train, tmp_path: Path) -> None:
    before = StatusFile(Run(tmp_path / "first"), BadFiles(None))
    before.load_state_dict({"seconds": 1000.0})
    (tmp_path / "second").mkdir()
    again = StatusFile(Run(tmp_path / "second"), BadFiles(None))
    again.load_state_dict(before.state_dict())
    train(again)
    assert 1000 < again.seconds < 1600
    assert again.run.status["seconds"] == pytest.approx(again.seconds, abs=0.2)


# EpochLines and EpochBar


def test_lines_are_one_an_epoch_and_say_where_a_resumed_run_goes_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = Checkpoints(tmp_path / "checkpoints", None, EarlyEnd())
    train(EpochLines(), saved, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for line in lines:
        words = line.split()
        assert words[2:4] == ["size", "12"]
        assert words[4:8:2] == ["loss", "val/top1"]
        assert words[-2:][1] == "s)"
    train(
        EpochLines(),
        Checkpoints(tmp_path / "checkpoints", None, EarlyEnd()),
        epochs=3,
        resume=str(saved.folder / "last.ckpt"),
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == "resumed at step 6"
    assert second.startswith("epoch 3/3  size 12  loss ")
    silent = EpochLines()
    silent.disable()
    train(silent)
    assert not capsys.readouterr().out


def test_the_bar_counts_epochs_from_one_and_shows_our_figures(train: Train) -> None:
    shown = io.StringIO()
    bar = EpochBar(refresh_rate=1, leave=True, console_kwargs={"file": shown, "force_terminal": True, "width": 120})
    train(bar, epochs=2)
    text = shown.getvalue()
    assert "Epoch 1/2" in text
    assert "Epoch 2/2" in text
    assert "Epoch 0/" not in text
    for figure in ("size: 12", "loss: ", "val/top1: "):
        assert figure in text
    assert "v_num" not in text


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {kind: [type(callback) for callback in progress_display(kind)] for kind in ("none", "bar", "lines", "auto")}
    assert kinds == {"none": [], "bar": [EpochBar], "lines": [EpochLines], "auto": [EpochLines]}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert [type(callback) for callback in progress_display("auto")] == [EpochBar]


# EarlyEnd


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


STOPS: dict[str, tuple[Callback, str]] = {
    "of the user's": (At(epoch=stop), "training ended after epoch 1 of 4, stopped by a callback"),
    "within an epoch": (
        At(batch=lambda trainer: stop(trainer) if trainer.global_step == 5 else None),
        "training ended within epoch 2 of 4, stopped by a callback",
    ),
    "in its last epoch": (At(epoch=lambda trainer: stop(trainer) if trainer.current_epoch == 3 else None), ""),
    "never": (At(), ""),
}


@pytest.mark.parametrize("kind", STOPS)
def test_an_end_that_is_early_is_said_and_kept(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    callback, expected = STOPS[kind]
    early = EarlyEnd()
    trainer = train(callback, early, Checkpoints(tmp_path, None, early), epochs=4)
    printed = capsys.readouterr().err
    assert early.reason == (expected or None)
    assert (expected in printed) is (early.reason is not None or not printed)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["EarlyEnd"]
    assert saved == {"why": early.reason}
    steps = trainer.global_step
    assert steps == {"of the user's": 3, "within an epoch": 5}.get(kind, 12)
    resumed = EarlyEnd()
    again = train(resumed, Checkpoints(tmp_path, None, resumed), epochs=4, resume=str(tmp_path / "last.ckpt"))
    assert (again.global_step, resumed.reason) == (steps, early.reason)  # it is not trained past its end


def test_an_early_end_gives_the_reason_of_lightnings_callback(train: Train, tmp_path: Path) -> None:
    early = EarlyEnd()
    stopping = EarlyStopping("val/top1", mode="max", patience=2, min_delta=2.0)  # no accuracy rises by so much
    train(stopping, early, Checkpoints(tmp_path, None, early), epochs=9)
    assert early.reason is not None
    assert early.reason.startswith(
        "training ended after epoch 3 of 9, EarlyStopping: Monitored metric val/top1 did not"
    )
    assert "Signaling" not in early.reason
    assert json.loads(json.dumps(early.state_dict())) == {"why": early.reason}
