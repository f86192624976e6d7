"""Every argument of lightning.Trainer can be given: it has its documented effect, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calling import SMALL, Called, Caller, records
from sppnet.config.command_line import normalise
from sppnet.config.compose import compose_config
from sppnet.runs.plan import plan_run
from tiers import some_quick

ALL = (*SMALL, "trainer.limit_train_batches=6", "trainer.max_epochs=3")  # three epochs of six steps


def status(done: Called) -> tuple[int, int]:
    """The last step of a run, and the number of steps that its schedule was made for."""
    content = json.loads((done.run / "status.json").read_text())
    return content["step"], content["steps"]


def validations(done: Called) -> list[int]:
    """The steps at which a run was validated."""
    return [record["step"] for record in records(done.run) if "val/top1" in record]


@pytest.mark.parametrize(
    ("words", "steps", "validated"),
    [
        ((), 18, [6, 12, 18]),
        pytest.param(("trainer.val_check_interval=0.5",), 18, [3, 6, 9, 12, 15, 18], marks=pytest.mark.slow),
        (("trainer.val_check_interval=4",), 18, [4, 10, 16, 18]),  # and at the end
        pytest.param(("+trainer.check_val_every_n_epoch=2",), 18, [12, 18], marks=pytest.mark.slow),
        (("trainer.check_val_every_n_epoch=5",), 18, [18]),
        (("trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=8"), 18, [8, 16, 18]),
        pytest.param(("trainer.max_steps=8",), 8, [6, 8], marks=pytest.mark.slow),
        (("trainer.max_steps=2", "trainer.accumulate_grad_batches=4", "trainer.check_val_every_n_epoch=2"), 2, [2]),
        (("trainer.overfit_batches=2",), 6, [2, 4, 6]),
        (("trainer.limit_train_batches=0.1", "trainer.limit_val_batches=0.5"), None, None),
        pytest.param(
            ("trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2"), 9, [3, 6, 9], marks=pytest.mark.slow
        ),
    ],
)
def test_steps_and_validations(
    sppnet: Caller, words: tuple[str, ...], steps: int | None, validated: list[int] | None
) -> None:
    """The learning rate has fallen to almost nothing at the last step, and the run has a best.ckpt."""
    done = sppnet("train", *ALL, *words)
    assert done.code == 0, done.err
    assert (done.run / "checkpoints/best.ckpt").is_file()
    last, planned = status(done)
    if steps is not None:
        assert (last, planned) == (steps, steps)
        assert validations(done) == validated
    assert last == planned
    assert records(done.run)[-1]["train/lr"] < 0.001 * 0.25
    assert json.loads((done.run / "summary.json").read_text())["stopped"] is None


def test_a_plateau_is_a_number_of_validations(sppnet: Caller) -> None:
    """Between two validations there is no new score, so the learning rate stays."""
    schedule = ("optim.schedule.patience=0", "optim.schedule.drops=9")
    words = ("optim=sgd", "optim.lr=1e-9", *schedule, "trainer.max_epochs=5")
    done = sppnet("train", *ALL, *words, "trainer.check_val_every_n_epoch=2")
    rates = [record["train/lr"] for record in records(done.run) if "train/top1" in record]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-9, 1e-9, 1e-10])


def test_overfitting_repeats_the_same_batches(sppnet: Caller) -> None:
    """With a learning rate of almost zero and no dropout, every epoch has the same loss."""
    words = ("optim.lr=1e-12", "head.dropout=0", "augment=paper", "sizes.train=[24,20]")
    losses = {}
    for overfit in (2, 0):
        done = sppnet("train", *ALL, *words, f"trainer.overfit_batches={overfit}")
        losses[overfit] = {round(record["train/loss"], 6) for record in records(done.run) if "train/loss" in record}
    assert len(losses[2]) == 1
    assert len(losses[0]) == 3


@pytest.mark.slow
def test_arguments_that_are_passed_on(spawn: Caller, tmp_path: Path) -> None:
    words = (
        *("trainer.profiler=simple", "trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.1"),
        *("trainer.detect_anomaly=true", "trainer.strategy=ddp", "trainer.enable_model_summary=true"),
    )
    done = spawn("train", *SMALL, *words, "trainer.accelerator=cpu")
    assert done.code == 0, done.err
    assert "run_training_epoch" in done.out + done.err  # what the profiler prints
    assert "Params" in done.out + done.err
    trainer = (tmp_path / done.run / "config.yaml").read_text()
    assert "gradient_clip_algorithm: value" in trainer


def test_an_argument_counts_into_the_identity_unless_it_only_prints() -> None:
    def name(*words: str) -> str:
        return plan_run(compose_config(normalise("train", [*SMALL, *words]))).run.path.name

    assert name("trainer.detect_anomaly=true") != name()
    assert name("trainer.overfit_batches=2", "trainer.limit_val_batches=3") == name("trainer.overfit_batches=2")
    assert name("trainer.gradient_clip_algorithm=value") == name()  # nothing is clipped
    clipped = "trainer.gradient_clip_val=0.1"
    assert name("trainer.gradient_clip_algorithm=value", clipped) != name(clipped)
    assert name("trainer.max_steps=3") != name()
    assert name("trainer.sync_batchnorm=false", "trainer.benchmark=null") == name()  # Lightning's own defaults
    assert name("trainer.profiler=simple", "trainer.enable_model_summary=true", "trainer.log_every_n_steps=9") == name()
    assert name("trainer.max_steps=-1", "trainer.val_check_interval=1.0", "trainer.limit_test_batches=1.0") == name(
        "trainer.limit_test_batches=null"
    )


REFUSED = [
    ("trainer.max_time=00:01:00:00", "cannot be repeated"),
    ("trainer.max_epochs=-1", "must be an integer of at least 1"),
    ("trainer.max_steps=0", "must be -1 or an integer of at least 1"),
    ("trainer.devices=auto", "must be an integer from 1 to 1024"),
    ("trainer.devices=-1", "must be an integer from 1 to 1024"),
    ("trainer.use_distributed_sampler=true", "batch samplers"),
    ("trainer.logger=true", "use logger=tensorboard or logger=wandb"),
    ("trainer.callbacks=[]", "use +callbacks.NAME._target_=CLASS"),
    ("trainer.enable_checkpointing=false", "checkpointing.every_n_steps"),
    ("trainer.reload_dataloaders_every_n_epochs=1", "same number of batches"),
    ("trainer.num_sanity_val_steps=2", "before training"),
    ("trainer.fast_dev_run=true", "use debug=fast"),
    ("trainer.barebones=true", "use progress=none"),
    ("trainer.strategy=ddp_spawn", "use ddp"),
    ("trainer.strategy=fsdp", "trainer: lightning.Trainer refuses its arguments"),
    ("trainer.strategy=dpp", "trainer: lightning.Trainer refuses its arguments"),
    ("trainer.benchmark={_target_: os.system}", "lightning.Trainer takes Optional[bool]"),
    ("trainer.min_epochs=foo", "lightning.Trainer takes Optional[int]"),
    ("trainer.profiler={_target_: os.system}", "trainer.profiler._target_=os.system is not allowed"),
    ("trainer.sync_batchnorm=true trainer.devices=2", "on GPUs only"),
    (
        "trainer.strategy={_target_: lightning.pytorch.strategies.SingleDeviceStrategy, device: meta}",
        "its device is meta",
    ),
    (
        "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy}",
        "a module that shards itself",
    ),
    ("trainer.strategy=single_device trainer.devices=2", "does not start 2 process(es)"),
    (
        "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, process_group_backend: glue}",
        "no process_group_backend glue",
    ),
    (
        "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, find_unused: true}",
        "DistributedDataParallel refuses its arguments: got an unexpected keyword argument 'find_unused'",
    ),
    (
        "trainer.profiler={_target_: lightning.pytorch.profilers.SimpleProfiler, colour: red}",
        "SimpleProfiler refuses its arguments: got an unexpected keyword argument 'colour'",
    ),
    (
        "trainer.plugins={_target_: lightning.pytorch.plugins.DoublePrecision}",
        "trainer.precision sets the precision",
    ),
    ("trainer.profiler={_target_: torch.nn.Identity}", "neither a subclass of Profiler nor"),
    ("trainer.plugins={_target_: lightning.pytorch.plugins.io.TorchCheckpointIO}", "a CheckpointIO"),
    ("trainer.val_check_interval=100", "val_check_interval"),
    ("trainer.maxepochs=3", "did you mean trainer.max_epochs?"),
    ("trainer.threads=3", "is now called compute.num_threads"),
]


@pytest.mark.parametrize(("word", "expected"), some_quick(REFUSED, 4))
def test_arguments_that_are_refused(sppnet: Caller, word: str, expected: str) -> None:
    words = word.split(" ") if word.count("trainer.") > 1 else [word]
    done = sppnet("train", *SMALL, "trainer.accelerator=cpu", *words)
    assert done.code == 2, done.err
    [line] = done.err.splitlines()
    assert expected in line
    assert not list(Path.cwd().glob("runs/*/*/*"))
