"""Images a second of whole trainings on kept photographs, and the share of its time that a network waits for them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from sppnet.benchmarks.measurement import Row, Setting
from sppnet.benchmarks.training_step import Clock, Given, train
from sppnet.config.compose import compose_config
from sppnet.data import Splits, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.errors import notice
from sppnet.training.trainer import build_data, set_threads_and_filter_warnings

KEPT = ("data=folder", "data.short_side=256", "data.cache=true", "data.resampler=torch", "sizes=single")
FAST = ("trainer.precision=bf16-mixed", "trainer.channels_last=true", "sizes.train=[224]", "data.batch_size=128")
CASES = {  # name: what is typed
    "zf5": (*FAST, "backbone=zf5", "head.hidden=[4096,4096]"),
    "resnet50": (*FAST, "backbone=resnet50"),
}
LITTLE = {"tiny": ("backbone.width=4", "head.hidden=[8]", "sizes.train=[64]", "data.batch_size=32")}
STEPS = 60


def measure(setting: Setting) -> Iterator[Row]:
    """Rows of the group `throughput`; without a GPU only those of `quick`, which show that it runs."""
    if setting.device.type != "cuda" and not setting.quick:
        notice("bench: images a second are those of a GPU, so the group throughput is left out")
        return
    for name, words in (LITTLE if setting.quick else CASES).items():
        cfg = _settings(setting, words)
        sets = load_splits(cfg["data"])
        loading, held, steps = _data(cfg, sets, 3 if setting.quick else STEPS)
        ours, theirs = (_each(train(cfg, sets, data, setting)) for data in (loading, held))
        batch = cfg["data"]["batch_size"]
        yield Row(
            "throughput",
            f"{name} at {cfg['sizes']['train'][0]}, kept photographs (time of ours over theirs)",
            "one batch again and again",
            ours,
            theirs,
            ours / theirs,
            1.05,  # the GPU waits for photographs less than 5 % of the time
            most=True,
            limit=f"{batch / ours:.0f} images a second; {batch / theirs:.0f} where nothing is read",
            detail={"images a second": batch / ours, "batch": batch, "steps": steps},
        )


def _settings(setting: Setting, words: tuple[str, ...]) -> dict[str, Any]:
    photographs = next(iter(setting.photographs.values()))
    more = (f"data.root={photographs}", f"data.workers={setting.threads}", f"trainer.threads={setting.threads}")
    rest = ("trainer.checkpoint_every_n_steps=null",)  # writing a gigabyte is not what is measured
    split = ("data.split.val=0.02", "data.split.test=0.02", "trainer.progress=none", "optim.lr=0.0001")
    cfg = compose_config("train", [*KEPT, *words, *more, *rest, *split, f"paths.cache={setting.scratch / 'kept'}"])
    set_threads_and_filter_warnings(cfg)
    cfg["trainer"]["accelerator"] = "gpu" if setting.device.type == "cuda" else "cpu"
    return cfg


def _data(cfg: dict[str, Any], sets: Splits, steps: int) -> tuple[DataModule, DataModule, int]:
    """The photographs for so many steps, and one batch for as many; both in the same number of epochs."""
    loading = build_data(cfg, sets)
    batches = loading.train_dataloader()
    per_epoch = len(batches)
    cfg["trainer"]["max_epochs"] = -(-steps // per_epoch)
    return loading, Given.of(loading, [next(iter(batches))] * per_epoch), cfg["trainer"]["max_epochs"] * per_epoch


def _each(clock: Clock) -> float:
    """Seconds of a step, without the first epoch's first two; between epochs there is a validation."""
    steps = list(zip(clock.times[2:], clock.times[3:], clock.epochs[2:], clock.epochs[3:], strict=False))
    return statistics.fmean(after - before for before, after, epoch, next_ in steps if epoch == next_)
