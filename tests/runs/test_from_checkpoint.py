"""`sppnet test` starts from a run's configuration, whatever was typed or set in files when it was trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from calling import SMALL, Called, Caller
from sppnet.config.compose import resolve
from sppnet.config.merge import merge
from sppnet.config.overlay import Overlay
from sppnet.report.row_names import flatten
from tiers import some_quick


@pytest.fixture
def run(sppnet: Caller, tmp_path: Path) -> Called:
    """A run with keys and options of its own: typed, in a study's file, and in an option file of a nested group."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            image = np.random.default_rng(number).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"photos/{label}/{number}.png")
    (tmp_path / "mine/data/crop").mkdir(parents=True)
    (tmp_path / "mine/data/crop/mild.yaml").write_text("name: random_resized\nscale: [0.5, 1.0]\nratio: [1.0, 1.0]\n")
    words = ("data=folder", "data.root=photos", "data.num_workers=0", "data.batch_size=8", "data/crop=mild")
    done = sppnet("train", "--config-dir", "mine", *SMALL, *words, "views=ten", "views.scales=[256,280]")
    assert done.code == 0, done.err
    return done


@pytest.mark.slow
def test_another_alternative_replaces_that_of_the_run(sppnet: Caller, run: Called, tmp_path: Path) -> None:
    """The keys of the run's ten views, which the whole image lacks, are no obstacle; nor is a missing option file."""
    done = sppnet("test", f"checkpoint={run.run}", "views=full", "views.aspect_step=0.25")
    assert done.code == 0, done.err
    same = sppnet("test", f"checkpoint={run.run}", "views=ten", "views.scales=[256,280]")
    assert same.figure("test/loss") == run.figure("test/loss")
    mapping = sppnet("test", f"checkpoint={run.run}", "views={positions:9,scales:[256]}")
    assert mapping.code == 0, mapping.err
    (tmp_path / "mine/views").mkdir()
    (tmp_path / "mine/views/one.yaml").write_text("defaults: [ten, _self_]\nscales: [224]\n")  # its name is ten, too
    own = sppnet("test", "--config-dir", "mine", f"checkpoint={run.run}", "views=one")
    assert [called.out.count("views of the image") for called in (own, same)] == [1, 2]
    (tmp_path / "mine/experiments").mkdir()
    for name, defaults in (("whole", "override /views: full"), ("builds_on_it", "whole, _self_")):
        text = f"# @package _global_\ndefaults: [{defaults}]\ndata: {{batch_size: 4}}\n"
        (tmp_path / f"mine/experiments/{name}.yaml").write_text(text)
    filed = sppnet("test", "--config-dir", "mine", f"checkpoint={run.run}", "experiments=builds_on_it")
    assert filed.code == 0, filed.err
    assert "views of the image" not in filed.out, "the file's views, although the run had typed views=ten"
    removed = sppnet("test", f"checkpoint={run.run}", "~views")
    assert removed.err == "sppnet test: ~views is not allowed: no key of a run can be removed\n"
    other = sppnet("test", f"checkpoint={run.run}", "data=digits")  # which has no data.root
    assert "none of the 2 classes that the network was trained on" in other.err


@pytest.mark.filterwarnings("ignore:The PyTorch Profiler default schedule")
@pytest.mark.slow
def test_the_pyramid_is_that_of_the_run_or_the_typed_one(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "mine/pyramid").mkdir(parents=True)
    (tmp_path / "mine/pyramid/own.yaml").write_text("bins: [5, 2]\n")
    (tmp_path / "mine/experiments").mkdir()
    file = "# @package _global_\ndefaults: [override /pyramid: l2_3_1]\n"
    (tmp_path / "mine/experiments/files.yaml").write_text(file)
    words = [word for word in SMALL if not word.startswith("pyramid")]
    run = sppnet("train", "--config-dir", "mine", *words, "pyramid=own", "trainer.max_epochs=1").run
    same = sppnet("test", f"checkpoint={run}", "pooling=spp", "trainer.limit_test_batches=1")
    assert same.code == 0, same.err
    sppnet("test", f"checkpoint={run}", "trainer.profiler=pytorch", "trainer.limit_test_batches=1")
    assert [trace.parent for trace in Path.cwd().rglob("*.trace.json")] == [Path.cwd() / run]
    rows = ("layer=spp", "splits=1", "per_class.train=5", "per_class.test=5", "data.num_workers=0")
    for typed, row in (
        (("pooling=spp",), "spp 5, 2"),  # the option file is missing now
        (("pyramid=l4_6_3_2_1",), "spp 6, 3, 2, 1"),  # the default, which the run did not have
        (("pooling=spp", "pyramid=l2_2_1", "pooling.pool=avg"), "spp 2, 1"),
        (("--config-dir", "mine", "experiments=files"), "spp 3, 1"),
    ):
        transferred = sppnet("transfer", f"checkpoint={run}", *rows, *typed)
        assert transferred.code == 0, transferred.err
        assert "no effect" not in transferred.err
        assert row in transferred.out, transferred.out


