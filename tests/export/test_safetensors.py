"""`sppnet export format=safetensors`: the file, what reads it, and the files that are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from calling import SMALL, Called, Caller, same_weights, weights
from sppnet.runs.checkpoint_files import load_stored_config, read_checkpoint

ONE_EPOCH = (*SMALL, "trainer.max_epochs=1")


def export(sppnet: Caller, checkpoint: Path, output: str = "net.safetensors") -> Path:
    done = sppnet("export", f"checkpoint={checkpoint}", "format=safetensors", f"output={output}", "force=true")
    assert done.code == 0, done.err
    return Path(output)


def rewrite(file: Path, change: Callable[[dict[str, str]], Any]) -> None:
    """Change the text in the header of a file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def refused(done: Called) -> str:
    """The only line of a mistake."""
    assert done.code == 2, (done.out, done.err)
    [line] = done.err.strip().splitlines()
    return line


def test_the_file_holds_the_checkpoint_to_the_bit_and_its_metadata(sppnet: Caller, trained: Called) -> None:
    file, best = export(sppnet, trained.run), trained.run / "checkpoints/best.ckpt"
    expected = torch.load(best, weights_only=True)
    for state in (load_file(file), read_checkpoint(file)["state_dict"]):
        assert state.keys() == expected["state_dict"].keys()
        for key, value in expected["state_dict"].items():
            assert state[key].dtype == value.dtype
            assert torch.equal(state[key], value)
    with safe_open(file, "pt") as opened:
        entries = opened.metadata()
    texts = {name: text for name, text in entries.items() if name not in ("format", "sha256")}
    metadata = {name: json.loads(text) for name, text in texts.items()}
    assert {"classes", "activation", "mean", "std", "sizes", "interpolation", "origin", "sppnet"} == set(metadata)
    assert metadata["sppnet"] == expected["sppnet"] == read_checkpoint(file)["sppnet"]
    assert metadata["origin"]["run"] == trained.run.name
    assert entries["format"] == "pt"
    again = export(sppnet, file, "again.safetensors")
    assert again.read_bytes() == file.read_bytes()


def test_weights_of_bfloat16_stay_so(sppnet: Caller) -> None:
    run = sppnet("train", *ONE_EPOCH, "trainer.precision=bf16-true").run
    state = load_file(export(sppnet, run))
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.bfloat16}
    stored = weights(run / "checkpoints/best.ckpt")
    assert all(torch.equal(state[key], value) for key, value in stored.items())


