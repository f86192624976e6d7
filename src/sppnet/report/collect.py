"""The rows of a study's table, read from its run directories and from nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sppnet.errors import UserError
from sppnet.report import row_names
from sppnet.report.run_results import commit, machine, result, story
from sppnet.report.table import Column, Result, Row, Table
from sppnet.report.unplanned_runs import by_data
from sppnet.runs.identity import FORMAT
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_json
from sppnet.studies.status import run_status
from sppnet.studies.study import Study, SweepPoint

Setting = tuple[str, tuple[str, ...]]  # a listed row, and words but for the seed


def tables(study: Study) -> list[Table]:
    """The tables of a study: of networks that were trained, of features under an SVM, or of both.

    Of runs that no sweep asked for there is one for each data set that they were tested on.
    """
    transfer = _transfer(study)
    found = _planned(study) if study.cells else _unplanned(study)
    if transfer is not None and found:
        transfer = replace(transfer, name=f"{study.name}_transfer")
    return [*found, *([transfer] if transfer else [])]


def _planned(study: Study) -> list[Table]:
    others = {path.parent.name for path in study.folder.glob("*/status.json")} - {cell.run for cell in study.cells}
    return [_table(study, study.name, _by_setting(study), len(others))]


def _unplanned(study: Study) -> list[Table]:
    """Whatever was trained."""
    found = by_data(study.folder, sorted({path.parent.name for path in study.folder.glob("*/status.json")}))
    called = [f"{study.name}_{data}" if len(found) > 1 else study.name for data in found]
    return [_table(study, name, rows, 0) for name, rows in zip(called, found.values(), strict=True)]


def _table(study: Study, name: str, rows: Sequence[Row], others: int) -> Table:
    columns = _columns(study.report["metrics"], [one for row in rows for one in row.results.values()])
    return Table(name, "seed", study.header, columns, rows, study.report, others)


def _by_setting(study: Study) -> list[Row]:
    settings: dict[Setting, list[SweepPoint]] = {}
    for cell in study.cells:
        settings.setdefault((cell.row, cell.setting), []).append(cell)
    settings = _once(settings)
    called = _names(study.name, settings)
    return [
        row
        for setting, members in settings.items()
        for row in _of_setting(called[setting], members, study, study.rows.get(setting[0]) or {})
    ]


def _of_setting(name: str, members: Sequence[SweepPoint], study: Study, listed: Mapping[str, Any]) -> list[Row]:
    """The row of a setting; several, if what its words mean was changed between its runs: those are no one's mean."""
    made: dict[str, dict[int, Result]] = {}
    missing = {}
    for cell in members:
        run = Run(study.folder / cell.run)
        standing = run_status(run, cell.test)
        if standing.result is None:
            missing["of the configuration" if cell.seed is None else str(cell.seed)] = standing
        else:
            origin = story(run)
            seed = cell.seed if cell.seed is not None else int(origin["identity"].get("seed", 0))
            found = result(run, standing.result, origin)
            made.setdefault(found.made["setting"], {})[seed] = found
    paper, rows = listed.get("paper", {}), []
    for setting, results in made.items() or [("", {})]:
        last = setting == list(made or [""])[-1]
        called = _called(name, setting, [next(iter(one.values())).made["format"] for one in made.values()], results)
        rows.append(Row(called, dict(sorted(results.items())), missing if last else {}, paper))
    return rows


def _called(name: str, setting: str, formats: Sequence[object], results: Mapping[int, Result]) -> str:
    """The name of one of several rows of a setting: by its format if that tells them apart; today's needs no more."""
    if len(formats) < 2:
        return name
    mine = next(iter(results.values())).made["format"]
    if len(set(formats)) < len(formats):
        return f"{name} [{setting}]"
    return name if mine == FORMAT else f"{name} [format {mine}]"


