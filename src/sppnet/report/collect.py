"""Builds the tables of a study; every result is read from the study's folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sppnet.errors import UserError
from sppnet.report import row_names
from sppnet.report.run_results import (
    build_result,
    combine,
    format_commit,
    format_machine,
    hoist_configuration,
    read_provenance,
)
from sppnet.report.table import Column, Result, Row, Table
from sppnet.report.unplanned_runs import rows_by_data
from sppnet.runs.identity import FORMAT, LOWER_IS_BETTER
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_json
from sppnet.studies.status import run_status
from sppnet.studies.study import Study, SweepPoint
from sppnet.transfer.comparison import distinguishing_settings

Setting = tuple[str, tuple[str, ...]]  # name of the listed row, and overrides without the seed


def build_tables(study: Study, transfer: bool = True) -> list[Table]:
    """Build the tables of a study, for its trained networks and, with `transfer`, for its linear SVMs on features.

    Runs that no sweep planned get one table for each data set that they were tested on.
    """
    svms = _transfer_table(study) if transfer else None
    tables = _planned_tables(study) if study.points else _unplanned_tables(study)
    if svms is not None and tables:
        # `compare` is a row of the trained networks
        report = study.report.model_copy(update={"compare": None})
        svms = replace(svms, name=f"{study.name}_transfer", report=report)
    return [*tables, *([svms] if svms else [])]


def _planned_tables(study: Study) -> list[Table]:
    runs = {path.parent.name for path in study.folder.glob("*/status.json")}
    unplanned = runs - {point.run for point in study.points}
    return [_table(study, study.name, _planned_rows(study), len(unplanned))]


def _unplanned_tables(study: Study) -> list[Table]:
    by_data = rows_by_data(study.folder, sorted({path.parent.name for path in study.folder.glob("*/status.json")}))
    names = [f"{study.name}_{data}" if len(by_data) > 1 else study.name for data in by_data]
    return [_table(study, name, rows, 0) for name, rows in zip(names, by_data.values(), strict=True)]


def _table(study: Study, name: str, rows: Sequence[Row], unplanned: int) -> Table:
    columns = build_columns(study.report.metrics, [result for row in rows for result in row.results.values()])
    return Table(name, "seed", study.header, columns, rows, study.report, unplanned)


def _planned_rows(study: Study) -> list[Row]:
    settings: dict[Setting, list[SweepPoint]] = {}
    for point in study.points:
        settings.setdefault((point.row, point.setting), []).append(point)
    settings = _drop_duplicates(settings)
    names = _setting_names(study.name, settings)
    rows: list[Row] = []
    for setting, points in settings.items():
        for row in _rows_of_setting(names[setting], points, study, study.rows.get(setting[0]) or {}):
            for number, other in enumerate(rows if not setting[0] else ()):
                if results := combine(other.results, row.results):  # the sweep was repeated with other metrics
                    rows[number] = replace(other, results=results, missing={**other.missing, **row.missing})
                    break
            else:
                rows.append(row)
    return rows


def _rows_of_setting(name: str, points: Sequence[SweepPoint], study: Study, listed: Mapping[str, Any]) -> list[Row]:
    """Build the rows of a setting; usually there is only one.

    If the configuration files changed between the runs, the same overrides stand for different configurations. Each
    configuration gets its own row, because a mean over all of them would describe none of them.
    """
    results_by_hash: dict[str, dict[int, Result]] = {}
    missing = {}
    for point in points:
        run = Run(study.folder / point.run)
        status = run_status(run, point.test)
        if status.result is None:
            missing["of the configuration" if point.seed is None else str(point.seed)] = status
        else:
            provenance = read_provenance(run)
            default_seed = int(hoist_configuration(provenance["identity"]).get("seed", 0))
            seed = point.seed if point.seed is not None else default_seed
            result = build_result(run, status.result, provenance)
            results_by_hash.setdefault(result.provenance["setting"], {})[seed] = result
    formats = [_format(results) for results in results_by_hash.values()]
    paper, rows = listed.get("paper", {}), []
    for setting_hash, results in results_by_hash.items() or [("", {})]:
        is_last = setting_hash == list(results_by_hash or [""])[-1]
        row_name = _row_name(name, setting_hash, formats, results)
        rows.append(Row(row_name, dict(sorted(results.items())), missing if is_last else {}, paper))
    return rows


def _format(results: Mapping[int, Result]) -> object:
    return next(iter(results.values())).provenance["format"]


def _row_name(name: str, setting_hash: str, formats: Sequence[object], results: Mapping[int, Result]) -> str:
    """Name one row of a setting.

    If a setting has several rows, each name includes the version number of the training code (`FORMAT`), unless that
    number is the current one. If two rows have the same number, every name includes a hash instead.
    """
    if len(formats) < 2:
        return name
    if len(set(formats)) < len(formats):
        return f"{name} [{setting_hash}]"
    row_format = _format(results)
    return name if row_format == FORMAT else f"{name} [format {row_format}]"


def _drop_duplicates(settings: Mapping[Setting, list[SweepPoint]]) -> dict[Setting, list[SweepPoint]]:
    """Drop settings whose runs and tests all belong to another setting too, as when one sweep is typed in two ways."""
    tests = {setting: {(point.run, point.test) for point in points} for setting, points in settings.items()}
    settings_by_test: dict[tuple[str, str], list[Setting]] = {}
    for setting, own_tests in tests.items():
        for test in own_tests:
            settings_by_test.setdefault(test, []).append(setting)
    unique: dict[Setting, list[SweepPoint]] = {}
    for setting, points in settings.items():
        own_tests, listed = tests[setting], bool(setting[0])
        candidates = [other for other in settings_by_test[next(iter(own_tests))] if other != setting]
        duplicate = any(
            own_tests < tests[other] or (own_tests == tests[other] and other in unique) for other in candidates
        )
        if listed or not duplicate or not all(point.run for point in points):
            unique[setting] = points
    return unique


def _setting_names(study: str, settings: Mapping[Setting, Sequence[SweepPoint]]) -> dict[Setting, str]:
    """Name each setting by its listed row and the overrides that distinguish it from other settings of that row."""
    shared: dict[str, set[str]] = {}  # overrides that all settings of a row share, by row name ("" in a plain grid)
    for row, overrides in settings:
        shared[row] = shared.get(row, set(overrides)) & set(overrides)
    candidates = []
    for (row, overrides), points in settings.items():
        differing = [override for override in overrides if override not in shared[row]]
        texts = [row_names.name_from_overrides(differing, row, short) or study for short in (True, False)]
        candidates.append((*texts, points[0].run or texts[-1]))
    hashes = [points[0].test for points in settings.values()]
    return dict(zip(settings, row_names.pick_names(candidates, hashes), strict=True))


def _transfer_table(study: Study) -> Table | None:
    """Build the table of `sppnet transfer`: one row per record that has the latest record's protocol.

    Returns None if no record exists.
    """
    records = [read_json(path) for path in sorted((study.folder / "transfer").glob("*.json"))]
    records = [record for record in records if isinstance(record, dict) and record.get("splits")]
    if not records:
        return None
    protocol = max(records, key=lambda record: str(record["time"]))["compare"]
    shown = [record for record in records if record["compare"] == protocol]
    shown.sort(key=lambda record: -next(iter(record["figures"].values())))
    naming_keys = ("network", "layer", "view", "size", "C")
    differing = [key for key in naming_keys if len({str(record["row"][key]) for record in shown}) > 1] or ["layer"]
    names = [" ".join(str(record["row"][key]) for key in differing) for record in shown]
    poolings = [record["identity"]["layer"].get("pooling") or {} for record in shown]  # of layer=pooling
    chosen = [str(pooling.get("name") or pooling.get("_target_", "")) for pooling in poolings]
    if len(set(chosen)) > 1:
        names = [f"{name} {pooling}".strip() for name, pooling in zip(names, chosen, strict=True)]
    hashes = [str(record["hash"]) for record in shown]
    # Records can also differ in settings that no name shows, such as how images are prepared.
    candidates = []
    for name, key, record in zip(names, hashes, shown, strict=True):
        alike = [other for other, its_name in zip(shown, names, strict=True) if its_name == name]
        settings = [f"{setting}={value}" for setting, value in distinguishing_settings(record, alike)]
        candidates.append((name, " ".join([name, *settings]), f"{name} [{key}]", f"row {key}"))
    rows = [
        Row(name, _split_results(record), {}, {})
        for record, name in zip(shown, row_names.pick_names(candidates, hashes), strict=True)
    ]
    metrics = rows[0].results[0].metrics
    columns = [Column(key, key.removeprefix("transfer/")) for key in metrics]
    return Table(study.name, "split", study.header, columns, rows, study.report, len(records) - len(shown))


def _split_results(record: Mapping[str, Any]) -> dict[int, Result]:
    """Build the results of a transfer record, by split."""
    provenance = {
        **{"hash": record["hash"], "setting": record["hash"]},
        **{"commit": format_commit(record["commit"], record["dirty"]), "machine": format_machine(record["machine"])},
        **{"time": record["time"], "seconds": sum(record["seconds"].values())},
    }
    keys = [key for key in ("accuracy", "overall", "map", "map_all") if key in record["splits"][0]]
    return {
        number: Result(record["hash"], {f"transfer/{key}": split[key] for key in keys}, provenance)
        for number, split in enumerate(record["splits"])
    }


def build_columns(metrics: Sequence[str] | None, results: Sequence[Result]) -> list[Column]:
    """Build a column per metric, or per metric and test size if any result has several sizes.

    Raises:
        UserError: `metrics` names a metric that no result has.
    """
    keys = dict.fromkeys(key for result in results for key in result.metrics)
    shown = metrics or (["map"] if "test/map" in keys else ["top1"])
    available = sorted(key.split("/")[1] for key in keys if key.count("/") == 1)
    for name in shown if results else []:
        if name not in available and name.removesuffix("_error") not in available:
            raise UserError(
                f"report.metrics={name} is not allowed: must be one of {', '.join(available)}, or X_error for 1 - X"
            )
    own = {name: facts for result in results for name, facts in result.provenance["own_metrics"].items()}
    sizes_by_result = [
        dict.fromkeys(key.split("/")[1] for key in result.metrics if key.count("/") == 2) for result in results
    ]
    if all(len(sizes) < 2 for sizes in sizes_by_result):
        return [Column(f"test/{name}", name, *_scale(name, available, own)) for name in shown]
    all_sizes = dict.fromkeys(size for sizes in sizes_by_result for size in sizes)
    return [
        Column(f"test/{size}/{name}", f"{name} at {size} px", *_scale(name, available, own))
        for name in shown
        for size in all_sizes
    ]


def _scale(
    name: str, available: Collection[str], own: Mapping[str, Mapping[str, Any]]
) -> tuple[Literal["max", "min"] | None, bool]:
    """Return which values of a metric are better, and whether they are shown in percent.

    Args:
        name: the name of a metric, or `X_error` for 1 - X.
        available: the names of all metrics.
        own: what the records say of the user's metrics.
    """
    if name in own:
        return own[name]["better"], own[name]["percent"]
    if name in available or not name.endswith("_error"):
        return "min" if name in LOWER_IS_BETTER else "max", name != "loss"
    better, percent = _scale(name.removesuffix("_error"), available, own)
    return {"max": "min", "min": "max"}.get(str(better)), percent  # type: ignore[return-value]
