"""Networks from their configurations: a combination that does not fit is refused before any data is read."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sppnet.config.compose import compose_config
from sppnet.config.schema import SPP, AnyHead, AnyPooling, Backbone
from sppnet.errors import UserError
from sppnet.models.fit_check import check_network
from sppnet.models.network import build_backbone, build_network
from sppnet.models.pooling import build_pooling
from sppnet.models.probe import on_meta, probe
from sppnet.training.preflight import sizes_for_pairs
from tiers import some_quick

CONF = Path(__file__).resolve().parents[2] / "conf"
POOLINGS = ("spp", "flatten", "gap", "avgmax", "gem", "lse")


def _names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def _config(*overrides: str) -> tuple[Backbone, AnyPooling, AnyHead]:
    """Compose the sections `backbone`, `pooling` and `head` from overrides."""
    cfg = compose_config(list(overrides))
    return cfg.backbone, cfg.pooling, cfg.head


def _tiny(*overrides: str) -> tuple[Backbone, AnyPooling, AnyHead]:
    return _config("backbone.width=2", *overrides)


def _sizes(train: list[int], test: list[int] | None = None) -> dict[str, list[int]]:
    return {"train": train, "val": test or train[:1], "test": test or train[:1]}


@pytest.mark.parametrize("backbone", some_quick(_names("backbone"), 4))
def test_every_backbone_file_builds_with_a_pyramid_and_a_grid(backbone: str) -> None:
    names = {"torchvision": "mnasnet0_5", "timm": "test_convnext"}
    extra = [f"backbone.name={names[backbone]}"] if backbone in names else []
    for pooling in POOLINGS if backbone == "tiny" else ("spp", "flatten"):
        cfg = _config(f"backbone={backbone}", *extra, f"pooling={pooling}")
        check_network(*cfg, _sizes([224]))
    with on_meta():
        net = build_network(*cfg, 7, 224)
    assert net.eval()(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("pyramid", some_quick(_names("pyramid"), 4))
def test_a_pyramid_file_is_named_after_its_levels(pyramid: str) -> None:
    depth, *levels = pyramid.split("_")
    _, pooling, _ = _config("pooling=spp", f"pyramid={pyramid}")
    assert isinstance(pooling, SPP)
    assert pooling.bins == [int(level) for level in levels]
    assert depth == f"l{len(levels)}"


@pytest.mark.parametrize("pooling", ["spp", "gap"])
def test_one_network_takes_images_of_every_size_and_shape(pooling: str) -> None:
    net = build_network(*_tiny(f"pooling={pooling}"), 5, 48).eval()
    with torch.no_grad():
        for height, width in ((1, 1), (17, 60), (48, 48), (61, 32)):
            logits = net(torch.randn(2, 3, height, width))
            assert logits.shape == (2, 5)
            assert torch.isfinite(logits).all()


def test_a_flatten_network_takes_its_own_size_and_no_other() -> None:
    net = build_network(*_tiny("pooling=flatten"), classes=5, size=48).eval()
    assert net(torch.randn(2, 3, 48, 48)).shape == (2, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.randn(2, 3, 40, 40))


def test_the_flatten_window_makes_exactly_output_size_bins_and_reads_every_cell() -> None:
    _, cfg, _ = _tiny("pooling=flatten", "pooling.pool=avg")
    for side in range(1, 21):
        for cells in range(1, side + 1):
            pool = build_pooling(cfg.model_copy(update={"output_size": cells}), 1, side)
            x = torch.ones(1, 1, side, side, requires_grad=True)
            out = pool(x)
            out.sum().backward()
            assert out.shape == (1, cells * cells)
            assert x.grad is not None
            assert (x.grad > 0).all()


def test_flatten_without_pooling_keeps_the_map_as_it_is() -> None:
    _, pooling, _ = _tiny("pooling=flatten", "pooling.output_size=null")
    x = torch.randn(2, 4, 7, 7)
    assert torch.equal(build_pooling(pooling, 4, 7)(x), x.flatten(1))


def test_the_heads_stages_are_named_and_sliced_for_features() -> None:
    net = build_network(*_tiny("head.hidden=[12,7]"), 3, 48).eval()
    assert isinstance(net.head, nn.Sequential)
    assert [name for name, _ in net.head.named_children()] == ["fc1", "fc2", "classifier"]
    x = torch.randn(2, 3, 48, 48)
    pooled = net.pooling(net.backbone(x))
    fc1, fc2 = (net.head[:stages](pooled) for stages in (1, 2))
    assert [t.shape[1] for t in (pooled, fc1, fc2)] == [4 * 50, 12, 7]
    assert torch.equal(net.head[-1](fc2), net(x))


def test_the_keys_of_a_state_dict_are_those_of_published_checkpoints() -> None:
    net = build_network(*_tiny("head.hidden=[8]"), 3, 48)
    keys = [key for key in net.state_dict() if "conv1" in key or key.startswith("head")]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert keys == [
        "backbone.conv1.0.weight",
        *(f"backbone.conv1.1.{name}" for name in norm),
        "head.fc1.linear.weight",
        "head.fc1.linear.bias",
        "head.classifier.weight",
        "head.classifier.bias",
    ]
    with on_meta():
        resnet = build_backbone(_config("backbone=resnet18")[0])
    assert {"conv1.weight", "layer4.1.bn2.running_var"} < set(resnet.state_dict())


def test_dropout_acts_in_training_only_and_the_first_logits_are_small() -> None:
    torch.manual_seed(0)
    net = build_network(*_tiny(), 10, 48)
    x = torch.randn(64, 3, 48, 48)
    assert not torch.equal(net(x), net(x))
    assert net.eval()(x).std() < 0.3
    assert torch.equal(net(x), net(x))


def test_a_frozen_backbone_does_not_move_while_the_head_learns() -> None:
    net = build_network(*_tiny("backbone.freeze=true"), 3, 48).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        net.train()
        net(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
        optimizer.step()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("head.")}
    assert net.training
    assert net.head.training
    assert not any(module.training for module in net.backbone.modules())
    assert not any(p.requires_grad for p in copy.deepcopy(net).train().backbone.parameters())


def test_a_backbone_that_is_not_frozen_learns_with_its_statistics() -> None:
    net = build_network(*_tiny(), 3, 48).train()
    before = net.backbone.state_dict()["conv1.1.running_mean"].clone()
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert not torch.equal(before, net.backbone.state_dict()["conv1.1.running_mean"])


def test_a_users_own_module_needs_nothing_but_its_name() -> None:
    node = {"_target_": "torch.nn.Conv2d", "name": "mine", "in_channels": 3, "out_channels": 6, "kernel_size": 5}
    cfg = (Backbone.model_validate({**node, "stride": 3, "weights": None, "freeze": True}), *_tiny()[1:])
    check_network(*cfg, _sizes([32, 5]))
    assert build_network(*cfg, 4, 48)(torch.randn(1, 3, 20, 31)).shape == (1, 4)
    with pytest.raises(UserError, match=r"sizes\.train: size 4 gives no feature map .* smallest size that works is 5$"):
        check_network(*cfg, _sizes([32, 4]))


def test_weights_from_a_file_reach_the_network(tmp_path: Path) -> None:
    torch.save(build_backbone(_tiny()[0]).state_dict(), tmp_path / "w.pth")
    cfg = _tiny(f"backbone.weights={tmp_path / 'w.pth'}")
    check_network(*cfg, _sizes([48]))
    first, second = (build_network(*cfg, 3, 48).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


Case = tuple[list[str], dict[str, list[int]], bool, str]
MISTAKES: dict[str, Case] = {
    "no map": (["backbone=alexnet"], _sizes([224], [63, 30]), False,
               r"^sizes\.val: size 30 gives no feature map \(.*\); the smallest size that works is 31$"),
    "flatten, two sizes": (["pooling=flatten"], _sizes([48, 40]), False,
                           r"pooling=flatten takes one square .* not sizes\.train=\[48, 40\], sizes\.val=\[48\]"),
    "flatten, tested at another": (["pooling=flatten"], _sizes([48], [40]), False,
                                   r"not sizes\.train=\[48\], sizes\.val=\[40\]"),
    "flatten, whole images": (["pooling=flatten"], _sizes([48]), True, "not whole images"),
    "flatten, finer than the map": (["pooling=flatten", "pooling.output_size=13"], _sizes([48]), False,
                                    r"pooling\.output_size=13 exceeds the .* 12x12 .*; pooling\.output_size=null"),
    "sliding at 10 cells": (["backbone=zf5", "pooling.rule=sliding"], _sizes([224, 180]), False,
                            r"sizes\.train: size 180 gives a 10x10 feature map: .*\b6\b"),
    "padded at 10 cells": (["pooling.rule=padded", "pooling.bins=[7]"], _sizes([40]), False,
                           r"sizes\.train: size 40 gives a 10x10 feature map: .*\b7\b"),
    "sliding, whole images": (["pooling.rule=sliding"], _sizes([48]), True, r"pooling\.rule=sliding cannot .*adaptive"),
    "no bins": (["pooling.bins=[]"], _sizes([48]), False, r"pooling\.bins=\[\]"),
    "too many bins": (["pooling.bins=[1024]", "head.hidden=[1048576]"], _sizes([48]), False,
                      r"pooling\.bins=\[1024\] and head\.hidden=\[1048576\]: the network would have \d+ GiB"),
    "too wide a layer": (["pooling=gap", "head.hidden=[1048576,1048576]"], _sizes([48]), False,
                         r"^head\.hidden=\[1048576, 1048576\]: the network would have \d+ GiB of"),
    "unknown pooling": (["pooling.name=roi"], _sizes([48]), False, r"pooling\.name=roi .* spp, gap, avgmax, gem, lse"),
    "one size only": (["backbone=torchvision", "backbone.name=vit_b_16"], _sizes([224]), False,
                      "vit_b_16 does not accept images of every size .*Wrong image height"),
    "too wide": (["backbone.width=16777216"], _sizes([48]), False, "Tiny refuses its arguments: .*memory"),
    "unknown argument": (["+backbone.depth=3"], _sizes([48]), False, "backbone: .*depth"),
    "refused argument": (["backbone._target_=torch.nn.Conv2d", "~backbone.width", "+backbone.in_channels=3",
                          "+backbone.out_channels=4", "+backbone.kernel_size=3", "+backbone.groups=3"],
                         _sizes([48]), False, "torch.nn.Conv2d refuses its arguments: out_channels must be divisible"),
    "no weights": (["backbone.weights=none.pth"], _sizes([48]), False, "backbone.weights=none.pth: no such"),
    "no such weights": (["backbone=resnet18", "backbone.weights=none.pth"], _sizes([48]), False,
                        "backbone.weights=none.pth is neither a file nor one of resnet18's weights: IMAGENET1K_V1"),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "sizes", "whole", "message"), some_quick(MISTAKES.values()), ids=MISTAKES)
def test_a_mismatch_is_refused_in_one_line(
    overrides: list[str], sizes: dict[str, list[int]], whole: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_network(*_config(*overrides), sizes, whole_images=whole)
    assert "\n" not in str(caught.value)


def test_the_check_accepts_exactly_the_sizes_that_run() -> None:
    backbone, _, mlp = _tiny()
    with on_meta():
        trunk = build_backbone(backbone).eval()
    channels = probe(trunk).out_channels
    for rule in ("sliding", "padded"):
        pooling = _tiny("pooling.bins=[4,3,1]", f"pooling.rule={rule}")[1]
        for size in range(1, 62, 4):
            try:
                check_network(backbone, pooling, mlp, _sizes([size]))
                allowed = True
            except UserError:
                allowed = False
            shape = trunk(torch.empty(1, 3, size, size, device="meta")).shape
            try:
                runs = build_pooling(pooling, channels, 1)(torch.randn(shape)).shape == (1, channels * 26)
            except ValueError:
                runs = False
            assert runs == allowed, (rule, size)


def test_the_check_allocates_no_weights_and_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    check_network(*_config("backbone=vgg16", "head.hidden=[4096,4096]"), _sizes([224, 180]), whole_images=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert not nn.Linear(2, 2).weight.is_meta  # later modules have values again


class Normed(nn.Sequential):
    """A head of the user that normalises vectors over the batch."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(4), nn.Linear(4, 7))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        float(vectors.sum())  # not possible on the meta device
        logits: torch.Tensor = super().forward(vectors)  # type: ignore[no-untyped-call]
        return logits


