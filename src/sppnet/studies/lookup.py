"""Finds the studies that `sppnet status` and `sppnet report` show, with their points. Does not import torch.

`load_studies` reads the points that were recorded in `study.json` when the study's sweeps were started. `expand_study`
builds the points that the study's file defines now.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from sppnet.config import compose
from sppnet.config.command_schemas import ReportConfig, StatusConfig
from sppnet.config.compose import Job
from sppnet.config.keys import keys
from sppnet.config.load import load
from sppnet.config.overrides import parse_value, quote_names
from sppnet.config.schema import Config, Report
from sppnet.config.sweep_jobs import ExpandedJob
from sppnet.errors import UserError
from sppnet.runs.plan import plan_run
from sppnet.studies.study import (
    Study,
    SweepPoint,
    common_overrides,
    config_digest,
    identifying_overrides,
    load_points,
    read_header,
    study_command,
    sweep_point,
)
from sppnet.studies.warm_start import with_init


def find_studies(job: Job[StatusConfig] | Job[ReportConfig]) -> list[Study]:
    """Find the study that a command names, or all studies under `paths.runs` if it names none.

    Raises:
        UserError: no study has that name, or a typed override has no effect.
    """
    cfg, own_keys = job.cfg, _own_keys(job.cfg)
    runs, name = Path(cfg.paths.runs).expanduser(), cfg.study
    keyed = [(re.split(r"[.=]", override.lstrip("+~"))[0], override) for override in job.overrides]
    files = [str(parse_value(override)) for key, override in keyed if key == "experiments"]
    experiments = files[-1] if files else None  # Hydra takes the last one, too
    if experiments is not None:
        typed = [override for key, override in keyed if key not in {"experiments", *own_keys}]
        return [expand_study(runs, experiments, [*typed, *job.sweeper])]
    used = own_keys | {key.name for key in keys(Config) if key.may_change("status")}
    unused = [*(override for key, override in keyed if key not in used), *job.sweeper]
    if unused:
        raise UserError(f"{unused[0]} has no effect without experiments=NAME: stored runs are shown as they are")
    typed = [override for key, override in keyed if key == "report"]
    folders = [runs / name] if name else sorted(path for path in runs.glob("*") if path.is_dir())
    studies = [study for folder in folders if _is_study(folder) for study in load_studies(folder, cfg.report, typed)]
    if not studies:
        existing = sorted(path.name for path in runs.glob("*") if _is_study(path))
        problem = (
            f"study={name}: there is no such study in {runs}" if name else f"paths.runs={runs} contains no studies"
        )
        raise UserError(problem + (f"; existing studies: {', '.join(existing)}" if existing else ""))
    return studies


def _own_keys(cfg: StatusConfig | ReportConfig) -> set[str]:
    """The keys that configure the command itself and do not describe a study."""
    own_keys = type(cfg).model_fields.keys() - Config.model_fields.keys()
    return own_keys | {"force"} if isinstance(cfg, ReportConfig) else own_keys  # force=true replaces a report's files


def _is_study(folder: Path) -> bool:
    return (folder / "study.json").is_file() or any(folder.glob("*/status.json")) or (folder / "transfer").is_dir()


def load_studies(folder: Path, report: Report, typed: Sequence[str] = ()) -> list[Study]:
    """Load the studies in `folder` with the points that were recorded when their sweeps were started.

    The study's file and the `typed` overrides determine how the study is shown. If the file is missing or cannot be
    composed, `report` determines this instead. Points that the file does not define, because it has changed or because
    the sweep was started with other overrides, become a separate study, which is called `NAME_typed` (or `NAME`, if the
    file defines none of the points).
    """
    by_file: dict[str | None, list[SweepPoint]] = {}
    for point in load_points(folder):
        by_file.setdefault(point.experiments, []).append(point)
    studies = []
    for experiments, points in (by_file or {None: []}).items():
        if experiments is None:
            # a transfer study has no study.json, but its folder has the same name as its file
            header = {} if points else read_header(folder.name)
            studies.append(Study(folder.name, folder, tuple(points), report, {}, header))
            continue
        try:
            jobs, rows, section = compose.expand_sweep("train", [quote_names(f"experiments={experiments}"), *typed])
            file_report = load(Report, section, "report.")
        except UserError:  # the study's file is missing or can no longer be composed
            studies.append(Study(experiments, folder, tuple(points), report, {}, read_header(experiments)))
            continue
        shared = common_overrides(job.overrides for job in jobs)
        filed = {identifying_overrides(job.overrides, shared) for job in jobs}
        filed_points = [point for point in points if point.words in filed]
        other_points = [point for point in points if point.words not in filed]
        header = read_header(experiments)
        if filed_points:
            complete = len({point.words for point in filed_points}) == len(filed)
            studies.append(Study(experiments, folder, tuple(filed_points), file_report, rows, header, complete))
        if other_points:
            name = f"{experiments}_typed" if filed_points else experiments
            typed_report = file_report.model_copy(update={"compare": None})  # its row may be missing here
            studies.append(Study(name, folder, tuple(other_points), typed_report, rows, header))
    return studies


def expand_study(runs: Path, experiments: str, typed: Sequence[str]) -> Study:
    """Build a study's points from its current file and the overrides on the command line, even if no sweep was started.

    Raises:
        UserError: the file cannot be composed, or a point is not a valid run.
    """
    command, overrides = study_command(experiments), [quote_names(f"experiments={experiments}"), *typed]
    jobs, rows, section = compose.expand_sweep(command, overrides)
    report, header = load(Report, section, "report."), read_header(experiments)
    folder = runs / str(compose.compose_plain(command, overrides)["study"])
    if command == "transfer":  # a transfer table is built from result files, so there are no runs to plan
        return Study(experiments, folder, (), report, {}, header)
    recorded = {point.words: point for point in load_points(folder) if point.experiments == experiments}
    digest, shared = config_digest(), common_overrides(job.overrides for job in jobs)
    points = []
    for job in jobs:
        identifying = identifying_overrides(job.overrides, shared)
        point = recorded.get(identifying)
        if point is None or point.conf != digest:
            point = _plan_point(compose.compose_config(job.overrides), job, shared, digest) or point
        points.append(point or SweepPoint(identifying, "", "", digest, job.row, experiments))
    shown, filed = {point.words for point in points}, _filed_points(command, experiments) if typed else None
    name = experiments if filed is None or shown <= filed else f"{experiments}_typed"
    as_filed = filed is None or shown == filed
    return Study(name, folder, tuple(points), report, rows, header, as_filed)


def _filed_points(command: str, experiments: str) -> set[tuple[str, ...]]:
    """The identifying overrides of each point that a study's file defines without typed overrides."""
    jobs = compose.expand_sweep(command, [quote_names(f"experiments={experiments}")])[0]
    shared = common_overrides(job.overrides for job in jobs)
    return {identifying_overrides(job.overrides, shared) for job in jobs}


def _plan_point(cfg: Config, job: ExpandedJob, shared: Collection[str], digest: str) -> SweepPoint | None:
    """The point of a job; None if its hash cannot be computed, for example without the data set or a weights file.

    Raises:
        UserError: the size schedule is invalid.
    """
    from sppnet.data import build_sizes  # imports NumPy

    build_sizes(cfg.sizes)
    try:
        planned = plan_run(with_init(cfg, job.row, job.overrides, shared))
    except UserError:
        return None
    return sweep_point(job.overrides, shared, job.row, planned, digest)