@pytest.mark.slow
def test_only_what_is_typed_changes(sppnet: Caller, run: Called, tmp_path: Path) -> None:
    """`--cfg job` shows the configuration in force, and `config.yaml` that of the run, which had a file of its own."""
    (tmp_path / "mine/experiments").mkdir()
    files = {
        "trained": "data: {short_side: 32, resampler: torch, crop_pct: 0.5}\nsizes: {test: [32]}\n",
        "default": "data: {resampler: pillow}\n",
        "batches": "data: {batch_size: 4}\n",
        "digits": "defaults: [override /data: digits]\n",
        "small": "defaults: [/presets: small]\n",
        "launcher": "defaults: [override /launch: processes]\nhydra: {launcher: {n: 2}}\n",
    }
    for name, text in files.items():
        (tmp_path / f"mine/experiments/{name}.yaml").write_text(f"# @package _global_\n{text}")
    words = ("data=folder", "data.root=photos", "data.num_workers=0", "experiments=trained", "seed=1", "launch=slurm")
    path = sppnet("train", "--config-dir", "mine", *SMALL, *words, "hydra.mode=RUN").run  # as in a job of SLURM
    (tmp_path / "mine/presets").mkdir()  # a group that conf/ lacks
    (tmp_path / "mine/presets/small.yaml").write_text("# @package _global_\ndata: {batch_size: 2}\n")
    arguments = "widths: {1: 3}\nlabels: {cat.jpg: 4}\ntransform: {}\n"
    (tmp_path / "mine/data/own.yaml").write_text(f"defaults: [digits, _self_]\n{arguments}")
    for folder in ("transform", "part", ".hidden", "a b.c"):  # groups of the user's own inside data
        (tmp_path / f"mine/data/{folder}").mkdir()
        (tmp_path / f"mine/data/{folder}/2024_05.yaml").write_text("kind: blur\nradius: 2\n")
        (tmp_path / f"mine/data/{folder}/sharp.yaml").write_text("kind: sharp\n")
    inner = "transform: '2024_05', part@transform.first: '2024_05'"
    (tmp_path / "mine/data/nested.yaml").write_text(f"defaults: [own, {inner}, _self_]\n")
    (tmp_path / "mine/experiments/sharp.yaml").write_text(
        "# @package _global_\ndefaults: [override /data: nested, override /data/transform: sharp]\n"
    )
    (tmp_path / "mine/experiments/trained.yaml").write_text("# @package _global_\ndata: {resampler: pillow}\n")
    stored = dict(flatten(yaml.safe_load((path / "config.yaml").read_text())))

    def changed(*typed: str, command: str = "test") -> dict[str, object]:
        shown = sppnet(command, "--config-dir", "mine", f"checkpoint={path}", *typed, "--cfg", "job")
        assert shown.code == 0, shown.err
        plain = yaml.safe_load(shown.out)
        own = {f"data.{name}": plain["data"].pop(name, None) for name in ("widths", "labels", "transform", "extra")}
        now = dict(flatten(plain))
        assert set(stored) - {"layout"} <= set(now) | {"data.root"}
        changes = {name: value for name, value in now.items() if name in stored and value != stored[name]}
        return changes | {name: value for name, value in own.items() if value is not None}

    assert changed() == {}
    assert changed("data=folder") == {}
    assert changed("data=folder", "data.root=moved") == changed("data.root=moved") == {"data.root": "moved"}
    for command in ("test", "transfer"):
        assert changed("experiments=batches", command=command) == {"data.batch_size": 4}
    assert changed("experiments=default") == {"data.resampler": "pillow"}
    assert changed("sizes.test=${sizes.train}") == {"sizes.test": [24, 20]}
    classes = {"data._target_": "sppnet.data.Digits", "data.name": "digits"}
    assert changed("data=digits") == changed("experiments=digits") == classes
    assert changed("debug=fast") == {"debug.traceback": True, "trainer.limit_test_batches": 3}
    assert changed("layer=conv", command="transfer") == {}
    assert changed("+presets=small") == changed("experiments=small") == {"data.batch_size": 2}
    assert changed("experiments=launcher") == changed("compute={}") == changed("callbacks={}") == {}
    own = {"data.widths": {1: 3}, "data.labels": {"cat.jpg": 4}, "data.transform": {}}
    assert all(item in changed("data=own").items() for item in own.items())
    assert changed("data=own", "+data.extra=1")["data.extra"] == 1
    blur, sharp = {"kind": "blur", "radius": 2}, {"kind": "sharp"}
    typed = changed("data=nested", "data/part@data.transform.first=sharp")
    assert changed("data=nested")["data.transform"] == {**blur, "first": blur}
    assert typed["data.transform"] == {**blur, "first": sharp}
    assert changed("experiments=sharp")["data.transform"] == {**sharp, "first": blur}
    assert changed("+data/transform=2024_05") == {"data.transform": blur}
    package = sppnet("test", f"checkpoint={path}", "sizes.test=[16]", "--cfg", "job", "--package", "sizes.test")
    assert package.out == "# @package sizes.test\n- 16\n"
    assert changed("debug=study", "data.batch_size=8", command="predict")["data.batch_size"] == 8
    top = sppnet("predict", f"checkpoint={path}", "top=-1", "--cfg", "job")  # the missing input is no reason to show it
    assert (top.code, top.out, top.err.count("top=-1 is not allowed")) == (2, "", 1)