def _once(settings: Mapping[Setting, list[SweepPoint]]) -> dict[Setting, list[SweepPoint]]:
    """Without what is the same runs and tests under other words, as where a sweep was typed in two ways."""
    pairs = {setting: {(one.run, one.test) for one in cells} for setting, cells in settings.items()}
    holders: dict[tuple[str, str], list[Setting]] = {}
    for setting, mine in pairs.items():
        for pair in mine:
            holders.setdefault(pair, []).append(setting)
    kept: dict[Setting, list[SweepPoint]] = {}
    for setting, cells in settings.items():
        mine, listed = pairs[setting], bool(setting[0])
        others = [other for other in holders[next(iter(mine))] if other != setting]
        same = any(mine < pairs[other] or (mine == pairs[other] and other in kept) for other in others)
        if listed or not same or not all(one.run for one in cells):
            kept[setting] = cells
    return kept


def _names(study: str, settings: Mapping[Setting, Sequence[SweepPoint]]) -> dict[Setting, str]:
    """What each setting is called: its listed row, if any, and the words that are not those of all others."""
    alike: dict[str, set[str]] = {}  # of each listed row; a grid is one without a name
    for row, words in settings:
        alike[row] = alike.get(row, set(words)) & set(words)
    candidates = []
    for (row, words), cells in settings.items():
        differing = [word for word in words if word not in alike[row]]
        texts = [row_names.of_words(differing, row, short) or study for short in (True, False)]
        candidates.append((*texts, cells[0].run or texts[-1]))
    return dict(zip(settings, row_names.pick(candidates, [cells[0].test for cells in settings.values()]), strict=True))


def _transfer(study: Study) -> Table | None:
    found = [read_json(path) for path in sorted((study.folder / "transfer").glob("*.json"))]
    found = [one for one in found if isinstance(one, dict) and one.get("splits")]
    if not found:
        return None
    compare = max(found, key=lambda one: str(one["time"]))["compare"]  # the protocol that was used last
    same = [one for one in found if one["compare"] == compare]
    same.sort(key=lambda one: -next(iter(one["figures"].values())))
    heads = ("network", "layer", "view", "size", "C")
    differing = [key for key in heads if len({str(one["row"][key]) for one in same}) > 1] or ["layer"]
    called = [" ".join(str(one["row"][key]) for key in differing) for one in same]
    hashes = [str(one["hash"]) for one in same]
    # what differs may be none of the heads: how pictures are prepared, say
    candidates = [(name, f"{name} [{key}]", f"row {key}") for name, key in zip(called, hashes, strict=True)]
    rows = []
    for one, name in zip(same, row_names.pick(candidates, hashes), strict=True):
        made = {
            **{"hash": one["hash"], "setting": one["hash"], "commit": commit(one["commit"], one["dirty"])},
            **{"machine": machine(one["machine"]), "time": one["time"], "seconds": sum(one["seconds"].values())},
        }
        keys = [key for key in ("accuracy", "overall", "map", "map_all") if key in one["splits"][0]]
        results = {
            number: Result(one["hash"], {f"transfer/{key}": split[key] for key in keys}, made)
            for number, split in enumerate(one["splits"])
        }
        rows.append(Row(name, results, {}, {}))
    metrics = rows[0].results[0].metrics
    columns = [Column(key, key.removeprefix("transfer/")) for key in metrics]
    return Table(study.name, "split", study.header, columns, rows, study.report, len(found) - len(same))


def _columns(wanted: Sequence[str] | None, results: Sequence[Result]) -> list[Column]:
    """The metrics at every test size; as they are if no result has more than one.

    Raises:
        UserError: no result has such a metric.
    """
    keys = dict.fromkeys(key for one in results for key in one.metrics)
    shown = wanted or (["map"] if "test/map" in keys else ["top1"])
    known = sorted(key.split("/")[1] for key in keys if key.count("/") == 1)
    for name in shown if results else []:
        if name.removesuffix("_error") not in known:
            raise UserError(f"report.metrics={name} is not allowed; there are {', '.join(known)}, and 1 - X as X_error")
    sizes = [dict.fromkeys(key.split("/")[1] for key in one.metrics if key.count("/") == 2) for one in results]
    if all(len(one) < 2 for one in sizes):
        return [Column(f"test/{name}", name) for name in shown]
    every = dict.fromkeys(size for one in sizes for size in one)
    return [Column(f"test/{size}/{name}", f"{name} at {size} px") for name in shown for size in every]
