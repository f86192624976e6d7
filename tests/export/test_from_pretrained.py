"""`sppnet.from_pretrained`: the network and the pixels of `sppnet predict`, from every source, and no code of files."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sppnet as package
from calling import SMALL, Called, Caller
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.export.from_pretrained import Pretrained, from_pretrained
from sppnet.runs.checkpoint_files import read_checkpoint
from sppnet.training.inference import load_network

HELPERS = str(Path(__file__).parents[1] / "helpers")
NETWORKS = {
    "spp": ["pooling.bins=[2,1]", "head.hidden=[8]"],
    "flatten": ["pooling=flatten", "pooling.output_size=2", "sizes=single", "sizes.train=[24]"],  # takes squares
    "sigmoid": ["pooling=gap", "loss=bce", "data.resampler=torch", "data.interpolation=bicubic", "data.decode=full"],
}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Images of odd shapes and kinds."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 97, 3), dtype=np.uint8))
    image.resize((1, 1)).save(folder / "dot.png")
    image.resize((5, 700)).save(folder / "tall.png")
    image.resize((211, 20)).save(folder / "wide.bmp")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("P").save(folder / "palette.gif")
    image.convert("RGBA").rotate(30, expand=True).save(folder / "clear.png")
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    image.save(folder / "turned.png", exif=turned)
    return sorted(folder.iterdir())


def predictions(sppnet: Caller, checkpoint: Path) -> dict[str, dict[str, float]]:
    """The probability of each class for each picture, from `sppnet predict`."""
    done = sppnet("predict", f"checkpoint={checkpoint}", "input=pictures", "output=-", "top=10")
    assert done.code == 0, done.err
    rows = map(json.loads, done.out.splitlines())
    return {Path(row["file"]).name: {c["class"]: c["probability"] for c in row["classes"]} for row in rows}


def check_like_predict(sppnet: Caller, model: Pretrained, checkpoint: Path, pictures: list[Path]) -> None:
    expected = predictions(sppnet, checkpoint)
    assert len(expected) == len(pictures)
    for path in pictures:
        with Image.open(path) as image:
            for given in (path, str(path), image, image, image.copy()):
                x_3HW = model.preprocess(given)
                assert x_3HW.dtype == torch.float32
                assert x_3HW.shape[0] == 3
                with torch.no_grad():
                    logits_1K = model.network(x_3HW[None])
                values_K = (logits_1K.sigmoid() if model.sigmoid else logits_1K.softmax(1))[0].tolist()
                by_class = dict(zip(model.classes, values_K, strict=True))
                assert by_class == pytest.approx(expected[path.name], abs=1e-6), (path.name, type(given))
        assert model.probabilities(path) == pytest.approx(expected[path.name], abs=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_sees_what_predict_sees(name: str, sppnet: Caller, pictures: list[Path]) -> None:
    small = [word for word in SMALL if not (name == "flatten" and word.startswith("pyramid."))]
    done = sppnet("train", *small, *NETWORKS[name], "trainer.max_epochs=1")
    assert done.code == 0, done.err
    model = from_pretrained(done.run)
    assert not model.network.training
    assert model.classes == [str(digit) for digit in range(10)]
    check_like_predict(sppnet, model, done.run, pictures)
    shapes = {tuple(model.preprocess(path).shape) for path in pictures}
    assert (len(shapes) == 1) == (name == "flatten")


def test_images_that_cannot_be_read_are_one_line(trained: Called, pictures: list[Path], tmp_path: Path) -> None:
    model = package.from_pretrained(str(trained.run))
    whole = (tmp_path / "pictures/cmyk.jpg").read_bytes()
    Path("cut.jpg").write_bytes(whole[:1000])
    others = (str(trained.run / "config.yaml"), Image.open("cut.jpg"), Image.new("RGB", (0, 5)))
    array: Any = np.zeros((5, 5, 3), np.uint8)
    for given in ("no/such.png", Path("cut.jpg"), *others, array):
        with pytest.raises(UserError):
            model.preprocess(given)


# Loads networks in a new process, and saves the tensors, the logits for one image, and the classes of each.
LOAD = """
import sys, sppnet, torch
torch.set_num_threads(1)
results = []
for source in sys.argv[1:]:
    model = sppnet.from_pretrained(source)
    with torch.no_grad():
        logits = model.network(torch.linspace(-1, 1, 3 * 29 * 37).reshape(1, 3, 29, 37))
    results.append([model.network.state_dict(), logits, model.classes])