@pytest.mark.parametrize(
    ("head", "freeze", "pairs"),
    [("gap", False, {4}), ("spp", False, {4}), ("gap", True, set()), ("own", True, {4, 8, 32}), ("none", False, set())],
)
def test_sizes_for_pairs_are_those_at_which_one_image_cannot_train(head: str, freeze: bool, pairs: set[int]) -> None:
    pooling = "spp" if head == "spp" else "gap"
    net = build_network(*_tiny(f"pooling={pooling}", f"backbone.freeze={freeze}"), 7, 48)
    if head == "own":
        net.head = Normed()
    if head == "none":
        net.backbone = nn.Conv2d(3, 4, 3, 4, 1)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    assert sizes_for_pairs(net, [32, 4, 8]) == sizes_for_pairs(net.double(), [32, 4, 8]) == pairs
    net.float()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    for size in (4, 8, 32):
        if size in pairs:
            with pytest.raises(ValueError, match="more than 1 value"):
                net(torch.zeros(1, 3, size, size))
            net(torch.zeros(2, 3, size, size))
        else:
            net(torch.zeros(1, 3, size, size))


def test_building_networks_does_not_import_lightning() -> None:
    code = "import sys, sppnet.models.network; sys.exit(bool({'lightning', 'pytorch_lightning'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
