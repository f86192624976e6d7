"""The losses against their formulas, written out number by number, and the user's own losses."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

import own_losses
from calling import SMALL, Caller, records, same_weights, weights
from sppnet.config.compose import compose_config
from sppnet.config.instantiate import instantiate
from sppnet.config.load import replace
from sppnet.config.schema import Config, OwnLoss
from sppnet.data import Splits, load_splits
from sppnet.errors import UserError
from sppnet.models.network import SPPNet, build_network
from sppnet.training.lit_module import Classifier
from sppnet.training.loss_check import check_own_loss
from sppnet.training.losses import class_weights, shares
from sppnet.training.trainer import build_classifier

SCORES = [[2.0, -1.0, 0.5], [0.0, 3.0, -2.0], [-0.25, 0.75, 4.0], [1.0, 1.0, 1.0]]
NUMBERS = [0, 2, 2, 1]  # the label of each image
SETS = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]  # its labels, in a multi-label set
SHARES = [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.0, 0.75], [0.2, 0.3, 0.5]]  # of mixed images
WEIGHTS = [0.5, 2.0, 3.0]
TESTS = str(Path(own_losses.__file__).parent)


@functools.cache
def network() -> tuple[Config, SPPNet]:
    cfg = compose_config(["backbone.width=2", "head.hidden=[2]", "pooling.bins=[1]"])
    return cfg, build_network(cfg.backbone, cfg.pooling, cfg.head, 3, 24)


def classifier(multilabel: bool, weights: Sequence[float] | None = None, **keys: Any) -> Classifier:
    cfg, net = network()
    cfg = replace(cfg, {f"loss.{key}": value for key, value in keys.items()})
    return Classifier(net, cfg, ["cat", "dog", "owl"], multilabel, class_weights=weights)


def losses(trained: Classifier, targets: list[Any]) -> list[float]:
    """The losses in training; those in a test must be the same as without smoothing and weights."""
    target = torch.tensor(targets)
    if trained.multilabel:
        target = target.float()
    plain = classifier(trained.multilabel, name=trained.cfg.loss.name)
    assert torch.equal(trained.eval().loss(torch.tensor(SCORES), target), plain.loss(torch.tensor(SCORES), target))
    values: list[float] = trained.train().loss(torch.tensor(SCORES), target).tolist()
    return values


def softmax(
    scores: list[float], wanted: list[float], smoothing: float, weights: list[float], gamma: float = 0
) -> float:
    """-log p of each class in its share; smoothed, a part of the share is that of all classes alike."""
    total = sum(math.exp(score) for score in scores)
    p = [math.exp(score) / total for score in scores]
    smooth = [(1 - smoothing) * share + smoothing / len(scores) for share in wanted]
    terms = (-s * w * math.pow(1 - q, gamma) * math.log(q) for s, w, q in zip(smooth, weights, p, strict=True))
    return sum(terms)


def sigmoid(
    scores: list[float], wanted: list[float], smoothing: float, weights: list[float], gamma: float = 0
) -> float:
    """The mean over classes of a yes or no each; smoothed, yes is 1 - s / 2 and no is s / 2."""
    terms = []
    for score, share, weight in zip(scores, wanted, weights, strict=True):
        yes, part = 1 / (1 + math.exp(-score)), share * (1 - smoothing) + smoothing / 2
        modulator = math.pow(1 - (yes * part + (1 - yes) * (1 - part)), gamma)
        terms.append(-weight * modulator * (part * math.log(yes) + (1 - part) * math.log(1 - yes)))
    return sum(terms) / len(terms)


def one_hot(number: int) -> list[float]:
    return [float(number == each) for each in range(3)]


ALL_ONE = [1.0, 1.0, 1.0]
PLAIN = [pytest.param(0.0, None, id="plain"), pytest.param(0.1, None, id="smooth"), pytest.param(0.5, None, id="more")]
BOTH = [*PLAIN, pytest.param(0.0, WEIGHTS, id="weighted"), pytest.param(0.3, WEIGHTS, id="weighted and smooth")]


@pytest.mark.parametrize(("smoothing", "weights"), BOTH)
@pytest.mark.parametrize("name", ["cross_entropy", "auto", "focal"])
def test_an_image_of_one_class_loses_by_the_softmax(name: str, smoothing: float, weights: list[float] | None) -> None:
    """Also an image that `mix` has made of two."""
    trained, gamma = classifier(False, weights, name=name, label_smoothing=smoothing), 2.0 if name == "focal" else 0.0
    for targets, wanted in ((NUMBERS, list(map(one_hot, NUMBERS))), (SHARES, SHARES)):
        rows = zip(SCORES, wanted, strict=True)
        expected = [softmax(scores, share, smoothing, weights or ALL_ONE, gamma) for scores, share in rows]
        assert losses(trained, targets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("smoothing", "weights"), BOTH)
@pytest.mark.parametrize(
    ("name", "multilabel"), [("bce", False), ("bce", True), ("auto", True), ("focal", True)], ids=str
)
def test_a_sigmoid_of_each_class(name: str, multilabel: bool, smoothing: float, weights: list[float] | None) -> None:
    trained = classifier(multilabel, weights, name=name, label_smoothing=smoothing)
    gamma = 2.0 if name == "focal" else 0.0
    several: list[tuple[Any, Any]] = (
        [(SETS, SETS)] if multilabel else [(NUMBERS, list(map(one_hot, NUMBERS))), (SHARES, SHARES)]
    )
    for targets, wanted in several:
        rows = zip(SCORES, wanted, strict=True)
        expected = [sigmoid(scores, list(s), smoothing, weights or ALL_ONE, gamma) for scores, s in rows]
        assert losses(trained, targets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_focal_loss_is_that_of_torch_and_torchvision(multilabel: bool) -> None:
    """Values and gradients; without an exponent, it is the cross-entropy. Confident scores break none of them."""
    logits = (torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 2).requires_grad_()
    target = torch.arange(50) % 3 if not multilabel else (torch.arange(150).reshape(50, 3) % 7 < 3).float()
    for gamma in (0.0, 0.5, 2.0):
        ours = classifier(multilabel, name="focal", gamma=gamma, label_smoothing=0.1).loss(logits, target)
        if multilabel:
            smooth = target * 0.9 + 0.05
            theirs = sigmoid_focal_loss(logits, smooth, alpha=-1, gamma=gamma).mean(1)
        elif gamma:
            log_p, smooth = logits.log_softmax(1), F.one_hot(target).float() * 0.9 + 0.1 / 3
            theirs = -(smooth * (1 - log_p.exp()) ** gamma * log_p).sum(1)
        else:
            theirs = F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        both = [torch.autograd.grad(each.sum(), logits)[0] for each in (ours, theirs)]
        torch.testing.assert_close(*both, rtol=1e-3, atol=1e-4)
        sure = torch.tensor([[60.0, -60.0, -60.0]], requires_grad=True)
        [right] = classifier(multilabel, name="focal", gamma=gamma).loss(sure, shares(torch.tensor([0]), sure))
        assert torch.autograd.grad(right, sure)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_loss_takes_the_logits_of_every_precision(dtype: torch.dtype, autocast: bool) -> None:
    for name in ("cross_entropy", "bce", "focal"):
        for given in (None, WEIGHTS):
            trained = classifier(False, given, name=name).to(torch.float32 if autocast else dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for target in (torch.tensor(NUMBERS), torch.tensor(SHARES)):
                    logits = torch.tensor(SCORES, dtype=torch.bfloat16 if autocast else dtype, requires_grad=True)
                    value = trained.loss(logits, target).sum()
                    (gradient,) = torch.autograd.grad(value, logits)
                    assert gradient.isfinite().all()
                    expected = sum(losses(classifier(False, given, name=name), target.tolist()))
                    assert value.item() == pytest.approx(expected, rel=1e-5)


class Labels(own_losses.Several):
    """A data set of these labels."""

    def __init__(self, labels: Sequence[int | tuple[int, ...]]) -> None:
        self.labels, self.multilabel = labels, isinstance(labels[0], tuple)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, index: int) -> Any:
        return self.labels[index]


def weights_of(given: Any, labels: Sequence[int | tuple[int, ...]]) -> list[float] | None:
    """The weights that the training images, all but the last, give to three classes."""
    cfg, images = network()[0], Labels(labels)
    train, rest = np.arange(len(labels) - 1), np.arange(len(labels) - 1, len(labels))
    return class_weights(replace(cfg, {"loss.class_weights": given}).loss, Splits(images, train, rest, rest))


def test_balanced_weights_are_inverse_to_the_training_images_of_a_class() -> None:
    assert weights_of(None, [0, 1, 2]) is None
    assert weights_of([1, 0, 2.5], [0, 1, 2]) == [1, 0, 2.5]
    balanced = weights_of("balanced", [0, 1, 1, 2, 2, 2, 0])
    assert balanced == pytest.approx([6 / (3 * n) for n in (1, 2, 3)])
    cfg = replace(network()[0], {"loss.class_weights": "balanced"})
    sets = load_splits(cfg.data)
    used = build_classifier(cfg, sets).loss.class_weights
    assert used == class_weights(cfg.loss, sets)
    several = weights_of("balanced", [(0, 1), (1,), (), (1, 2), (0, 1, 2), (2,)])
    assert several == pytest.approx([8 / (3 * n) for n in (2, 4, 2)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], "loss.class_weights has 2 weights, but the data set has 3 classes"),
        ([0, 0, 0], "loss.class_weights is 0 for every class that occurs"),
        ([0, 0, 7], "loss.class_weights is 0 for every class that occurs"),
        ("balanced", "loss.class_weights=balanced: the class owl has no training images"),
    ],
)
def test_weights_that_teach_nothing_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        weights_of(given, [0, 1, 0, 1, 2])


def test_a_softmax_over_several_labels_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss=cross_entropy: images of digits have several labels"):
        classifier(True, name="cross_entropy")


# The user's own losses


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Scalar", "returns a scalar; it must return one value per image (N,), as with reduction: none (in training"),
        (
            "ScalarInTests",
            "returns a scalar; it must return one value per image (N,), as with reduction: none (in eval",
        ),
        ("PerClass", "returns the shape (4, 3) for 4 images"),
        ("OfClasses", "returns the shape (3,) for 4 images"),
        ("Column", "returns the shape (4, 1) for 4 images"),
        ("Counts", "returns torch.int64"),
        ("Constant", "has no gradient: its values do not depend on the logits"),
        ("Detached", "has no gradient: its values do not depend on the logits"),
        ("Parameter", "has no gradient: its values do not depend on the logits"),
        ("NotANumber", "returns [nan, nan, nan, nan] for ordinary logits"),
        ("RootOfZero", "has a gradient that is not finite"),
        ("Raises", "raises KeyError for logits (4, 3) and targets (4,) of int64: 'such a class'"),
        ("Pair", "returns tuple"),
        ("NoisyInTests", "returns other values for the same images, so no test could be repeated (in evaluation mode)"),
        ("CentresInPlace", "changes its logits or targets in place"),
    ],
)
def test_an_own_loss_that_cannot_be_trained_with_is_refused(name: str, message: str) -> None:
    loss = getattr(own_losses, name)()
    before = torch.get_rng_state()
    with pytest.raises(UserError) as refused:
        check(loss, name)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"loss: own_losses.{name} ")
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_module_whose_constructor_does_not_call_that_of_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPNET_ALLOW", "own_losses")
    with pytest.raises(UserError, match=r"^loss: own_losses\.Unprepared does not call super\(\)\.__init__\(\)"):
        instantiate({"_target_": "own_losses.Unprepared"}, torch.nn.Module, "loss")


def test_a_class_is_named_where_it_is_defined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file that the name leads to counts into a run's hash."""
    monkeypatch.setenv("SPPNET_ALLOW", "zoo_of_losses")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "zoo_of_losses").mkdir()
    (tmp_path / "zoo_of_losses/one.py").write_text("from torch import nn\n\n\nclass One(nn.Module):\n    pass\n")
    for name in ("__init__", "all"):
        (tmp_path / f"zoo_of_losses/{name}.py").write_text("from zoo_of_losses.one import One\n")
    for name in ("zoo_of_losses.One", "zoo_of_losses.one.One"):
        instantiate({"_target_": name}, torch.nn.Module, "loss")
    with pytest.raises(UserError, match=r"into the run's identity; use zoo_of_losses\.one\.One$"):
        instantiate({"_target_": "zoo_of_losses.all.One"}, torch.nn.Module, "loss")


