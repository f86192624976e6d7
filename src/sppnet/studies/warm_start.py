"""Finds the run that `init=study:NAME` stands for: the run of the same row and seed in the study NAME.

Does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from sppnet.config.compose import compose_choices, select
from sppnet.config.load import replace
from sppnet.config.overrides import key_of, parse_value
from sppnet.config.schema import Config
from sppnet.errors import UserError
from sppnet.studies.study import SweepPoint, identifying_overrides, load_points

STUDY = "study:"  # `init` begins with it
COMPARED = ("backbone", "pooling", "pyramid", "head", "data")  # the sections of the network and the data


def with_init(cfg: Config, row: str, overrides: Collection[str], shared: Collection[str]) -> Config:
    """Return `cfg` with the run directory that `init=study:NAME` stands for; `cfg` itself if `init` names no study.

    The run has the seed of `cfg` and, if the study lists rows, the row `row`. If the study's runs differ in further
    overrides, the job must have the same: for keys of the network and the data, such as `pooling=gap`, any override of
    the job counts; for all other keys, such as `optim.lr`, only one in which the jobs differ.

    Args:
        cfg: the configuration of a job.
        row: the name of the job's listed row; "" if its sweep lists no rows.
        overrides: the overrides of the job.
        shared: the overrides that all jobs of its sweep have.

    Raises:
        UserError: there is no such study, or it has no such run or several.
    """
    if cfg.init is None or not cfg.init.startswith(STUDY):
        return cfg
    name, runs = cfg.init.removeprefix(STUDY), Path(cfg.paths.runs).expanduser()
    points = _load_study(runs, name, cfg.study, overrides)
    rows = {point.row for _, point in points} - {""}
    if row and rows:
        points = [(folder, point) for folder, point in points if point.row == row]
        if not points:
            raise UserError(f"init={cfg.init}: study {name} has no row {row}; its rows are {', '.join(sorted(rows))}")
    keys = _differing_keys([point for _, point in points], overrides, shared)
    wanted = _with_keys(identifying_overrides(overrides, ()), keys)
    candidates = {
        str(folder / point.run)
        for folder, point in points
        if _with_keys(point.setting, keys) == wanted and _seed(folder, point) == cfg.seed
    }
    if len(candidates) != 1:
        setting = ", ".join(sorted(wanted)) or row or "this setting"
        problem, hint = "no run", f"its runs differ in {', '.join(sorted(keys)) or 'their seeds'}"
        if candidates:
            problem, hint = (
                f"{len(candidates)} runs",
                f"{', '.join(sorted(candidates))}: give one of them as init=RUN_DIR",
            )
        raise UserError(f"init={cfg.init}: study {name} has {problem} of {setting} with seed {cfg.seed}; {hint}")
    return replace(cfg, {"init": candidates.pop()})


def _load_study(runs: Path, name: str, study: str, overrides: Collection[str]) -> list[tuple[Path, SweepPoint]]:
    """The points of the study `name`, with the folders of their runs.

    They are those in the folder `name`. Without any, they are those of the file `name` in `experiments/`, which may
    have runs in several folders.

    The jobs that start from the study may share its folder, so their own points are left out. These are the points that
    name the study themselves and, if it is the file of a job with these `overrides` that names it, the points of that
    file in the folder `study` of the job.

    Raises:
        UserError: there is no such study, or all its points are left out.
    """
    files = {_value(word) for word in overrides if key_of(word) == "experiments"}
    filed = select(compose_choices("train", overrides), "init")

    def names_study(words: Collection[str]) -> bool:
        return f"init={STUDY}{name}" in map(_plain, words)

    def is_own(folder: Path, point: SweepPoint) -> bool:
        is_of_file = folder.name == study and point.experiments in files
        return names_study(point.words) or (is_of_file and (filed == f"{STUDY}{name}" or not names_study(overrides)))

    folders = [path.parent for path in sorted(runs.glob("*/study.json"))]
    points = [(folder, point) for folder in folders for point in load_points(folder) if point.run]
    in_folder = [(folder, point) for folder, point in points if folder.name == name]
    of_file = [(folder, point) for folder, point in points if point.experiments == name]
    for candidates in (in_folder, of_file):
        if others := [(folder, point) for folder, point in candidates if not is_own(folder, point)]:
            return others
    if in_folder or of_file:
        raise UserError(f"init={STUDY}{name}: all runs of study {name} start from it; they are the study of this job")
    raise UserError(
        f"init={STUDY}{name}: there is no study {name!r} in {runs} that was started as a sweep; existing studies:"
        f" {', '.join(folder.name for folder in folders) or 'none'}"
    )


def _value(word: str) -> str:
    return str(parse_value(word))


def _plain(word: str) -> str:
    """An override without the quotes and escapes of Hydra's grammar."""
    return f"{key_of(word)}={_value(word)}" if key_of(word) == "init" else word


def _differing_keys(
    points: Sequence[SweepPoint], overrides: Collection[str], shared: Collection[str]
) -> frozenset[str]:
    """The keys in which the study's runs differ, and in which the job must agree with the run that it starts from."""
    settings = [frozenset(point.setting) for point in points]
    differing = {key_of(word) for word in frozenset.union(*settings) - frozenset.intersection(*settings)}
    swept = {key_of(word) for word in overrides if word not in shared}
    return frozenset(key for key in differing if key in swept or key.partition(".")[0] in COMPARED)


def _with_keys(words: Collection[str], keys: Collection[str]) -> frozenset[str]:
    return frozenset(word for word in words if key_of(word) in keys)


def _seed(folder: Path, point: SweepPoint) -> int | None:
    """The seed of a point; if no override sets it, that of its run's configuration, which a study's file may set.

    None if the seed is unknown, because the run was deleted.
    """
    if point.seed is not None:
        return point.seed
    try:
        stored = yaml.safe_load((folder / point.run / "config.yaml").read_text(encoding="utf-8"))
        return int(stored["seed"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return 0 if point.experiments is None else None  # a file may set another seed
