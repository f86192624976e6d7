"""Times a training step under the Trainer with all defaults, against a bare PyTorch loop (group `step`)."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Container, Iterator
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from sppnet.benchmarks.measurement import Row, Setting
from sppnet.config.compose import compose_config
from sppnet.config.schema import Config
from sppnet.data import Splits, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.runs.run_directory import Run
from sppnet.training.callbacks import BadFiles, StatusFile
from sppnet.training.checkpointing import Checkpoints
from sppnet.training.lightning_trainer import make_trainer
from sppnet.training.loggers import MetricsFile
from sppnet.training.optim import build_optimizer
from sppnet.training.trainer import build_classifier, build_data, set_threads_and_filter_warnings
from sppnet.training.user_callbacks import EarlyEnd

ROUNDS = 3
PAPER = ("backbone=zf5", "head.hidden=[4096,4096]", "sizes=single", "sizes.train=[224]", "data.batch_size=16")
CASES = {  # name: overrides, steps per round, upper bound on the ratio
    "zf5 at 224, 16 photographs": (PAPER, 5, 1.05),
    "tiny, the default run": ((), 100, 1.25),
}


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `step`."""
    gpu = setting.device.type == "cuda"
    rounds = 1 if setting.quick else ROUNDS
    for name, (overrides, steps, target) in list(CASES.items())[setting.quick :]:
        steps = 5 if setting.quick else steps
        root = next(iter(setting.photographs.values()))
        data = ("data=folder", f"data.root={root}", "data.num_workers=0") if overrides else ()
        device = ("trainer.accelerator=gpu", "trainer.precision=bf16-mixed") if gpu else ("trainer.accelerator=cpu",)
        trainer = (*device, "trainer.max_epochs=1", f"compute.num_threads={setting.threads}", "progress=none")
        cfg = compose_config([*data, *overrides, *trainer])
        set_threads_and_filter_warnings(cfg)
        sets = load_splits(cfg.data)
        batches = list(itertools.islice(itertools.cycle(build_data(cfg, sets).train_dataloader()), steps + 2))
        pairs = [
            (_time_trainer(cfg, sets, batches, setting), _time_bare_loop(cfg, sets, batches, setting))
            for _ in range(rounds)
        ]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        yield Row(
            "step",
            f"a training step, {name} (time of ours over theirs)",
            "the bare loop",
            ours,
            theirs,
            statistics.median(our_time / their_time for our_time, their_time in pairs),
            target,
            most=True,
            detail={"rounds": pairs, "steps": steps},
        )


class StepClock(Callback):
    """Records the time at which each training step begins, and its epoch.

    Args:
        waits: the steps before which the GPU finishes its work; None for all of them. Between two of them, the host
            may run ahead of the GPU, as in a real training.
    """

    def __init__(self, waits: Container[int] | None = None) -> None:
        self.waits = waits
        self.times: list[float] = []
        self.epochs: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.times.append(_now(self.waits is None or len(self.times) in self.waits))
        self.epochs.append(trainer.current_epoch)


def _now(wait: bool) -> float:
    """The time, after the GPU has finished its work if `wait` is true."""
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class FixedBatches(DataModule):
    """A data module that serves batches from memory.

    All batches are used for training, and only the first one for validation at each size.
    """

    batches: list[Any]

    @classmethod
    def replace(cls, data: DataModule, batches: list[Any]) -> FixedBatches:
        """Return a copy of `data` that serves `batches` instead of loading data."""
        fixed = cls(data.sets, data.schedule, data.cfg, data.augment, data.views, data.seed, data.cache)
        fixed.batches = batches
        return fixed

    def train_dataloader(self) -> DataLoader[Any]:  # type: ignore[override]
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[Any]:
        return [DataLoader(self.batches[:1], batch_size=None) for _ in self.schedule.val]  # type: ignore[arg-type]


def _time_trainer(cfg: Config, sets: Splits, batches: list[Any], setting: Setting) -> float:
    data, clock = FixedBatches.replace(build_data(cfg, sets), batches), StepClock((1, len(batches) - 1))
    return _seconds_per_step(train(cfg, sets, data, setting, clock).times)


def train(cfg: Config, sets: Splits, data: DataModule, setting: Setting, clock: StepClock) -> StepClock:
    """Train with all default callbacks of a run, and return the clock that recorded the times of the steps."""
    run = Run(setting.scratch / f"run{time.monotonic_ns()}")
    run.path.mkdir(parents=True)
    metrics_file, bad_files = MetricsFile(run.path / "metrics.jsonl"), BadFiles(None)
    status = StatusFile(run, bad_files)
    checkpoints = Checkpoints(run.last.parent, cfg.checkpointing.every_n_steps, EarlyEnd())
    trainer = make_trainer(cfg, [metrics_file, bad_files, status, clock, checkpoints], [metrics_file], run.path)
    trainer.fit(build_classifier(cfg, sets), datamodule=data)
    return clock


def _time_bare_loop(cfg: Config, sets: Splits, batches: list[Any], setting: Setting) -> float:
    torch.use_deterministic_algorithms(False)  # torch's default, which the Trainer has changed
    classifier = build_classifier(cfg, sets).to(setting.device).train()
    network, mean, std = classifier.network, classifier.normalise.mean, classifier.normalise.std
    optimizer = build_optimizer(cfg.optim, classifier.named_parameters(), classifier.undecayed)
    autocast = torch.autocast(setting.device.type, torch.bfloat16, enabled=cfg.trainer.precision == "bf16-mixed")
    pairs = [(batch["image"].contiguous(), batch["target"]) for batch in batches]  # contiguous, as from ToTensor
    times = []
    for number, pair in enumerate(pairs):
        times.append(_now(number in (1, len(pairs) - 1)))
        images, target = (x.to(setting.device, non_blocking=True) for x in pair)
        with autocast:
            loss = F.cross_entropy(network((images.float() / 255 - mean) / std), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _seconds_per_step(times)


def _seconds_per_step(times: list[float]) -> float:
    """Return the mean seconds per step, without the first step (warm-up).

    Slow steps, such as those that save checkpoints, are included.
    """
    return (times[-1] - times[1]) / (len(times) - 2)