@pytest.mark.slow
def test_a_sweep_of_tests_has_the_typed_jobs_and_the_axes_of_its_file(
    sppnet: Caller, spawn: Caller, run: Called, tmp_path: Path
) -> None:
    (tmp_path / "mine/experiments").mkdir()
    axes = "{views.aspect_step: '0.25,0.5'}"  # a key that the defaults of conf/ lack
    (tmp_path / "mine/experiments/axes.yaml").write_text(f"# @package _global_\nhydra: {{sweeper: {{params: {axes}}}}}")
    next(Path("photos/a").iterdir()).unlink()
    words = ("--config-dir", "mine", f"checkpoint={run.run}", "views=full", "experiments=axes")
    single = sppnet("test", *words)
    assert "data.root=photos has changed since the network was trained" in single.err
    assert "warning: the rows and axes of experiments=axes have no effect without -m" in single.err
    swept = spawn("test", "-m", *words)
    assert [f"[{number}/2] refused" in swept.out for number in (1, 2)] == [True, True], swept.out
    replaced = sppnet("test", "-m", *words, "views.aspect_step=0", "seed=1")
    assert "[1/1] refused" in replaced.out, "the typed key replaces the axis"
    assert replaced.err.startswith("sppnet test: views.aspect_step=0 is not allowed"), replaced.err


