"""`sppnet train` and `sppnet test`, from the command line to the files that they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from calling import SMALL, Called, Caller, flip, limits, records, same_weights, weights
from sppnet import cli
from sppnet.config.compose import compose_config
from sppnet.data import build_sizes, load_splits
from sppnet.data.datamodule import DataModule
from sppnet.data.datasets.digits import Digits
from sppnet.models.backbones import Tiny
from sppnet.models.pretrained import load_weights
from sppnet.training.trainer import build_classifier, prepare
from tiers import some_quick


def test_a_run_writes_all_its_files(sppnet: Caller) -> None:
    words = ("train", "allow=mine,mine", *SMALL, "sizes.test=[24,32]")
    done = sppnet(*words)
    assert done.code == 0, done.err
    run = done.run
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert names >= {
        *("config.yaml", "overrides.txt", "status.json", "metrics.jsonl", "summary.json", "provenance.json"),
        *("checkpoints/last.ckpt", "checkpoints/best.ckpt"),
    }
    assert not [name for name in names if name.endswith(".tmp")]
    summary = json.loads((run / "summary.json").read_text())
    assert {"test/top1", "test/top5", "test/loss", "test/24/top1", "test/32/top1", "epochs", "seconds"} <= set(summary)
    assert summary["test/top1"] == summary["test/24/top1"]
    assert summary["epochs"] == 2
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert yaml.safe_load((run / "config.yaml").read_text())["sizes"]["train"] == [24, 20]
    start = json.loads((run / "provenance.json").read_text())["starts"][0]
    assert start["packages"]["torch"]
    assert start["machine"]["cores"]
    assert (start["command"], start["job"], start["allowed"]) == (["sppnet", *words], None, ["mine"])
    assert done.out.splitlines()[-4].startswith("run directory: ")
    assert "test/top1" in done.out.splitlines()[-3]
    [tested] = [json.loads(file.read_text()) for file in (run / "tests").iterdir()]
    assert 0 < tested["images"] <= 4 * 32  # of 269
    assert done.out.splitlines()[-5] == "trainer.limit_test_batches=4 limits the test"
    assert done.figure("images") == tested["images"]
    trunk = Tiny(width=4)
    load_weights(trunk, run / "checkpoints/best.ckpt")  # as a start for another head, for example
    best = weights(run / "checkpoints/best.ckpt")
    assert all(torch.equal(best[f"network.backbone.{key}"], value) for key, value in trunk.state_dict().items())


def test_a_batch_has_one_size_and_epochs_alternate(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "trainer.max_epochs=3").run
    steps = [(r["epoch"], r["train/size"]) for r in records(run) if "train/size" in r]
    assert steps == [(epoch, size) for epoch, size in enumerate([24, 20, 24]) for _ in range(4)]
    by_size = [{key for key in r if "/2" in key and key.startswith("train")} for r in records(run) if "train/loss" in r]
    assert [next(iter(keys)).split("/")[1] for keys in by_size] == ["24", "20", "24"]


def test_training_that_ends_before_the_size_has_grown_is_said() -> None:
    """An epoch has four batches, which the number of steps counts."""
    words = [*SMALL, "sizes=progressive", "sizes.train=[20,24]", "sizes.step=2", "trainer.max_epochs=3"]
    for steps, ends in ((12, []), (9, []), (8, ["training ends at size 22, in epoch 2 of sizes.epochs=3"])):
        notices = prepare(compose_config([*words, f"trainer.max_steps={steps}"])).notices
        assert [line.removeprefix("sizes=progressive: ") for line in notices] == ends


def test_the_same_run_is_not_done_twice_and_force_does_it_again(sppnet: Caller, trained: Called) -> None:
    first = trained
    stamp = (first.run / "checkpoints/best.ckpt").stat().st_mtime_ns
    again = sppnet("train", *SMALL, "trainer.log_every_n_steps=7", "data.num_workers=1")
    assert again.code == 0
    assert "is done" in again.out
    assert again.run == first.run
    assert (first.run / "checkpoints/best.ckpt").stat().st_mtime_ns == stamp
    assert again.figure("test/top1") == first.figure("test/top1")
    forced = sppnet("train", *SMALL, "force=true")
    assert forced.run == first.run
    assert (first.run / "checkpoints/best.ckpt").stat().st_mtime_ns != stamp
    assert forced.figure("test/top1") == first.figure("test/top1")


@pytest.mark.slow
def test_a_fast_kernel_trains_the_same_weights_by_the_same_losses(sppnet: Caller, tmp_path: Path) -> None:
    wide = ("backbone.width=16", "pooling.bins=[4,2,1]", "sizes=alternating")
    for more in ((*wide, "compute.num_threads=2"), (*wide, "compute.channels_last=true")):
        fast = sppnet("train", *SMALL, *more).run
        plain = sppnet("train", *SMALL, *more, "pooling.kernel=plain", f"paths.runs={tmp_path}").run
        assert fast.name == plain.name  # the same run: the kernel changes no result
        losses = [[r for r in records(run) if "train/loss" in r] for run in (fast, plain)]
        assert losses[0]
        figures = [
            [{k: v for k, v in r.items() if k in ("step", "train/loss", "val/loss")} for r in of_run]
            for of_run in losses
        ]
        assert figures[0] == figures[1]
        assert same_weights(fast / "checkpoints/last.ckpt", plain / "checkpoints/last.ckpt")


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_changes_the_layout_and_no_pixel(channels_last: bool) -> None:
    cfg = compose_config([f"compute.channels_last={channels_last}"])
    classifier = build_classifier(cfg, load_splits(cfg.data))
    images, offset = torch.randint(256, (3, 3, 20, 24), dtype=torch.uint8), torch.randn(3, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.data.mean, cfg.data.std))
    for layout in (torch.contiguous_format, torch.channels_last):
        pixels = classifier.normalise(images.contiguous(memory_format=layout), offset)
        assert pixels.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert torch.equal(pixels, (images / 255 + offset[:, :, None, None] - mean) / std)


def test_cached_images_train_the_same_weights(sppnet: Caller, tmp_path: Path) -> None:
    digits = Digits()
    for index in range(0, 240):
        path = tmp_path / f"photos/{digits.label(index)}/{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(path)
    words = ("train", *SMALL, "data=folder", f"data.root={tmp_path}/photos", "data.num_workers=0", "data.short_side=32")
    plain = sppnet(*words).run
    built, reused = (sppnet(*words, "data.cache=true", f"paths.runs={name}", "paths.cache=kept").run for name in "ab")
    assert built.name == reused.name == plain.name
    for run in (built, reused):
        assert same_weights(run / "checkpoints/last.ckpt", plain / "checkpoints/last.ckpt")


def test_other_test_sizes_share_the_training(sppnet: Caller, trained: Called) -> None:
    first = trained
    stamp = (first.run / "checkpoints/last.ckpt").stat().st_mtime_ns
    other = sppnet("train", *SMALL, "sizes.test=[32,24]", "views=full")
    assert other.code == 0
    assert other.run == first.run
    assert (first.run / "checkpoints/last.ckpt").stat().st_mtime_ns == stamp
    assert len(list((first.run / "tests").glob("*.json"))) == 2


def test_test_gives_the_training_figure_and_one_per_size(sppnet: Caller, trained: Called) -> None:
    for checkpoint in (trained.run, trained.run / "checkpoints/best.ckpt"):
        tested = sppnet("test", f"checkpoint={checkpoint}")
        assert tested.code == 0, tested.err
        assert tested.figure("test/top1") == trained.figure("test/top1")
    several = sppnet("test", f"checkpoint={trained.run}", "sizes.test=[24,32,20]")
    assert several.figure("test/top1") == trained.figure("test/top1")
    assert [line.split()[0] for line in several.out.splitlines()[-3:]] == ["24", "32", "20"]
    newest = max((trained.run / "tests").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    counts = json.loads(newest.read_text())["images_per_size"]  # a batch holds fewer images of a larger size
    assert [line.split()[-1] for line in several.out.splitlines()[-3:]] == [str(count) for count in counts.values()]
    assert several.figure("images") == counts["24"] > counts["32"]
    whole = sppnet("test", f"checkpoint={trained.run}", "trainer.limit_test_batches=null")
    assert "limits the test" not in whole.out
    assert whole.figure("test/top5") != trained.figure("test/top5")


def test_a_lone_checkpoint_file_carries_its_configuration(sppnet: Caller, trained: Called, tmp_path: Path) -> None:
    lone = tmp_path / "elsewhere" / "net.ckpt"
    lone.parent.mkdir()
    lone.write_bytes((trained.run / "checkpoints/best.ckpt").read_bytes())
    (tmp_path / "link.ckpt").symlink_to(trained.run / "checkpoints/best.ckpt")
    linked = sppnet("test", "checkpoint=link.ckpt")  # a link counts as the run that it leads to
    assert (linked.code, linked.run) == (0, tmp_path / trained.run), linked.err
    assert len(list(trained.run.glob("tests/*"))) == 1
    (tmp_path / "link.ckpt").unlink()
    for path in trained.run.rglob("*"):
        if path.is_file():
            path.unlink()
    tested = sppnet("test", f"checkpoint={lone}", "views=warp")
    assert tested.code == 0, tested.err
    assert "run directory" not in tested.out


def test_a_run_is_tested_without_the_weights_that_it_started_from(sppnet: Caller, tmp_path: Path) -> None:
    torch.save(Tiny(4).state_dict(), tmp_path / "start.pth")
    words = ("backbone.weights=start.pth", "backbone.freeze=true", "trainer.max_epochs=1", "pooling.rule=padded")
    trained = sppnet("train", *SMALL, *words, "pyramid.bins=[1]", "data.aspect_step=0.5")
    assert trained.err == "sppnet: warning: data.aspect_step has no effect with data.fit=crop\n"
    run = trained.run
    (tmp_path / "start.pth").unlink()
    for checkpoint in (run, run / "checkpoints/last.ckpt"):
        scored = sppnet("test", f"checkpoint={checkpoint}", "views=warp")
        assert (scored.code, scored.err) == (0, "")  # and keys without effect are not reported again


def test_a_key_without_effect_on_a_test_gives_a_notice(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "trainer.max_epochs=1", "data.aspect_step=0.5").run
    scored = sppnet("test", f"checkpoint={run}", "data.crop_pct=0.5", "data/crop=random_resized")
    assert scored.code == 0
    message = "sppnet: warning: {} has no effect on a test"
    assert scored.err.splitlines() == [message.format("data.crop"), message.format("data.crop_pct")]


def test_label_smoothing_does_not_count_in_what_is_reported(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "trainer.max_epochs=1", "loss.label_smoothing=0.5", "optim.lr=1e-9").run
    plain = sppnet("train", *SMALL, "trainer.max_epochs=1", "optim.lr=1e-9").run
    losses = [json.loads((path / "summary.json").read_text())["test/loss"] for path in (run, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_moved_run_is_found_done_and_tests_the_same(sppnet: Caller, trained: Called, tmp_path: Path) -> None:
    moved = tmp_path / "archive" / trained.run.relative_to("runs")
    moved.parent.mkdir(parents=True)
    trained.run.rename(moved)
    again = sppnet("train", *SMALL, "paths.runs=archive")
    assert "is done" in again.out
    assert again.figure("test/top1") == trained.figure("test/top1")


OF_THE_TRAINING = [
    *("backbone.freeze=true", "pooling=gap", "seed=1", "sizes.train=[20]", "trainer.max_epochs=9"),
    *("augment.color=0.3", "head.dropout=0", "trainer.limit_train_batches=3", "optim.ema=0.9"),
]


@pytest.mark.parametrize("change", some_quick(OF_THE_TRAINING))
def test_a_test_refuses_to_change_what_was_trained(sppnet: Caller, trained: Called, change: str) -> None:
    tested = sppnet("test", f"checkpoint={trained.run}", change)
    assert tested.code == 2
    assert "and test can only change" in tested.err


def test_what_changes_the_meaning_of_gem_is_said(sppnet: Caller) -> None:
    trunk = ("backbone=torchvision", "backbone.name=mobilenet_v3_small", "sizes.train=[40,32]", "sizes.test=[40]")
    small = [word for word in SMALL if not word.startswith(("backbone", "sizes"))]
    done = sppnet("train", *small, *trunk, "pooling=gem", "trainer.precision=bf16-true", "trainer.max_epochs=1")
    assert done.code == 0, done.err
    assert "gem takes negative values for 0, and " in done.err
    assert "steps below about 0.01 are rounded away; with bf16-mixed, it is float32" in done.err
    assert "gem takes" not in sppnet("train", *SMALL, "pooling=gem", "trainer.max_epochs=1").err
    fixed = sppnet("train", *SMALL, "pooling=gem", "pooling.learn_p=false", "trainer.precision=bf16-true")
    assert fixed.code == 0, fixed.err
    assert "rounded" not in fixed.err
    double = sppnet("train", *SMALL, "pooling=gem", "trainer.precision=64-true", "trainer.max_epochs=1")
    assert double.code == 0, double.err
    assert "gem takes" not in double.err


OPTIONS = [
    ["optim=adamw", "trainer.gradient_clip_val=1.0", "loss.label_smoothing=0.1", "data.split.val=0"],
    ["trainer.precision=bf16-mixed", "compute.channels_last=true", "trainer.accumulate_grad_batches=2"],
    ["loss=bce", "optim.ema=0.9", "sizes=weighted", "sizes.train=[24,20]", "sizes.weights=[0.5,0.5]"],
    ["data.fit=full", "views=full", "data.num_workers=2", "augment.color=0.1", "data/crop=random_resized"],
    ["logger=tensorboard", "pooling=gap", "sizes=uniform", "sizes.train=[20,24]"],
    ["logger=wandb", "pooling=flatten", "pooling.output_size=2", "sizes=single", "sizes.train=[24]"],
]


@pytest.mark.parametrize("options", some_quick(OPTIONS))
def test_options_train_and_test(sppnet: Caller, options: list[str]) -> None:
    done = sppnet("train", *SMALL, *options)
    assert done.code == 0, done.err
    assert records(done.run)[-1]["step"] == (4 if "trainer.accumulate_grad_batches=2" in options else 8)
    [tested] = [json.loads(path.read_text()) for path in (done.run / "tests").iterdir()]
    hits = tested["metrics"]["test/top1"] * tested["images"]
    assert hits == pytest.approx(round(hits), abs=1e-3)  # of so many images
    assert done.figure("test/top1") == pytest.approx(hits / tested["images"], abs=1e-4)
    assert ("the test split is also the validation split" in done.err) == ("data.split.val=0" in options)
    for option, pattern in (("logger=wandb", "wandb/offline-run-*"), ("logger=tensorboard", "tensorboard/events*")):
        assert bool(list(done.run.glob(pattern))) == (option in options)


@pytest.mark.parametrize("precision", some_quick(["32-true", "bf16-true", "64-true"]))
def test_ema_weights_are_the_ones_tested(sppnet: Caller, precision: str) -> None:
    """Averages are at least float32, and a validation rounds neither them nor the weights."""
    words = (*SMALL, f"trainer.precision={precision}", "checkpointing.every_n_steps=null")
    plain = sppnet("train", *words)
    averaged = sppnet("train", *words, "optim.ema=0.99")
    average = weights(averaged.run / "checkpoints/last.ckpt")["network.backbone.conv2.0.weight"]
    assert average.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    coarser = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert (average == average.to(coarser).to(average.dtype)).all() == (precision == "32-true")
    tested = sppnet("test", f"checkpoint={averaged.run}", "force=true")
    assert tested.figure("test/loss") == averaged.figure("test/loss")
    assert not same_weights(plain.run / "checkpoints/last.ckpt", averaged.run / "checkpoints/last.ckpt")
    checkpoint = torch.load(averaged.run / "checkpoints/last.ckpt", weights_only=True)
    trained = torch.load(plain.run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(checkpoint["current_model_state"][key], trained[key]) for key in trained)


@pytest.mark.slow
def test_compile_in_place_keeps_the_keys(sppnet: Caller) -> None:
    plain = sppnet("train", *SMALL, "trainer.max_epochs=1")
    compiled = sppnet("train", *SMALL, "trainer.max_epochs=1", "compute.compile=true")
    assert compiled.code == 0, compiled.err
    keys = [
        set(torch.load(d.run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]) for d in (plain, compiled)
    ]
    assert keys[0] == keys[1]
    assert not [key for key in keys[1] if "_orig_mod" in key]


@pytest.mark.parametrize(("steps", "message"), [(4, "at step 1 "), (1, "the network's scores at input size 24 are")])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(sppnet: Caller, steps: int, message: str) -> None:
    """Also if it happens in the last step."""
    done = sppnet("train", *SMALL, "optim=sgd", "optim.lr=1e30", "trainer.max_epochs=1", *limits(steps))
    assert done.code == 1
    [line] = done.err.strip().splitlines()
    assert message in line
    assert ("learning rate 1e+30" in line) == (steps > 1)
    status = json.loads(next(Path("runs").rglob("status.json")).read_text())
    assert status["state"] == "failed"
    assert message in status["reason"]


def test_weights_are_the_same_for_any_number_of_workers(sppnet: Caller) -> None:
    in_process = sppnet("train", *SMALL, "paths.runs=a", "augment.color=0.1").run
    two_workers = sppnet("train", *SMALL, "paths.runs=b", "augment.color=0.1", "data.num_workers=2").run
    assert in_process.name == two_workers.name
    assert same_weights(in_process / "checkpoints/last.ckpt", two_workers / "checkpoints/last.ckpt")
    assert (in_process / "metrics.jsonl").read_bytes() == (two_workers / "metrics.jsonl").read_bytes()


def test_help_and_cfg_work_as_in_hydra(sppnet: Caller) -> None:
    for words in (["train", "--help"], ["test", "--help"], ["train", "--cfg", "job"]):
        shown = sppnet(*words)
        assert shown.code == 0, shown.err
        assert "sizes" in shown.out
    assert all(command in sppnet().out for command in cli.COMMANDS)
    assert sppnet("--version").out.startswith("sppnet 0.")


def test_a_test_shows_what_was_typed_whatever_the_run_was_resumed_with(sppnet: Caller) -> None:
    first = sppnet("train", *SMALL, "views=full", "sizes.test=[32]")
    (first.run / "status.json").unlink()  # as after a stop
    sppnet("train", *SMALL, "views=warp", "sizes.test=[20]")
    tested = sppnet("test", f"checkpoint={first.run}", "views=full", "sizes.test=[32]", "force=true")
    assert tested.figure("test/top1") == first.figure("test/top1")
    assert tested.figure("test/loss") == first.figure("test/loss")
    configs = [json.loads(path.read_text())["identity"]["config"] for path in (first.run / "tests").glob("*.json")]
    assert {(config["views"]["fit"], *config["sizes"]["test"]) for config in configs} == {("full", 32), ("warp", 20)}


def test_force_is_for_one_call(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "force=true").run
    sppnet("test", f"checkpoint={run}", "views=warp")
    stamps = [path.stat().st_mtime_ns for path in sorted((run / "tests").iterdir())]
    sppnet("test", f"checkpoint={run}", "views=warp")
    assert stamps == [path.stat().st_mtime_ns for path in sorted((run / "tests").iterdir())]


def test_a_test_that_is_cut_short_is_another_test(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, *limits(None), "trainer.max_epochs=1").run
    counted = set()
    for words in ([], ["trainer.limit_test_batches=1"], ["trainer.limit_test_batches=1", "data.batch_size=64"]):
        sppnet("test", f"checkpoint={run}", *words)
        counted.add(len(list((run / "tests").iterdir())))
    assert counted == {1, 2, 3}


@pytest.mark.parametrize("fit", ["crop", "full"])
def test_a_validation_and_a_test_that_are_cut_short_see_a_mixture_of_classes(tmp_path: Path, fit: str) -> None:
    digits_as_files(tmp_path)
    words = ["data=folder", f"data.root={tmp_path}", "data.num_workers=0", "data.batch_size=16"]
    cfg = compose_config([*words, f"data.fit={fit}", f"views={fit.replace('crop', 'center')}"])
    by_seed = []
    for seed in (0, 1):  # the run's seed does not matter
        sets, schedule = load_splits(cfg.data), build_sizes(cfg.sizes)
        data = DataModule(sets, schedule, cfg.data, cfg.augment, cfg.views, seed, tmp_path)
        data.trainer = L.Trainer(accelerator="cpu", limit_val_batches=1, limit_test_batches=1, logger=False)
        loaders: Any = (data.val_dataloader()[0], data.test_dataloader()[0])
        batches = [list(loader.batch_sampler) for loader in loaders]
        by_seed.append([[item.index for items in from_loader for item in items] for from_loader in batches])
        for indices in by_seed[-1]:
            assert len({data.sets.images.label(index) for index in indices}) > 3
    assert by_seed[0] == by_seed[1]


def digits_as_files(root: Path, classes: int = 10) -> None:
    """Write every sixth digit as a file, in class folders."""
    digits = Digits()
    for index in range(0, 1797, 6):
        if digits.label(index) < classes:
            path = root / str(digits.label(index)) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            digits.read(index).save(path)


def test_images_are_normalised_as_in_training_whatever_set_is_tested(
    sppnet: Caller, trained: Called, tmp_path: Path
) -> None:
    run = trained.run
    digits_as_files(tmp_path / "files")
    (tmp_path / "files/0").rename(tmp_path / "files/00")  # a class that the network does not know, first in the order
    folder = ("data=folder", "data.root=files", "data.num_workers=0")
    other = (f"checkpoint={run}", *folder, "trainer.limit_test_batches=null")
    for _ in range(2):  # the second time the stored result is shown, with the same notices
        tested = sppnet("test", *other)
        assert tested.code == 0, tested.err
        assert "not the data set that the network was trained on" in tested.err
        assert "that the network does not know are left out (00)" in tested.err
        assert "no images of 1 of the network's 10 classes (0)" in tested.err
    records = [json.loads(path.read_text()) for path in (run / "tests").iterdir()]
    [record] = [result for result in records if result["identity"]["config"]["data"]["_target_"].endswith("Folder")]
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert record["identity"]["config"]["data"]["mean"] == stored["data"]["mean"]
    shutil.rmtree(tmp_path / "files/00")
    words = (f"checkpoint={run}", "input=files", "output=-", "views=center", "sizes.test=[24]", "data.num_workers=0")
    rows = [json.loads(line) for line in sppnet("predict", *words).out.splitlines()]
    hits = [row["file"].split("/")[1] == row["classes"][0]["class"] for row in rows]
    assert len(hits) == record["images"] == tested.figure("images")
    assert record["metrics"]["test/top1"] == pytest.approx(sum(hits) / len(hits))
    refused = sppnet("test", f"checkpoint={run}", "data.mean=[0.5,0.5,0.5]")
    assert refused.code == 2
    assert "data.mean" in refused.err


def test_a_test_never_sees_images_that_were_trained_on(sppnet: Caller, trained: Called) -> None:
    run = trained.run
    refused = sppnet("test", f"checkpoint={run}", "data.split.seed=1")
    assert refused.code == 2
    assert "would be tested on training images" in refused.err


def test_a_class_without_test_images_does_not_count_against_the_mean(sppnet: Caller, tmp_path: Path) -> None:
    for part, classes in {"train": 10, "val": 3}.items():
        digits_as_files(tmp_path / "files" / part, classes)
    words = (
        *("data=folder", "data.root=files", "augment.flip=false", "data.num_workers=0"),
        *("sizes.train=[32]", "compute.num_threads=1"),
    )
    done = sppnet("train", *words, "sizes=single", "backbone.width=8", "trainer.max_epochs=8", "progress=none")
    assert done.code == 0, done.err
    [record] = [json.loads(path.read_text()) for path in (done.run / "tests").iterdir()]
    assert done.err.count(f"has no test/: the {record['images']} images of val/ are its test part") == 1
    accuracy = record["per_class"]["32"]
    assert [accuracy[str(digit)] for digit in range(3, 10)] == [None] * 7
    tested = [accuracy[str(digit)] for digit in range(3)]
    assert record["metrics"]["test/class_accuracy"] == pytest.approx(sum(tested) / 3)
    assert max(tested) > 0


def test_a_damaged_checkpoint_gives_one_line_and_training_resumes_from_the_other(sppnet: Caller) -> None:
    run = sppnet("train", *SMALL, "optim.lr=0.05").run
    last, best = run / "checkpoints/last.ckpt", run / "checkpoints/best.ckpt"
    intact, expected_records = {path: path.read_bytes() for path in (last, best)}, records(run)

    def again(damaged: tuple[Path, ...], missing: tuple[Path, ...] = ()) -> tuple[int, str]:
        (run / "status.json").unlink(missing_ok=True)
        for path in (last, best):
            path.write_bytes(intact[path])
            if path in damaged:
                flip(path)
            if path in missing:
                path.unlink()
        done = sppnet("train", *SMALL, "optim.lr=0.05")
        lines = done.err.splitlines()
        assert len(lines) == 1, done.err
        if done.code == 0:
            assert records(run) == expected_records
        return done.code, lines[0]

    code, line = again(damaged=(last,))
    assert code == 0
    assert f"{last} cannot be read" in line
    assert "resuming from best.ckpt at step" in line
    code, line = again(damaged=(last, best))
    assert code == 1
    assert f"{last} cannot be read" in line
    assert f"{best} cannot be read" in line
    assert "force=true" in line
    code, line = again(damaged=(best,), missing=(last,))
    assert code == 1
    assert "last.ckpt is missing" in line
    code, line = again(damaged=(), missing=(last,))
    assert code == 0
    assert "last.ckpt is missing; resuming from best.ckpt" in line
    other = sppnet("train", *SMALL, "optim.lr=0.04").run
    intact[last] = (other / "checkpoints/last.ckpt").read_bytes()  # a checkpoint copied here by mistake
    code, line = again(damaged=())
    assert code == 0
    assert f"{last} belongs to a different run ({other.name[-10:]}); resuming from best.ckpt" in line
    flip(best)
    (run / "status.json").unlink()
    done = sppnet("train", *SMALL, "optim.lr=0.05")  # trained to the end, but the best weights are damaged
    assert done.code == 1
    assert "unless a later epoch scores higher" in done.err.splitlines()[0]
    assert f"nothing to test: checkpoint={best} cannot be read" in done.err.splitlines()[-1]
    assert done.err.splitlines()[-1].endswith("; force=true starts the run from scratch")
    refused = sppnet("test", f"checkpoint={best}")
    assert refused.code == 2
    assert "does not match its checksum" in refused.err
    best.unlink()
    last.unlink()
    assert sppnet("train", *SMALL, "optim.lr=0.05").code == 0
