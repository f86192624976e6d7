"""Random mutations of a configuration: each is refused in one line or can be trained."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sppnet.config.compose import compose_plain
from sppnet.config.load import load
from sppnet.config.schema import Config
from sppnet.config.trainer_arguments import trainer_arguments
from sppnet.errors import UserError
from sppnet.runs.identity import strategy
from sppnet.runs.plan import PlannedRun, plan_run
from sppnet.runs.run_directory import Run
from sppnet.training.preflight import check_job
from sppnet.training.trainer import fit, prepare

COUNT, TRAINED = 3000, 30
BASES: tuple[list[str], ...] = (
    [],
    ["pooling=gap", "optim=sgd", "views=full"],
    ["pooling=flatten", "sizes=single", "optim/schedule=constant", "views=warp"],
    ["sizes=weighted", "data/crop=random_resized", "views=ten", "logger=wandb"],
    ["sizes=uniform", "data.fit=full", "loss=bce", "augment=paper"],
)
SMALL = (
    *("backbone.width=4", "head.hidden=[8]", "trainer.max_epochs=1", "trainer.limit_train_batches=2"),
    *("trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),  # some mutations test at thousands of pixels
)
SCALARS: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 10**12, 0.5, 1.0, -0.5, 1e-9, math.inf, -math.inf, math.nan),
    *(
        "",
        " ",
        "a",
        "1",
        "null",
        "max",
        "auto",
        "ddp",
        "spp",
        "gap",
        "cpu",
        "simple",
        "ä/ö",
        "x" * 300,
        "../x",
        "${seed}",
        "[1]",
    ),
)
COMPOUND: tuple[Any, ...] = (
    *([], [None], [1], [2, 1], [1, 1], [0.5, 1.0], ["a"], [[1]], [{}], list(range(40)), [0.1, 0.2, 0.3]),
    *({}, {"a": 1}, {1: 2}, {"name": "spp"}, {"name": "plateau"}, {"_target_": None}, {"_target_": "os.system"}),
    *(
        {"_target_": "torch.nn.Identity"},
        {"_target_": "torch.optim.SGD", "lr": 0.1},
        {"_target_": "sppnet.data.Single"},
    ),
    {"_target_": "lightning.pytorch.profilers.SimpleProfiler", "filename": {"_target_": "torchvision.io.write_file"}},
    {"x": {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/top1"}},
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping, list and leaf inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from nodes(item, (*path, name))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def mutate(plain: dict[str, Any], rng: random.Random) -> str:
    """Change, drop or add something at a random place of `plain`, and say what."""
    kind = rng.choice(("replace", "replace", "borrow", "nudge", "nudge", "nudge", "nudge", "drop", "add", "argue"))
    paths = [path for path in nodes(plain) if path[0] != "paths"]
    if kind == "nudge":
        paths = [path for path in paths if type(at(plain, path)) in (int, float, bool)]
    *parents, last = path = rng.choice(paths)
    parent = at(plain, tuple(parents))
    if kind == "nudge" and isinstance(parent[last], bool):
        parent[last] = not parent[last]
    elif kind == "nudge":
        parent[last] = rng.choice(
            (parent[last] + 1, parent[last] * 2, parent[last] / 2, -parent[last], str(parent[last]))
        )
    elif kind == "argue" and isinstance(plain.get("trainer"), dict):
        argument = rng.choice(list(trainer_arguments()))
        plain["trainer"][argument] = rng.choice(
            (1, 2, 3, 0.5, 1.0, True, False, None, "auto", "norm", "value", "warn", "ddp")
        )
        return f"trainer.{argument}={plain['trainer'][argument]}"
    elif kind == "drop":
        del parent[last]
    elif kind == "borrow":
        parent[last] = copy.deepcopy(at(plain, rng.choice(list(nodes(plain)))))
    elif kind == "add" and isinstance(parent, dict):
        name: Any = last
        if rng.random() < 0.7:
            name = rng.choice((*trainer_arguments(), "x", "lr", "bins", "threads", 3))
        section = (
            plain["trainer"] if name in list(trainer_arguments()) and isinstance(plain.get("trainer"), dict) else parent
        )
        section[name] = copy.deepcopy(rng.choice(SCALARS + COMPOUND))
        return f"add {name} beside {path}"
    else:
        parent[last] = copy.deepcopy(rng.choice(SCALARS + COMPOUND))
    return f"{kind} {path}"


def prepare_run(plain: dict[str, Any]) -> tuple[PlannedRun, Any] | UserError:
    """Do what `sppnet train` does before it creates the run directory; return the error if it refuses."""
    try:
        planned = plan_run(load(Config, plain))
        check_job(planned.cfg)
        return planned, prepare(planned.cfg, planned.images)
    except UserError as error:
        return error


def mutate_and_run(folder: Path) -> None:
    """Try `COUNT` mutations, and train `TRAINED` of the valid ones in `folder`."""
    rng = random.Random(0)
    place = [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache", "progress=none", "trainer.accelerator=cpu"]
    bases = [compose_plain("train", [*base, *SMALL, *place]) for base in BASES]
    refused, valid = 0, 0
    trained: set[Run] = set()
    for number in range(COUNT):
        plain = copy.deepcopy(rng.choice(bases))
        changes = [mutate(plain, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        try:
            outcome = prepare_run(plain)
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {changes}: {type(error).__name__}: {error}") from error
        if isinstance(outcome, UserError):
            refused += 1
            assert len(str(outcome).splitlines()) == 1, (number, changes, str(outcome))
            continue
        valid += 1
        planned, prepared = outcome
        short = planned.cfg.trainer.max_epochs <= 2 and planned.cfg.trainer.limit_train_batches in range(1, 5)
        short = short and strategy(planned.cfg) == "auto"  # DDP would start further processes of this test
        if number % 7 == 0 and short and len(trained) < TRAINED and planned.run not in trained:
            with planned.run.locked():
                planned.run.begin(planned.cfg, [], planned.identity)
                fit(prepared, planned.run)
            trained.add(planned.run)
    print(f"{refused} refused, {valid} valid")
    assert refused > COUNT // 3
    assert valid > COUNT // 10
    assert len(trained) == TRAINED
    assert {path.name for path in (folder / "runs").glob("*/*")} == {run.path.name for run in trained}


@pytest.mark.slow
def test_a_mutated_configuration_is_refused_in_one_line_or_trains(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]  # a process of its own, for it needs gigabytes
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)


if __name__ == "__main__":
    mutate_and_run(Path(sys.argv[1]))
