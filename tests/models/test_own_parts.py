"""Poolings and heads of the user's own: what they may be, and what is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from calling import SMALL, Called, Caller
from sppnet.config.compose import compose_config
from sppnet.runs.checkpoint_files import read_checkpoint
from sppnet.runs.plan import plan_run
from tiers import some_quick

HELPERS = str(Path(__file__).parents[1] / "helpers")


@pytest.fixture(autouse=True)
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HELPERS)
    (tmp_path / "options/pooling").mkdir(parents=True)
    (tmp_path / "options/head").mkdir()


def train(sppnet: Caller, slot: str, name: str, *words: str, section: str = "") -> Called:
    """Train with a pooling or a head of `own_parts`."""
    Path(f"options/{slot}/own.yaml").write_text(f"_target_: own_parts.{name}\n{section}")
    small = [word for word in SMALL if not (slot == "head" and word.startswith("head."))]
    one_step = ("trainer.max_epochs=1", *(f"trainer.limit_{part}_batches=1" for part in ("train", "val", "test")))
    return sppnet("train", "--config-dir=options", *small, *one_step, f"{slot}=own", "allow=own_parts", *words)


REFUSED = [
    ("pooling", "Flat", "makes vectors of different lengths, 200 values at sizes.train=20 (5x5 cells) and 288"),
    ("pooling", "Unflattened", "must return (N, D) for maps (N, C, h, w), but returns (1, 8, 1, 1)"),
    ("pooling", "Squeezed", "must return (N, D) for maps (N, C, h, w), but returns (8,) for (1, 8,"),
    ("pooling", "Double", "must return the dtype of its maps, torch.float32, but returns torch.float64"),
    ("pooling", "Noisy", "Noisy draws random numbers in evaluation"),
    ("pooling", "Lazy", "Lazy.mix.weight has no shape until the first batch"),
    ("pooling", "Uncopied", "Only Tensors created explicitly by the user"),
    ("pooling", "Large", "size 20 gives a 5x5 feature map"),
    ("pooling", "Doubled", "Doubled.pool_windows does not return what forward returns for the windows"),
    ("pooling", "Unused trainer.accelerator=cpu trainer.devices=2", "Unused.spare gets no gradient, for which the"),
    ("head", "PlainTensor trainer.precision=bf16-true", "PlainTensor fails for (2, 40) of bfloat16: "),
    (
        "pooling",
        "Single trainer.precision=bf16-true",
        "must return the dtype of its maps, torch.bfloat16, but returns torch.float32",
    ),
    ("pooling", "Detached", "Detached passes no gradient on to its input, so the backbone could not be trained"),
    (
        "pooling",
        "InPlace",
        "InPlace fails in its backward pass: one of the variables needed",
    ),
    ("pooling", "OverBatch", "OverBatch gives an image other outputs beside other images in evaluation"),
    ("pooling", "Scaled", "Scaled.pool_windows does not return what forward returns for the windows"),
    ("pooling", "Drawn", "Drawn gives other outputs if it is built again and loads the same weights"),
    ("pooling", "Undefined", "Undefined gives values that are not finite for ordinary inputs"),
    ("pooling", "Grows", "Grows.bank appears or changes its shape or dtype when the module is called"),
    (
        "pooling",
        "Cached optim.ema=0.9",
        "Cached.grid appears or changes its shape or dtype when the module is called, b",
    ),
    ("pooling", "Appears", "Appears.last appears or changes its shape or dtype when the module is called"),
    (
        "pooling",
        "FirstImage",
        "FirstImage.pool_windows does not return what forward returns for the windows [[",
    ),
    ("head", "Classes", "must return logits (N, K) of floating-point numbers, but returns torch.int64"),
    ("head", "Total", "must return logits (N, K) for vectors (N, D), but returns () for (1,"),
    ("head", "Groups", "own_parts.Groups refuses its arguments: groups [3, 8] must sum to 10"),
    ("head", "TwoClasses", "must return logits (N, 10) for vectors (N, D), but returns (1, 2) for (1,"),
    ("head", "SqueezedHead", "must return logits (N, K) for vectors (N, D), but returns (2,) for (1,"),
]


@pytest.mark.parametrize(("slot", "name", "message"), some_quick(REFUSED))
def test_what_does_not_work_is_refused_before_training(slot: str, name: str, message: str, sppnet: Caller) -> None:
    name, *words = name.split()
    refused = train(sppnet, slot, name, *words, section="groups: [3, 8]" if name == "Groups" else "")
    assert refused.code == 2, refused.err
    assert message in refused.err
    assert refused.err.count("\n") == 1 + refused.err.count("warning:")
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.ckpt"))


def test_windows_that_a_pooling_cannot_take_are_refused_before_training(sppnet: Caller) -> None:
    """A whole image of 25 pixels has seven cells along each side, but most of its windows have six."""
    words = [f"sizes.{part}=[25]" for part in ("train", "val", "test")]
    assert train(sppnet, "pooling", "Large", *words).code == 0
    refused = train(sppnet, "pooling", "Large", *words, "views=ten")
    assert refused.code == 2
    assert "Large does not make vectors of one length of all maps, but windows have every shape" in refused.err


def test_a_head_may_know_its_classes_and_compute_on_the_cpu(sppnet: Caller) -> None:
    """Another rule than `adaptive` cannot pool windows, but no one asks for them."""
    assert train(sppnet, "head", "TenClasses", "pooling.rule=padded").code == 0
    assert train(sppnet, "head", "MadeOnTheCPU").code == 0
    assert train(sppnet, "head", "Ramp", "trainer.precision=bf16-true").code == 0
    assert train(sppnet, "head", "Precise").code == 0
    assert train(sppnet, "head", "Groups", section="groups: [3, 7]").code == 0


def test_what_a_resumed_run_would_lack_is_named(sppnet: Caller) -> None:
    for name, attribute in (("Remembered", "_seen"), ("Accumulated", "mean")):
        done = train(sppnet, "pooling", name)
        assert done.code == 0, done.err
        assert f"pooling: {name}.{attribute} changes when the module is called, but a checkpoint does not" in done.err
        assert ".last" not in done.err
    for name in ("Cached", "Latest", "PreciseMean"):
        cached = train(sppnet, "pooling", name)
        assert cached.code == 0
        assert "changes when" not in cached.err


def test_extra_state_is_not_averaged(sppnet: Caller) -> None:
    run = train(sppnet, "head", "Extra", "optim.ema=0.9").run
    state = read_checkpoint(run / "checkpoints/best.ckpt")["state_dict"]
    assert state["network.head._extra_state"] == {"steps": 1}


def test_indices_are_not_averaged(sppnet: Caller) -> None:
    run = train(sppnet, "pooling", "Pick", "optim.ema=0.9").run
    state = read_checkpoint(run / "checkpoints/best.ckpt")["state_dict"]
    assert state["network.pooling.index"].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_a_pooling_that_refuses_windows_says_so_where_it_is_asked(sppnet: Caller) -> None:
    run = train(sppnet, "pooling", "NoWindows").run
    refused = sppnet("test", f"checkpoint={run}", "allow=own_parts", "views=ten")
    assert refused.code == 2
    assert refused.err.endswith("pooling: NoWindows.pool_windows refuses windows: not yet\n")


def test_a_pooling_that_counts_its_calls_starts_at_zero(sppnet: Caller) -> None:
    run = train(sppnet, "pooling", "Counter").run
    calls = read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]["network.pooling.calls"]
    assert calls == 2, "one step and one validation batch, but no check before training"


@pytest.mark.slow
def test_arguments_called_like_keys_of_ours_are_arguments(sppnet: Caller) -> None:
    """They count into the hash, as they are typed, and no command may change them afterwards."""
    runs = {}
    for section in ("", "kernel: 1", "kernel: true", "bins: [2, 1]", "bins: 4\nkind: gap"):
        trained = train(sppnet, "pooling", "Mean", section=section)
        assert trained.code == 0, trained.err
        assert "has no effect" not in trained.err.replace("pyramid.bins has no effect", "")
        runs[section] = trained.run
    assert len(set(runs.values())) == len(runs)
    checkpoint = (f"checkpoint={runs['kernel: 1']}", "allow=own_parts")
    refused = sppnet("test", *checkpoint, "pooling.kernel=2")
    assert refused.code == 2
    assert "pooling.kernel=2 is not allowed: the checkpoint was trained with 1" in refused.err
    kept = sppnet("test", f"checkpoint={runs['bins: [2, 1]']}", "allow=own_parts")
    assert kept.code == 0, kept.err
    reported = sppnet("report", "study=default")
    assert reported.code == 0, reported.err
    svm = ("layer=pooling", "splits=1", "per_class.train=5", "sizes.test=[24]", "backbone.width=4", "allow=own_parts")
    transferred = sppnet("transfer", "--config-dir=options", *svm, "pooling=own", "pooling.bins=3", "pooling.kind=mean")
    assert transferred.code == 0, transferred.err
    assert " pooling " in transferred.out
    assert re.search(r" 24 +8 ", transferred.out), "the length of the pooled vector"


def test_every_argument_of_a_pooling_counts_into_the_hash() -> None:
    gem, lse = ("", "pooling.p=2", "pooling.learn_p=false", "pooling.per_channel=true"), ("", "pooling.r=2")
    spp = ("", "pooling.bins=[3,1]", "pooling.rule=padded", "pooling.pool=avg", "pooling.pool=avgmax")
    words = {"gem": gem, "lse": lse, "gap": ("",), "avgmax": ("",), "spp": spp}
    words |= {"spp pooling.pool=gem": gem, "spp pooling.pool=lse": lse}
    words["flatten"] = (
        "sizes.train=[24]",
        "sizes.train=[24] pooling.output_size=1",
        "sizes.train=[24] pooling.pool=avg",
    )
    options = [f"pooling={first} {word}".split() for first, rest in words.items() for word in rest]
    runs = {plan_run(compose_config([*SMALL, *each])).run.path.name for each in options}
    assert len(runs) == len(options)


def test_a_backbone_that_cannot_be_copied_is_refused(sppnet: Caller) -> None:
    Path("options/backbone").mkdir()
    Path("options/backbone/own.yaml").write_text("_target_: own_parts.Normed\nweights: null\nfreeze: false\n")
    words = [word for word in SMALL if not word.startswith("backbone.")]
    refused = sppnet("train", "--config-dir=options", *words, "backbone=own", "allow=own_parts")
    assert refused.code == 2, refused.err
    assert "Normed cannot be copied: Only Tensors created explicitly by the user" in refused.err


def test_only_linear_layers_can_be_explained(sppnet: Caller) -> None:
    run = train(sppnet, "head", "Cosine").run
    Image.new("RGB", (24, 24)).save("grey.png")
    refused = sppnet("predict", f"checkpoint={run}", "allow=own_parts", "input=grey.png", "draw=true")
    assert refused.code == 2
    assert "the head has layers that are neither linear nor ReLUs (Cosine)" in refused.err
