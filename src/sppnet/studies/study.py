"""A study: the points of its sweeps, and the run and test that belong to each point. Does not import torch.

`RUNS/STUDY/study.json` records the points of every sweep that was started under the study's name, so a table can show
missing results even after the folder has been copied elsewhere. The results themselves stay in the run directories.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sppnet.config import option_files
from sppnet.config.keys import Key, nearest
from sppnet.config.overrides import parse_value
from sppnet.config.schema import Config, Report
from sppnet.errors import UserError
from sppnet.runs.identity import FORMAT
from sppnet.runs.plan import PlannedRun
from sppnet.storage.files import file_lock, read_json, write_json

GROUPS_OF_A_SWEEP = ("experiments", "launch", "hydra")  # groups that select a study or a launcher; they are not keys
HEADER = re.compile(r"^# (Question|Command|Expected|Cost): +(.*(?:\n#  +.*)*)", re.M)


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: a setting and a seed. The fields are the keys of a point in `study.json`.

    Attributes:
        words: the overrides that identify the point, sorted.
        run: the name of the point's run directory.
        test: the hash of the point's test.
        conf: the digest of the configuration files from which `run` and `test` were determined.
        row: the name of the point's listed row; "" if the study lists no rows.
        experiments: the name of the study's file; None for a sweep without a file.
    """

    words: tuple[str, ...]
    run: str
    test: str
    conf: str
    row: str
    experiments: str | None

    @property
    def seed(self) -> int | None:
        """The seed among the overrides; None if there is none."""
        seeds = [override.partition("=")[2] for override in self.words if override.startswith("seed=")]
        return int(seeds[-1]) if seeds and seeds[-1].isdecimal() else None

    @property
    def setting(self) -> tuple[str, ...]:
        """The identifying overrides without the seed."""
        return tuple(override for override in self.words if not override.startswith("seed="))


@dataclass(frozen=True)
class Study:
    """A study whose runs have not been read yet.

    Attributes:
        name: the name of the study's file, or of its folder if it has no file.
        folder: `RUNS/STUDY`. Studies that share runs, such as those of the paper's tables, share a folder.
        points: the planned points, in the order of the sweep.
        report: the section `report` of the configuration.
        rows: the listed rows of its sweep, each with its overrides and published values.
        header: the question, command, expected result and cost, from the top of the study's file.
        as_filed: whether `points` are exactly those that the study's file in `experiments/` defines.
    """

    name: str
    folder: Path
    points: tuple[SweepPoint, ...]
    report: Report
    rows: Mapping[str, Mapping[str, Any]]
    header: Mapping[str, str]
    as_filed: bool = False


def common_overrides(jobs: Iterable[Sequence[str]]) -> frozenset[str]:
    """The overrides that all jobs of a sweep have in common; for a single job, all of its overrides."""
    override_sets = [frozenset(job) for job in jobs]
    return frozenset.intersection(*override_sets) if override_sets else frozenset()


def identifying_overrides(overrides: Collection[str], shared: Collection[str]) -> tuple[str, ...]:
    """The overrides that identify a sweep point, sorted, without the `+` of overrides that add a key.

    The schema marks which keys tell the points of a sweep apart (see `sppnet.config.marks.Affects.points`).

    Args:
        overrides: all overrides of the point's job.
        shared: the overrides that every job of the sweep has.
    """
    options = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)

    def is_argument(key: Key) -> bool:
        """Whether another option than those that have the key is chosen, so that it may be an argument of its class."""
        if key.variant is None:
            return False
        section, values = key.variant[0].rpartition(".")[0], key.variant[1]
        return options.get(section) not in (None, *values)

    def identifies(override: str) -> bool:
        name = override.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")  # data/crop sets data.crop
        if name.partition(".")[0] in GROUPS_OF_A_SWEEP:
            return False
        key = nearest(Config, name)  # None for a group of the user's own
        points = "always" if key is None or is_argument(key) else key.affects.points
        return points == "always" or (points == "swept" and override not in shared)

    return tuple(sorted(override.lstrip("+") for override in overrides if identifies(override)))


def sweep_point(
    overrides: Sequence[str], shared: Collection[str], row: str, planned: PlannedRun, conf: str
) -> SweepPoint:
    """Build the point of a job; `shared` contains the overrides that all jobs of its sweep have."""
    experiments = [
        str(parse_value(override)) for override in overrides if override.lstrip("+").startswith("experiments=")
    ]
    identifying = identifying_overrides(overrides, shared)
    file = experiments[-1] if experiments else None
    return SweepPoint(identifying, planned.run.path.name, planned.test, conf, row, file)


def add_points(folder: Path, points: Sequence[SweepPoint]) -> None:
    """Add `points` to `folder/study.json`, replacing points with the same overrides. Safe under concurrent sweeps.

    The file is not written if no point is new, because a finished study may be on a read-only file system.
    """
    if set(points) <= set(load_points(folder)):
        return
    with file_lock(folder / ".study.lock"):
        merged = {(point.experiments, point.words): point for point in (*load_points(folder), *points)}
        write_json(folder / "study.json", {"cells": [asdict(point) for point in merged.values()]})


def load_points(folder: Path) -> list[SweepPoint]:
    """Load the points of all sweeps that were started under the study's name.

    Raises:
        UserError: `study.json` exists and cannot be read.
    """
    path = folder / "study.json"
    if not path.exists():
        return []
    try:
        return [SweepPoint(**{**fields, "words": tuple(fields["words"])}) for fields in read_json(path)["cells"]]
    except (TypeError, KeyError):
        raise UserError(
            f"{path} is not a valid study plan; delete it and start the sweeps of the study again"
        ) from None


def read_header(experiments: str | None) -> dict[str, str]:
    """Read the header of a study's file: the texts after `# Question:`, `# Command:` and so on, by lower-case name."""
    path = next((path for path in option_files.options("experiments") if path.stem == experiments), None)
    if path is None:
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    return {name.lower(): re.sub(r"\n#  +", "\n", content) for name, content in HEADER.findall(text)}


def study_command(experiments: str) -> str:
    """The `sppnet` command of a study's jobs, from the line `# Command:` in its file."""
    return "transfer" if "sppnet transfer" in read_header(experiments).get("command", "") else "train"


def config_digest() -> str:
    """The digest of the configuration files and of `FORMAT`, on which a point's run and test depend.

    The run and the test also depend on the point's overrides, the data and the user's own code, which the digest does
    not cover.
    """
    return f"{option_files.digest()}-{FORMAT}"