def test_tied_tensors_and_views_are_written_one_by_one(sppnet: Caller, trained: Called, tmp_path: Path) -> None:
    checkpoint = torch.load(trained.run / "checkpoints/best.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    name = next(iter(state))
    state |= {
        "network.tied": state[name],
        "network.turned": torch.arange(6.0).reshape(2, 3).t(),
        "network.none": torch.zeros(0),
    }
    torch.save(checkpoint, "tied.ckpt")
    written = load_file(export(sppnet, Path("tied.ckpt")))
    assert torch.equal(written["network.tied"], written[name])
    assert written["network.turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    checkpoint["state_dict"]["network._extra_state"] = {"seen": 3}
    torch.save(checkpoint, "extra.ckpt")
    line = refused(sppnet("export", "checkpoint=extra.ckpt", "format=safetensors", "output=extra.safetensors"))
    assert "network._extra_state" in line
    assert not Path("extra.safetensors").exists()


def test_every_command_takes_the_file_as_it_takes_the_checkpoint(sppnet: Caller, trained: Called) -> None:
    file, lone = export(sppnet, trained.run), Path("lone.ckpt")
    shutil.copy(trained.run / "checkpoints/best.ckpt", lone)
    colours = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(colours).save("photo.png")
    printed: dict[str, list[str]] = {}
    for checkpoint in (file, lone):
        given = f"checkpoint={checkpoint}"
        tested = sppnet("test", given, "sizes.test=[20]")
        predicted = sppnet("predict", given, "input=photo.png", "output=-", "top=10")
        features = sppnet(
            "transfer", given, "data=digits", "splits=1", "per_class.train=5", "per_class.test=5", "progress=none"
        )
        for done in (tested, predicted, features):
            assert done.code == 0, done.err
        numbers = [line for line in tested.out.splitlines() if "test/" in line]
        table = [line.replace(checkpoint.name, "") for line in features.out.splitlines() if "fc" in line]
        printed[checkpoint.name] = [*numbers, predicted.out, *(" ".join(line.split()) for line in table)]
    assert len(printed[file.name]) > 1
    assert printed[file.name] == printed[lone.name]
    for key in ("init", "backbone.weights"):
        runs = [sppnet("train", *ONE_EPOCH, f"{key}={path}") for path in (file, lone)]
        for done in runs:
            assert done.code == 0, done.err
        assert same_weights(*(done.run / "checkpoints/best.ckpt" for done in runs))


def test_the_configuration_is_read_without_torch(sppnet: Caller, trained: Called) -> None:
    file = export(sppnet, trained.run)
    ask = (
        "import sys; from pathlib import Path; from sppnet.runs.checkpoint_files import load_stored_config as load;"
        "print(load(Path(sys.argv[1]))['seed'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", ask, str(file)], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"], done.stderr
    assert load_stored_config(file) == {**load_stored_config(trained.run), "force": False}


def test_damage_is_noticed(sppnet: Caller, trained: Called) -> None:
    file = export(sppnet, trained.run)
    content = file.read_bytes()
    for damaged, problem in (
        (content[:-40] + bytes([content[-40] ^ 4]) + content[-39:], "does not match the checksum"),
        (content.replace(b"softmax", b"sigmoid", 1), "does not match the checksum"),
        (content[:-1], "damaged or not a safetensors file"),
        (content[:5], "damaged or not a safetensors file"),
        (b"", "damaged or not a safetensors file"),
        (b"\xff" * 100, "damaged or not a safetensors file"),
    ):
        file.write_bytes(damaged)
        assert problem in refused(sppnet("test", f"checkpoint={file}"))


Change = Callable[[dict[str, Any]], Any]
TAMPERED: list[tuple[Change, str]] = [  # of what a checkpoint holds under the key `sppnet`
    (lambda stored: stored.pop("classes"), "not an sppnet checkpoint (damaged: classes)"),
    (lambda stored: stored.update(classes=[1, 2]), "not an sppnet checkpoint (damaged: classes)"),
    (lambda stored: stored.pop("code"), "not an sppnet checkpoint (damaged: code)"),
    (lambda stored: stored.update(layout=99), "layout 99"),
    (lambda stored: stored.update(config=[]), "not an sppnet checkpoint (damaged: config)"),
    (lambda stored: stored["config"].pop("pooling"), "the configuration in it is damaged"),
    (lambda stored: stored["config"].update(data="x"), "the configuration in it is damaged"),
    (lambda stored: stored["config"].update(trainer=1), "the configuration in it is damaged"),
    (lambda stored: stored["config"].update(callbacks="x"), "callbacks=x is not allowed"),
    (lambda stored: stored["config"].update(seed="x"), "seed=x is not allowed"),
    (lambda stored: stored["config"]["backbone"].update(_target_="os.system"), "_target_=os.system is not allowed"),
    (lambda stored: stored["config"]["backbone"].update(_target_="torch._C.x"), "not the dotted name of a public"),
    (lambda stored: stored["config"]["backbone"].update(width=8), "does not match the checksum in its header"),
]


def test_a_tampered_header_is_one_line(sppnet: Caller, trained: Called) -> None:
    whole = export(sppnet, trained.run).read_bytes()
    file = Path("tampered.safetensors")

    def check(change: Change, problem: str) -> None:
        file.write_bytes(whole)
        rewrite(file, change)
        assert problem in refused(sppnet("test", f"checkpoint={file}"))

    check(lambda header: header.update(sppnet="{"), "sppnet in its header is not JSON")
    check(lambda header: header.update(sppnet="[" * 100_000), "sppnet in its header is not JSON")
    check(lambda header: header.update(sppnet="3"), "is not an sppnet checkpoint")
    check(lambda header: header.update(origin="\\"), "origin in its header is not JSON")
    for tamper, problem in TAMPERED:

        def change(header: dict[str, str], tamper: Change = tamper) -> None:
            stored = json.loads(header["sppnet"])
            tamper(stored)
            header["sppnet"] = json.dumps(stored)

        check(change, problem)


def test_the_file_of_another_program_is_not_a_checkpoint(sppnet: Caller) -> None:
    save_file({"weight": torch.ones(2)}, "other.safetensors", {"format": "pt"})
    save_file({"sppnet": torch.ones(2)}, "named.safetensors")
    for name in ("other", "named"):
        for words in (("test", f"checkpoint={name}.safetensors"), ("train", *SMALL, f"init={name}.safetensors")):
            assert "is not an sppnet checkpoint" in refused(sppnet(*words))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["output=net.pt"], "ends in .safetensors"),
        (["output=no/such/net.safetensors"], "no folder"),
        (["output=kept.safetensors"], "force=true"),
        (["output=net.safetensors", "size=24"], "size=24 has no effect with format=safetensors"),
        (["output=net.safetensors", "preprocess=false"], "preprocess=false has no effect"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(sppnet: Caller, trained: Called, words: list[str], part: str) -> None:
    Path("kept.safetensors").write_text("kept")
    before = set(Path().rglob("*"))
    assert part in refused(sppnet("export", f"checkpoint={trained.run}", "format=safetensors", *words))
    assert set(Path().rglob("*")) == before
    assert Path("kept.safetensors").read_text() == "kept"


def test_without_the_package_one_line_names_the_extra(
    sppnet: Caller, trained: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export(sppnet, trained.run)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "uv sync --extra export" in refused(sppnet("test", f"checkpoint={file}"))
