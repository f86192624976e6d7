"""The typed configuration: its keys and values, what each key determines, and what a user reads about a mistake."""

from __future__ import annotations

import copy
import inspect
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import lightning
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn

from calling import SMALL, Caller
from sppnet import pyramid
from sppnet.config import command_line, option_files
from sppnet.config.command_schemas import COMMANDS
from sppnet.config.compose import compose_config, compose_plain
from sppnet.config.keys import Key, key_named, keys, nearest
from sppnet.config.load import load, replace
from sppnet.config.marks import Affects, affects, changed_by
from sppnet.config.merge import check_changes, merge
from sppnet.config.overlay import Overlay
from sppnet.config.renamed_keys import RENAMED, RENAMED_OPTIONS
from sppnet.config.schema import MAX_LEVEL, Config, Cosine, NotNegative, Section
from sppnet.config.trainer_arguments import REFUSED, trainer_arguments
from sppnet.errors import UserError
from sppnet.runs.identity import digest, eval_identity, run_identity
from sppnet.training.optim import cosine
from tiers import some_quick

CONF = option_files.root() / "conf"


def composed(*words: str) -> Config:
    """The configuration of `sppnet train WORDS...`."""
    return compose_config(command_line.normalise("train", words))


DEFAULT = composed().plain()
OTHERS = composed("views=ten", "data/crop=random_resized", "optim=sgd", "pooling=flatten", "logger=wandb").plain()


