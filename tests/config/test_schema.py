"""Allowed names and values of a configuration, and warnings of settings without effect."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calling import SMALL, Caller
from sppnet import pyramid
from sppnet.config import compose, schema
from sppnet.errors import UserError
from sppnet.training.optim import cosine

DEFAULT = compose.compose_config("train", [])


def keys(node: dict[str, Any], prefix: str = "") -> list[str]:
    """Every key of `node` at every level, dotted."""
    nested = [key for name, value in node.items() if isinstance(value, dict) for key in keys(value, f"{prefix}{name}.")]
    return [f"{prefix}{name}" for name in node] + nested


def put(cfg: dict[str, Any], key: str, *value: Any) -> dict[str, Any]:
    """A copy of `cfg` with another value at `key`, or without the key."""
    changed = copy.deepcopy(cfg)
    *parents, last = key.split(".")
    node = changed
    for part in parents:
        node = node[part]
    if value:
        node[last] = value[0]
    else:
        del node[last]
    return changed


@pytest.mark.parametrize("key", keys(DEFAULT))
def test_no_key_of_the_default_run_can_be_spoiled_or_taken_away_unnoticed(key: str) -> None:
    """Every key is checked: a value of a foreign type and a missing key are refused at once."""
    if key != "backbone.width":  # an argument of a class, which checks it itself
        with pytest.raises(UserError, match=key.rpartition(".")[2]):
            schema.check(put(DEFAULT, key, object()))
    without = put(DEFAULT, key)
    optional = {"backbone.name", "backbone.weights", "backbone.freeze", "backbone.width", "optim.weight_decay"}
    if key in optional or (key in schema.keys_without_effect(DEFAULT) and not schema.RULES[key].required):
        schema.check(without)
    else:
        with pytest.raises(UserError, match=key.rpartition(".")[2]):
            schema.check(without)


def test_a_level_is_as_fine_as_the_pyramid_allows_and_no_finer() -> None:
    pyramid.check_bins([schema.MAX_LEVEL])
    schema.check(put(DEFAULT, "head.bins", [schema.MAX_LEVEL]))
    with pytest.raises(ValueError, match="bins"):
        pyramid.check_bins([schema.MAX_LEVEL + 1])
    with pytest.raises(UserError, match=r"head\.bins"):
        schema.check(put(DEFAULT, "head.bins", [schema.MAX_LEVEL + 1]))


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", ["constant", "plateau", "cosine"])
def test_every_optimiser_takes_every_schedule(sppnet: Caller, optim: str, kind: str) -> None:
    limits = ("trainer.max_epochs=1", "trainer.limit_batches=1")
    done = sppnet("train", *SMALL, f"optim={optim}", f"optim.schedule.kind={kind}", *limits)
    assert done.code == 0, done.err
    assert "warning" not in done.err


def test_a_schedule_needs_the_keys_of_its_kind_only() -> None:
    schema.check(put(DEFAULT, "optim.schedule", {"kind": "constant"}))
    schema.check(put(DEFAULT, "optim.schedule", {"kind": "cosine", "warmup": 0.1}))
    with pytest.raises(UserError, match=r"optim\.schedule\.factor is missing"):
        schema.check(put(DEFAULT, "optim.schedule", {"kind": "plateau", "warmup": 0.1}))


WITHOUT_EFFECT = [
    (["optim.schedule.factor=0.5"], "optim.schedule.factor has no effect with optim.schedule.kind=cosine"),
    (["optim=sgd", "optim.schedule.warmup=0.5"], "optim.schedule.warmup has no effect"),
    (["head=gap", "head.bins=[4]"], "head.bins has no effect with head.name=gap"),
    (["head=gap", "+head.pool=avg"], "head.pool has no effect with head.name=gap"),
    (["data.crop.scale=[0.5,1]"], "data.crop.scale has no effect with data.crop.kind=paper"),
    (["data.fit=full", "data.crop.ratio=1"], "data.crop.ratio has no effect with data.fit=full"),
    (["data.aspect_step=1"], "data.aspect_step has no effect with data.fit=crop"),
    (["views=full", "views.ratio=0.5"], "views.ratio has no effect with views.fit=full"),
]


@pytest.mark.parametrize(("words", "message"), WITHOUT_EFFECT, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_typed_setting_without_effect_is_warned_of(sppnet: Caller, words: list[str], message: str) -> None:
    called = sppnet("train", *words, "backbone.weights=no/such.pth")  # ends the run after the warning
    assert called.err.splitlines()[0].startswith(f"sppnet: warning: {message}")


def test_a_setting_that_counts_and_a_default_that_does_not_are_passed_over(sppnet: Caller) -> None:
    counts = ("data.crop.kind=random_resized", "data.crop.scale=[0.5,1]", "data.crop.ratio=0.9", "views.ratio=0.5")
    called = sppnet("train", *counts, "optim.schedule.warmup=0.1", "backbone.weights=no/such.pth")
    assert "warning" not in called.err


@pytest.mark.parametrize("words", [["seed=1", "--info"], ["--info", "seed=1"], ["-i"], ["seed=1", "--info", "config"]])
def test_hydras_info_stands_before_or_after_overrides(sppnet: Caller, tmp_path: Path, words: list[str]) -> None:
    called = sppnet("train", *words)
    assert called.code == 0, called.err
    assert "alternating" in called.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (20, 0.0), (20, 0.25), (300, 0.05)])
def test_the_cosine_rises_in_equal_parts_and_wastes_no_step(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine(optimizer, {"warmup": warmup}, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = round(warmup * steps)
    assert rates[:warm] == pytest.approx([(i + 1) / (warm + 1) for i in range(warm)])
    assert min(rates) > 0
    if warm < steps:
        assert rates[warm] == 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0)
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
