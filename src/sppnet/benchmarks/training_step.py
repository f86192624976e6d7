"""A training step under the Trainer with all defaults on, against the bare loop in PyTorch."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from sppnet.benchmarks.measurement import Row, Setting
from sppnet.config.compose import compose_config
from sppnet.data import Splits, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.runs.run_directory import Run
from sppnet.training.callbacks import BadFiles, StatusFile
from sppnet.training.checkpointing import Checkpoints
from sppnet.training.loggers import MetricsFile
from sppnet.training.optim import build_optimizer
from sppnet.training.trainer import build_classifier, build_data, make_trainer, set_threads_and_filter_warnings
from sppnet.training.user_callbacks import EarlyEnd

ROUNDS = 3
PAPER = ("backbone=zf5", "head.hidden=[4096,4096]", "sizes=single", "sizes.train=[224]", "data.batch_size=16")
CASES = {  # name: what is typed, steps of a round, most allowed
    "zf5 at 224, 16 photographs": (PAPER, 5, 1.05),
    "tiny, the default run": ((), 100, 1.25),
}


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of the group `step`."""
    gpu = setting.device.type == "cuda"
    rounds = 1 if setting.quick else ROUNDS
    for name, (words, steps, most) in list(CASES.items())[setting.quick :]:
        steps = 5 if setting.quick else steps
        root = next(iter(setting.photographs.values()))
        data = ("data=folder", f"data.root={root}", "data.workers=0") if words else ()
        more = ("trainer.precision=bf16-mixed",) if gpu else ()
        cfg = compose_config(
            "train", [*data, *words, *more, f"trainer.threads={setting.threads}", "trainer.progress=none"]
        )
        set_threads_and_filter_warnings(cfg)
        cfg["trainer"] |= {"accelerator": "gpu" if gpu else "cpu", "max_epochs": 1}
        sets = load_splits(cfg["data"])
        batches = list(itertools.islice(itertools.cycle(build_data(cfg, sets).train_dataloader()), steps + 2))
        pairs = [(_trainer(cfg, sets, batches, setting), _bare(cfg, sets, batches, setting)) for _ in range(rounds)]
        ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
        yield Row(
            "step",
            f"a training step, {name} (time of ours over theirs)",
            "the bare loop",
            ours,
            theirs,
            statistics.median(one / other for one, other in pairs),
            most,
            most=True,
            detail={"rounds": pairs, "steps": steps},
        )


class Clock(Callback):
    """When each step began, and in which epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.epochs: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time at which the GPU is done with the step before."""
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        self.times.append(time.perf_counter())
        self.epochs.append(trainer.current_epoch)


class Given(DataModule):
    """Training batches that are there already."""

    given: list[Any]

    @classmethod
    def of(cls, data: DataModule, batches: list[Any]) -> Given:
        """What `data` is, but with `batches` in place of its own."""
        made = cls(data.sets, data.schedule, data.cfg, data.views, data.seed, data.cache)
        made.given = batches
        return made

    def train_dataloader(self) -> DataLoader[Any]:  # type: ignore[override]
        """All of `given`."""
        return DataLoader(self.given, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[Any]:
        """The first of `given`, for each size."""
        return [DataLoader(self.given[:1], batch_size=None) for _ in self.schedule.val]  # type: ignore[arg-type]


def _trainer(cfg: dict[str, Any], sets: Splits, batches: list[Any], setting: Setting) -> float:
    return _each(train(cfg, sets, Given.of(build_data(cfg, sets), batches), setting).times)


def train(cfg: dict[str, Any], sets: Splits, data: DataModule, setting: Setting) -> Clock:
    """Train with all that a run has by default, and say when its steps began."""
    run = Run(setting.scratch / f"run{time.monotonic_ns()}")
    run.path.mkdir(parents=True)
    records, bad_files, clock = MetricsFile(run.path / "metrics.jsonl"), BadFiles(None), Clock()
    status = StatusFile(run, bad_files)
    checkpoints = Checkpoints(run.last.parent, cfg["trainer"]["checkpoint_every_n_steps"], EarlyEnd())
    trainer = make_trainer(cfg, [records, bad_files, status, clock, checkpoints], [records], run.path)
    trainer.fit(build_classifier(cfg, sets), datamodule=data)
    return clock


def _bare(cfg: dict[str, Any], sets: Splits, batches: list[Any], setting: Setting) -> float:
    torch.use_deterministic_algorithms(False)  # as torch has it; the Trainer asked for them
    classifier = build_classifier(cfg, sets).to(setting.device).train()
    network, mean, std = classifier.network, classifier.normalise.mean, classifier.normalise.std
    optimizer = build_optimizer(cfg["optim"], list(network.parameters()))
    half = torch.autocast(setting.device.type, torch.bfloat16, enabled=cfg["trainer"]["precision"] == "bf16-mixed")
    given = [(batch["image"].contiguous(), batch["target"]) for batch in batches]  # as ToTensor lays them out
    times = []
    for pair in given:
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        times.append(time.perf_counter())
        images, target = (x.to(setting.device, non_blocking=True) for x in pair)
        with half:
            loss = F.cross_entropy(network((images.float() / 255 - mean) / std), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _each(times)


def _each(times: list[float]) -> float:
    """Mean seconds of a step, without the first, which warms up; a slow one in between (a checkpoint) counts."""
    return (times[-1] - times[1]) / (len(times) - 2)
