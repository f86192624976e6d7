"""Measures training throughput on cached photographs: images per second, and the time spent waiting for data."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from sppnet.benchmarks.measurement import Row, Setting
from sppnet.benchmarks.training_step import FixedBatches, StepClock, train
from sppnet.config.compose import compose_config
from sppnet.config.load import replace
from sppnet.config.schema import Config
from sppnet.data import load_splits
from sppnet.errors import notice
from sppnet.training.trainer import build_data, set_threads_and_filter_warnings

CACHED = ("data=folder", "data.short_side=256", "data.cache=true", "data.resampler=torch", "sizes=single")
FAST = ("trainer.precision=bf16-mixed", "compute.channels_last=true", "sizes.train=[224]", "data.batch_size=128")
CASES = {  # name: overrides
    "zf5": (*FAST, "backbone=zf5", "head.hidden=[4096,4096]"),
    "resnet50": (*FAST, "backbone=resnet50"),
}
CASES_QUICK = {"tiny": ("backbone.width=4", "head.hidden=[8]", "sizes.train=[64]", "data.batch_size=32")}
STEPS = 60


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the rows of the group `throughput`. Without a GPU, there are no rows unless `quick` is set."""
    if setting.device.type != "cuda" and not setting.quick:
        notice("bench: the group throughput needs a GPU and is skipped")
        return
    for name, overrides in (CASES_QUICK if setting.quick else CASES).items():
        cfg = _compose(setting, overrides)
        sets = load_splits(cfg.data)
        loaded = build_data(cfg, sets)
        batches = loaded.train_dataloader()
        fixed = FixedBatches.replace(loaded, [next(iter(batches))] * len(batches))
        epochs = -(-(3 if setting.quick else STEPS) // len(batches))  # only complete epochs
        cfg = replace(cfg, {"trainer.max_epochs": epochs})
        ours, theirs = (_seconds_per_step(train(cfg, sets, data, setting, StepClock())) for data in (loaded, fixed))
        batch = cfg.data.batch_size
        yield Row(
            "throughput",
            f"{name} at {cfg.sizes.train[0]}, cached photographs (time of ours over theirs)",
            "one batch again and again",
            ours,
            theirs,
            ours / theirs,
            1.05,  # the GPU waits for photographs at most 5 % of the time
            most=True,
            limit=f"{batch / ours:.0f} images a second; {batch / theirs:.0f} where nothing is read",
            detail={"images a second": batch / ours, "batch": batch, "steps": epochs * len(batches)},
        )


def _compose(setting: Setting, overrides: tuple[str, ...]) -> Config:
    root = next(iter(setting.photographs.values()))
    data = (f"data.root={root}", f"data.num_workers={setting.threads}", "data.split.val=0.02", "data.split.test=0.02")
    trainer = (
        f"trainer.accelerator={'gpu' if setting.device.type == 'cuda' else 'cpu'}",
        f"compute.num_threads={setting.threads}",
        "progress=none",
        "checkpointing.every_n_steps=null",  # writing a gigabyte of weights would count as training time
    )
    more = ("optim.lr=0.0001", f"paths.cache={setting.scratch / 'cache'}")
    cfg = compose_config([*CACHED, *overrides, *data, *trainer, *more])
    set_threads_and_filter_warnings(cfg)
    return cfg


def _seconds_per_step(clock: StepClock) -> float:
    """Return the mean seconds per step, without the first two steps and without the validation between epochs."""
    steps = list(zip(clock.times[2:], clock.times[3:], clock.epochs[2:], clock.epochs[3:], strict=False))
    return statistics.fmean(after - before for before, after, epoch, next_ in steps if epoch == next_)
