"""Trunks of timm: what becomes of each family, weights by name and from files, and the images that they expect."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import lightning as L
import pytest
import timm
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

from calling import Called, Caller, limits
from sppnet.config import timm_networks
from sppnet.config.compose import compose_config
from sppnet.config.schema import MLP, SPP, Backbone
from sppnet.errors import UserError
from sppnet.models import timm_trunk
from sppnet.models.network import build_network
from sppnet.models.pretrained import load_weights
from sppnet.models.probe import on_meta
from sppnet.models.receptive_field import receptive_field
from sppnet.runs.identity import weights_identity
from sppnet.runs.plan import plan_run
from sppnet.training.lightning_trainer import check_strategy
from sppnet.training.preflight import check_fit
from timm_table import NAMES, QUICK, path, row

TABLE = [line for line in path().read_text().splitlines() if line.startswith("| ")][1:]
ROWS = {line.split()[1]: line for line in TABLE}
SMALL = "resnet10t"
TAG = "c3_in1k"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def backbone_config(name: str, **options: Any) -> Backbone:
    return Backbone(**{"_target_": timm_networks.TIMM, "arch": name, "name": name, **options})


def side(name: str, least: int) -> int:
    """The smallest multiple of the stride of at least `least` pixels that gives a map."""
    _, _, stride, smallest, *_ = (cell.strip() for cell in ROWS[name].split("|")[1:])
    return math.ceil(max(least, int(smallest)) / int(stride)) * int(stride)


def check(name: str) -> None:
    """Compare a network with its row of the table, and train it for two steps if the row says that it trains."""
    assert row(name) == ROWS[name], "uv run python tests/helpers/timm_table.py"
    if "| trains |" not in ROWS[name]:
        return
    options = {key: value == "true" for key, value in re.findall(r"\+backbone\.(\w+)=(\w+)", ROWS[name])}
    size = side(name, 64)
    pooling, head = SPP(name="spp", bins=[2, 1], pool="max", rule="adaptive"), MLP(name="mlp", hidden=[], dropout=0.0)
    network = build_network(backbone_config(name, **options), pooling, head, 3, size)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    for height, width in ((size, size), (size, 2 * size)):
        optimizer.zero_grad()
        images = torch.randn(2 if size < 200 else 1, 3, height, width)
        loss = network(images).logsumexp(1).mean()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert not [key for key, parameter in network.named_parameters() if parameter.grad is None]


def test_the_table_lists_the_networks_once_each() -> None:
    assert list(ROWS) == NAMES


@pytest.mark.parametrize("name", QUICK)
def test_networks_of_three_layouts_train_or_are_refused_as_the_table_says(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in QUICK])
def test_each_family_of_timm_trains_or_is_refused_as_the_table_says(name: str) -> None:
    check(name)


def check_locality(name: str) -> None:
    """A map of a part of an image has the cells of the whole image's map, except near the cut."""
    torch.manual_seed(0)
    trunk = timm_trunk(name).eval()
    strip = torch.randn(1, 3, side(name, 32), 64 * 32)
    strip[..., : 16 * 32] += 10  # so that a mean over all of the strip differs from that of the part
    with torch.no_grad():
        whole, part = trunk(strip), trunk(strip[..., 16 * 32 :])
    cells = part.shape[3] // 3  # the last third lies 1,000 pixels from the cut
    assert torch.allclose(whole[..., -cells:], part[..., -cells:], atol=1e-3 * float(whole.abs().max()))


def test_views_come_from_a_map_only_if_its_cells_do_not_depend_on_all_of_the_image() -> None:
    check_locality("test_resnet")
    with pytest.raises(AssertionError):
        check_locality("test_efficientnet")  # squeeze-and-excitation
    with on_meta():
        field = receptive_field(timm_trunk("test_efficientnet"))
    assert field.mixed_by.startswith("SqueezeExcite model.blocks.")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if "| yes |" in ROWS[name] and name not in QUICK])
def test_views_from_a_map_are_local_in_each_family(name: str) -> None:
    check_locality(name)


