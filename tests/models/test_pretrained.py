"""Weights of a backbone, from a file or by torchvision's name, and every mismatch."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.serialization import set_crc32_options
from torchvision import models

from calling import flip
from sppnet.errors import UserError
from sppnet.models.backbones import ZF5, Blog, Tiny, torchvision_trunk
from sppnet.models.pretrained import load_weights
from sppnet.models.probe import on_meta
from sppnet.storage.tensors import read_tensor_file

SMALL: dict[str, Callable[[], nn.Module]] = {
    "tiny": lambda: Tiny(width=2),
    "blog": Blog,
    "shufflenet_v2_x0_5": lambda: torchvision_trunk("shufflenet_v2_x0_5"),
}


def _save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def _same(a: nn.Module, b: nn.Module) -> bool:
    image = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        return torch.equal(a.eval()(image), b.eval()(image))


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_weights_loaded_from_a_file_equal_those_saved(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    source, target = make(), make()
    assert not _same(source, target)
    load_weights(target, _save(source.state_dict(), tmp_path / "w.pth"))
    assert _same(source, target)


@pytest.mark.parametrize("part", ["", "features"], ids=["whole network", "its features"])
def test_files_of_torchvisions_networks_fit_as_they_are(part: str, tmp_path: Path) -> None:
    whole = models.squeezenet1_1()
    trunk = torchvision_trunk("squeezenet1_1")
    load_weights(trunk, _save(whole.get_submodule(part).state_dict(), tmp_path / "w.pth"))
    assert _same(trunk, whole.features)


def test_a_file_with_auxiliary_classifiers_or_of_an_old_densenet_fits(tmp_path: Path) -> None:
    with on_meta():
        whole = models.googlenet(init_weights=False)
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in whole.state_dict().items()}
    assert any(key.startswith("aux1.") for key in state)
    load_weights(torchvision_trunk("googlenet", init_weights=False), _save(state, tmp_path / "googlenet.pth"))

    dense = models.densenet121(num_classes=3)
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in dense.state_dict().items()}
    old = {key: value for key, value in old.items() if "num_batches_tracked" not in key}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    trunk = torchvision_trunk("densenet121")
    load_weights(trunk, _save(old, tmp_path / "densenet.pth"))
    assert torch.equal(trunk.state_dict()["features.norm5.weight"], dense.features.norm5.weight)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _text(path: Path) -> Path:
    path.write_text("no tensors here\n")
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _cut_short(path: Path) -> Path:
    _save(Tiny(width=2).state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {**Tiny(width=2).state_dict(), **changes}
    return {key: value for key, value in state.items() if value is not None}


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path, "No such file"),
    "folder": (lambda path: path.parent, "Is a directory"),
    "text": (_text, "is not a tensor file"),
    "empty": (_empty, "is not a tensor file|cannot be read; it is damaged"),
    "truncated": (_cut_short, "cannot be read; it is damaged"),
    "list": (lambda path: _save([torch.zeros(3)], path), "must hold a state dict .* has type list"),
    "nested": (
        lambda path: _save({"model": {}, "epoch": 3}, path),
        "must map names to tensors, but these entries do not: model, epoch",
    ),
    "key too few": (
        lambda path: _save(_changed(**{"conv1.0.weight": None}), path),
        r"does not fit the backbone: missing: conv1\.0\.weight$",
    ),
    "key too many": (lambda path: _save(_changed(extra=torch.zeros(1)), path), "unknown: extra$"),
    "shape": (
        lambda path: _save(_changed(**{"conv1.0.weight": torch.zeros(5, 3, 3, 3)}), path),
        r"wrong shape: conv1\.0\.weight \(5, 3, 3, 3\) instead of \(2, 3, 3, 3\)$",
    ),
    "integers": (
        lambda path: _save(_changed(**{"conv1.0.weight": torch.ones(2, 3, 3, 3, dtype=torch.int8)}), path),
        r"does not fit the backbone: not floating-point: conv1\.0\.weight$",
    ),
    "not finite": (
        lambda path: _save(_changed(**{"conv2.1.bias": torch.tensor([0, 0, 0, torch.nan])}), path),
        r"does not fit the backbone: not finite: conv2\.1\.bias$",
    ),
    "another network": (lambda path: _save(ZF5().state_dict(), path), "missing: conv1.* and 12 more; unknown: conv1"),
}


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_does_not_fit_is_one_line_and_changes_nothing(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    backbone = Tiny(width=2)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(UserError, match=message) as caught:
        load_weights(backbone, make(tmp_path / "weights.pth"))
    assert str(caught.value).startswith("backbone.weights=")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_flipped_bit_changes_no_weight(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file with a flipped bit is refused or loads unchanged, wherever the bit is."""
    rng = random.Random(1)
    tensors: dict[str, Any] = {
        "a": torch.randn(5, 7),
        "b": torch.zeros(0),
        "c": {"step": torch.tensor(3.0), "lr": 0.1, "names": ["x"]},
    }
    path = _save(tensors, tmp_path / "w.pt")
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")  # the archive's directory, which has no checksum
    positions = [rng.randrange(len(content)) for _ in range(150)] + list(range(directory, len(content), 2))
    refused = 0
    for i in positions:
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :])
        try:
            loaded = read_tensor_file(path, "checkpoint")
        except UserError:
            refused += 1
        else:
            assert torch.equal(loaded["a"], tensors["a"])
            assert torch.equal(loaded["c"].pop("step"), tensors["c"]["step"])
            assert loaded["c"] == {"lr": 0.1, "names": ["x"]}
    assert refused > len(positions) / 2
    path.write_bytes(content[: directory + 38] + b"\x10" + content[directory + 39 :])  # marks a record as a folder
    with pytest.raises(UserError, match="does not match its checksum"):
        read_tensor_file(path, "checkpoint")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["zeros", "no archive"])
