"""Names stay as they were typed, even if Hydra's grammar or YAML would read them as numbers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from calling import Caller, command
from sppnet.config import command_line, option_files, overrides
from sppnet.config.compose import compose_config, compose_plain, expand_sweep
from sppnet.config.keys import value_of
from sppnet.errors import UserError


def composed(sppnet: Caller, *typed: str) -> Any:
    called = sppnet("train", *typed, "--cfg", "job")
    assert called.code == 0, called.err
    return yaml.safe_load(called.out)


NAMES = ["2024", "2024_05", "1e3", "0x10", "007", "true", "No", "inf", "1_0.5", "2024-05-01", "1:30", "+5", "a=0.1"]


@pytest.mark.slow
def test_names_are_kept_as_they_were_typed(sppnet: Caller) -> None:
    for key in ("study", "name", "data.name", "backbone.name", "paths.runs", "report.compare"):
        name = f"tiny-{NAMES[-1]}" if key == "backbone.name" else NAMES[-1]  # a label begins with its network's name
        cfg = compose_config([overrides.quote_names(f"{key}={name}")])
        assert value_of(cfg.plain(), key) == name
    for name in NAMES:
        plain = compose_plain("train", [overrides.quote_names(f"study={name}"), overrides.quote_names(f"+name={name}")])
        assert (plain["study"], plain["name"]) == (name, name)
        twice = overrides.quote_names(overrides.quote_names(f"study={name}"))
        assert compose_plain("train", [twice])["study"] == name  # as in the jobs of a sweep
    wandb = ("project=2024_05", "entity=007", "tags=[2024_05,a,'1_0',true]")
    shown = composed(sppnet, "study=2024_05", "name=null", "logger=wandb", *(f"logger.wandb.{word}" for word in wandb))
    assert (shown["study"], shown["name"]) == ("2024_05", None)
    assert shown["logger"]["wandb"] | {"mode": None} == {
        **{"project": "2024_05", "entity": "007", "tags": ["2024_05", "a", "1_0", "true"], "mode": None}
    }


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("study=2024_05,b,'1_0'", "study='2024_05',b,'1_0'"),
        ("study=choice(1_0,b)", "study=choice('1_0',b)"),
        ("name=null,5", "name=null,'5'"),
        ("draw=true", "draw=true"),
        ("draw=2024_05", "draw='2024_05'"),
        ("backbone=18", "backbone='18'"),
        ("pyramid=[4,2,1]", "pyramid=[4,2,1]"),
        ("seed=1_0", "seed=1_0"),
        ("study='a, 5'", "study='a, 5'"),
        ("study=${seed}", "study=${seed}"),
        ("~study", "~study"),
        ("checkpoint=~/a(1)", "checkpoint='~/a(1)'"),
        ("trainer.max_epochs=2", "trainer.max_epochs=2"),
        ("trainer.min_epochs=2", "++trainer.min_epochs=2"),  # an argument of the Trainer that conf/ does not list
        ("+trainer.profiler=simple", "++trainer.profiler=simple"),
    ],
)
def test_only_what_would_be_misread_is_rewritten(word: str, expected: str) -> None:
    assert overrides.quote_names(word) == expected


def test_a_number_for_a_name_in_a_file_is_refused_since_it_is_not_as_it_was_typed(
    sppnet: Caller, tmp_path: Path
) -> None:
    (tmp_path / "own/debug").mkdir(parents=True)
    (tmp_path / "own/debug/mine.yaml").write_text("# @package _global_\ndebug: {traceback: false}\nstudy: 2024_05\n")
    called = sppnet("train", "--config-dir", "own", "debug=mine")
    assert (called.code, called.err.count("\n")) == (2, 1)
    assert "study=202405 is a number in YAML" in called.err
    text = "# @package _global_\ndebug: {traceback: false}\nhydra: {sweeper: {params: {name: 2024_05}}}\n"
    (tmp_path / "own/debug/mine.yaml").write_text(text)
    called = sppnet("train", "-m", "--config-dir", "own", "debug=mine")
    assert (called.code, called.err.count("\n")) == (2, 1)
    assert "hydra.sweeper.params must give name a string; put the value in two pairs of quotes" in called.err
    with pytest.raises(UserError, match="name=true is a boolean"):
        compose_config(["name=true"])


def test_a_sweep_over_names_makes_runs_of_these_names(sppnet: Caller, tmp_path: Path) -> None:
    (tmp_path / "own/debug").mkdir(parents=True)
    (tmp_path / "own/debug/mine.yaml").write_text(
        "# @package _global_\ndebug: {traceback: false}\nhydra:"
        " {sweeper: {rows: {a: {set: [name=1_0]}, b: {set: [name=b]}}, params: {study: '2024_05,7'}}}\n"
    )
    called = sppnet("train", "-m", "--config-dir", "own", "debug=mine", "optim.lr=-1")
    assert called.code == 2
    assert {line.split("study=")[1].split()[0] for line in called.out.splitlines() if "study=" in line} == {
        "'2024_05'",
        "'7'",
    }
    assert "name='1_0'" in called.out


def test_hydras_errors_are_one_line_without_asserts_too(tmp_path: Path) -> None:
    for word in ("optim.lr={a:1}", "seed=choice(1,2)"):
        done = subprocess.run(
            [sys.executable, "-O", *command("train", "-m", word)[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "PYTHONOPTIMIZE" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash: completion stays untested")
def test_the_shell_completes_as_the_readme_says(tmp_path: Path) -> None:
    ask = (
        'eval "$(sppnet -sc install=bash)"; for line in "sppnet pre" "sppnet train backbone=z" "sppnet status exp"'
        ' "sppnet test views=f"; do'
        " COMP_LINE=$line; COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_POINT=${#line};"
        ' hydra_bash_completion; echo "${COMPREPLY[@]}"; done'
    )
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", ask], cwd=tmp_path, env=os.environ | {"PATH": search_path}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["predict", "backbone=zf5", "experiments", "views=full"]


def test_typed_words_replace_those_of_a_file_that_say_the_same() -> None:
    """`pooling={...}` sets a key of the pooling, but chooses none."""
    for word in ("pooling.pool=avg", "++pooling.pool=avg", "pooling={pool: avg}"):
        assert len(expand_sweep("train", ["experiments=heads", word])[0]) == 15
        assert len(expand_sweep("train", ["experiments=pooling", word])[0]) == 5
    assert len(expand_sweep("train", ["experiments=heads", "pooling=gap"])[0]) == 5
    assert len(expand_sweep("train", ["experiments=pooling", "pooling={pool: max},{pool: avg}"])[0]) == 10
    assert len(expand_sweep("train", ["experiments=heads", "pooling=choice({pool: max},{pool: avg})"])[0]) == 30
    mappings = ["trainer= {max_epochs: 1}", "trainer={limit_train_batches: 2}"]
    [job] = expand_sweep("train", mappings)[0]
    trainer = compose_config(job.overrides).trainer
    assert (trainer.max_epochs, trainer.limit_train_batches) == (1, 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "3,4"), ("optim.lr", "0.1"), ("name", "2024_05"), ("sizes.test", "[28]"), ("data.root", "a b(1)")],
)
def test_an_environment_variable_is_read_as_if_its_value_were_typed(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    """Two sweeps with different values then have different words, and so are different points of their study."""
    monkeypatch.setenv("SET", value)

    def normalise(text: str) -> str:
        return command_line.normalise("train", [f"{key}={text}"])[0]

    nested, decoded = "${oc.env:NOT_SET,${oc.env:SET}}", "${oc.decode:${oc.env:SET}}"
    for text in ("${oc.env:SET}", "${oc.env:SET,1}", nested, decoded, f"'{decoded}'"):
        assert normalise(text) == normalise(value)
    assert normalise('"${oc.env:SET}"') == normalise(f'"{value}"')
    assert normalise("'${oc.env:NOT_SET,null}'") == normalise("null")
    deeper = "${oc.env:NOT_SET,${oc.env:NOT_SET,${oc.env:SET}}}"
    for kept in (
        "'\\${oc.env:SET}'",
        "${oc.env:NOT_SET}",
        "${oc.select:x,${oc.env:SET}}",
        "${oc.env:SET,${seed}}",
        deeper,
    ):
        assert overrides.fill_environment(f"{key}={kept}") == f"{key}={kept}"
    monkeypatch.setenv("SET", "it's ${oc.env:HOME}")
    assert (
        compose_config(command_line.normalise("train", ["paths.runs='${oc.env:SET}'"])).paths.runs == os.environ["SET"]
    )
    typed = "hydra.sweeper.params.seed=${oc.env:SET}"
    assert command_line.normalise("train", [typed]) == [typed], "the sweeper reads it"


def test_an_interpolation_in_an_axis_or_a_row_refers_to_the_job(
    sppnet: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it stands for all values of an axis, or an environment variable for one."""
    for name, value in {"SEEDS": "3,4", "LR": "0.1", "NAME": "2024_05"}.items():
        monkeypatch.setenv(name, value)
    params = "{seed: '${oc.env:SEEDS}', sizes.test: '${sizes.train},[64]', name: '${oc.env:NAME}'}"
    words = "'sizes.train=[28]', 'sizes.val=${oc.select:sizes.train}', 'optim.lr=${oc.decode:${oc.env:LR}}'"
    rows = f"{{a: {{set: [{words}]}}, b: '${{.a}}'}}"
    text = f"defaults: [override /launch: slurm]\nhydra: {{sweeper: {{params: {params}, rows: {rows}}}}}"
    (tmp_path / "own/experiments").mkdir(parents=True)
    (tmp_path / "own/experiments/mine.yaml").write_text(f"# @package _global_\n{text}\n")
    shown = sppnet("status", "--config-dir", "own", "experiments=mine")
    assert (shown.code, shown.out.count("missing")) == (0, 5), "a headline and four runs, although SLURM would run them"
    option_files.use_config_dir(["--config-dir", str(tmp_path / "own")])
    jobs = expand_sweep("train", ["experiments=mine"])[0]
    sizes = [(cfg.seed, cfg.sizes.val, cfg.sizes.test) for cfg in (compose_config(job.overrides) for job in jobs)]
    digest = option_files.digest()
    monkeypatch.setenv("LR", "0.2")
    assert option_files.digest() != digest, "it covers the variables that a file names"
    option_files.use_config_dir([])
    assert all({"optim.lr=0.1", "name='2024_05'"} <= set(job.overrides) for job in jobs), jobs
    assert sizes == [(seed, [28], test) for seed in (3, 4) for test in ([28], [64])], "b is a"


def test_only_keys_that_a_run_may_lack_are_forced() -> None:
    words = ["-m", "layer=fc1", "data.batch_size=8", "views=full", "+data.mine=1", "hydra.mode=RUN", "~seed"]
    assert command_line.force_keys("transfer", words) == words
    forced = ["views.scales=[256]", "data.root=photos", "pooling.bins=[1]", "data={root: photos}"]
    assert command_line.force_keys("train", forced) == forced
    assert command_line.force_keys("transfer", forced) == [f"++{word}" for word in forced]


def test_lists_can_be_typed_as_the_values_of_a_sweep() -> None:
    jobs, _, _ = expand_sweep("train", ["pooling.bins=[6,3,2,1],[4,2,1]", "seed=0"])
    assert [compose_config(job.overrides).pooling.plain()["bins"] for job in jobs] == [[6, 3, 2, 1], [4, 2, 1]]
