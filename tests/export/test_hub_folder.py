"""`sppnet export format=hub`: the folder, its model card, what replaces it, and what reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from safetensors.torch import save_file

from calling import SMALL, Called, Caller, same_weights
from sppnet.errors import UserError
from sppnet.export.hub_folder import FILES, write_folder
from sppnet.statistics import spread


def export(sppnet: Caller, checkpoint: Path, output: str = "folder", *words: str) -> Called:
    return sppnet("export", f"checkpoint={checkpoint}", "format=hub", f"output={output}", *words)


def refused(done: Called) -> str:
    """The only line of a mistake."""
    assert done.code == 2, (done.out, done.err)
    [line] = done.err.strip().splitlines()
    return line


@pytest.fixture
def folder(sppnet: Caller, trained: Called) -> Path:
    done = export(sppnet, trained.run)
    assert done.code == 0, done.err
    return Path("folder")


def read_table(text: str, head: str) -> list[list[str]]:
    """The cells of a table of Markdown that begins with `head`, without the first two lines."""
    table = text[text.index(f"| {head}") :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_folder_has_the_file_of_safetensors_and_its_metadata(sppnet: Caller, trained: Called, folder: Path) -> None:
    assert sppnet("export", f"checkpoint={trained.run}", "format=safetensors", "output=x.safetensors").code == 0
    assert (folder / "model.safetensors").read_bytes() == Path("x.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {*FILES} - {"figure.svg"}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["library_name"] == "sppnet"
    assert config["sppnet"]["config"]["backbone"]["width"] == 4
    assert config["classes"] == [str(digit) for digit in range(10)]


def test_the_command_says_how_to_upload(sppnet: Caller, trained: Called) -> None:
    printed = export(sppnet, trained.run, "my folder").out.splitlines()
    assert printed[0].startswith("written: my folder (model.safetensors, config.json, README.md")
    assert printed[1].endswith("upload it: hf upload USER/NAME 'my folder' --private")


def test_the_card_of_a_lone_run_has_its_own_results(trained: Called, folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    metadata: Any = metadata_load(folder / "README.md")
    assert metadata["library_name"] == card.data.library_name == "sppnet"
    assert metadata["pipeline_tag"] == "image-classification"
    assert (metadata["license"], metadata["license_name"]) == ("other", "not-chosen-yet")
    summary = json.loads((trained.run / "summary.json").read_text())
    [result] = card.data.eval_results or []
    assert result.metric_value == summary["test/24/top1"]
    assert (result.metric_type, result.metric_name, result.dataset_name) == ("accuracy", "top1 at 24 px", "digits")
    assert "choose a license" in card.text
    [row] = read_table(card.text, "metric")
    assert row == ["top1", "24 px", "119", f"{100 * summary['test/24/top1']:.2f} %"]
    assert "No study that planned this test was found" in card.text
    assert "trainer.limit_train_batches=4" in card.text
    settings = dict(read_table(card.text, "setting"))
    assert settings["sizes.train"] == "[24, 20]"
    assert settings["hash of the configuration"] == trained.run.name.rpartition("-")[2]
    assert settings["parameters"] == str(summary["parameters"])
    provenance = json.loads((trained.run / "provenance.json").read_text())["starts"][-1]
    assert settings["commit"].startswith(str(provenance["code"]["commit"])[:10])
    assert provenance["machine"]["host"] not in settings["machine"]
    assert "sppnet train backbone.width=4 'head.hidden=[8]'" in card.text
    assert "sppnet.from_pretrained(" in card.text


def test_the_lines_of_the_card_load_the_network(sppnet: Caller, folder: Path) -> None:
    Image.new("RGB", (60, 40)).save("photo.jpg")
    text = (folder / "README.md").read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(text.replace("USER/NAME", "folder"), "README.md", "exec"), names)
    assert names["probabilities"].shape == (1, 10)
    assert float(names["probabilities"].detach().sum()) == pytest.approx(1)


def test_the_card_of_a_study_has_the_mean_over_seeds_and_the_figure(study: Caller) -> None:
    runs = [path.parent for path in Path("runs/mine").glob("*spp*/config.yaml")]
    assert export(study, runs[0]).code == 0
    card = ModelCard.load("folder/README.md")
    values = {run: json.loads((run / "summary.json").read_text())["test/24/top1"] for run in runs}
    over_seeds = spread([100 * value for value in values.values()])
    assert over_seeds is not None
    assert over_seeds.half is not None
    low, high = (f"{over_seeds.mean + sign * over_seeds.half:.2f}" for sign in (-1, 1))
    [row] = read_table(card.text, "metric")
    assert row[:2] == ["top1", "24 px"]
    assert row[3] == f"{100 * values[runs[0]]:.2f} %"
    assert row[4] == f"{over_seeds.mean:.2f} ± {over_seeds.deviation:.2f} [{low}, {high}]"
    assert row[5] == "3"
    assert "study `mine`" in card.text
    [result] = card.data.eval_results or []
    assert result.metric_value == values[runs[0]]
    assert "](figure.svg)" in card.text
    assert "<svg" in Path("folder/figure.svg").read_text("utf-8")
    assert f"seed={json.loads((runs[0] / 'provenance.json').read_text())['identity']['config']['seed']}" in card.text


def test_the_card_of_a_lone_checkpoint_says_that_results_are_not_known(sppnet: Caller, trained: Called) -> None:
    shutil.copy(trained.run / "checkpoints/best.ckpt", "lone.ckpt")
    for checkpoint in (Path("lone.ckpt"), trained.run / "checkpoints/last.ckpt"):
        assert export(sppnet, checkpoint, "folder", "force=true").code == 0
        card = ModelCard.load("folder/README.md")
        assert card.data.eval_results is None
        assert "test results are not known: those of a run's best.ckpt alone are known" in card.text
    shutil.rmtree(trained.run / "tests")
    assert "the run has no whole record of its own test" in export(sppnet, trained.run, "folder", "force=true").err
    assert "not known: the run has no whole record of its own test" in ModelCard.load("folder/README.md").text


def test_many_classes_and_any_names_fit_into_the_card(sppnet: Caller) -> None:
    names = ["a`b|c", "größe <b>", *(f"class {number:03}" for number in range(60))]
    for name in names:
        for number in range(4):
            Path("photos", name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 24), (number, len(name), 0)).save(Path("photos", name, f"{number}.png"))
    words = ("data=folder", "data.root=photos", "data.num_workers=0", "trainer.max_epochs=1", "data.duplicates=ignore")
    run = sppnet("train", *SMALL, *words)
    assert run.code == 0, run.err
    assert export(sppnet, run.run).code == 0
    card = ModelCard.load("folder/README.md")
    assert "62 classes" in card.text
    assert "`a'b|c`" in card.text
    assert "and 22 more (all in `config.json`)" in card.text
    assert json.loads(Path("folder/config.json").read_text("utf-8"))["classes"] == sorted(names)


def test_an_export_replaces_only_an_earlier_one(sppnet: Caller, trained: Called, folder: Path) -> None:
    assert "force=true" in refused(export(sppnet, trained.run))
    (folder / "README.md").write_text("edited")
    assert export(sppnet, trained.run, "folder", "force=true").code == 0
    assert "edited" not in (folder / "README.md").read_text()
    Path("link").symlink_to(folder)
    assert export(sppnet, trained.run, "link", "force=true").code == 0
    assert Path("link").is_symlink()
    (folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "such as notes.txt" in refused(export(sppnet, trained.run, "folder", "force=true"))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    Path("other").mkdir()
    Path("other/README.md").write_text("of another project")
    assert "not an earlier export" in refused(export(sppnet, trained.run, "other", "force=true"))
    Path("file").write_text("file")
    assert "is not a folder" in refused(export(sppnet, trained.run, "file", "force=true"))
    assert "no folder" in refused(export(sppnet, trained.run, "no/such/folder"))
    assert "written" in refused(export(sppnet, trained.run, "/proc/x"))
    Path("new").mkdir()
    Path("new/.sppnet-0.tmp").mkdir()
    for words in ((), ("force=true",)):
        assert "if it was killed, delete this folder" in refused(export(sppnet, trained.run, "new", *words))
    shutil.rmtree("new")
    assert "size=24 has no effect" in refused(export(sppnet, trained.run, "new", "size=24"))
    assert not Path("new").exists()
    assert not [path for path in Path().iterdir() if path.name.endswith(".tmp")]


def test_an_existing_folder_is_written_into(
    sppnet: Caller, trained: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("here").mkdir()
    Path("here").chmod(0o770)
    before = Path("here").stat()
    monkeypatch.chdir("here")
    for words in ((), ("force=true",)):
        assert export(sppnet, tmp_path / trained.run, ".", *words).code == 0
        assert {path.name for path in Path().iterdir()} == {*FILES} - {"figure.svg"}
        assert (Path().stat().st_ino, Path().stat().st_mode) == (before.st_ino, before.st_mode)
    assert (
        "data.bad_files has no effect"
        in export(sppnet, tmp_path / trained.run, ".", "data.bad_files=skip", "force=true").err
    )


def test_a_failure_leaves_the_earlier_folder_and_nothing_else(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    unwritable: Any = {"README.md": b"new", "config.json": 3}
    Path("empty").mkdir()
    for target in (folder, Path("new"), Path("empty")):
        with pytest.raises(TypeError):
            write_folder(target, unwritable, force=True)
    Path("empty").rmdir()
    Path("meanwhile").mkdir()  # by another program, since the export began
    Path("meanwhile/notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UserError, match="output=meanwhile "):
            write_folder(Path("meanwhile"), {"README.md": b"new"}, force)
    assert [path.name for path in Path("meanwhile").iterdir()] == ["notes.txt"]
    shutil.rmtree("meanwhile")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in Path().iterdir()} == {"runs", "folder"}


def test_the_card_has_every_size_of_the_runs_own_test_after_others(sppnet: Caller) -> None:
    words = (*SMALL, "study=mine", "trainer.max_epochs=1")
    run = sppnet("train", *words, "sizes.test=[24,20]").run
    assert sppnet("train", "-m", *words, "seed=0", "sizes.test=[20]", "views=full").code == 0
    assert len(list(run.parent.glob("*/status.json"))) == 1  # the study has planned another test of this run
    for word in ("sizes.test=[24]", "sizes.test=[20]", "views=full", "views=warp"):  # of squares, both see the same
        assert sppnet("test", f"checkpoint={run}", word).code == 0
    assert export(sppnet, run, "card").code == 0
    card = ModelCard.load("card/README.md").text
    assert "| 24 px |" in card
    assert "| 20 px |" in card
    views = yaml.safe_load((run / "config.yaml").read_text())["views"]["name"]
    assert f"Measured with `views={views}`" in card
    assert "No study that planned this test was found" in card


@pytest.mark.slow
def test_a_metric_that_was_defined_anew_is_not_mixed_with_the_old_one(sppnet: Caller) -> None:
    Path("conf/experiments").mkdir(parents=True)

    def write(shown: list[str], metrics: dict[str, Any]) -> None:
        seeds = {"sweeper": {"params": {"seed": "0,1"}}}
        study = {"study": "mine", "report": {"metrics": shown}, "metrics": metrics, "hydra": seeds}
        Path("conf/experiments/mine.yaml").write_text(f"# @package _global_\n{json.dumps(study)}")

    def sweep() -> Path:
        words = ("--config-dir", "conf", "experiments=mine", *SMALL, "trainer.max_epochs=1")
        swept = sppnet("train", "-m", *words)
        assert swept.code == 0, swept.err
        return min(path.parent for path in Path("runs/mine").glob("*/config.yaml"))

    def rows() -> list[list[str]]:
        done = export(sppnet, run, "card", "--config-dir", "conf", "force=true")
        assert done.code == 0, done.err
        return read_table(ModelCard.load("card/README.md").text, "metric")

    own = "torchmetrics.classification.Multiclass"
    for beta in (0.5, 2.0):
        write(["top1", "f"], {"f": {"_target_": f"{own}FBetaScore", "beta": beta}})
        run = sweep()
    assert len(list((run / "tests").iterdir())) == 2
    summary = json.loads((run / "summary.json").read_text())
    top1, f = rows()
    assert (top1[0], top1[3], top1[5]) == ("top1", f"{100 * summary['test/24/top1']:.2f} %", "2")
    assert (f[0], *f[3:]) == ("f", f"{100 * summary['test/24/f']:.2f} %", "-", "0")
    assert "Where there is no mean, " in ModelCard.load("card/README.md").text
    write(["g"], {"g": {"_target_": f"{own}CohenKappa"}})  # the run's own test has no such metric
    sweep()
    assert rows() == [top1, f]
    Path("conf").rename("elsewhere")  # on another machine, for example
    Path("conf").mkdir()
    assert rows() == [top1, f]
    shutil.rmtree("conf")
    Path("elsewhere").rename("conf")
    write(["typo"], {})
    line = refused(export(sppnet, run, "other", "--config-dir", "conf"))
    assert "the card needs the results of the study mine: report.metrics=typo is not allowed" in line


def test_a_run_that_is_not_done_says_so(sppnet: Caller, trained: Called) -> None:
    status = trained.run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"preempted"'))
    done = export(sppnet, trained.run, "early")
    assert done.code == 0
    assert "is not done (status: preempted), so its weights may still change" in done.err
    assert "the card has no results" in done.err
    assert "not known: the run was not done" in ModelCard.load("early/README.md").text
    assert "preempted in epoch" in ModelCard.load("early/README.md").text


def test_every_command_takes_the_folder(sppnet: Caller, trained: Called, folder: Path) -> None:
    shutil.copy(trained.run / "checkpoints/best.ckpt", "lone.ckpt")
    colours = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(colours).save("photo.png")
    printed = []
    for checkpoint in ("folder", "lone.ckpt"):
        tested = sppnet("test", f"checkpoint={checkpoint}", "sizes.test=[20]")
        predicted = sppnet("predict", f"checkpoint={checkpoint}", "input=photo.png", "output=-", "top=10")
        assert tested.code == predicted.code == 0, (tested.err, predicted.err)
        printed.append([*(line for line in tested.out.splitlines() if "test/" in line), predicted.out])
    assert printed[0] == printed[1]
    words = ("splits=1", "per_class.train=5", "per_class.test=5", "progress=none")
    features = sppnet("transfer", "checkpoint=folder", "data=digits", *words)
    assert features.code == 0, features.err
    assert "folder" in features.out
    runs = [sppnet("train", *SMALL, "trainer.max_epochs=1", f"init={path}") for path in ("folder", "lone.ckpt")]
    assert [done.code for done in runs] == [0, 0], runs[0].err
    assert same_weights(*(done.run / "checkpoints/best.ckpt" for done in runs))
    assert export(sppnet, folder, "again").code == 0
    assert Path("again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for path in ("folder", "./folder"):
        line = refused(sppnet("train", *SMALL, f"backbone.weights={path}"))
        assert line.endswith(f"backbone.weights={path} is a folder; give its file folder/model.safetensors")


def test_a_changed_configuration_is_one_line(sppnet: Caller, folder: Path) -> None:
    path = folder / "config.json"
    whole = json.loads(path.read_text("utf-8"))
    backbone = whole["sppnet"]["config"]["backbone"]
    tampered = {**whole["sppnet"]["config"], "backbone": {**backbone, "_target_": "os.system"}}
    for text, problem in (
        (json.dumps({**whole, "classes": whole["classes"][::-1]}), "config.json has been changed (classes)"),
        (json.dumps({**whole, "sppnet": {**whole["sppnet"], "config": tampered}}), "has been changed (sppnet)"),
        (json.dumps({**whole, "more": 1}), "config.json has been changed (more)"),
        ("{", "config.json is missing or not a JSON object"),
        ("[]", "config.json is missing or not a JSON object"),
    ):
        path.write_text(text)
        for words in (("test", "checkpoint=folder"), ("train", *SMALL, "init=folder")):
            assert problem in refused(sppnet(*words))
    path.unlink()
    assert "config.json is missing" in refused(sppnet("test", "checkpoint=folder"))
    assert sppnet("test", "checkpoint=folder/model.safetensors").code == 0


def test_a_folder_of_another_format_is_one_line(sppnet: Caller, folder: Path) -> None:
    Path("theirs").mkdir()
    Path("theirs/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    line = refused(sppnet("test", "checkpoint=theirs"))
    assert "no model.safetensors of sppnet; these files are not opened: pytorch_model.bin" in line
    save_file({}, "theirs/model.safetensors")
    shutil.copy(folder / "config.json", "theirs")
    assert "is not an sppnet checkpoint" in refused(sppnet("test", "checkpoint=theirs"))
    shutil.copy("theirs/pytorch_model.bin", folder)  # beside our own weights
    (folder / "checkpoints").mkdir()
    assert sppnet("test", "checkpoint=folder").code == 0
    assert not Path("executed").exists()