def test_a_study_file_changes_the_keys_that_it_sets(sppnet: Caller, tmp_path: Path) -> None:
    """The run was trained with a file of its own, whose other settings stay, whatever the defaults are."""
    files = {
        "trained": "defaults: [override /views: full]\nstudy: a\nloss: {label_smoothing: 0.1}\n",
        "svm": "study: b\nlayer: fc1\nsplits: 1\nper_class: {train: 5, test: 5}\nsizes: {test: [40]}\n",
        "finer": "defaults: [svm, _self_]\nviews: {aspect_step: 0.5}\n",
        "centre": "defaults: [svm, override /views: center, _self_]\n",
        "slower": "optim: {lr: 0.007}\n",
    }
    (tmp_path / "mine/experiments").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / f"mine/experiments/{name}.yaml").write_text(f"# @package _global_\n{text}")
    mine = ("--config-dir", "mine")
    words = [word for word in SMALL if not word.startswith("study")]
    run = sppnet("train", *mine, *words, "experiments=trained", "trainer.max_epochs=1").run
    for name, view in (("svm", "full"), ("finer", "full aspect_step=0.5"), ("centre", "center")):
        done = sppnet("transfer", *mine, f"checkpoint={run}", f"experiments={name}")
        assert done.code == 0, done.err
        assert re.search(rf" fc1 +{view} .*\b40 +8 ", done.out), done.out
        assert "1 random split of all images: 5 of each class" in done.out
    assert len(list((tmp_path / "runs/b/transfer").glob("*.json"))) == 3
    refused = sppnet("transfer", *mine, f"checkpoint={run}", "experiments=slower")
    assert "optim.lr=0.007 is not allowed" in refused.err
    assert "loss" not in refused.err.partition("can only")[0]


REFUSED = [
    (["data=digits", "data.root=photos"], "unknown key data.root"),
    (["views=full", "views.scales=[256]"], "unknown key views.scales"),
    (["+callbacks.x._target_=lightning.pytorch.callbacks.Timer"], "callbacks.x"),
    (["+backbone.extra=null"], "backbone.extra=null is not allowed: the checkpoint was trained without it"),
    (["logger=[tensorboard]"], "logger.tensorboard={} is not allowed"),
    (["optim=sgd"], "optim._target_=torch.optim.SGD is not allowed"),
    (["optim/schedule=plateau"], "optim.schedule.name=plateau is not allowed"),
    (["view.fit=full"], "unknown key view; did you mean views?"),
    (["augment=paper"], "augment.flip=true is not allowed: the checkpoint was trained with false"),
    (["views=flu", "--cfg", "job"], "available options are center, full"),
    (["+backbone.depth.a=1"], "backbone.depth={a: 1} is not allowed"),
    (["backbone.width=4.0"], "backbone.width=4.0 is not allowed: the checkpoint was trained with 4,"),
    (["checkpoint=${study}", "--cfg", "job"], "no such file or directory"),
    (["+logger.wandb.project=x"], "logger.wandb"),
    (["trainer.strategy=ddp"], "trainer.strategy=ddp is not allowed: the checkpoint was trained with auto"),
    (["trainer.threads=2"], "it is now called compute.num_threads"),
    (["trainer.limit_test_batches=0.01"], "batches, so none is used"),
    (["data.fit=full"], "data.fit=full is not allowed"),
    (["pyramid=l1_5"], "pyramid.bins=[5] is not allowed"),  # although the run had typed pyramid.bins
    (["seed=1", "views=full"], "seed=1 is not allowed"),
]


@pytest.mark.parametrize(("words", "expected"), some_quick(REFUSED, 4))
def test_what_cannot_be_obeyed_is_refused(sppnet: Caller, trained: Called, words: list[str], expected: str) -> None:
    checkpoint = trained.run
    done = sppnet("test", f"checkpoint={checkpoint}", *words)
    assert done.code == 2, (done.out, done.err)
    assert expected in done.err.splitlines()[-1]


def test_stored_text_stays_as_it_was_typed() -> None:
    texts = {"a": "${seed}", "b": r"x\${seed}", "c": [r"\\${a}", "a\\b", "tail\\"], "d": "???x", "e": "$"}
    stored = {"backbone": {"_target_": "mine.Net", "texts": texts}}
    assert resolve("test", merge("test", stored, Overlay({}, {}))) == stored


def test_the_code_of_a_plugin_in_a_list_is_part_of_the_identity(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "from lightning.pytorch.plugins import TorchSyncBatchNorm\n\nclass Mine(TorchSyncBatchNorm):\n    pass\n"
    runs = []
    for comment in ("", "# changed\n"):
        (tmp_path / "own_plugin.py").write_text(code + comment)
        done = sppnet("train", *SMALL, "allow=own_plugin", "trainer.plugins=[{_target_: own_plugin.Mine}]")
        assert done.code == 0, done.err
        runs.append(done.run)
    assert runs[0] != runs[1]
