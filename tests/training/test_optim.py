"""Which parameters the weight decay shrinks."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calling import SMALL, Caller, limits, weights
from sppnet.config.compose import compose_config
from sppnet.errors import UserError
from sppnet.pyramid import SpatialPyramidPool2d
from sppnet.runs.plan import plan_run
from sppnet.training.optim import build_optimizer, undecayed


class Exponent(nn.Module):
    """Like generalised-mean pooling with a matrix of exponents."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.ones(2, 3))

    def no_weight_decay(self) -> set[str]:
        return {"p", "absent"}


class Inner(nn.Module):
    """A pooling of one's own with one of ours in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gem = SpatialPyramidPool2d((1,), "gem")


def groups(*words: str, freeze: bool = False) -> list[tuple[set[str], float]]:
    """The names of the parameters in each group, and the group's weight decay."""
    pooling = Exponent()
    stages: dict[str, nn.Module] = {"conv": nn.Conv2d(1, 2, 1), "norm": nn.BatchNorm2d(2), "table": Exponent()}
    module = nn.Sequential(OrderedDict(**stages, pooling=pooling))
    module.conv.requires_grad_(not freeze)
    cfg = compose_config(list(words)).optim
    named = [(f"_fsdp_wrapped_module.{name}", p) for name, p in module.named_parameters()]  # as FSDP names them
    optimizer = build_optimizer(cfg, named, undecayed(cfg, module, pooling))
    name_of = {id(p): name for name, p in module.named_parameters()}
    return [({name_of[id(p)] for p in group["params"]}, group["weight_decay"]) for group in optimizer.param_groups]


CONV, NORM, TABLE, POOL = {"conv.weight", "conv.bias"}, {"norm.weight", "norm.bias"}, {"table.p"}, {"pooling.p"}


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_norms_biases_and_exponents_do_not_decay(optim: str) -> None:
    words = (f"optim={optim}", "optim.weight_decay=0.1")
    assert groups(*words) == [(CONV | NORM | TABLE, 0.1), (POOL, 0)]
    rest = {"conv.bias"} | NORM | TABLE | POOL
    assert groups(*words, "optim.decay_norms=false") == [({"conv.weight"}, 0.1), (rest, 0)]
    assert groups(*words, "optim.decay_norms=false", freeze=True) == [(NORM | TABLE | POOL, 0)]


def test_names_without_decay_come_from_a_method() -> None:
    module = nn.Linear(2, 2)
    module.no_weight_decay = {"weight"}  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^Linear.no_weight_decay must be a method that returns names of parameters: "):
        undecayed(compose_config(["optim.decay_norms=false"]).optim, module)


def test_the_exponent_of_a_pooling_inside_another_does_not_decay() -> None:
    module = nn.Sequential(nn.Linear(2, 2), Inner())
    assert undecayed(compose_config([]).optim, module, module[1]) == {"1.gem.p"}


def test_no_decay_and_null_are_one_setting() -> None:
    without, null = (compose_config([word]) for word in ("~optim.weight_decay", "optim.weight_decay=null"))
    assert plan_run(without).run.path == plan_run(null).run.path
    assert without.optim.node() == null.optim.node()


def test_there_is_one_group_if_nothing_decays() -> None:
    everything = CONV | NORM | TABLE | POOL
    for word in ("optim.weight_decay=0", "~optim.weight_decay"):
        assert groups("optim=sgd", word, "optim.decay_norms=false") == [(everything, 0)]
    [first, second] = groups("optim=adamw", "~optim.weight_decay")  # AdamW's default decays
    assert (first, second) == ((CONV | NORM | TABLE, 0.01), (POOL, 0))


def test_an_optimizer_without_groups_is_refused_before_training(sppnet: Caller) -> None:
    class Decays(torch.optim.SGD):
        """Takes a weight decay, but none for each group."""

        def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
            super().__init__(parameters, lr)
            self.weight_decay, _ = weight_decay, self.defaults.pop("weight_decay")

    torch.optim.Decays = Decays  # type: ignore[attr-defined]
    Decays.__module__ = "torch.optim"
    try:
        words = ("optim._target_=torch.optim.Decays", "optim.weight_decay=0.1", "optim.decay_norms=false")
        with pytest.raises(UserError, match=r"torch.optim.Decays has no weight_decay for each group of parameters"):
            groups(*words)
    finally:
        del torch.optim.Decays  # type: ignore[attr-defined]


def test_a_step_without_decay_of_norms(sppnet: Caller) -> None:
    """Parameters of one dimension end as without any decay, and the others as with decay of all."""
    ended: dict[str, dict[str, Tensor]] = {}
    for words in (("optim.decay_norms=false",), ("optim.decay_norms=true",), ("optim.weight_decay=0",)):
        decay = "optim.weight_decay=0.5"
        done = sppnet("train", *SMALL, "optim=sgd", decay, *limits(1), "trainer.max_epochs=1", *words)
        assert done.code == 0, done.err
        ended[words[0]] = weights(done.run / "checkpoints/last.ckpt")
    without, everywhere, never = ended.values()
    bends = 0
    for name, value in without.items():
        if value.ndim > 1:
            assert torch.equal(value, everywhere[name]), name
            assert not torch.equal(value, never[name]), name
        elif value.is_floating_point():
            assert torch.equal(value, never[name]), name
            bends += not torch.equal(value, everywhere[name])
    assert bends > 0
