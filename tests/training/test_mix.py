"""Mixup and CutMix: images and labels are mixed alike, from the seed of the batch, and only images that count."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import remix
from calling import SMALL, Caller, records
from sppnet.config.compose import compose_config
from sppnet.config.schema import NoMix
from sppnet.errors import UserError
from sppnet.training.mix import Mix, build_mix, main_labels

KINDS = ("mixup", "cutmix", "both")


@functools.cache
def mix_of(*words: str) -> Mix:
    mix = build_mix(compose_config(list(words)).mix, 3, "digits", False)
    assert mix is not None
    return mix


def batch_of(target: list[int], valid: list[bool] | None = None) -> tuple[Tensor, Any]:
    """Images (N, 3, 10, 12) of one colour each, which is that of the label; those that are not valid are NaN."""
    label, is_valid = torch.tensor(target), torch.tensor([True] * len(target) if valid is None else valid)
    images = torch.eye(3)[label][:, :, None, None].repeat(1, 1, 10, 12)
    images[~is_valid] = torch.nan
    return images, {"target": label, "valid": is_valid, "all_valid": bool(is_valid.all())}


def mixed(mix: Mix, images: Tensor, batch: Any, seed: int) -> tuple[Tensor, Tensor]:
    random.seed(seed)
    torch.manual_seed(seed)
    mixed_images, shares_NK = mix(images.clone(), batch)
    return mixed_images, shares_NK


@pytest.mark.parametrize("valid", [None, [True, False, True, True, False], [False, False, True, False, False]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_the_labels_are_the_shares_of_the_images(kind: str, layout: Any, valid: list[bool] | None) -> None:
    """By pixel values (mixup) and by area (CutMix). An image that does not count is in no other image."""
    images, batch = batch_of([0, 1, 2, 0, 1], valid)
    images = images.contiguous(memory_format=layout)
    mix, shares = mix_of(f"mix={kind}"), set()
    for seed in range(20):
        result, shares_NK = mixed(mix, images, batch, seed)
        assert result.is_contiguous(memory_format=layout)
        assert (result.shape, result.dtype) == (images.shape, images.dtype)
        torch.testing.assert_close(result[batch["valid"]].mean((2, 3)), shares_NK[batch["valid"]])
        torch.testing.assert_close(shares_NK.sum(1), torch.ones(5))
        assert result[~batch["valid"]].isnan().all()
        again, shares_again = mixed(mix, images, batch, seed)
        assert torch.equal(again[batch["valid"]], result[batch["valid"]])
        assert torch.equal(shares_again, shares_NK)
        shares |= set(shares_NK[batch["valid"]].flatten().tolist())
    assert (len(shares) > 10) == (valid is None or sum(valid) > 1)


def test_p_is_the_share_of_mixed_batches_and_both_is_either() -> None:
    images, batch = batch_of([0, 1, 2])
    mix, kinds = mix_of("mix=both", "mix.p=0.4"), []
    for seed in range(300):
        result, shares_NK = mixed(mix, images, batch, seed)
        is_blended = not bool(((result == 0) | (result == 1)).all())
        is_mixed = not torch.equal(result, images)
        assert is_mixed or torch.equal(shares_NK, torch.eye(3))
        kinds.append((is_mixed, is_blended))
    share = {kind: kinds.count(kind) / 300 for kind in set(kinds)}
    assert 0.5 < share[False, False] < 0.7
    assert share.keys() == {(False, False), (True, False), (True, True)}
    assert 0.1 < share[True, True] < 0.3


def test_no_image_that_counts_is_no_error() -> None:
    for kind in KINDS:
        images, batch = batch_of([1], [False])
        _, shares_NK = mixed(mix_of(f"mix={kind}"), images, batch, 0)
        assert shares_NK.tolist() == [[0, 1, 0]]


def test_the_label_of_a_mixed_image_is_that_of_the_larger_share() -> None:
    shares = torch.tensor([[0.3, 0.7, 0], [0.5, 0.5, 0], [0.5, 0.5, 0], [0, 1, 0]])
    assert main_labels(shares, torch.tensor([0, 0, 1, 1])).tolist() == [1, 0, 1, 1]


def test_none_mixes_nothing_and_several_labels_are_refused() -> None:
    assert build_mix(NoMix(name="none"), 3, "digits", True) is None
    for kind in KINDS:
        with pytest.raises(UserError, match=rf"mix={kind}: images of digits have several labels"):
            build_mix(compose_config([f"mix={kind}"]).mix, 3, "digits", True)


@pytest.mark.parametrize(
    "words",
    [
        ("mix=both", "trainer.accumulate_grad_batches=2"),
        pytest.param(("mix=mixup", "data.fit=full"), marks=pytest.mark.slow),
        pytest.param(("mix=cutmix", "data.batch_size=1"), marks=pytest.mark.slow),
        pytest.param(("mix=cutmix", "compute.channels_last=true", "mix.p=0.5"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_trains_on_mixed_images(
    sppnet: Caller, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every loss in the records is that of the images mixed again; an image is right if its larger share is."""
    monkeypatch.syspath_prepend(str(Path(remix.__file__).parent))
    done = sppnet("train", *SMALL, *remix.PLUG, *words)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (done.run / "mix-0.jsonl").read_text().splitlines()]
    steps = [record["train/step_loss"] for record in records(done.run) if "train/step_loss" in record]
    assert steps == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    [first, second] = [record for record in records(done.run) if "train/top1" in record]
    for epoch, record in enumerate((first, second)):
        of_epoch = lines[4 * epoch : 4 * epoch + 4]
        images = sum(line["images"] for line in of_epoch)
        assert record["train/top1"] == pytest.approx(sum(line["right"] for line in of_epoch) / images)
    if "data.batch_size=1" not in words:
        assert len({str(line["shares"]) for line in lines}) > 2
