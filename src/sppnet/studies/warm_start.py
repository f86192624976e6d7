"""Finds the run that `init=study:NAME` stands for: the run of the same row and seed in the study NAME.

Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from sppnet.config.load import replace
from sppnet.config.overrides import parse_value
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.studies.study import SweepPoint, identifying_overrides, load_points

PREFIX = "study:"
COMPARED = ("backbone", "pooling", "pyramid", "head", "data")  # the sections of the network and the data


def with_init(cfg: Config, row: str, overrides: Collection[str], shared: Collection[str]) -> Config:
    """Return `cfg` with the run directory that `init=study:NAME` stands for; `cfg` itself if `init` names no study.

    The run has the seed of `cfg` and, if the study lists rows, the row `row`. If the study's runs differ in further
    overrides, the job must have those of the run: for overrides of the network and the data, such as `pooling=gap`, any
    of the job's count; for all others, such as `trainer.max_epochs=1`, only those in which the jobs differ.

    Args:
        cfg: the configuration of a job.
        row: the name of the job's listed row; "" if its sweep lists no rows.
        overrides: the overrides of the job.
        shared: the overrides that all jobs of its sweep have.

    Raises:
        UserError: there is no such study, or it has no such run or several.
    """
    if cfg.init is None or not cfg.init.startswith(PREFIX):
        return cfg
    name, runs = cfg.init.removeprefix(PREFIX), Path(cfg.paths.runs).expanduser()
    points = _load_study(runs, name)
    if not points:
        studies = sorted(path.parent.name for path in runs.glob("*/study.json"))
        raise UserError(
            f"init={cfg.init}: there is no study {name} in {runs}; existing studies: {', '.join(studies) or 'none'}"
        )
    rows = {point.row for _, point in points} - {""}
    if row and rows:
        points = [(folder, point) for folder, point in points if point.row == row]
        if not points:
            raise UserError(f"init={cfg.init}: study {name} has no row {row}; its rows are {', '.join(sorted(rows))}")
    axes, words = _axes([point for _, point in points]), _comparable(overrides, shared)
    found = {
        str(folder / point.run)
        for folder, point in points
        if axes.intersection(point.setting) <= words and _seed(folder, point) == cfg.seed
    }
    if len(found) != 1:
        settings = ", ".join(sorted(axes.intersection(words))) or row or "this setting"
        problem = f"{len(found)} runs" if found else "no run"
        given = f" ({', '.join(sorted(found))}); give one of them as init=RUN_DIR" if found else _list(axes, cfg.init)
        raise UserError(f"init={cfg.init}: study {name} has {problem} of {settings} with seed {cfg.seed}{given}")
    return replace(cfg, {"init": found.pop()})


def _load_study(runs: Path, name: str) -> list[tuple[Path, SweepPoint]]:
    """The points of the study `name`, which is a folder or a file in `experiments/`, with the folders of their runs."""
    folders = [path.parent for path in sorted(runs.glob("*/study.json"))]
    points = [(folder, point) for folder in folders for point in load_points(folder) if point.run]
    named = [(folder, point) for folder, point in points if name in (folder.name, point.experiments)]
    # without the jobs in the same folder that start from the study
    return [(folder, point) for folder, point in named if f"{PREFIX}{name}" not in map(parse_value, _inits(point))]


def _inits(point: SweepPoint) -> list[str]:
    return [word for word in point.words if word.startswith("init=")]


def _comparable(overrides: Collection[str], shared: Collection[str]) -> frozenset[str]:
    """The overrides of a job that must agree with those of the run that it starts from, if they differ there."""
    words = identifying_overrides(overrides, shared)
    common = {word.lstrip("+") for word in shared}
    return frozenset(word for word in words if word not in common or re.split("[.=/]", word)[0] in COMPARED)


def _axes(points: Sequence[SweepPoint]) -> frozenset[str]:
    """The overrides, apart from the seed, that not all points have in common."""
    settings = [frozenset(point.setting) for point in points]
    return frozenset.union(*settings) - frozenset.intersection(*settings)


def _seed(folder: Path, point: SweepPoint) -> int:
    """The seed of a point; if no override sets it, that of its run's configuration, which a study's file may set."""
    if point.seed is not None:
        return point.seed
    try:
        stored = yaml.safe_load((folder / point.run / "config.yaml").read_text(encoding="utf-8"))
        return int(stored["seed"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return 0


def _list(axes: frozenset[str], init: str) -> str:
    """Which values the study has instead, if it is a grid."""
    return f"; its runs differ in {', '.join(sorted(axes))}" if axes else f"; {init} takes the run of the same seed"
