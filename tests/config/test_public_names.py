"""Names in stored configurations: of sppnet's classes, and of the keys (the layout)."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from calling import SMALL, Called, Caller
from sppnet.config.command_schemas import COMMANDS
from sppnet.config.compose import compose_config
from sppnet.config.keys import keys
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
    assert node.pop("layout") == 2
    if layout is not None:
        node["layout"] = layout
    if config:
        path.write_text(yaml.safe_dump(whole))
    else:
        torch.save(whole, path)


def test_a_run_of_another_layout_is_refused_in_one_line(sppnet: Caller, tmp_path: Path) -> None:
    words = (*SMALL, "trainer.max_epochs=1", "trainer.limit_train_batches=2")
    run = sppnet("train", *words).run
    lone = tmp_path / "lone.ckpt"
    for layout, part in ((None, "without a configuration layout"), (1, "layout 1"), ("2", "layout '2'")):
        shutil.copytree(run, tmp_path / "old")
        set_layout(tmp_path / "old/config.yaml", layout)
        shutil.copy(run / "checkpoints/best.ckpt", lone)
        set_layout(lone, layout)
        for command, checkpoint in (("test", "old"), ("predict", "old"), ("transfer", "old"), ("test", "lone.ckpt")):
            refused(sppnet(command, f"checkpoint={checkpoint}"), f"checkpoint={checkpoint}", part, "reads layout 2")
        shutil.rmtree(tmp_path / "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lone.ckpt", "runs"]
    set_layout(run / "checkpoints/best.ckpt", 7)  # the run has this version's layout, its weights have not
    refused(sppnet("test", f"checkpoint={run}", "sizes.test=[32]"), "best.ckpt", "with configuration layout 7")


def test_nobody_sets_the_layout(sppnet: Caller) -> None:
    assert "layout" not in compose_config([]).plain()
    refused(sppnet("train", "+layout=2"), "layout")


CODE = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))


def test_configurations_are_typed_in_all_of_the_code() -> None:
    """Outside sppnet/config, no function takes a configuration as a mapping, and no code looks a key up by its name."""
    looked_up = re.compile(r"\bcfg\[[\"']")
    mappings = re.compile(r"\b(cfg|config|head|data): (Mapping|dict)\[str")
    for path in CODE:
        text = path.read_text(encoding="utf-8")
        if path.parent.name != "config":
            assert not looked_up.findall(text), path
            assert not mappings.findall(text), path


def test_only_the_schema_lists_keys() -> None:
    """Every list of keys is computed from the schema's marks, so that a new key cannot be forgotten in one."""
    dotted = {key.name for schema in COMMANDS.values() for key in keys(schema) if "." in key.name}
    for path in CODE:
        if path.name == "schema.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                listed = [item.value for item in node.elts if isinstance(item, ast.Constant) and item.value in dotted]
                assert len(listed) < 2, f"{path}:{node.lineno}: {listed}"