@pytest.mark.parametrize("name", [*QUICK, pytest.param("mobilenetv3_small_050", marks=pytest.mark.slow)])
def test_a_trunk_gives_the_features_of_the_whole_network(name: str) -> None:
    whole: Any = timm.create_model(name).eval()
    trunk, image = timm_trunk(name).eval(), torch.randn(2, 3, 64, 96)
    state = whole.state_dict()
    trunk.load_state_dict({key: state[key.removeprefix("model.")] for key in trunk.state_dict()})
    assert len(trunk.state_dict()) < len(state)
    with torch.no_grad():
        features, maps = whole.forward_features(image), trunk(image)
    if features.ndim == 3:
        features = features[:, -maps.shape[2] * maps.shape[3] :].unflatten(1, maps.shape[2:])
    assert torch.equal(features if features.shape == maps.shape else features.permute(0, 3, 1, 2), maps)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10x", {}, "resnet10x is not a network of timm; the nearest names are .*resnet10t"),
        ("resnet18.a9_in1k", {}, "timm's resnet18 has no weights a9_in1k; it has a1_in1k, .* and DEFAULT"),
        ("convnext_tiny_in22ft1k", {}, r"it is now called convnext_tiny\.fb_in22k_ft_in1k"),
        ("hf-hub:timm/resnet18", {}, "is not the name of a network of timm"),
        (SMALL, {"weights": "a1_in1k"}, f"nor weights of timm's {SMALL}.*it has {TAG}, and DEFAULT"),
        ("resnet18.a1_in1k", {"weights": "a2_in1k"}, "name different weights"),
        ("mobilenetv4_conv_small_035", {"weights": "DEFAULT"}, "timm knows no trained weights of it"),
        (SMALL, {"depth": 3}, f"timm cannot build {SMALL}: .*depth"),
        (SMALL, {"act_layer": None}, r"backbone\.act_layer=null is not allowed"),
        (SMALL, {"pretrained": True}, r"backbone\.pretrained is not allowed .*backbone\.weights"),
        (SMALL, {"checkpoint_path": "x"}, r"backbone\.checkpoint_path is not allowed"),
        (SMALL, {"drop_path": 1}, r"backbone\.drop_path=1 is not allowed"),
        ("vgg11", {"drop_path": 0.1}, r"backbone\.drop_path=0\.1: timm's vgg11 has no stochastic depth"),
        ("vit_tiny_patch16_224", {}, r"doesn't match model \(224\)\); use \+backbone\.dynamic_img_size=true"),
        ("crossvit_tiny_240", {}, "has type list"),
    ],
)
def test_what_timm_cannot_build_is_one_line_that_says_what_it_can(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        timm_trunk(name, **options)


def test_without_timm_a_network_of_timm_is_refused_with_the_command_that_works(
    sppnet: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    refused = sppnet("train", "backbone=timm", f"backbone.name={SMALL}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "uv run --extra timm sppnet" in refused.err
    assert sppnet("train", "--cfg", "job", "--resolve").code == 0


def save_whole(name: str, file: Path, **extra: torch.Tensor) -> Any:
    whole = timm.create_model(name)
    state = {**whole.state_dict(), **extra}
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return whole


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_the_whole_network_loads_and_another_is_refused_with_its_keys(suffix: str, tmp_path: Path) -> None:
    file, trunk = tmp_path / f"w{suffix}", timm_trunk(SMALL)
    whole = save_whole(SMALL, file)
    load_weights(trunk, file)
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(trunk.eval()(image), whole.eval().forward_features(image))
    save_whole(SMALL, file, extra=torch.zeros(1))
    with pytest.raises(UserError, match=r"does not fit the backbone: unknown: model\.extra$"):
        load_weights(trunk, file)
    save_whole("test_resnet", file)
    with pytest.raises(UserError, match=r"does not fit the backbone: unknown: .*wrong shape: "):
        load_weights(trunk, file)


@pytest.mark.parametrize("size", [0, 6, 5000])
def test_a_damaged_safetensors_file_is_one_line(size: int, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_whole("test_resnet", file)
    os.truncate(file, size)
    with pytest.raises(UserError, match=r"backbone\.weights=.* is damaged or not a safetensors file: ") as caught:
        load_weights(timm_trunk("test_resnet"), file)
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_has_no_checksums_and_a_line_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_whole("test_resnet", tmp_path / "w.safetensors")
    load_weights(timm_trunk("test_resnet"), tmp_path / "w.safetensors")
    assert "was written without checksums" in capfd.readouterr().err


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of timm's weights in an empty folder, without a network behind it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def fill(cache: Path, name: str, file: Path, called: str) -> Path:
    """Put a file into the cache as if it had been downloaded."""
    folder = cache / f"models--timm--{name}"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for part in ("blobs", "refs", "snapshots/1234"):
        (folder / part).mkdir(parents=True)
    (folder / "refs/main").write_text("1234")
    blob = folder / "blobs" / digest
    shutil.copy(file, blob)
    (folder / "snapshots/1234" / called).symlink_to(blob)
    return blob


def test_without_a_network_weights_by_name_are_one_line_at_once(cache: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"backbone\.weights={TAG}: .* cannot be downloaded .*use backbone\.weights=F"):
        timm_trunk(SMALL, weights="DEFAULT")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("name", "weights"), [(SMALL, "DEFAULT"), (f"{SMALL}.{TAG}", "DEFAULT"), (SMALL, TAG)])
def test_weights_by_name_come_from_the_cache_if_they_are_whole(
    name: str, weights: str, cache: Path, tmp_path: Path
) -> None:
    whole = save_whole(SMALL, tmp_path / "w.safetensors")
    blob = fill(cache, f"{SMALL}.{TAG}", tmp_path / "w.safetensors", "model.safetensors")
    trunk, image = timm_trunk(name, weights=weights).eval(), torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(trunk(image), whole.eval().forward_features(image))
    content = bytearray(blob.read_bytes())
    content[-1000] ^= 4
    blob.write_bytes(content)
    with pytest.raises(UserError, match=rf"backbone\.weights={TAG}: .* is damaged; remove it"):
        timm_trunk(name, weights=weights)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_cached_file_that_holds_code_is_refused_and_never_executed(cache: Path, tmp_path: Path) -> None:
    torch.save({"x": _Bomb(tmp_path / "executed")}, tmp_path / "bomb.bin")
    fill(cache, f"{SMALL}.{TAG}", tmp_path / "bomb.bin", "pytorch_model.bin")
    with pytest.raises(UserError, match="holds a pickled object"):
        timm_trunk(SMALL, weights="DEFAULT")
    assert not (tmp_path / "executed").exists()


def test_drop_path_skips_blocks_in_training_only() -> None:
    trunk, image = timm_trunk("convnext_atto", drop_path=0.9), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(trunk(image), trunk(image))
        assert torch.equal(trunk.eval()(image), trunk(image))


@pytest.mark.parametrize("data", ["digits", "folder", "imagenet", "cifar10", "caltech101", "voc2007"])
def test_mean_and_std_are_those_of_the_network_unless_they_are_typed(data: str) -> None:
    network = "backbone.name=mobilenetv4_conv_small_035"  # its mean differs from ImageNet's
    composed = compose_config(["backbone=timm", network, f"data={data}", "data.std=[0.1,0.2,0.3]"]).data
    assert composed.mean == [0.5, 0.5, 0.5]
    assert composed.std == [0.1, 0.2, 0.3]


def expected(key: str, name: str, weights: str | None = None) -> Any:
    """What the resolver of conf/data gives."""
    section = {"_target_": timm_networks.TIMM, "name": name, "arch": "${.name}", "weights": weights}
    value = f"${{sppnet.backbone:{key},default}}" if key == "interpolation" else f"${{sppnet.backbone:{key},[0,0,0]}}"
    return OmegaConf.create({"backbone": section, "data": {"value": value}}).data.value


@pytest.mark.parametrize(
    ("name", "weights", "mean"),
    [
        ("vit_tiny_patch16_224", "augreg_in21k", 0.5),
        ("vit_base_patch16_clip_224", "openai", 0.48145466),
    ],
)
def test_the_weights_that_are_named_decide_which_images_are_expected(name: str, weights: str, mean: float) -> None:
    assert expected("mean", name, weights)[0] == expected("mean", f"{name}.{weights}")[0] == mean


def test_the_interpolation_is_that_of_the_network() -> None:
    assert expected("interpolation", "resnet10t") == "bicubic"
    assert expected("interpolation", "resnet18.tv_in1k") == "bilinear"


STEPS = (
    *(*limits(2), "trainer.max_epochs=1", "progress=none", "compute.num_threads=1"),
    *("sizes.train=[48,40]", "sizes.test=[48]", "pyramid.bins=[2,1]"),
)


def trained(sppnet: Caller, *words: str) -> Called:
    done = sppnet("train", "backbone=timm", "backbone.name=test_resnet", *STEPS, *words)
    assert done.code == 0, done.err
    return done


def test_a_run_stores_numbers_and_a_test_keeps_them(sppnet: Caller) -> None:
    done = trained(sppnet, "backbone.name=test_resnet.r160_in1k")
    assert "random weights; backbone.weights=DEFAULT loads r160_in1k" in done.err
    shown = sppnet("test", f"checkpoint={done.run}", "data=folder", "--cfg", "job")
    stored = yaml.safe_load((done.run / "config.yaml").read_text())["data"]
    assert stored["mean"] == stored["std"] == [0.5, 0.5, 0.5]
    assert yaml.safe_load(shown.out)["data"]["mean"] == [0.5, 0.5, 0.5]
    tested = sppnet("test", f"checkpoint={done.run}", "views=ten", "sizes.test=[48]")
    assert tested.code == 0, tested.err


def test_the_tag_that_default_means_names_the_same_run(cache: Path) -> None:
    identities = [
        weights_identity(backbone_config(name, weights=weights))
        for name, weights in ((SMALL, "DEFAULT"), (SMALL, TAG), (f"{SMALL}.{TAG}", "DEFAULT"))
    ]
    assert identities == [TAG] * 3
    words = ["backbone=timm", "backbone.weights=DEFAULT"]
    for more in ([f"backbone.name={SMALL}"], [f"backbone.name={SMALL}.{TAG}"], ["backbone.drop_path=0"]):
        runs = [plan_run(compose_config([*words, f"backbone.name={SMALL}", *each])).run for each in ([], more)]
        assert runs[0].hash == runs[1].hash


def test_views_of_a_network_with_the_padding_of_tensorflow_are_cut_out_of_the_image() -> None:
    """Where its cells lie depends on the size of the image."""
    with on_meta(), pytest.raises(UserError, match=r"depends on the size of the image; use views\.source=image"):
        receptive_field(timm_trunk("tf_efficientnet_lite0"))


def test_norms_that_torch_cannot_synchronise_are_refused() -> None:
    cfg = compose_config(["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"])
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False)
    for name, problem in (
        ("test_resnet", "on GPUs only"),
        ("test_efficientnet", r"BatchNormAct2d model\.bn1, because"),
    ):
        with pytest.raises(UserError, match=problem), on_meta():
            check_strategy(cfg, trainer, timm_trunk(name))


def test_views_of_a_network_with_squeeze_and_excitation_are_cut_out_of_the_image(
    sppnet: Caller, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "backbone=timm", "backbone.name=mobilenetv3_small_050", "views=ten")
    refused = sppnet(*words)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "SqueezeExcite" in refused.err
    assert "views.source=image" in refused.err
    for name, module in (("mobilenet_v3_small", "AdaptiveAvgPool2d"), ("swin_t", "ShiftedWindowAttention")):
        cfg = compose_config(["backbone=torchvision", f"backbone.name={name}", "views=ten", "sizes.train=[64]"])
        check_fit(cfg)  # torchvision's are allowed, and it is said
        assert re.match(rf"sppnet: views.source=map: {module} .* views.source=image cuts.*\n$", capsys.readouterr().err)


def test_images_that_a_network_of_patches_refuses_are_refused_before_training(sppnet: Caller) -> None:
    words = ("train", "backbone=timm", "backbone.name=test_vit", "sizes.train=[64]", "sizes.test=[64]", "sizes=single")
    refused = sppnet(*words, "views=full")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "patch size" in refused.err


@pytest.mark.slow
def test_a_file_of_ones_own_that_names_timm_still_works(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "mine/backbone").mkdir(parents=True)
    (tmp_path / "mine/backbone/rn.yaml").write_text(
        "_target_: timm.create_model\nname: rn\nweights: null\nfreeze: false\nmodel_name: test_resnet\n"
        "num_classes: 0\nglobal_pool: ''\n"
    )
    done = sppnet("train", "--config-dir", "mine", "allow=timm", "backbone=rn", *STEPS)
    assert done.code == 0, done.err
    assert json.loads((done.run / "summary.json").read_text())["epochs"] == 1
