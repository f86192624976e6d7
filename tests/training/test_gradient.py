"""Every image of an epoch has the same weight in the gradient, whatever its batch and accumulation window."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn

from calling import SMALL, Caller, limits, weights
from sppnet.config.compose import compose_config
from sppnet.data import ImageSet, Splits, build_sizes
from sppnet.data.datamodule import DataModule
from sppnet.data.decode import DataError
from sppnet.models.network import SPPNet
from sppnet.models.pooling import GlobalAvgPool2d
from sppnet.training.lightning_trainer import make_trainer
from sppnet.training.lit_module import Classifier
from sppnet.training.losses import class_weights

WEIGHTED = ["sizes=weighted", "sizes.train=[16,12,30]", "sizes.weights=[0.5,0.25,0.25]"]
WHOLE = ["data.fit=full", "data.aspect_step=0.01"]  # a bucket for nearly every shape
CASES = {
    "the last batch is smaller": (["data.batch_size=8"], 1, 43),
    "the last window is shorter": (["data.batch_size=4", "trainer.accumulate_grad_batches=3"], 1, 41),
    "an epoch is one window": (["data.batch_size=4", "trainer.accumulate_grad_batches=64"], 1, 41),
    "batches level in memory": ([*WEIGHTED, "data.batch_size=6", "trainer.accumulate_grad_batches=2"], 1, 43),
    "an epoch at each size": (["sizes=alternating", "sizes.train=[16,12]", "data.batch_size=6"], 1, 43),
    "whole images": ([*WHOLE, "data.batch_size=6"], 1, 43),
    "whole images, weighted, in windows": (
        [*WHOLE, *WEIGHTED, "data.batch_size=5", "trainer.accumulate_grad_batches=4"],
        1,
        43,
    ),
    "two processes": ([*WHOLE, "data.batch_size=4", "trainer.accumulate_grad_batches=2"], 2, 43),
    "three processes": ([*WEIGHTED, "data.batch_size=4"], 3, 41),
    "unreadable images": (["data.bad_files=skip", "data.batch_size=4", "trainer.accumulate_grad_batches=3"], 1, 41),
    "unreadable images, two processes": ([*WHOLE, "data.bad_files=skip", "data.batch_size=4"], 2, 43),
    "smoothed labels": (["data.batch_size=8", "loss.label_smoothing=0.1"], 1, 43),
    "weighted classes": (["data.batch_size=8", "loss=focal", "loss.class_weights=[0.5,2,3]"], 1, 43),
}


class Noise(ImageSet):
    """Images of noise in many shapes; with `bad`, every fifth is unreadable."""

    classes = ("a", "b", "c")

    def __init__(self, count: int, bad: bool) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return index % 3

    def shape(self, index: int) -> tuple[int, int]:
        return 20, 20 + index * index % 37 % 11

    def read(self, index: int) -> Image.Image:
        if self.bad and index % 5 == 0:
            raise DataError(f"{index} cannot be read")
        noise = np.random.default_rng(index).integers(0, 256, (*self.shape(index), 3), dtype=np.uint8)
        return Image.fromarray(noise)


class OneOfSeveral(DataModule):
    """The data of one rank of several, in this process."""

    rank, world = 0, 1

    def _rank(self) -> int:
        return self.rank

    def _world(self) -> int:
        return self.world


class Gradients(Callback):
    """Sums the gradients of each epoch and zeroes them before the step, so the weights stay; keeps the batches."""

    def __init__(self) -> None:
        self.sums: list[list[Tensor]] = []
        self.steps: list[int] = []
        self.batches: list[list[dict[str, Any]]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.sums.append([torch.zeros_like(p) for p in pl_module.parameters()])
        self.steps.append(0)
        self.batches.append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches[-1].append(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps[-1] += 1
        for total, p in zip(self.sums[-1], pl_module.parameters(), strict=True):
            total += p.grad
            p.grad.zero_()


def train(words: list[str], rank: int, world: int, count: int, folder: Path) -> tuple[Classifier, Gradients]:
    """Two epochs of rank `rank` of `world`."""
    more = ["sizes.val=[16]", "trainer.max_epochs=2", "trainer.precision=64-true", "trainer.accelerator=cpu"]
    more += ["compute.num_threads=1", "progress=none", "optim=sgd", "optim.weight_decay=0"]
    cfg = compose_config(["sizes=single", "sizes.train=[16]", *more, *words])
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh())
    head = nn.Sequential(OrderedDict(classifier=nn.Linear(4, 3)))
    torch.manual_seed(0)
    for p in (*backbone.parameters(), *head.parameters()):
        nn.init.normal_(p, std=0.5)
    images = Noise(count, bad="data.bad_files=skip" in words)
    indices = np.arange(count)
    sets, schedule = Splits(images, indices, indices, indices), build_sizes(cfg.sizes)
    weights = class_weights(cfg.loss, sets)
    network = SPPNet(backbone, GlobalAvgPool2d(), head)
    classifier = Classifier(network, cfg, images.classes, False, class_weights=weights).double()
    data = OneOfSeveral(sets, schedule, cfg.data, cfg.augment, cfg.views, 0, folder)
    data.rank, data.world = rank, world
    gradients = Gradients()
    make_trainer(cfg, [gradients], [], folder).fit(classifier, datamodule=data)
    return classifier, gradients


def of_one_large_batch(classifier: Classifier, batches: list[dict[str, Any]]) -> tuple[list[Tensor], int, int]:
    """The gradient of the summed loss of all readable images, and the numbers of images read and planned."""
    total, read = torch.zeros((), dtype=torch.float64), 0
    for shape in {batch["image"].shape[2:] for batch in batches}:
        same = [batch for batch in batches if batch["image"].shape[2:] == shape]
        joined = {key: torch.cat([batch[key] for batch in same]) for key in ("image", "target", "valid", "offset")}
        logits = classifier(classifier.normalise(joined["image"], joined["offset"]))
        losses = classifier.loss(logits, joined["target"])
        total = total + losses[joined["valid"]].sum()
        read += int(joined["valid"].sum())
    planned = read + sum(len(batch["bad"]) for batch in batches)
    return list(torch.autograd.grad(total, list(classifier.parameters()))), read, planned


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_an_epochs_summed_gradient_is_that_of_one_large_batch(case: str, tmp_path: Path) -> None:
    words, world, count = CASES[case]
    ranks = [train(words, rank, world, count, tmp_path) for rank in range(world)]
    for epoch in (0, 1):
        ours = [sum(g) / world for g in zip(*(gradients.sums[epoch] for _, gradients in ranks), strict=True)]  # as DDP
        classifier, gradients = ranks[0]
        batches = [batch for _, other in ranks for batch in other.batches[epoch]]
        whole, read, planned = of_one_large_batch(classifier, batches)
        assert (read < planned) == ("data.bad_files=skip" in words)
        assert len({len(batch["index"]) for batch in batches}) > 1  # or the test shows nothing
        scale = gradients.steps[epoch] / planned
        for step, all_at_once in zip(ours, whole, strict=True):
            torch.testing.assert_close(step, all_at_once * scale, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words", [["data.batch_size=5", "trainer.accumulate_grad_batches=2"], [*WHOLE, "data.batch_size=5"]]
)
def test_images_of_a_limited_epoch_weigh_the_same_in_every_epoch(words: list[str], tmp_path: Path) -> None:
    classifier, gradients = train([*words, *limits(5)], 0, 1, 43, tmp_path)
    ratios, images = [], []
    for epoch in (0, 1):
        whole, read, _ = of_one_large_batch(classifier, gradients.batches[epoch])
        ratios += [ours / all_at_once for ours, all_at_once in zip(gradients.sums[epoch], whole, strict=True)]
        images.append(read)
    assert len(gradients.batches[0]) == 5
    for ratio in ratios:
        torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratios[0].flatten()[0])), rtol=1e-6, atol=0)
    mean = float(1 / ratios[0].flatten()[0]) * gradients.steps[0]
    assert min(images) * 0.5 < mean < max(images) * 2


@pytest.mark.slow
def test_an_epoch_of_one_window_is_one_full_step_whatever_its_batches_and_processes(
    spawn: Caller, sppnet: Caller, tmp_path: Path
) -> None:
    words = [*SMALL, "optim=sgd", "trainer.max_epochs=1", *limits(None), "trainer.accumulate_grad_batches=1000"]
    words += ["backbone.freeze=true", "head.dropout=0", "trainer.precision=64-true", "trainer.accelerator=cpu"]
    # 90 training images: an even number, as two processes leave an odd one out
    words += ["data.split.val=0.8"]
    done = [sppnet("train", *words, f"data.batch_size={size}") for size in (8, 1797)]
    done.append(spawn("train", *words, "data.batch_size=8", "trainer.devices=2"))
    runs = [tmp_path / each.run for each in done]
    ends = [weights(run / "checkpoints/last.ckpt") for run in runs]
    for key, value in ends[0].items():
        assert all(torch.allclose(value, end[key], rtol=1e-9, atol=1e-12) for end in ends)
    assert ends[0]["network.head.classifier.bias"].abs().max() > 1e-5  # starts at zero; learning rate 0.01