def test_a_file_without_checksums_is_read_with_a_warning(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, path = Tiny(width=2), tmp_path / "w.pth"
    set_crc32_options(kind != "zeros")
    try:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=kind == "zeros")
    finally:
        set_crc32_options(True)
    target = Tiny(width=2)
    load_weights(target, path)
    load_weights(target, path)
    assert _same(source, target)
    assert capfd.readouterr().err.startswith(f"sppnet: backbone.weights={path} was written without checksums")
    assert not capfd.readouterr().err


def test_a_pickled_object_is_refused_and_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    file = _save({"conv1.0.weight": _Bomb(mark)}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match=r"holds a pickled object \(\w+\.mkdir\), which is never executed"):
        load_weights(Tiny(width=2), file)
    assert not mark.exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache, and a proxy where nothing listens, so that no download succeeds."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    return checkpoints


def test_a_failed_download_is_one_line_with_the_address_and_the_alternative(hub: Path) -> None:
    with pytest.raises(UserError, match=r"IMAGENET1K_V1: https://.*refused.*use backbone\.weights=FILE"):
        torchvision_trunk("squeezenet1_1", weights="IMAGENET1K_V1")


def test_weights_by_name_come_from_torchvisions_cache(hub: Path) -> None:
    whole = models.squeezenet1_1()
    _save(whole.state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    assert _same(torchvision_trunk("squeezenet1_1", weights="DEFAULT"), whole.features)
    flip(hub / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError, match=r"backbone\.weights=DEFAULT: .*b8a52dc0\.pth is damaged; remove it"):
        torchvision_trunk("squeezenet1_1", weights="DEFAULT")
    torch.save(whole.state_dict(), hub / "squeezenet1_1-b8a52dc0.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="is damaged"):  # its SHA-256 differs from the one in its name
        torchvision_trunk("squeezenet1_1", weights="DEFAULT")


def test_a_cache_that_holds_code_is_refused_and_never_executed(hub: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    _save({"x": _Bomb(mark)}, hub / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError, match=r"backbone\.weights=DEFAULT"):
        torchvision_trunk("squeezenet1_1", weights="DEFAULT")
    assert not mark.exists()