def dotted(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of `node` at every level."""
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")


def put(cfg: dict[str, Any], key: str, *value: Any) -> dict[str, Any]:
    """A copy of `cfg` with another value at `key`, or without the key."""
    changed = copy.deepcopy(cfg)
    *parents, last = key.split(".")
    node = changed
    for part in parents:
        node = node[part]
    if value:
        node[last] = value[0]
    else:
        del node[last]
    return changed


def message(data: dict[str, Any], schema: type[Section] = Config) -> str:
    """The line with which `data` are refused."""
    with pytest.raises(UserError) as caught:
        load(schema, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


WITH_KEY = {key: plain for plain in (OTHERS, DEFAULT) for key in dotted(plain)}


@pytest.mark.parametrize("key", WITH_KEY)
def test_no_key_of_a_run_can_be_spoiled_or_taken_away_unnoticed(key: str) -> None:
    known, plain = key_named(Config, key), WITH_KEY[key]
    if known is None:  # an argument of a class, which checks it itself
        assert key in {"backbone.width", "optim.momentum"}
        return
    assert key in message(put(plain, key, object()))
    if known.field.is_required():
        assert key in message(put(plain, key))
    else:
        load(Config, put(plain, key))


NAME = "a name of at most 100 letters, digits and . _ + = - that starts with a letter or digit (it names a directory)"
BATCHES = "null or an integer of at least 1, or a number greater than 0 and at most 1"
WRONG_VALUES = [
    ("seed", -1, "seed=-1 is not allowed: must be an integer of at least 0"),
    ("seed", True, "seed=true is not allowed: must be an integer of at least 0"),
    ("seed", "007", "seed=007 is not allowed: must be an integer of at least 0, without leading zeros"),
    ("optim.lr", 0, "optim.lr=0 is not allowed: must be a number greater than 0"),
    ("optim.lr", float("nan"), "optim.lr=nan is not allowed: must be a number greater than 0"),
    ("optim.lr", float("inf"), "optim.lr=inf is not allowed: must be a number greater than 0"),
    ("optim.lr", "0.1", "optim.lr='0.1' is a quoted string: must be a number greater than 0, without quotes"),
    ("optim.ema", 1, "optim.ema=1 is not allowed: must be null or a number greater than 0 and less than 1"),
    ("head.dropout", 1, "head.dropout=1 is not allowed: must be a number of at least 0 and less than 1"),
    ("head.hidden", [0], "head.hidden=[0] is not allowed: must be a list, each item an integer from 1 to 1048576"),
    ("force", 1, "force=1 is not allowed: must be true or false"),
    ("study", "a b", f"study=a b is not allowed: must be {NAME}"),
    ("study", 2024, f"study=2024 is a number in YAML, but must be {NAME}; quote it in the file"),
    ("name", True, f"name=true is a boolean in YAML, but must be null or {NAME}; quote it in the file"),
    ("paths.runs", " ", "is not allowed: must be a non-empty string"),
    ("sizes.train", ["024"], "must be a non-empty list, each item an integer from 1 to 8192, without leading zeros"),
    ("pooling.pool", "mean", "pooling.pool=mean is not allowed: must be one of max, avg"),
    ("pooling.name", "mean", "pooling.name=mean is not allowed: must be one of spp, gap, avgmax, gem, lse, flatten; a"),
    ("pooling", {}, "pooling.name is missing; it is required"),
    ("pooling", "spp", "pooling=spp is not allowed: must be a mapping"),
    (
        "data.mean",
        [0.5, 2, 0],
        "data.mean=[0.5, 2, 0] is not allowed: must be three numbers from 0 to 1, for red, green",
    ),
    ("data.std", [0, 1, 1], "data.std=[0, 1, 1] is not allowed: must be three numbers from 1e-06 to 1, for red, green"),
    ("data.crop.scale", [1, 0.5], "must be two numbers greater than 0 and at most 1, in ascending order"),
    ("data.split.val", 0.85, "data.split.val=0.85 and data.split.test=0.15 leave nothing to train on"),
    ("data.cache", True, "data.cache=true requires data.short_side; set data.short_side=256, for example"),
    ("views.positions", 7, "views.positions=7 is not allowed: must be one of 5, 9"),
    ("views.scales", [256, 256], "must be a non-empty list without repeats, each item an integer from 1 to 8192"),
    (
        "trainer.devices",
        0,
        "must be an integer from 1 to 1024, or a non-empty list without repeats, each item an integer from 0 to 1023",
    ),
    ("trainer.deterministic", "maybe", "trainer.deterministic=maybe is not allowed: must be true or false, or warn"),
    ("trainer.precision", "bf16", "must be one of 32-true, bf16-mixed, 16-mixed, bf16-true, 64-true"),
    (
        "trainer.gradient_clip_val",
        0,
        "trainer.gradient_clip_val=0 is not allowed: must be null or a number greater than 0",
    ),
    ("trainer.limit_val_batches", 1.5, f"trainer.limit_val_batches=1.5 is not allowed: must be {BATCHES}"),
    (
        "trainer.strategy",
        "ddp_spawn",
        "trainer.strategy=ddp_spawn is not allowed: it starts processes that cannot resume",
    ),
    ("logger.wandb.tags", [7], "logger.wandb.tags=[7] is not allowed: must be a list, each item a non-empty string"),
    (
        "report.metrics",
        ["map", "map"],
        "must be null or a non-empty list without repeats, each item a name of at most 100",
    ),
    ("compute", 3, "compute=3 is not allowed: must be a mapping"),
    ("callbacks.mine", 5, "callbacks.mine=5 is not allowed: must be a mapping"),
    ("backbone._target_", None, "backbone._target_=None is not the dotted name of a public class"),
    (
        "backbone._target_",
        "os.system",
        "backbone._target_=os.system is not allowed; the name must match one of sppnet.*",
    ),
]
WRONG_KEYS = [
    ("report.figur", "did you mean report.figure? report has compare, figure, metrics"),
    ("compute.threads", "did you mean compute.num_threads? compute has channels_last, compile, num_threads"),
    ("data.split.vol", "did you mean data.split.val? data.split has fold, seed, test, val"),
    ("trainer.devicez", "did you mean trainer.devices? trainer has the arguments of lightning.Trainer: accelerator"),
    ("logger.tensorboard.x", "logger.tensorboard has no keys"),
    ("sead", "did you mean seed? the top level has augment, backbone, callbacks"),
    ("layout", "the top level has augment, backbone, callbacks"),
    ("data.crop.positions", "it exists with data/crop=paper; data.crop has name, ratio, scale"),
    ("optim.schedule.warmup", "it exists with optim/schedule=cosine; optim.schedule has drops, factor, name, patience"),
]


@pytest.mark.parametrize(("key", "value", "text"), WRONG_VALUES, ids=lambda v: str(v)[:30])
def test_a_wrong_value_is_refused_with_what_is_allowed(key: str, value: Any, text: str) -> None:
    plain = put(OTHERS, "callbacks", {"mine": {"_target_": "lightning.pytorch.callbacks.Timer"}})
    assert text in message(put(plain, key, value))


@pytest.mark.parametrize(("key", "text"), WRONG_KEYS)
def test_an_unknown_key_is_refused_with_the_nearest_and_all_that_there_are(key: str, text: str) -> None:
    plain = put(OTHERS, "logger.tensorboard", {})
    found = message(put(plain, key, 1))
    assert found.startswith(f"unknown key {key}")
    assert text in found


WRONG_WORDS = [
    (["seeed=1"], "unknown key seeed; did you mean seed? the top level has augment, backbone"),
    (["augment.colour=1"], "unknown key augment.colour; did you mean augment.color? augment has color, erasing,"),
    (["data.batchsize=8"], "add another argument of its class with +data.batchsize=VALUE"),
    (
        ["pooling=gap", "pooling.bins=[4]"],
        "unknown key pooling.bins with pooling.name=gap; it exists with pooling=spp; pooling has name",
    ),
    (
        ["pooling.output_size=3"],
        "unknown key pooling.output_size with pooling.name=spp; it exists with pooling=flatten",
    ),
    (
        ["data.crop.scale=[0.5,1]"],
        "unknown key data.crop.scale with data.crop.name=paper; it exists with data/crop=random_resized",
    ),
    (["optim.schedule.drops=1"], "unknown key optim.schedule.drops with optim.schedule.name=cosine; it exists"),
    (
        ["views=full", "views.crop_pct=0.5"],
        "unknown key views.crop_pct with views.fit=full; it exists with views=center; views has aspect_step",
    ),
    (
        ["pooling=mean"],
        "Could not find 'pooling/mean'; available options are avgmax, class, flatten, gap, gem, lse, spp",
    ),
    (["optim/schedule=step"], "available options are constant, cosine, plateau"),
    (["hydra.launcher.partition=a"], "unknown key hydra.launcher.partition; it exists with launch=slurm"),
    (["trainer.devicez=1"], "unknown key trainer.devicez; did you mean trainer.devices?"),
]


@pytest.mark.parametrize(("words", "text"), WRONG_WORDS, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_wrong_override_is_refused_with_the_option_that_has_the_key(words: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        composed(*words)
    assert text in str(caught.value)


@pytest.mark.parametrize(("old", "new"), some_quick(RENAMED.items(), 4))
def test_an_old_name_is_answered_with_the_new_one(old: str, new: str) -> None:
    assert f"`{old}" in (option_files.root() / "CHANGELOG.md").read_text()
    for word in (f"{old}=1", f"+{old}=1"):
        if word != "+data.crop.ratio=1":
            with pytest.raises(UserError, match=f"^{re.escape(f'unknown key {old}; it is now called {new}')}$"):
                composed(word)


@pytest.mark.parametrize(("old", "new"), RENAMED_OPTIONS.items())
def test_an_old_name_of_an_option_is_answered_with_the_new_one(old: str, new: str) -> None:
    assert f"`{old}`" in (option_files.root() / "CHANGELOG.md").read_text()
    with pytest.raises(UserError, match=f"{old} is now called {new}"):
        composed(old)


# Adding a key: one line in conf/, one in the schema


def settings(path: Path) -> Iterator[tuple[str, bool]]:
    """The keys that an option file sets, and whether a comment explains them (beside, above or at the section)."""
    text = path.read_text()
    lines = text.splitlines()
    group = path.parent.relative_to(CONF).as_posix()
    at_the_top = group == "." or "@package _global_" in text

    def walk(node: Any, prefix: str, explained: bool) -> Iterator[tuple[str, bool]]:
        for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
            line = name.start_mark.line
            here = explained or "#" in lines[line] or (line > 0 and lines[line - 1].lstrip().startswith("#"))
            yield f"{prefix}{name.value}", here
            yield from walk(value, f"{prefix}{name.value}.", here)

    for key, explained in walk(yaml.compose(text), "" if at_the_top else f"{group.replace('/', '.')}.", False):
        if not re.search(r"(^|\.)defaults|^hydra", key):
            yield key, explained


# Keys whose name says all that a comment would say.
CLEAR = {
    *("seed", "split_seed", "paths.runs", "data.name", "data.std", "sizes.train"),
    *("optim.lr", "optim.weight_decay", "compute.channels_last", "views.fit"),
    *("trainer.deterministic", "trainer.num_nodes", "trainer.log_every_n_steps"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches"),  # explained with limit_train_batches
    *("logger.wandb.project", "logger.wandb.entity", "logger.wandb.tags"),
}
# What the classes in conf/ take besides; the schema leaves it to them.
ARGUMENTS = {"backbone.arch", "backbone.convolutions", "backbone.drop_path", "backbone.width"} | {
    *("data.background", "data.folder", "optim.momentum", "sizes.epochs", "sizes.step", "sizes.weights"),
    *("data.columns", *(f"data.columns.{name}" for name in ("path", "label", "split", "group"))),
}


def test_conf_sets_and_explains_the_keys_of_the_schema_and_no_others() -> None:
    set_keys: dict[str, bool] = {}
    for path in CONF.rglob("*.yaml"):
        for name, explained in settings(path):
            set_keys[name] = set_keys.get(name, False) or explained
    known = {key.name: key for schema in COMMANDS.values() for key in keys(schema)}
    assert set_keys.keys() - known.keys() == ARGUMENTS
    groups = {group.replace("/", ".") for group in option_files.group_names()}
    missing = {key.name for key in known.values() if key.field.is_required()} - set_keys.keys() - groups
    own = {"pooling", "head", "loss", "trainer.strategy", "trainer.profiler", "augment.transforms"}
    missing -= {f"{name}._target_" for name in own}  # a name is enough
    assert not missing
    tags = {key.variant[0] for key in known.values() if key.variant is not None} - {"views.fit"}
    unexplained = {name for name, explained in set_keys.items() if name in known and not explained}
    unexplained = {name for name in unexplained if not known[name].alternatives and not name.endswith("_target_")}
    assert unexplained - tags == CLEAR


class Mixup(Section):
    alpha: NotNegative
    of: Annotated[Literal["images", "features"], affects.nothing, changed_by("test")]


class WithMixup(Config):
    mixup: Mixup


IMAGES: Any = SimpleNamespace(multilabel=False, fingerprint=lambda: "the images")


def run_hash(cfg: Config) -> str:
    return digest(run_identity(cfg, IMAGES))


def test_a_new_key_takes_one_line_in_conf_and_one_in_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "experiments").mkdir()
    with (tmp_path / "conf/base.yaml").open("a") as file:
        file.write("mixup: {alpha: 0.2, of: images}   # how strongly images are mixed, and where\n")
    monkeypatch.setattr(option_files, "root", lambda: tmp_path)
    monkeypatch.setitem(COMMANDS, "train", WithMixup)

    def grown(*words: str) -> WithMixup:
        return load(WithMixup, compose_plain("train", command_line.normalise("train", words)))

    cfg = grown()
    assert (cfg.mixup.alpha, cfg.mixup.of) == (0.2, "images")
    with pytest.raises(ValidationError, match="frozen"):
        cfg.mixup.alpha = 0.3
    assert run_hash(cfg) != run_hash(composed_with := grown("mixup.alpha=0.4"))
    assert run_hash(composed_with) == run_hash(replace(cfg, {"mixup.alpha": 0.4, "mixup.of": "features"}))
    assert run_hash(cfg) == run_hash(grown("mixup.of=features")), "the mark takes it out of the identity"
    of = key_named(WithMixup, "mixup.of")
    assert of is not None
    assert [of.may_change(command) for command in ("test", "predict")] == [True, False]
    for words, text in (
        ("mixup.alpha=-1", "mixup.alpha=-1 is not allowed: must be a number of at least 0"),
        ("mixup.of=labels", "mixup.of=labels is not allowed: must be one of images, features"),
        ("mixup.alfa=1", "unknown key mixup.alfa; did you mean mixup.alpha? mixup has alpha, of"),
        ("+mixup.alfa=1", "unknown key mixup.alfa; did you mean mixup.alpha? mixup has alpha, of"),
    ):
        with pytest.raises(UserError) as caught:
            grown(words)
        assert str(caught.value) == text
    assert message(cfg.plain()) == message(put(DEFAULT, "mixup", {})), "Config itself has no such key"


def test_where_a_table_is_does_not_count_but_an_own_class_may_take_anything_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ("data=table", "data.file=a.csv")
    others = (["data.file=b/c.tsv"], ["data.separator=;"], ["data.columns={path: id, split: null}"], ["data.root=/x"])
    assert {run_hash(composed(*table, *words)) for words in ([], *others)} == {run_hash(composed(*table))}
    assert composed(*table, "data.separator=;").data.node()["separator"] == ";"
    assert composed(*table, "data.file=my labels (2).csv").data.node()["file"] == "my labels (2).csv"
    (tmp_path / "mine.py").write_text("class Photos: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPPNET_ALLOW", "mine")

    def own(*words: str) -> dict[str, Any]:
        cfg = composed("data._target_=mine.Photos", *words)
        names = ("file", "separator", "columns")
        identities = [run_identity(cfg, IMAGES), eval_identity(cfg, "best", IMAGES)]
        of_run, of_test = ({n: v for n, v in each["config"]["data"].items() if n in names} for each in identities)
        assert of_run == of_test
        return of_run

    pairs = {"pairs": [["b", 1]]}
    for word, value in (("a.txt", "a.txt"), ("7", 7), ("null", None), ("[b,a]", ["b", "a"]), ("{b: 1}", pairs)):
        for name in ("file", "separator", "columns"):
            assert own(f"+data.{name}={word}") == {name: value}
    assert own() == {}


# What a key determines: a run's weights, unless it is listed here. A section stands for its keys. Whoever changes this
# table decides which runs share a result.
DETERMINES = {
    "weights_and_test": "data, trainer.precision",
    "weights": "data.fit, data.batch_size, data.sampling, data.crop, data.crop_pct, data.aspect_step, "
    "checkpointing.monitor, checkpointing.mode",
    "test": "sizes.test, views, metrics",
    # how or where a job runs
    "nothing": "name, progress, data.root, data.num_workers, data.duplicates, data.cache, pooling.kernel, "
    "trainer.accelerator, trainer.log_every_n_steps, trainer.profiler, trainer.enable_model_summary, checkpointing, "
    "logger",
    # what the identity describes in another way, such as by the content of a file
    "by_content": "init, data.name, backbone.name, backbone.weights, pyramid, pooling.name, head.name, loss.name, "
    "trainer.devices, trainer.num_nodes, trainer.strategy, trainer.limit_test_batches, debug",
    # where a job is stored, and whether it runs at all
    "bookkeeping": "study, force, retry, paths, report",
}
# What a command may change of the run whose checkpoint it loads.
MAY_CHANGE = {
    "test": "force, progress, data, sizes.test, pooling.kernel, trainer.accelerator, trainer.precision, "
    "trainer.deterministic, trainer.limit_test_batches, trainer.profiler, compute, views, metrics, paths, debug (but "
    "not data.fit or data.sampling or data.mean or data.std)",
    "predict": "force, progress, data.batch_size, data.num_workers, sizes.test, pooling.kernel, trainer.accelerator, "
    "trainer.precision, trainer.deterministic, compute, views, debug",
    "transfer": "study, force, progress, data, sizes.test, pyramid, pooling.bins, pooling.pool, pooling.rule, "
    "pooling.kernel, trainer.accelerator, trainer.precision, trainer.deterministic, compute, views, paths, debug (but "
    "not data.fit or data.sampling or data.mean or data.std)",
}


def test_each_key_determines_the_weights_unless_it_is_listed() -> None:
    kinds = {value: name for name, value in vars(affects).items() if isinstance(value, Affects)}
    listed: dict[str, list[str]] = {}

    def determines(key: Key | None) -> str:
        return "weights" if key is None else kinds[key.affects]

    for key in keys(Config):
        kind = determines(key)
        if kind != determines(nearest(Config, key.name.rpartition(".")[0])):
            listed.setdefault(kind, []).append(key.name)
    assert {kind: ", ".join(dict.fromkeys(names)) for kind, names in listed.items()} == DETERMINES


@pytest.mark.parametrize("command", MAY_CHANGE)
def test_a_command_says_what_it_may_change_of_a_run(command: str) -> None:
    with pytest.raises(UserError) as caught:
        check_changes(command, {"seed": 0}, {"seed": 1})
    trained = "seed=1 is not allowed: the checkpoint was trained with 0"
    assert str(caught.value) == f"{trained}, and {command} can only change {MAY_CHANGE[command]}"
    full, warp = ({"views": {"name": name}} for name in ("full", "warp"))
    assert merge(command, full, Overlay(warp, {}, groups=frozenset({"views"}))) == warp
    check_changes(command, full, warp)
    assert merge(command, {"seed": 0}, Overlay({"seed": 1}, {}, groups=frozenset({"data"}))) == {"seed": 0}
    assert merge(command, {"seed": 0}, Overlay({}, {"seed": 1})) == {"seed": 1}, "and check_changes refuses it"


# Arguments of the Trainer


def test_trainer_has_the_arguments_of_lightnings_trainer() -> None:
    parameters = [name for name in inspect.signature(lightning.Trainer.__init__).parameters if name != "self"]
    assert list(trainer_arguments()) == parameters
    assert {
        *REFUSED,
        *(key.name.split(".")[1] for key in keys(Config) if key.name.startswith("trainer.")),
    } <= {*parameters}
    words = (
        "trainer.val_check_interval=0.5",
        "trainer.profiler=simple",
        "trainer.strategy=ddp",
        "trainer.min_epochs=2",
    )
    cfg = composed(*words, "trainer.plugins={a: 1}")
    assert (cfg.trainer.val_check_interval, cfg.trainer.profiler, cfg.trainer.strategy) == (0.5, "simple", "ddp")
    assert cfg.trainer.model_extra == {"min_epochs": 2, "plugins": {"a": 1}}
    hashes = [run_hash(composed(word)) for word in ("seed=0", *words)]
    assert [later == hashes[0] for later in hashes[1:]] == [False, True, False, False]
    tests = [digest(eval_identity(composed(word), "best", IMAGES)) for word in ("seed=0", *words)]
    assert len(set(tests)) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_would_break_a_run_is_refused_with_the_reason(name: str) -> None:
    answer = rf"trainer\.{name}=1 is not allowed: {re.escape(REFUSED[name])}"
    with pytest.raises(UserError, match=answer):
        composed(f"trainer.{name}=1")
    assert re.fullmatch(answer, message(put(DEFAULT, f"trainer.{name}", 1)))


def test_a_level_is_as_fine_as_the_pyramid_allows_and_no_finer() -> None:
    pyramid.check_bins([MAX_LEVEL])
    load(Config, put(DEFAULT, "pooling.bins", [MAX_LEVEL]))
    with pytest.raises(ValueError, match="bins"):
        pyramid.check_bins([MAX_LEVEL + 1])
    assert "pooling.bins" in message(put(DEFAULT, "pooling.bins", [MAX_LEVEL + 1]))


# On the command line


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "plateau", "cosine"])
def test_every_optimiser_takes_every_schedule(sppnet: Caller, optim: str, schedule: str) -> None:
    limits = ("trainer.max_epochs=1", "trainer.limit_train_batches=1")
    done = sppnet("train", *SMALL, f"optim={optim}", f"optim/schedule={schedule}", *limits)
    assert done.code == 0, done.err
    assert "warning" not in done.err


WITHOUT_EFFECT = [
    (["pooling=gap", "pyramid=l1_1"], "pyramid has no effect with pooling.name=gap"),
    (["pyramid=l1_1", "pooling.bins=[2,1]"], "pyramid has no effect with pooling.bins=[2, 1]"),
    (["data.fit=full", "data/crop=random_resized"], "data/crop has no effect with data.fit=full"),
    (["data.fit=full", "data.crop.positions=fixed"], "data.crop.positions has no effect with data.fit=full"),
    (["data.fit=full", "data.crop_pct=1"], "data.crop_pct has no effect with data.fit=full"),
    (
        ["trainer.overfit_batches=2", "trainer.limit_val_batches=1"],
        "trainer.limit_val_batches has no effect with trainer.overfit_batches=2",
    ),
    (
        ["trainer.gradient_clip_algorithm=value"],
        "trainer.gradient_clip_algorithm has no effect with trainer.gradient_clip_val=null",
    ),
    (["data.aspect_step=1"], "data.aspect_step has no effect with data.fit=crop"),
    (["data.decode=scaled"], "data.decode has no effect with data._target_=sppnet.data.Digits"),
    (["retry=all"], "retry has no effect with a single job"),
    (["report.compare=x"], "report.compare has no effect with sppnet train; sppnet report takes it"),
    (["head.hidden=[]", "head.dropout=0.9"], "head.dropout has no effect with head.hidden=[]"),
    (
        ["optim.weight_decay=0", "optim.decay_norms=false"],
        "optim.decay_norms has no effect with optim.weight_decay=0.0",
    ),
]


@pytest.mark.parametrize(("words", "text"), WITHOUT_EFFECT, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_typed_setting_without_effect_is_warned_of(sppnet: Caller, words: list[str], text: str) -> None:
    called = sppnet("train", *words, "backbone.weights=no/such.pth")  # ends the run after the warning
    assert called.err.splitlines()[0] == f"sppnet: warning: {text}"


def test_a_setting_that_counts_and_a_default_that_does_not_are_passed_over(sppnet: Caller) -> None:
    counts = ("data/crop=random_resized", "data.crop.scale=[0.5,1]", "data.crop_pct=0.9", "views.crop_pct=0.5")
    called = sppnet("train", *counts, "optim.schedule.warmup=0.1", "backbone.weights=no/such.pth")
    assert "warning" not in called.err


@pytest.mark.parametrize("words", [["seed=1", "--info"], ["--info", "seed=1"], ["-i"], ["seed=1", "--info", "config"]])
def test_hydras_info_stands_before_or_after_overrides(sppnet: Caller, tmp_path: Path, words: list[str]) -> None:
    called = sppnet("train", *words)
    assert called.code == 0, called.err
    assert "alternating" in called.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (20, 0.0), (20, 0.25), (300, 0.05)])
def test_the_cosine_rises_in_equal_parts_and_wastes_no_step(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine(optimizer, Cosine(name="cosine", warmup=warmup), steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    warm = round(warmup * steps)
    assert rates[:warm] == pytest.approx([(i + 1) / (warm + 1) for i in range(warm)])
    assert min(rates) > 0
    if warm < steps:
        assert rates[warm] == 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0)
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
