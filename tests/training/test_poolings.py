"""Every pooling that we ship, and one of the user's own, with everything that a network goes through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calling import SMALL, Caller, limits, same_weights
from stop_at import PLUG
from trace_ranks import PLUG as TRACE

OWN = """
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        weights = self.score(maps).flatten(2).softmax(2)
        return (maps.flatten(2) * weights).sum(2)
"""
POOLINGS = {
    "max": ("pooling=spp",),
    "avg": ("pooling=spp", "pooling.pool=avg"),
    "avgmax": ("pooling=spp", "pooling.pool=avgmax"),
    "gem": ("pooling=spp", "pooling.pool=gem"),
    "lse": ("pooling=spp", "pooling.pool=lse"),
    "global avg": ("pooling=gap",),
    "global avgmax": ("pooling=avgmax",),
    "global gem": ("pooling=gem", "pooling.per_channel=true"),
    "global lse": ("pooling=lse",),
    "flatten": ("pooling=flatten", "pooling.output_size=2", "sizes=single", "sizes.train=[24]"),  # takes one size only
    "own": ("pooling=attention", "allow=attention"),
}
RUN = (
    *(word for word in SMALL if not word.startswith("head")),
    *("backbone.width=8", "head=linear", "trainer.max_epochs=2", "optim.lr=0.01", *limits(None)),
)
HELPERS = str(Path(__file__).parents[1] / "helpers")


@pytest.fixture(autouse=True)
def own_pooling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HELPERS)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "attention.py").write_text(OWN)
    (tmp_path / "options/pooling").mkdir(parents=True)
    (tmp_path / "options/pooling/attention.yaml").write_text("_target_: attention.Attention\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLINGS)
def test_a_run_is_killed_resumed_tested_and_transferred(
    name: str, sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "--config-dir", str(tmp_path / "options"), *RUN, *PLUG, *POOLINGS[name])
    unbroken = sppnet(*words, "paths.runs=unbroken")
    assert unbroken.code == 0, unbroken.err
    with monkeypatch.context() as context:
        context.setenv("STOP_AT", "batch 50")
        assert sppnet(*words).code == 1
    resumed = sppnet(*words, "progress=lines")
    assert resumed.code == 0, resumed.err
    assert "resumed at step 48" in resumed.out, resumed.out  # saved every third step
    for file in ("last.ckpt", "best.ckpt"):
        assert same_weights(resumed.run / "checkpoints" / file, unbroken.run / "checkpoints" / file)
    checkpoint = (f"checkpoint={resumed.run}", "allow=attention", "allow=stop_at")
    accuracy = [
        sppnet("test", *checkpoint, "views=ten", f"views.source={source}").figure("test/top1")
        for source in (("image",) if name == "flatten" else ("map", "image"))
    ]
    assert min(accuracy) > 0.15, "it has learned something"
    assert abs(accuracy[0] - accuracy[-1]) < 0.15
    whole = sppnet("test", *checkpoint, "views=full")
    assert (whole.code, "pooling=flatten takes one" in whole.err) == ((2, True) if name == "flatten" else (0, False))
    assert sppnet("transfer", *checkpoint, "layer=pooling", "splits=1", "per_class.train=5").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gem", "global gem", "lse", "flatten", "own"])
def test_two_processes_train_the_same_weights(name: str, spawn: Caller, tmp_path: Path) -> None:
    words = ("--config-dir", "options", *SMALL, *TRACE, "trainer.max_epochs=1", *POOLINGS[name])
    words = tuple(word for word in words if word != "allow=attention")
    words = (*words, "allow=[attention,trace_ranks]", "trainer.devices=2", "trainer.accelerator=cpu")
    done = spawn("train", *words, PYTHONPATH=HELPERS)
    assert done.code == 0, done.err
    traces = [[json.loads(line) for line in path.open()] for path in (tmp_path / done.run).glob("trace-*.jsonl")]
    assert len(traces) == 2
    assert len({trace[-1]["weights"] for trace in traces}) == 1
    batches = [[line["index"] for line in trace if line.get("phase") == "train"] for trace in traces]
    assert batches[0] != batches[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global gem", "global avg", "global lse", "avgmax", "flatten", "own"])
def test_it_trains_compiled_as_well(name: str, sppnet: Caller, tmp_path: Path) -> None:
    words = ("train", "--config-dir", str(tmp_path / "options"), *SMALL, "trainer.max_epochs=1", *POOLINGS[name])
    plain, compiled = (sppnet(*words, f"compute.compile={value}") for value in ("false", "true"))
    assert compiled.code == 0, compiled.err
    losses = [json.loads((run.run / "summary.json").read_text())["test/loss"] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
