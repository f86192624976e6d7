"""Training learns, on the pictures that come along, and its rate follows the schedule that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from calling import SMALL, Caller, records

NARROW = (
    *("backbone.width=16", "head.hidden=[32]", "pooling.bins=[2,1]", "sizes=single", "sizes.train=[20]"),
    *("data.batch_size=32", "optim.lr=0.005", "trainer.max_epochs=3", "compute.num_threads=1", "progress=none"),
)


def test_a_narrow_network_learns_digits_in_a_few_steps(sppnet: Caller) -> None:
    """Of ten classes, in 120 steps; seeds 0 to 3 are right on 80 to 84 of 100 images."""
    done = sppnet("train", *NARROW)
    assert done.code == 0, done.err
    assert done.figure("test/top1") >= 0.5  # chance is 0.1
    losses = [record["train/loss"] for record in records(done.run) if "train/loss" in record]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_the_default_run_reads_digits(sppnet: Caller) -> None:
    done = sppnet("train", "progress=none")
    assert done.code == 0, done.err
    assert done.figure("test/top1") >= 0.95
    assert done.figure("images") == 269


def test_the_rate_falls_by_the_factor_once_the_score_has_not_risen_for_so_many_epochs(
    sppnet: Caller, tmp_path: Path
) -> None:
    """At most `drops` times. Each image to validate with is there as a cat and as a dog: one of the two is right."""
    for part, shades in {"train": (0, 250), "val": (100, 100), "test": (50, 150)}.items():
        for label, shade in zip(("cat", "dog"), shades, strict=True):
            for number in range(2):
                path = tmp_path / f"pets/{part}/{label}/{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (24, 24), (shade, number, 0)).save(path)
    plateau = ("optim=sgd", "optim.schedule.patience=1", "optim.schedule.factor=0.5", "optim.schedule.drops=2")
    words = ("data=folder", "data.root=pets", "data.num_workers=0", "sizes=single", "sizes.train=[24]", "optim.lr=0.08")
    done = sppnet("train", *SMALL, *words, *plateau, "trainer.max_epochs=8")
    assert done.code == 0, done.err
    assert {record["val/top1"] for record in records(done.run) if "val/top1" in record} == {0.5}
    for kind in ("train/step_loss", "train/loss"):  # of the epoch's only step, and as the epoch ends
        rates = [record["train/lr"] for record in records(done.run) if kind in record]
        # the first score is the best; the second epoch after it is one too many, the third has half the rate
        assert rates == pytest.approx([0.08, 0.08, 0.08, 0.04, 0.04, 0.02, 0.02, 0.02])