def test_class_weights_are_not_rounded_with_the_network() -> None:
    loss = classifier(False, [1.2345, 0.777, 3.333]).loss
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(loss(logits, target), loss.to(torch.bfloat16)(logits, target))


def check(loss: torch.nn.Module, name: str, classes: int = 3, multilabel: bool = False, soft: bool = False) -> None:
    cfg = OwnLoss.model_construct(target=f"own_losses.{name}", activation="auto")
    check_own_loss(cfg, loss, classes, multilabel, soft, torch.float32)


def test_a_number_that_a_resumed_run_would_lack_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    check(own_losses.Counting(), "Counting")
    assert not capsys.readouterr().err
    loss = own_losses.Calls()
    check(loss, "Calls")
    assert loss.calls == 0
    assert "loss: own_losses.Calls.calls changes when the module is called, but a checkpoint" in capsys.readouterr().err


def test_an_own_loss_is_checked_with_the_targets_of_the_run() -> None:
    """With four classes, a value per class does not pass for a value per image."""
    for classes in (2, 3, 4, 10):
        check(torch.nn.CrossEntropyLoss(reduction="none"), "CE", classes)
        check(torch.nn.CrossEntropyLoss(reduction="none"), "CE", classes, soft=True)
        check(own_losses.Tempered(), "Tempered", classes)
        check(own_losses.Perceptron(), "Perceptron", classes)
        check(own_losses.Binary(), "Binary", classes, multilabel=True)
    for mode in (True, False):
        uncopied = own_losses.Uncopied().train(mode)
        check(uncopied, "Uncopied")
        assert uncopied.training == mode
        own = own_losses.Counting().train(mode)
        check(own, "Counting")
        assert own.training == mode
        assert own.seen == 0
    with pytest.raises(UserError, match="changes its logits or targets in place"):
        check(own_losses.SmoothsInPlace(), "SmoothsInPlace", multilabel=True)
    with pytest.raises(UserError, match=r"OfClasses returns the shape \(4,\) for 5 images"):
        check(own_losses.OfClasses(), "OfClasses", 4)
    with pytest.raises(UserError, match=r"NoShares raises .* for logits \(4, 3\) and targets \(4, 3\) of float32"):
        check(own_losses.NoShares(), "NoShares", soft=True)
    check(own_losses.NoShares(), "NoShares")


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes an option file of an own loss and returns the words that choose it."""
    monkeypatch.syspath_prepend(TESTS)
    (tmp_path / "mine/loss").mkdir(parents=True)

    def write(target: str, **keys: Any) -> tuple[str, ...]:
        lines = [f"_target_: {target}", *(f"{key}: {value}" for key, value in keys.items())]
        (tmp_path / "mine/loss/own.yaml").write_text("\n".join(lines))
        return ("--config-dir", "mine", f"allow={target.partition('.')[0]}", "loss=own")

    return write


def test_an_own_loss_trains_like_torchs_and_its_parameters_with_it(sppnet: Caller, own: Any, tmp_path: Path) -> None:
    """With the cross-entropy of torch, to the bit as with ours; a temperature is trained, saved, averaged, loaded.

    Its code is part of the run's identity.
    """
    ours = sppnet("train", *SMALL, "study=ours")
    torchs = sppnet("train", *own("torch.nn.CrossEntropyLoss", reduction="none"), *SMALL)
    assert torchs.code == 0, torchs.err
    assert torchs.run.name != ours.run.name
    assert same_weights(torchs.run / "checkpoints/last.ckpt", ours.run / "checkpoints/last.ckpt")
    assert records(torchs.run) == records(ours.run)
    shutil.copy(own_losses.__file__, tmp_path / "copied_losses.py")
    words = own("copied_losses.Tempered", start=2.0, name="tempered", activation="softmax")
    done = sppnet("train", *words, *SMALL, "optim.ema=0.5", "mix=both")
    assert done.code == 0, done.err
    state = weights(done.run / "checkpoints/best.ckpt")
    assert 0 < abs(float(state["loss.temperature"]) - 2.0) < 0.1
    tested = sppnet("test", f"checkpoint={done.run}", "allow=copied_losses", "force=true")
    assert tested.code == 0, tested.err
    assert tested.figure("test/loss") == done.figure("test/loss")
    transferred = sppnet(
        *("transfer", f"checkpoint={done.run}", "allow=copied_losses", "layer=pool", "splits=1", "per_class.train=5"),
        *("sizes.test=[24]", "compute.num_threads=1"),
    )
    assert transferred.code == 0, transferred.err
    with (tmp_path / "copied_losses.py").open("a") as file:
        file.write("# changed\n")
    late = sppnet("test", f"checkpoint={done.run}", "allow=copied_losses", "sizes.test=[20]")
    assert "loss._target_=copied_losses.Tempered: its code has changed since checkpoint=" in late.err
    other = sppnet("train", *words, *SMALL, "optim.ema=0.5", "mix=both")
    assert done.run != other.run


def test_a_loss_that_fails_on_the_images_of_a_run_ends_it_in_one_line(sppnet: Caller, own: Any) -> None:
    failed = sppnet("train", *own("own_losses.Counting"), *SMALL, "data.batch_size=31")
    assert failed.code == 1
    assert (
        failed.err
        == "sppnet train: loss: own_losses.Counting raises ValueError for 31 images: an odd number of images\n"
    )


def test_a_loss_or_mix_that_does_not_fit_leaves_nothing_behind(sppnet: Caller, own: Any) -> None:
    several = ("allow=own_losses", "data._target_=own_losses.Several", "data.name=several")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("loss.class_weights=[1,2]",), "loss.class_weights has 2 weights, but the data set has 10 classes"),
        ((f"loss.class_weights=[{','.join(['1e-50'] * 10)}]",), "loss.class_weights is 0 for every class that occurs"),
        (
            ("loss.class_weights=[1e7]",),
            "must be null or balanced, or a non-empty list, each item a number of at least 0 and at most 1e+06",
        ),
        (("loss=focal", "loss.gamma=200"), "loss.gamma=200 is not allowed: must be a number of at least 0 and at most"),
        (("loss.class_weights=[]",), "loss.class_weights=[] is not allowed"),
        (("loss.class_weights=even",), "loss.class_weights=even is not allowed"),
        (("loss=focal", "loss.gamma=-1"), "loss.gamma=-1 is not allowed"),
        (("mix=mixup", "mix.alpha=0.01"), "mix.alpha=0.01 is not allowed: must be a number of at least 0.1"),
        (("mix=mixup", *several), "mix=mixup: images of several have several labels"),
        (("loss=cross_entropy", *several), "loss=cross_entropy: images of several have several labels"),
    ]
    for name, problem in (("Scalar", "returns a scalar"), ("NoShares", "raises")):
        refused = sppnet("train", *own(f"own_losses.{name}"), "mix=mixup", *SMALL)
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert f"loss: own_losses.{name} {problem}" in refused.err
    for words, message in cases:
        refused = sppnet("train", *words, *SMALL)
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert message in refused.err
        assert not Path("runs/default").exists()