torch.save(results, "out.pt")
"""


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_every_source_gives_the_network_of_the_run_to_the_bit_in_a_new_process(precision: str, sppnet: Caller) -> None:
    done = sppnet("train", *SMALL, f"trainer.precision={precision}", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    Path("run").symlink_to(done.run)
    for name, output in (("safetensors", "net.safetensors"), ("hub", "folder")):
        assert sppnet("export", "checkpoint=run", f"format={name}", f"output={output}").code == 0
    checkpoint = read_checkpoint(Path("run/checkpoints/best.ckpt"))
    network = load_network(checkpoint, load(Config, checkpoint["sppnet"]["config"]), Path("run")).eval()
    with torch.no_grad():
        logits = network(torch.linspace(-1, 1, 3 * 29 * 37).reshape(1, 3, 29, 37))
    sources = ["run", "run/checkpoints/best.ckpt", "net.safetensors", "folder"]
    loaded = subprocess.run([sys.executable, "-P", "-c", LOAD, *sources], capture_output=True, text=True)
    assert (loaded.returncode, loaded.stderr) == (0, "")
    results = torch.load("out.pt", weights_only=True)
    assert len(results) == len(sources)
    for state, found, classes in results:
        assert state.keys() == network.state_dict().keys()
        for key, value in state.items():
            stored = checkpoint["state_dict"][f"network.{key}"]
            assert torch.equal(value, network.state_dict()[key])
            assert torch.equal(value.to(stored.dtype), stored)
        assert torch.equal(found, logits)
        assert classes == checkpoint["sppnet"]["classes"]


def test_a_run_in_float64_keeps_its_digits(sppnet: Caller, pictures: list[Path]) -> None:
    done = sppnet("train", *SMALL, "trainer.precision=64-true", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    model = from_pretrained(done.run)
    x_3HW = model.preprocess(pictures[0])
    assert x_3HW.dtype == next(model.network.parameters()).dtype == torch.float64
    assert model.probabilities(pictures[0]) == pytest.approx(predictions(sppnet, done.run)[pictures[0].name], abs=1e-8)


def test_classes_of_ones_own_need_allow(sppnet: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HELPERS)
    Path("options/pooling").mkdir(parents=True)
    Path("options/pooling/own.yaml").write_text("_target_: own_parts.Counter\n")
    words = ("--config-dir=options", "pooling=own", "allow=own_parts", "trainer.max_epochs=1")
    done = sppnet("train", *SMALL, *words)
    assert done.code == 0, done.err
    assert sppnet("export", f"checkpoint={done.run}", "format=hub", "output=folder", "allow=own_parts").code == 0
    for source in (done.run, "folder"):
        with pytest.raises(UserError, match=r'own_parts\.Counter is not allowed.*pass allow="PACKAGE"\)$'):
            from_pretrained(source)
        for allow in ("own_parts", ["other", "own_parts"]):
            model = from_pretrained(source, allow=allow)
            assert type(model.network.pooling).__name__ == "Counter"
            assert float(model.network.state_dict()["pooling.calls"]) > 0
        with pytest.raises(UserError, match="is not allowed"):  # again: it held during the call only
            from_pretrained(source)
    with pytest.raises(UserError, match=r"allow='own parts' is not allowed"):
        from_pretrained("folder", allow="own parts")


TEACHER = """
import torch, sppnet

class Teacher(torch.nn.Module):
    def __init__(self, run):
        super().__init__()
        self.classes = len(sppnet.from_pretrained(run).classes)

    def forward(self, maps):
        return maps.mean((2, 3)).repeat(1, self.classes)
"""


def test_a_network_may_load_another_one(sppnet: Caller, trained: Called) -> None:
    Path("teacher.py").write_text(TEACHER)
    words = ("pooling=class", "pooling._target_=teacher.Teacher", f"+pooling.run={trained.run.resolve()}")
    done = sppnet("train", *SMALL, *words, "allow=teacher", "trainer.max_epochs=1", "views=warp")
    assert done.code == 0, done.err
    assert from_pretrained(done.run, allow="teacher").network.pooling.classes == 10


def test_a_loss_of_ones_own_is_named_but_not_needed(
    sppnet: Caller, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.syspath_prepend(HELPERS)
        words = ("~loss", "+loss={_target_: own_losses.Tempered}", "allow=own_losses", "trainer.max_epochs=1")
        done = sppnet("train", *SMALL, *words)
        assert done.code == 0, done.err
    with pytest.raises(UserError, match=r"own_losses\.Tempered is not allowed"):
        from_pretrained(done.run)
    ask = (
        "import sys, sppnet; print(sppnet.from_pretrained(sys.argv[1], allow='own_losses').probabilities(sys.argv[2]))"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", ask, str(done.run), str(pictures[0])], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr


def test_nothing_in_a_folder_is_executed(sppnet: Caller, trained: Called) -> None:
    assert sppnet("export", f"checkpoint={trained.run}", "format=hub", "output=folder").code == 0

    class Touch:
        def __reduce__(self) -> Any:
            return Path("executed").touch, ()

    for name in ("pytorch_model.bin", "best.pt", "config.pkl"):
        Path("folder", name).write_bytes(pickle.dumps(Touch()))
    Path("folder/sppnet.py").write_text("open('executed', 'w')")
    from_pretrained("folder")
    with pytest.raises(UserError, match=r"never executed|not a tensor file"):
        from_pretrained("folder/best.pt")
    config = Path("folder/config.json")
    whole = json.loads(config.read_text())
    whole["sppnet"]["config"]["backbone"]["_target_"] = "os.system"
    for text, problem in (
        (json.dumps(whole), r"config\.json has been changed \(sppnet\)"),
        (json.dumps({**whole, "classes": ["a"] * 10}), r"config\.json has been changed \(classes, sppnet\)"),
        ("not JSON", r"config\.json is missing or not a JSON object"),
    ):
        config.write_text(text)
        with pytest.raises(UserError, match=problem):
            from_pretrained("folder")
    Path("folder/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"these files are not opened: best\.pt, config\.pkl, pytorch_model\.bin$"):
        from_pretrained("folder")
    assert not Path("executed").exists()


def test_a_source_that_does_not_exist_is_one_line(sppnet: Caller) -> None:
    for source in ("no such file", "", "a/b/c", "../x", Path("x.safetensors"), "x" * 300):
        with pytest.raises(UserError):
            from_pretrained(source)
    with pytest.raises(UserError, match="revision=main is for models on the Hub"):
        from_pretrained("x.safetensors", revision="main")
