"""Every option file under `conf/` composes and runs. The cases are read from the folder, so a new file is covered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from calling import Caller
from sppnet.config import option_files
from sppnet.config.compose import compose_config
from sppnet.config.load import load
from sppnet.config.schema import Config

CONF = option_files.root() / "conf"
OPTIONS = [
    (path.parent.relative_to(CONF).as_posix(), path.stem)
    for path in sorted(CONF.rglob("*.yaml"))
    if path.parent != CONF
]
# The other poolings are pyramids of one bin. The other schedule has one size in each epoch, as alternating has. They
# meet only the tiny backbone.
COMPARED = ("spp", "gap", "flatten", "single", "alternating", "uniform", "weighted")
NEEDS = {
    **{"backbone=torchvision": ["backbone.name=resnet18"], "backbone=timm": ["backbone.name=resnet10t"]},
    "pooling=flatten": ["sizes=single"],
    **{f"{slot}=class": [f"{slot}._target_=torch.nn.Flatten"] for slot in ("pooling", "head", "loss")},
}
BACKBONES, POOLINGS, SIZES = (
    [name for option_group, name in OPTIONS if option_group == group and name != "class"]
    for group in ("backbone", "pooling", "sizes")
)


def together() -> list[list[str]]:
    """Every option in one of a few command lines, each of which has an option of every group."""
    groups: dict[str, list[str]] = {}
    for group, name in OPTIONS:
        groups.setdefault(group, []).append(name)
    longest = max(map(len, groups.values()))
    return [[f"{group}={names[i % len(names)]}" for group, names in groups.items()] for i in range(longest)]


@pytest.mark.parametrize("choices", together(), ids=" ".join)
def test_every_option_composes_to_a_valid_configuration(sppnet: Caller, choices: list[str]) -> None:
    needs = [word for choice in choices for word in NEEDS.get(choice, [])]
    shown = sppnet("train", *choices, *needs, "--cfg", "job", "--resolve")
    assert shown.code == 0, shown.err
    load(Config, yaml.safe_load(shown.out))


@pytest.mark.parametrize("command", ["train", "test", "predict", "transfer"])
def test_every_primary_file_composes(sppnet: Caller, command: str) -> None:
    assert sppnet(command, "--cfg", "job").code == 0


def test_every_named_pyramid_says_its_depth_and_its_bins() -> None:
    for path in (CONF / "pyramid").glob("*.yaml"):
        bins = yaml.safe_load(path.read_text())["bins"]
        assert path.stem == f"l{len(bins)}_{'_'.join(map(str, bins))}"


def combinations(sides: tuple[int, int], *extra: str) -> list[list[str]]:
    """The overrides of every allowed backbone x pooling x size schedule, at these input sizes."""
    cases = []
    for backbone in BACKBONES:
        for pooling in POOLINGS:
            for sizes in SIZES:
                if pooling == "flatten" and sizes != "single":
                    continue  # refused: it takes one size only, see test_bad_input
                low, high = sorted(sides)
                train = {"single": [high], "uniform": [low, high], "progressive": [low, high]}.get(sizes, [high, low])
                words = [f"backbone={backbone}", f"pooling={pooling}", f"sizes={sizes}", f"sizes.train={train}"]
                words += ["sizes.weights=[0.5,0.5]"] if sizes == "weighted" else []
                words += NEEDS.get(f"backbone={backbone}", [])
                words += ["pooling.output_size=null"] if pooling == "flatten" else []
                cases.append([word.replace(" ", "") for word in (*words, *extra)])
    return cases


LIMITS = tuple(f"trainer.limit_{part}_batches=2" for part in ("train", "val", "test"))
STEPS = (*LIMITS, "trainer.max_epochs=1", "progress=none", "data.split.val=0.01")


def trains_two_steps(sppnet: Caller, words: list[str]) -> None:
    done = sppnet("train", *words, *STEPS)
    assert done.code == 0, done.err
    metrics = (done.run / "metrics.jsonl").read_text()
    assert '"step": 2,' in metrics


SMALL = ("head.hidden=[8]", "pyramid.bins=[2,1]", "data.batch_size=2", "compute.num_threads=1")
QUICK = [
    words
    for words in combinations((64, 72), *SMALL)
    if words[0] == "backbone=tiny" and (words[2] == "sizes=single" or words[1] == "pooling=spp")
]


@pytest.mark.parametrize("words", QUICK, ids=lambda words: " ".join(words[:3]))
def test_backbone_pooling_and_schedule_train_two_steps(sppnet: Caller, words: list[str]) -> None:
    trains_two_steps(sppnet, words)


def in_pairs(words: list[str]) -> bool:
    """Whether this is one of the combinations in which each backbone meets each pooling and each schedule, and each
    pooling each schedule: the schedules meet the poolings in turns, backbone by backbone."""
    backbone, pooling, sizes = (word.partition("=")[2] for word in words[:3])
    if backbone != "tiny" and sizes not in COMPARED:
        return False
    turn = (BACKBONES.index(backbone) + SIZES.index(sizes)) % 2
    return backbone == "tiny" or pooling == "flatten" or pooling == ("spp", "gap")[turn]


FULL = [words for words in combinations((112, 128), "data.batch_size=4", "compute.num_threads=1") if in_pairs(words)]


def test_among_the_full_networks_is_each_pair_of_option_files() -> None:
    compared = {f"pooling={name}" for name in COMPARED} | {f"sizes={name}" for name in COMPARED}
    every = [words for words in combinations((112, 128)) if words[0] == "backbone=tiny" or compared >= {*words[1:3]}]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert {(words[first], words[second]) for words in FULL} == {(words[first], words[second]) for words in every}


@pytest.mark.slow
@pytest.mark.parametrize("words", FULL, ids=lambda words: " ".join(words[:3]))
def test_backbone_pooling_and_schedule_train_two_steps_at_full_width(sppnet: Caller, words: list[str]) -> None:
    trains_two_steps(sppnet, words)


def test_a_users_folder_joins_the_configuration(sppnet: Caller, tmp_path: Path) -> None:
    """A user's backbone: a class, an option file that names it, `allow=`. Its code is part of a run's identity."""
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n\n\nclass Two(nn.Sequential):\n    def __init__(self, width: int) -> None:\n"
        "        super().__init__(nn.Conv2d(3, width, 5, 4), nn.ReLU())\n"
    )
    (tmp_path / "mine/backbone").mkdir(parents=True)
    (tmp_path / "mine/backbone/two.yaml").write_text(
        "_target_: mynets.Two\nname: two\nweights: null\nfreeze: false\nwidth: 6\n"
    )
    words = ["backbone=two", "sizes=single", "sizes.train=[24]", *SMALL, *STEPS]
    done = sppnet("train", "--config-dir", "mine", "allow=mynets", *words)
    assert done.code == 0, done.err
    refused = sppnet("train", "--config-dir", "mine", *words, "seed=1")
    assert refused.code == 2
    assert "mynets.Two" in refused.err
    for number in range(8):
        path = tmp_path / f"pets/{'cat' if number % 2 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 40), (30 * number, 0, 0)).save(path)
    shutil.copy(done.run / "checkpoints/best.ckpt", tmp_path / "lone.ckpt")
    rows = ["transfer", "--config-dir", "mine", "backbone=two", "data=folder", "data.root=pets", "data.num_workers=0"]
    rows += ["splits=1", "per_class.train=2", "sizes.test=[24]", "compute.num_threads=1", "layer=pool", "allow=mynets"]
    assert sppnet(*rows).code == 0
    with (tmp_path / "mynets.py").open("a") as file:
        file.write("        self[0].weight.data *= 2\n")
    for call in (("test", f"checkpoint={done.run}"), ("predict", "checkpoint=lone.ckpt", "input=pets")):
        called = sppnet(*call, "allow=mynets")
        assert (called.code, "has changed since checkpoint=" in called.err) == (0, True), called.err
    assert " exists " not in sppnet(*rows).out
    tested = [json.loads(path.read_text())["identity"]["weights"] for path in (done.run / "tests").iterdir()]
    assert (len(tested), tested.count("best")) == (2, 1)  # a report does not take the other test for the run's own


def test_composing_in_another_program_minds_none_of_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["notebook", "--collect-only", "-f", "kernel.json"])
    assert compose_config(["seed=3"]).seed == 3
