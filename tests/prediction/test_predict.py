"""`sppnet predict`: images of any kind and shape, the scores of a test, what is written, and what is not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calling import SMALL, Caller, command, limits
from sppnet import cli
from sppnet.config import option_files
from sppnet.data.datasets.digits import Digits
from sppnet.prediction.output import JsonLines
from tiers import some_quick

ROOT = option_files.root()
CLASSES = {str(digit) for digit in range(10)}


def train(home: Path, *overrides: str) -> Path:
    """Train a run in `home`, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(home)
        patch.setattr(sys, "argv", ["sppnet", "train", *SMALL, *overrides])
        assert cli.dispatch() == 0
        torch.use_deterministic_algorithms(False)
    return next((home / "runs/default").iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ("backbone.width=16", "head.hidden=[32]", *limits(None), "trainer.max_epochs=3")
    return train(tmp_path_factory.mktemp("spp"), "pooling.bins=[3,2,1]", *more)  # long enough for scores to differ


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of ten kinds and shapes, three of them in subfolders, and files that are no images."""
    folder = tmp_path / "pictures"
    (folder / "deep/er").mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    image.resize((1, 1)).save(folder / "dot.png")
    image.resize((5, 700)).save(folder / "tall.png")
    image.resize((700, 5)).save(folder / "wide.bmp")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("L").save(folder / "grey.JPG")
    image.convert("P").save(folder / "palette.gif")
    Image.fromarray(colours[..., 0].astype(np.uint16) * 257).save(folder / "deep/sixteen.png")
    image.convert("RGBA").save(folder / "deep/er/clear.png")
    image.rotate(30, expand=True).save(folder / "deep/er/dot.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    (folder / "broken.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:300])
    (folder / "text.png").write_text("I am an image")
    (folder / "notes.txt").write_text("I am none")
    image.save(folder / ".hidden.png")
    return folder


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_images_of_any_kind_and_shape(sppnet: Caller, run: Path, pictures: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    done = sppnet("predict", f"checkpoint={run}", "input=pictures", "output=made.jsonl", "top=3")
    assert done.code == 0, done.err
    predictions = rows((tmp_path / "made.jsonl").read_text())
    names = [row["file"] for row in predictions]
    assert names == sorted(names)
    assert set(names) == {str(p.relative_to(tmp_path)) for p in pictures.rglob("*") if p.is_file()} - {
        *(f"pictures/{name}" for name in ("broken.jpg", "text.png", "notes.txt", ".hidden.png"))
    }
    for row in predictions:
        assert list(row) == ["file", "size", "input", "classes"]
        probabilities = [entry["probability"] for entry in row["classes"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(0 <= p <= 1 for p in probabilities)
        assert {entry["class"] for entry in row["classes"]} < CLASSES
    sizes = {row["file"]: tuple(row["size"]) for row in predictions}
    assert sizes["pictures/turned.jpg"] == (60, 90)
    assert sizes["pictures/tall.png"] == (5, 700)
    table = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in table] == names
    assert [line[3] for line in table] == [row["classes"][0]["class"] for row in predictions]
    messages = done.err.splitlines()
    assert len(messages) == 5
    assert "1 .txt" in messages[0]
    assert "broken.jpg" in messages[1]
    assert "text.png" in messages[2]
    assert "2 of 12 images could not be read" in messages[3]
    assert messages[4] == "sppnet: predictions: made.jsonl"
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "made.jsonl"}


def test_workers_and_windows_change_neither_order_nor_scores(sppnet: Caller, run: Path, pictures: Path) -> None:
    for number in range(12):  # enough to start workers
        shutil.copy(pictures / "grey.JPG", pictures / f"deep/{number}.jpg")
    outputs = []
    for overrides in (["data.batch_size=1"], ["data.batch_size=5", "data.num_workers=2"], ["progress=bar"]):
        done = sppnet("predict", f"checkpoint={run}", "input=pictures", "output=-", "top=99", *overrides)
        assert done.code == 0, done.err
        outputs.append(rows(done.out))
    first, *others = outputs
    assert len(first) == 22
    assert all(len(row["classes"]) == 10 for row in first)
    for output in others:
        assert [row["file"] for row in output] == [row["file"] for row in first]
        for expected, row in zip(first, output, strict=True):
            assert scores(row) == pytest.approx(scores(expected), abs=1e-6)


@pytest.mark.slow
def test_a_worker_does_not_keep_a_file_open_per_image(run: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"many/{number}.png")
    words = (f"checkpoint={run}", "input=many", "output=-", "data.batch_size=200", "data.num_workers=1")
    few = ["bash", "-c", 'ulimit -n 150; exec "$@"', "bash", *command("predict", *words)]
    done = subprocess.run(few, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(rows(done.stdout)) == 200
    assert "could not be read" not in done.stderr


def scores(row: dict[str, Any]) -> dict[str, float]:
    return {entry["class"]: entry["probability"] for entry in row["classes"]}


def test_scores_are_those_of_a_test(sppnet: Caller, run: Path, tmp_path: Path) -> None:
    digits = Digits()
    for index in range(0, 1797, 8):
        part = "train" if index < 900 else "test"
        path = tmp_path / "files" / part / str(digits.label(index)) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(path)
    own = tmp_path / "own"
    shutil.copytree(run, own)
    for views in ("full", "center", "warp", "ten"):
        shutil.rmtree(own / "tests")
        words = [f"checkpoint={own}", "sizes.test=[32]", f"views={views}"]
        folder = ("data=folder", "data.root=files", "data.num_workers=0", "trainer.limit_test_batches=null")
        tested = sppnet("test", *words, *folder)
        assert tested.code == 0, tested.err
        [record] = [json.loads(path.read_text()) for path in (own / "tests").iterdir()]
        if views == "full":
            words = words[:2]  # the default of predict
        predictions = rows(sppnet("predict", *words, "input=files/test", "output=-", "top=10").out)
        assert len(predictions) == record["images"]
        right = np.array([scores(row)[row["file"].split("/")[2]] for row in predictions])
        assert np.std(right) > 0.05
        assert -np.log(right).mean() == pytest.approx(record["metrics"]["test/loss"], abs=1e-6)
        hits = [row["classes"][0]["class"] == row["file"].split("/")[2] for row in predictions]
        assert np.mean(hits) == pytest.approx(record["metrics"]["test/top1"], abs=1e-6)


def test_one_file_and_a_lone_checkpoint(sppnet: Caller, run: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints/best.ckpt", tmp_path / "net.ckpt")
    (pictures / "grey.JPG").rename(tmp_path / "grey")  # a file given by name is read whatever its suffix
    done = sppnet("predict", "checkpoint=net.ckpt", "input=grey", "sizes.test=[28]", "views=multi_full", "top=1")
    assert done.code == 0, done.err
    name, width, height, label, probability = done.out.strip().split("\t")
    assert (name, width, height) == ("grey", "90", "60")
    assert label in CLASSES
    assert 0 < float(probability) < 1


def test_nothing_that_can_be_read_is_a_failure(sppnet: Caller, run: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("old\n")
    for name in ("broken.jpg", "text.png"):
        done = sppnet(
            "predict", f"checkpoint={run}", f"input=pictures/{name}", "output=old.jsonl", "draw=x.png", "force=true"
        )
        assert done.code == 1
        assert name in done.err.splitlines()[0]
        assert "Traceback" not in done.err
    assert (tmp_path / "old.jsonl").read_text() == "old\n"
    assert {path.name for path in tmp_path.iterdir()} == {"old.jsonl", "pictures"}


MISTAKES: list[tuple[list[str], list[str]]] = [
    (["input=pictures", "top=0"], ["top=0", "at least 1"]),
    (["input=pictures", "top=many"], ["top=many"]),
    (["input=pictures", "draw=[5]"], ["draw=[5]", "true or false"]),
    (["input=no/such"], ["input=no/such", "no such file"]),
    ([f"input={'x' * 256}"], ["input=xxx", "File name too long"]),
    (["input=~nobody.of.this.name/x"], ["input=~nobody.of.this.name/x", "home"]),
    (["input=empty"], ["input=empty", "no images"]),
    (["input=pictures/notes"], ["input=pictures/notes", "no such"]),
    ([], ["input must be given"]),
    (
        ["input=pictures", "output=no/such/made.jsonl"],
        ["output=no/such/made.jsonl", "the folder no/such does not exist"],
    ),
    (["input=pictures", f"output={'x' * 256}"], ["output=xxx", "File name too long"]),
    (["input=pictures", f"checkpoint={'x' * 256}"], ["checkpoint=xxx", "File name too long"]),
    (["input=pictures", "output=empty"], ["output=empty", "folder"]),
    (["input=pictures", "draw=pictures/grey.JPG"], ["draw=pictures/grey.JPG", "file"]),
    (["input=pictures", "output=pictures/grey.JPG"], ["output=pictures/grey.JPG", "one of the images"]),
    (["input=pictures", "draw=pictures/drawn"], ["draw=pictures/drawn", "input=pictures"]),
    (["input=pictures/grey.JPG", "draw=pictures"], ["draw=pictures", "the image's folder"]),
    (["input=.", "draw=drawn"], ["draw=drawn", "elsewhere"]),
    (["input=pictures", "output=kept.jsonl"], ["output=kept.jsonl exists", "force=true"]),
    (["input=pictures", "output=/dev/null", "force=true"], ["output=/dev/null", "not a regular file"]),
    (["input=pictures", "draw=x.png"], ["draw=x.png", "13 images", "folder"]),
    (["input=pictures/dot.png", "draw=x.jpg"], ["draw=x.jpg", "draw=x.png"]),
    (["input=pictures/dot.png", "draw=pictures/cmyk.png"], ["of the same images: pictures/cmyk.png", "force=true"]),
    (
        ["input=pictures/dot.png", "draw=pictures/dot.png", "force=true"],
        ["draw=pictures/dot.png", "the image itself"],
    ),
    (["input=pictures/dot.png", "draw=x.png", "output=x.png"], ["output=x.png", "draw=x.png"]),
    (["input=pictures", "draw=kept"], ["of the same images: kept/deep/er/dot.png.png", "force=true"]),
    (["input=pictures", "draw=true", "views=ten"], ["draw", "views=ten", "full"]),
    (["input=pictures", "sizes.test=[24,32]"], ["sizes.test=[24, 32]", "one size"]),
    (["input=pictures", "sizes.test=[0]"], ["sizes.test=[0]"]),
    (["input=pictures", "data=folder"], ["data"]),
    (["input=pictures", "backbone.width=8"], ["backbone.width=8", "and predict can only change"]),
    (["input=pictures", "trainer.limit_test_batches=3"], ["trainer.limit_test_batches=3", "views"]),
    (["input=pictures", "backround=1"], ["unknown key backround"]),
]


@pytest.mark.parametrize(("overrides", "parts"), some_quick(MISTAKES, 4), ids=lambda v: " ".join(v))
def test_a_mistake_is_one_line_and_leaves_nothing(
    sppnet: Caller, run: Path, pictures: Path, tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    (tmp_path / "empty/.git").mkdir(parents=True)
    (tmp_path / "empty/README").write_text("")
    (tmp_path / "kept.jsonl").write_text("of another run")
    (tmp_path / "kept/deep/er").mkdir(parents=True)
    shutil.copy(pictures / "cmyk.jpg", tmp_path / "kept/deep/er/dot.png.png")
    shutil.copy(pictures / "dot.png", pictures / "cmyk.png")
    before = set(tmp_path.rglob("*"))
    done = sppnet("predict", f"checkpoint={run}", *overrides)
    assert done.code == 2, (done.out, done.err)
    [line] = done.err.strip().splitlines()
    assert all(part in line for part in parts), line
    assert set(tmp_path.rglob("*")) == before


NETWORKS = {
    "spp": [],
    "gap": ["pooling=gap", "loss=bce"],
    "flatten": ["pooling=flatten", "pooling.output_size=2", "sizes=single", "sizes.train=[24]"],
    "linear": ["head.hidden=[]", "pooling.pool=avg", "pooling.rule=sliding", "pooling.bins=[2,1]"],
}


@pytest.mark.parametrize("name", some_quick(NETWORKS))
def test_every_network_predicts_and_plots(
    sppnet: Caller, run: Path, pictures: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    net = run if name == "spp" else train(tmp_path_factory.mktemp(name), *NETWORKS[name], "trainer.max_epochs=1")
    folder = "pictures" if name == "spp" else "pictures/deep"
    done = sppnet("predict", f"checkpoint={net}", f"input={folder}", "draw=true", "output=-", "top=10")
    assert done.code == 0, done.err
    predictions = rows(done.out)
    sums = [sum(scores(row).values()) for row in predictions]
    if name == "gap":
        assert max(sums) > 1.5  # classes do not share one probability
    else:
        assert sums == pytest.approx([1] * len(sums), abs=1e-5)
    plots = net.parent / "predictions" / net.name
    assert done.err.splitlines()[-1] == f"sppnet: plots: {plots}"
    plot_by_name = {path.relative_to(plots).as_posix(): path for path in plots.rglob("*.*")}
    assert set(plot_by_name) == {row["file"].removeprefix(f"{folder}/") + ".png" for row in predictions}
    for path in plot_by_name.values():
        with Image.open(path) as image:
            assert 600 <= image.width <= 1400
            assert 300 <= image.height <= 2000
            assert len(image.getcolors(2**24) or []) > 50
            colours = np.asarray(image.convert("RGB")).astype(int)
        lively = np.ptp(colours, axis=2) > 40  # bins are shaded
        assert lively.mean() > 0.02, path


@pytest.mark.slow
def test_plots_lie_where_git_ignores_them_and_replace_only_their_own(
    sppnet: Caller, run: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], check=True)
    for name in ("net", "other"):
        shutil.copytree(run, f"runs/default/{name}")
    shutil.copy(run / "checkpoints/best.ckpt", "runs/lone.ckpt")
    dot = "input=pictures/dot.png"
    for checkpoint, place in (("default/net", "default/predictions/net"), ("lone.ckpt", "predictions/lone")):
        done = sppnet("predict", f"checkpoint=runs/{checkpoint}", dot, "draw=true")
        assert done.code == 0, done.err
        assert done.err.splitlines() == [f"sppnet: plots: runs/{place}"]
        assert Path("runs", place, "dot.png.png").is_file()
    assert subprocess.run(["git", "status", "--porcelain"], capture_output=True, check=True).stdout == b""
    for words in (["draw=a/x.png"], ["draw=a/x.png", "views=warp"]):  # the same network and image
        assert sppnet("predict", "checkpoint=runs/default/net", dot, *words).code == 0
        assert Path("a/x.png").is_file()
    first = Path("a/x.png").read_bytes()
    for checkpoint, picture in (("other", "dot.png"), ("net", "wide.bmp")):
        words = [f"checkpoint=runs/default/{checkpoint}", f"input=pictures/{picture}", "draw=a/x.png"]
        refused = sppnet("predict", *words)
        assert (refused.code, refused.out) == (2, "")
        assert "not this network's plots of the same images: a/x.png" in refused.err
        assert Path("a/x.png").read_bytes() == first
    assert sppnet("predict", *words, "force=true").code == 0
    assert Path("a/x.png").read_bytes() != first


def test_a_file_of_lines_is_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"

    def fail_half_way() -> None:
        with JsonLines(str(path)) as lines:
            lines.write("a.jpg", (3, 4), (6, 8), [("cat", 0.5)])
            raise RuntimeError(path.exists())

    with pytest.raises(RuntimeError, match="False"):
        fail_half_way()
    assert not list(tmp_path.iterdir())
    with JsonLines(str(path)) as lines:
        lines.write('odd "näme"\n.jpg', (3, 4), (6, 8), [("cat", 0.123456789)])
    assert rows(path.read_text(encoding="utf-8")) == [
        {
            "file": 'odd "näme"\n.jpg',
            "size": [4, 3],
            "input": [8, 6],
            "classes": [{"class": "cat", "probability": 0.12345679}],
        }
    ]
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "latest.jsonl").symlink_to(path)  # the target of a link is replaced, not the link
    with JsonLines(str(tmp_path / "latest.jsonl")) as lines:
        lines.write("b.jpg", (3, 4), (3, 4), [("cat", 0.5)])
    assert (tmp_path / "latest.jsonl").is_symlink()
    assert [row["file"] for row in rows(path.read_text(encoding="utf-8"))] == ["b.jpg"]


def test_a_name_that_is_no_utf8_is_skipped(sppnet: Caller, run: Path, pictures: Path) -> None:
    try:
        os.rename(pictures / "dot.png", os.fsencode(pictures) + b"/d\xfft.png")  # noqa: PTH104
    except OSError:
        pytest.skip("this file system takes no such name")
    done = sppnet("predict", f"checkpoint={run}", "input=pictures", "output=-", "draw=drawn")
    assert done.code == 0, done.err
    assert len(rows(done.out)) == 9
    assert "not valid UTF-8" in done.err


NAMES = ["n" * 245 + ".png", "n" * 251 + ".png", "n" * 250 + "m.png", "größe/日本 1.png"]


def test_names_may_have_any_length_and_any_character(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trained = tmp_path / "given", tmp_path / "trained.ckpt"
    (folder / "größe").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(pictures / "turned.jpg", folder / name)
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["sppnet"]["classes"] = [f"größe {label}" for label in sorted(CLASSES)]
    torch.save(checkpoint, trained)
    monkeypatch.chdir(tmp_path)

    def ascii_only(*words: str) -> list[str]:
        printed = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii", write_through=True))
        monkeypatch.setattr(sys, "argv", ["sppnet", *words])
        assert cli.dispatch() == 0
        return printed.getvalue().decode("ascii").splitlines()

    output = "o" * 249 + ".jsonl"
    predict = ("predict", f"checkpoint={trained}", "input=given")
    table = ascii_only(*predict, f"output={output}", "draw=drawn")
    lines = rows(Path(output).read_text("utf-8"))
    paths = {str(Path("given") / name) for name in NAMES}
    assert {row["file"] for row in lines} == paths
    assert all(row["classes"][0]["class"].startswith("größe ") for row in lines)
    assert {json.loads(f'"{line.split(chr(9))[0]}"') for line in table} == paths
    drawn = [path.relative_to("drawn").as_posix() for path in Path("drawn").rglob("*") if path.is_file()]
    assert len(drawn) == len(NAMES)
    assert drawn.count("größe/日本 1.png.png") == 1
    assert all(path.endswith(".png") for path in drawn)
    assert ascii_only("status", f"paths.runs={run.parents[1]}")


def test_lines_for_a_program_are_json_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "latin-1", write_through=True))
    with JsonLines("-") as lines:
        lines.write("größe/日本.jpg", (3, 4), (3, 4), [("größe", 0.5)])
        lines.write("größe.jpg", (3, 4), (3, 4), [("größe", 0.5)])
    printed = output.getvalue().decode("latin-1")
    assert [row["file"] for row in rows(printed)] == ["größe/日本.jpg", "größe.jpg"]
    assert '"größe.jpg"' in printed  # escapes only where needed


def test_overrides_are_checked_before_torch_is_imported(run: Path, pictures: Path) -> None:
    ask = "import sys; from sppnet.cli import dispatch; print(dispatch(), 'torch' in sys.modules)"
    for words in (["input=no/such"], [f"input={pictures}", "output=no/such/file"], [f"input={pictures}", "top=0"]):
        line = [sys.executable, "-c", ask, "predict", f"checkpoint={run}", *words]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.stdout.split() == ["2", "False"], done.stderr


@pytest.mark.slow
def test_it_ends_quietly_when_the_reader_of_a_pipe_leaves(run: Path, pictures: Path) -> None:
    (pictures / "notes.txt").unlink()  # a message would name it
    for number in range(3000):  # far more than a pipe holds
        os.link(pictures / "grey.JPG", pictures / f"{number}.jpg")
    words = command("predict", f"checkpoint={run}", f"input={pictures}", "progress=none")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 141
    assert not errors
