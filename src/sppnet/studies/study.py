"""A study: the cells that a sweep asks for, what each is called, and which run and test answer it.

`RUNS/STUDY/study.json` keeps the cells of every sweep that was started under the name, so that a table can show what is
missing, wherever the directory is copied to. It is a plan and no result: those are in the run directories. Nothing
here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sppnet.config import option_files
from sppnet.config.overrides import parse_value
from sppnet.errors import UserError
from sppnet.runs.identity import FORMAT
from sppnet.runs.plan import PlannedRun
from sppnet.storage.files import file_lock, read_json, write_json

NOT_IN_A_CELL = (  # what says where and how a cell is computed, not what it is
    *("experiments", "study", "name", "launch", "hydra", "paths", "force", "retry", "logger", "report"),
    *(
        "data.root",
        "data.workers",
        "data.cache",
        "data.duplicates",
        "head.kernel",
        "trainer.progress",
        "trainer.accelerator",
    ),
    *("trainer.checkpoint_every_n_steps", "trainer.log_every_n_steps"),
)
NEVER = ("experiments", "study", "launch", "hydra", "paths", "force", "retry", "report")  # even where it is swept
HEADER = re.compile(r"^# (Question|Command|Expected|Cost): +(.*(?:\n#  +.*)*)", re.M)


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: a setting and a seed.

    Attributes:
        words: the overrides that make it what it is, sorted.
        run: the name of the run that it needs.
        test: the hash of the test.
        conf: digest of the configuration files with which run and test were found.
        row: of the study's listed rows, the one that it is of; "" if there are none.
        experiments: the study's file; None for a sweep that was typed.
    """

    words: tuple[str, ...]
    run: str
    test: str
    conf: str
    row: str
    experiments: str | None

    @property
    def seed(self) -> int | None:
        """The seed that was swept or typed."""
        found = [word.partition("=")[2] for word in self.words if word.startswith("seed=")]
        return int(found[-1]) if found and found[-1].isdecimal() else None

    @property
    def setting(self) -> tuple[str, ...]:
        """The words but for the seed."""
        return tuple(word for word in self.words if not word.startswith("seed="))


@dataclass(frozen=True)
class Study:
    """What is known of a study before any of its runs is read.

    Attributes:
        name: of its file, or of the folder if it has none.
        folder: `RUNS/STUDY`; studies that share trainings share one, as the paper's tables do.
        cells: those planned, in the order of the sweep.
        report: the node `report` of the configuration.
        rows: of a sweep over listed rows, each row with its overrides and published figures.
        header: question, command, expected result and cost, as the file of the study has them.
        as_filed: the cells are those of its file in `experiments/`, all of them and no others.
    """

    name: str
    folder: Path
    cells: tuple[SweepPoint, ...]
    report: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    header: Mapping[str, str]
    as_filed: bool = False


def common(jobs: Iterable[Sequence[str]]) -> frozenset[str]:
    """The overrides that all jobs of a sweep have; those of a single job."""
    every = [frozenset(job) for job in jobs]
    return frozenset.intersection(*every) if every else frozenset()


def words_of(overrides: Iterable[str], shared: Collection[str]) -> tuple[str, ...]:
    """The overrides that say what a cell is, in an order of their own.

    Args:
        overrides: all of its job.
        shared: those that the other jobs of the sweep have too; of them, some do not count.
    """

    def counts(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~")
        left_out = NOT_IN_A_CELL if word in shared else NEVER
        return not any(key == left or key.startswith((f"{left}.", f"{left}/")) for left in left_out)

    return tuple(sorted(filter(counts, overrides)))


def cell(overrides: Sequence[str], shared: Collection[str], row: str, planned: PlannedRun, conf: str) -> SweepPoint:
    """The cell of a job of a sweep whose jobs have the overrides `shared` in common."""
    study = [str(parse_value(word)) for word in overrides if word.lstrip("+").startswith("experiments=")]
    words = words_of(overrides, shared)
    return SweepPoint(words, planned.run.path.name, planned.test, conf, row, study[-1] if study else None)


def remember(folder: Path, cells: Sequence[SweepPoint]) -> None:
    """Add `cells` to `folder/study.json`; a cell of the same words is replaced. Two sweeps may do so at once.

    Nothing is written where nothing is new: a study that is done may lie on a file system that takes no writes.
    """
    if set(cells) <= set(stored(folder)):
        return
    with file_lock(folder / ".study.lock"):
        kept = {(one.experiments, one.words): one for one in (*stored(folder), *cells)}
        write_json(folder / "study.json", {"cells": [asdict(one) for one in kept.values()]})


def stored(folder: Path) -> list[SweepPoint]:
    """The cells of every sweep that was started under this name.

    Raises:
        UserError: the plan is there and cannot be read.
    """
    path = folder / "study.json"
    if not path.exists():
        return []
    try:
        return [SweepPoint(**{**one, "words": tuple(one["words"])}) for one in read_json(path)["cells"]]
    except (TypeError, KeyError):
        raise UserError(f"{path} cannot be read as the plan of a study; without it the study starts anew") from None


def header(experiments: str | None) -> dict[str, str]:
    """What the comment at the top of a study's file says."""
    path = option_files.root() / "experiments" / f"{experiments}.yaml"
    if not experiments or not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return {name.lower(): re.sub(r"\n#  +", "\n", said) for name, said in HEADER.findall(text)}


def command_of(experiments: str) -> str:
    """The command that a study sweeps, as the command in its file says."""
    return "transfer" if "sppnet transfer" in header(experiments).get("command", "") else "train"


def conf() -> str:
    """Digest of what, beside its words, data and code of the user's own, decides which run and test a cell needs."""
    return f"{option_files.digest()}-{FORMAT}"
