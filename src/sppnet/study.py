"""A study: the cells that a sweep asks for, what each is called, and which run and test answer it.

`RUNS/STUDY/study.json` keeps the cells of every sweep that was started under the name, so that a table can show what is
missing, wherever the directory is copied to. It is a plan and no result: those are in the run directories. Nothing
here imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sppnet import groups, recompose
from sppnet.compose import Job
from sppnet.errors import UserError
from sppnet.runs import Plan, plan, read_json, write_json

NOT_IN_A_CELL = (  # what says where and how a cell is computed, not what it is
    *("experiments", "study", "name", "launch", "hydra", "paths", "force", "retry", "logger", "report"),
    *("data.root", "data.workers", "trainer.progress", "trainer.accelerator"),
    *("trainer.checkpoint_every_n_steps", "trainer.log_every_n_steps"),
)
HEADER = re.compile(r"^# (Question|Command|Expected|Cost): +(.*(?:\n#  +.*)*)", re.M)


@dataclass(frozen=True)
class Cell:
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
    """

    name: str
    folder: Path
    cells: tuple[Cell, ...]
    report: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    header: Mapping[str, str]


def words_of(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides that say what a cell is, in an order of their own."""

    def counts(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~")
        return not any(key == left or key.startswith((f"{left}.", f"{left}/")) for left in NOT_IN_A_CELL)

    return tuple(sorted(filter(counts, overrides)))


def cell(overrides: Iterable[str], row: str, planned: Plan, conf: str) -> Cell:
    """The cell of a job."""
    words = list(overrides)
    study = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("experiments=")]
    return Cell(words_of(words), planned.run.path.name, planned.test, conf, row, study[-1] if study else None)


def remember(folder: Path, cells: Sequence[Cell]) -> None:
    """Add `cells` to `folder/study.json`; a cell of the same words is replaced. Two sweeps may do so at once.

    Nothing is written where nothing is new: a study that is done may lie on a file system that takes no writes.
    """
    if set(cells) <= set(stored(folder)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".study.lock"):
        kept = {(one.experiments, one.words): one for one in (*stored(folder), *cells)}
        write_json(folder / "study.json", {"cells": [asdict(one) for one in kept.values()]})


def stored(folder: Path) -> list[Cell]:
    """The cells of every sweep that was started under this name."""
    found = read_json(folder / "study.json") or {"cells": []}
    return [Cell(**{**one, "words": tuple(one["words"])}) for one in found["cells"]]


def load(folder: Path, report: Mapping[str, Any], typed: Sequence[str] = ()) -> list[Study]:
    """The studies of a folder as they were started. How each is shown is for its file to say (and for what was `typed`
    of that), and for `report` where there is no file."""
    by_file: dict[str | None, list[Cell]] = {}
    for one in stored(folder):
        by_file.setdefault(one.experiments, []).append(one)
    found = []
    for experiments, cells in (by_file or {None: []}).items():
        rows: Mapping[str, Any] = {}
        shown = report
        if experiments:
            with contextlib.suppress(UserError):  # its file is gone or does not compose any more
                _, rows, shown = recompose.sweep("train", [f"experiments={experiments}", *typed])
        found.append(Study(experiments or folder.name, folder, tuple(cells), shown, rows, header(experiments)))
    return found


def expand(runs: Path, experiments: str, typed: Sequence[str]) -> Study:
    """A study as its file, and what was typed, say now; a sweep need not have been started.

    Raises:
        UserError: it does not compose, or a cell names no valid run.
    """
    jobs, rows, report = recompose.sweep("train", [f"experiments={experiments}", *typed])
    name = str(recompose.again("train", [f"experiments={experiments}", *typed])["study"])
    known = {one.words: one for one in stored(runs / name) if one.experiments == experiments}
    conf, cells = groups.digest(), []
    for job in jobs:
        found = known.get(words_of(job.words))
        if found is None or found.conf != conf:
            found = cell(job.words, job.row, plan(recompose.again("train", job.words)), conf)
        cells.append(found)
    return Study(experiments, runs / name, tuple(cells), report, rows, header(experiments))


def header(experiments: str | None) -> dict[str, str]:
    """What the comment at the top of a study's file says."""
    path = groups.root() / "experiments" / f"{experiments}.yaml"
    if not experiments or not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return {name.lower(): re.sub(r"\n#  +", "\n", said) for name, said in HEADER.findall(text)}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def chosen(job: Job) -> list[Study]:
    """The studies that `sppnet status` and `sppnet report` are asked for: one by name, or all under `paths.runs`.

    Raises:
        UserError: there is no such study.
    """
    runs, name = Path(job.cfg["paths"]["runs"]).expanduser(), job.cfg["study"]
    words = [word.lstrip("+").partition("=") for word in job.overrides]
    experiments = next((value for key, _, value in words if key == "experiments"), None)
    if experiments is not None:
        own = ("experiments", "output", "latex", "html", "watch")
        return [expand(runs, experiments, [w for w in job.overrides if w.partition("=")[0].lstrip("+") not in own])]
    folders = [runs / name] if name else sorted(path for path in runs.glob("*") if path.is_dir())
    shown = [word for word in job.overrides if word.startswith("report.")]
    found = [study for folder in folders if _is_study(folder) for study in load(folder, job.cfg["report"], shown)]
    if not found:
        there = sorted(path.name for path in runs.glob("*") if _is_study(path))
        said = f"study={name}: there is no such folder in {runs}" if name else f"paths.runs={runs} holds no studies"
        raise UserError(said + (f"; there are {', '.join(there)}" if there else ""))
    return found


def _is_study(folder: Path) -> bool:
    return (folder / "study.json").is_file() or any(folder.glob("*/status.json")) or (folder / "transfer").is_dir()
