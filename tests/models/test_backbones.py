"""Backbones: where torchvision networks are cut, and what the probe finds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from sppnet.errors import UserError
from sppnet.models.backbones import ZF5, Blog, Tiny, map_size, smallest_input, torchvision_trunk
from sppnet.models.probe import Trunk, on_meta, probe
from tiers import some_quick

Make = Callable[[], nn.Module]
SMALL: dict[str, Make] = {
    "tiny": lambda: Tiny(width=2),
    "blog": Blog,
    "zf5": ZF5,
    "squeezenet1_1": lambda: torchvision_trunk("squeezenet1_1"),
    "shufflenet_v2_x0_5": lambda: torchvision_trunk("shufflenet_v2_x0_5"),
}
ONE_SIZE = {"maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"}
NAMES = models.list_models(module=models)
ONE_PER_FAMILY = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_the_probe_predicts_the_map_of_a_real_image_of_any_shape(make: Make) -> None:
    backbone = make().eval()
    trunk = probe(backbone)
    for height, width in ((40, 97), (64, 64), (71, 48), (90, 33)):
        out = backbone(torch.randn(2, 3, height, width))
        assert out.shape == (2, trunk.out_channels, *map_size(backbone, height, width))


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("cells", [1, 3])
def test_the_smallest_input_works_and_one_pixel_less_does_not(make: Make, cells: int) -> None:
    backbone = make().eval()
    side = smallest_input(backbone, cells)
    assert min(backbone(torch.randn(1, 3, side, side)).shape[2:]) >= cells
    if side > 1:
        try:
            smaller = min(backbone(torch.randn(1, 3, side - 1, side - 1)).shape[2:])
        except RuntimeError:
            smaller = 0
        assert smaller < cells


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_stride_more_pixels_give_one_more_cell(make: Make) -> None:
    with on_meta():
        backbone = make().eval()
    stride = probe(backbone).stride
    for side in range(64, 64 + stride, 3):
        height, width = map_size(backbone, side, side)
        assert map_size(backbone, side + stride, side + 2 * stride) == (height + 1, width + 2)


def test_probing_leaves_the_module_as_it_was() -> None:
    backbone = torchvision_trunk("shufflenet_v2_x0_5").train()
    backbone.get_submodule("stage2").eval()
    before = copy.deepcopy(backbone.state_dict())
    modes = [module.training for module in backbone.modules()]
    probe(backbone)
    smallest_input(backbone)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*backbone.parameters(), *backbone.buffers()))


class _Logits(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (_Logits(), r"must be a map .* not \(1, 4\) at 224x224"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(6)), r"\(1, 4, 6, 6\) at 224x224"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 4)),
            "does not accept images of every size .*20384x20384",
        ),
        (nn.Conv2d(3, 4, 3, stride=(2, 1)), "stride must be an integer"),
        (nn.Upsample(scale_factor=2), "stride must be an integer"),
        (nn.Sequential(nn.MaxPool2d(5), nn.Upsample(scale_factor=2)), "stride must be an integer"),
    ],
    ids=["logits", "fixed grid", "one size", "two strides", "finer than pixels", "every 2.5 pixels"],
)
def test_a_module_that_is_no_backbone_is_refused_with_the_reason(backbone: nn.Module, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        probe(backbone)


@pytest.mark.parametrize("padding", [0, 40])
def test_every_stride_up_to_108_pixels_is_found(padding: int) -> None:
    for stride in range(1, 109):
        assert probe(nn.Conv2d(3, 2, 81, stride, padding)) == Trunk(2, stride)


def _check_trunk(name: str) -> None:
    with on_meta():
        if name in ONE_SIZE:
            with pytest.raises(UserError, match=rf"{name} does not accept images of every size .*(size|height)"):
                torchvision_trunk(name)
            return
        backbone = torchvision_trunk(name)
        whole = models.get_model(name)
    trunk = probe(backbone)
    assert trunk.stride in (16, 32)
    assert min(map_size(backbone, 384, 256)) > min(map_size(backbone, 224, 192)) > 1
    assert set(backbone.state_dict()) < set(whole.state_dict())
    # Nothing of the classifier remains: no tensor has the size of the 1,000 classes.
    assert all(1000 not in value.shape[:1] for value in backbone.state_dict().values())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", some_quick(ONE_PER_FAMILY[::2]))
def test_each_family_of_torchvision_gives_a_trunk_or_the_reason_why_not(name: str) -> None:
    _check_trunk(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ONE_PER_FAMILY[::2])))
def test_each_network_of_torchvision_gives_a_trunk_or_the_reason_why_not(name: str) -> None:
    _check_trunk(name)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_weights_that_would_change_the_network_silently_are_refused(name: str) -> None:
    """They make torchvision convert the input, which no checkpoint says."""
    with pytest.raises(
        UserError, match=rf"{name} then converts its input .*; use \+backbone\.transform_input=true, or"
    ):
        torchvision_trunk(name, weights="IMAGENET1K_V1")


def _pooled(model: Any, features: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = model.avgpool(features).flatten(1)
    return pooled


REST: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {  # the part of torchvision's forward after the cut
    "resnet18": lambda m, x: m.fc(_pooled(m, x)),
    "shufflenet_v2_x0_5": lambda m, x: m.fc(x.mean((2, 3))),
    "squeezenet1_1": lambda m, x: m.classifier(x).flatten(1),
    "swin_t": lambda m, x: m.head(_pooled(m, x)),
}
REST_SLOW: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "alexnet": lambda m, x: m.classifier(_pooled(m, m.features[-1](x))),
    "densenet121": lambda m, x: m.classifier(x.mean((2, 3))),
    "googlenet": lambda m, x: m.fc(_pooled(m, x)),
    "inception_v3": lambda m, x: m.fc(_pooled(m, x)),
    "mnasnet0_5": lambda m, x: m.classifier(x.mean((2, 3))),
    "mobilenet_v3_small": lambda m, x: m.classifier(_pooled(m, x)),
    "vgg11": lambda m, x: m.classifier(_pooled(m, m.features[-1](x))),
}


@pytest.mark.parametrize("name", [*REST, *(pytest.param(name, marks=pytest.mark.slow) for name in REST_SLOW)])
def test_the_trunk_and_torchvisions_rest_equal_the_whole_network_bit_for_bit(name: str) -> None:
    rest = (REST | REST_SLOW)[name]
    options: dict[str, Any] = (
        {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    )  # torchvision's initialisation is slow
    whole = models.get_model(name, num_classes=7, **options).eval()
    trunk = torchvision_trunk(name, num_classes=7, **options).eval()
    trunk.load_state_dict({key: whole.state_dict()[key] for key in trunk.state_dict()})
    image = torch.randn(1, 3, 107, 96)
    with torch.no_grad():
        assert torch.equal(rest(whole, trunk(image)), whole(image))


def test_a_trunk_still_depends_on_training_mode() -> None:
    trunk = torchvision_trunk("efficientnet_b0", stochastic_depth_prob=0.9)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        trunk.train()
        assert not torch.equal(trunk(image), trunk(image))  # stochastic depth
        trunk.eval()
        assert torch.equal(trunk(image), trunk(image))


def test_a_trunk_can_be_copied_and_pickled() -> None:
    trunk = torchvision_trunk("shufflenet_v2_x0_5").eval()
    image = torch.randn(1, 3, 48, 64)
    expected = trunk(image)
    for twin in (copy.deepcopy(trunk), pickle.loads(pickle.dumps(trunk))):
        assert torch.equal(twin(image), expected)
        assert all(a is not b for a, b in zip(twin.parameters(), trunk.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet19", {}, "backbone.name=resnet19 is not a torchvision classification network; valid names .*resnet18"),
        ("fasterrcnn_resnet50_fpn", {}, "is not a torchvision classification network"),
        ("resnet18", {"depth": 3}, "resnet18 rejects an argument: .*depth"),
        ("resnet18", {"weights": "IMAGENET22K"}, "nor one of resnet18's weights: IMAGENET1K_V1, DEFAULT"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_alternatives(arch: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        torchvision_trunk(arch, **options)


@pytest.mark.parametrize("width", [0, -1, 2.5, "wide"])
def test_an_invalid_width_is_refused(width: Any) -> None:
    with pytest.raises(UserError, match=r"backbone\.width="):
        Tiny(width=width)
