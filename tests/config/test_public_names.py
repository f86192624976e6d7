"""Names in stored configurations: of sppnet's classes, and of the keys (the layout)."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from calling import SMALL, Called, Caller
from sppnet.config import compose
from sppnet.config.option_files import root

OURS = sorted(
    {
        target
        for file in (root() / "conf").rglob("*.yaml")
        if (target := (yaml.safe_load(file.read_text()) or {}).get("_target_", "")).startswith("sppnet.")
    }
)


def refused(called: Called, *parts: str) -> None:
    """One line that holds `parts`, and exit code 2."""
    assert (called.code, called.err.count("\n")) == (2, 1), called.err
    assert all(part in called.err for part in parts), called.err


@pytest.mark.parametrize("name", OURS)
def test_our_classes_are_named_by_the_face_of_their_package(name: str) -> None:
    face, _, target = name.rpartition(".")
    assert face in {"sppnet.data", "sppnet.models"}
    assert target in importlib.import_module(face).__all__


@pytest.mark.parametrize(
    ("slot", "name"),
    [
        ("data", "sppnet.data.datasets.digits.Digits"),
        ("backbone", "sppnet.models.backbones.Tiny"),
        ("sizes", "sppnet.data.size_schedules.Single"),
        ("callbacks.mine", "sppnet.training.callbacks.Lines"),
        ("optim", "sppnet.training.optim.SGD"),
    ],
)
def test_the_file_of_a_class_is_no_name_for_it(sppnet: Caller, slot: str, name: str) -> None:
    """The name, and with it the run's identity, would change when the file moves."""
    key = f"{'+' if '.' in slot else ''}{slot}._target_"
    refused(sppnet("train", f"{key}={name}"), name, "is not a public name", "sppnet.data.NAME and sppnet.models.NAME")


def set_layout(path: Path, layout: Any) -> None:
    """Give a run's configuration or a checkpoint another layout; None removes it."""
    config = path.suffix == ".yaml"
    whole = yaml.safe_load(path.read_text()) if config else torch.load(path, weights_only=True)
    node = whole if config else whole["sppnet"]
    assert node.pop("layout") == 1
    if layout is not None:
        node["layout"] = layout
    if config:
        path.write_text(yaml.safe_dump(whole))
    else:
        torch.save(whole, path)


def test_a_run_of_another_layout_is_refused_in_one_line(sppnet: Caller, tmp_path: Path) -> None:
    words = (*SMALL, "trainer.max_epochs=1", "trainer.limit_batches=2")
    run = sppnet("train", *words).run
    lone = tmp_path / "lone.ckpt"
    for layout, part in ((None, "without a configuration layout"), (7, "layout 7"), ("1", "layout '1'")):
        shutil.copytree(run, tmp_path / "old")
        set_layout(tmp_path / "old/config.yaml", layout)
        shutil.copy(run / "checkpoints/best.ckpt", lone)
        set_layout(lone, layout)
        for command, checkpoint in (("test", "old"), ("predict", "old"), ("transfer", "old"), ("test", "lone.ckpt")):
            refused(sppnet(command, f"checkpoint={checkpoint}"), f"checkpoint={checkpoint}", part, "reads layout 1")
        shutil.rmtree(tmp_path / "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lone.ckpt", "runs"]
    set_layout(run / "checkpoints/best.ckpt", 7)  # the run has this version's layout, its weights have not
    refused(sppnet("test", f"checkpoint={run}", "sizes.test=[32]"), "best.ckpt", "with configuration layout 7")


def test_nobody_sets_the_layout(sppnet: Caller) -> None:
    assert "layout" not in compose.compose_config("train", [])
    refused(sppnet("train", "+layout=2"), "layout")
