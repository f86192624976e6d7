"""Which studies somebody asks for, and their cells: as they were started, or as a file says now.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sppnet.config import compose
from sppnet.config.compose import Job
from sppnet.config.overrides import ExpandedJob, parse_value, quote_names
from sppnet.errors import UserError
from sppnet.runs.plan import plan_run, validate
from sppnet.studies.study import Study, SweepPoint, cell, command_of, common, conf, header, stored, words_of

READ = ("study", "report", "paths", "debug")  # what is heeded where no study's file is named


def chosen(job: Job, own: Collection[str]) -> list[Study]:
    """The studies that `sppnet status` and `sppnet report` are asked for: one by name, or all under `paths.runs`.

    Args:
        job: of the command.
        own: keys that the command heeds itself, and that say nothing of a study.

    Raises:
        UserError: there is no such study, or something was typed that has no effect.
    """
    runs, name = Path(job.cfg["paths"]["runs"]).expanduser(), job.cfg["study"]
    words = [(re.split(r"[.=]", word.lstrip("+~"))[0], word) for word in job.overrides]
    experiments = next((str(parse_value(word)) for key, word in words if key == "experiments"), None)
    if experiments is not None:
        typed = [word for key, word in words if key not in {"experiments", *own}]
        return [expand(runs, experiments, [*typed, *job.sweeper])]
    idle = [word for key, word in words if key not in {*READ, *own}]
    if idle:
        raise UserError(f"{idle[0]} has no effect without experiments=NAME: run directories are read as they are")
    shown = [word for key, word in words if key == "report"]
    folders = [runs / name] if name else sorted(path for path in runs.glob("*") if path.is_dir())
    found = [study for folder in folders if _is_study(folder) for study in load(folder, job.cfg["report"], shown)]
    if not found:
        there = sorted(path.name for path in runs.glob("*") if _is_study(path))
        said = f"study={name}: there is no such folder in {runs}" if name else f"paths.runs={runs} holds no studies"
        raise UserError(said + (f"; there are {', '.join(there)}" if there else ""))
    return found


def _is_study(folder: Path) -> bool:
    return (folder / "study.json").is_file() or any(folder.glob("*/status.json")) or (folder / "transfer").is_dir()


def load(folder: Path, report: Mapping[str, Any], typed: Sequence[str] = ()) -> list[Study]:
    """The studies of a folder as they were started.

    How one is shown is for its file to say (and for what was `typed` of that), and for `report` where there is no file.
    Cells that it does not have (any more, or because something else was typed) are a study `NAME_typed` beside it.
    """
    by_file: dict[str | None, list[SweepPoint]] = {}
    for one in stored(folder):
        by_file.setdefault(one.experiments, []).append(one)
    found = []
    for experiments, cells in (by_file or {None: []}).items():
        if experiments is None:
            # rows of features have no plan, and lie in the folder that their study is called by
            found.append(Study(folder.name, folder, tuple(cells), report, {}, {} if cells else header(folder.name)))
            continue
        try:
            jobs, rows, shown = compose.expand_sweep("train", [quote_names(f"experiments={experiments}"), *typed])
        except UserError:  # its file is gone or does not compose any more
            found.append(Study(experiments, folder, tuple(cells), report, {}, header(experiments)))
            continue
        shared = common(job.overrides for job in jobs)
        there = {words_of(job.overrides, shared) for job in jobs}
        own, others = [one for one in cells if one.words in there], [one for one in cells if one.words not in there]
        if own:
            whole = len({one.words for one in own}) == len(there)
            found.append(Study(experiments, folder, tuple(own), shown, rows, header(experiments), whole))
        if others:
            name = f"{experiments}_typed" if own else experiments
            kept = {**shown, "compare": None}  # its rows need not be there
            found.append(Study(name, folder, tuple(others), kept, rows, header(experiments)))
    return found


def expand(runs: Path, experiments: str, typed: Sequence[str]) -> Study:
    """A study as its file, and what was typed, say now; a sweep need not have been started.

    Raises:
        UserError: it does not compose, or a cell names no valid run.
    """
    command, asked = command_of(experiments), [quote_names(f"experiments={experiments}"), *typed]
    jobs, rows, report = compose.expand_sweep(command, asked)
    folder = runs / str(compose.compose_config(command, asked)["study"])
    if command == "transfer":  # its rows are files, and are not planned
        return Study(experiments, folder, (), report, {}, header(experiments))
    known = {one.words: one for one in stored(folder) if one.experiments == experiments}
    now, cells, shared = conf(), [], common(job.overrides for job in jobs)
    for job in jobs:
        found = known.get(words_of(job.overrides, shared))
        if found is None or found.conf != now:
            found = _plan(compose.compose_config("train", job.overrides), job, shared, now) or found
        cells.append(found or SweepPoint(words_of(job.overrides, shared), "", "", now, job.row, experiments))
    wanted, of_file = {one.words for one in cells}, _words(command, experiments) if typed else None
    name = experiments if of_file is None or wanted <= of_file else f"{experiments}_typed"
    as_filed = of_file is None or wanted == of_file
    return Study(name, folder, tuple(cells), report, rows, header(experiments), as_filed)


def _words(command: str, experiments: str) -> set[tuple[str, ...]]:
    """What makes each cell of a study's file, with nothing typed over it."""
    jobs = compose.expand_sweep(command, [f"experiments={experiments}"])[0]
    shared = common(job.overrides for job in jobs)
    return {words_of(job.overrides, shared) for job in jobs}


def _plan(cfg: dict[str, Any], job: ExpandedJob, shared: Collection[str], now: str) -> SweepPoint | None:
    """The cell of a job; None if the data, without which nobody knows its run, are not here."""
    validate(cfg)
    try:
        return cell(job.overrides, shared, job.row, plan_run(cfg), now)
    except UserError:
        return None
