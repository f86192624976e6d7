"""The rows of a study's table, read from its run directories and from nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sppnet.errors import UserError
from sppnet.identity import digest
from sppnet.report.table import Column, Result, Row, Table
from sppnet.runs import Run, read_json
from sppnet.standing import stand
from sppnet.study import Cell, Study

Setting = tuple[str, tuple[str, ...]]  # a listed row, and words but for the seed


def tables(study: Study) -> list[Table]:
    """The tables of a study: of networks that were trained, of features under an SVM, or of both."""
    found = [table for table in (_trained(study), _transfer(study)) if table is not None]
    if len(found) > 1:
        found[1] = replace(found[1], name=f"{study.name}_transfer")
    return found


def _trained(study: Study) -> Table | None:
    cells, there = study.cells, {path.parent.name for path in study.folder.glob("*/status.json")}
    # without a sweep, whatever was trained
    rows = _by_setting(study) if cells else _by_identity(study.folder, sorted(there))
    if not rows:
        return None
    columns = _columns(study.report["metrics"], [one for row in rows for one in row.results.values()])
    others = len(there - {cell.run for cell in cells}) if cells else 0
    return Table(study.name, "seed", study.header, columns, rows, study.report, others)


def _by_setting(study: Study) -> list[Row]:
    settings: dict[Setting, list[Cell]] = {}
    for cell in study.cells:
        settings.setdefault((cell.row, cell.setting), []).append(cell)
    settings = _once(settings)
    names = _names(study.name, list(settings))
    return [
        row
        for setting, members in settings.items()
        for row in _of_setting(names[setting], members, study, study.rows.get(setting[0]) or {})
    ]


def _of_setting(name: str, members: Sequence[Cell], study: Study, listed: Mapping[str, Any]) -> list[Row]:
    """The row of a setting; several, if what its words mean was changed between its runs: those are no one's mean."""
    made: dict[str, dict[int, Result]] = {}
    missing = {}
    for cell in members:
        run = Run(study.folder / cell.run)
        standing = stand(run, cell.test)
        if standing.result is None:
            missing["of the configuration" if cell.seed is None else str(cell.seed)] = standing
        else:
            story = _story(run)
            seed = cell.seed if cell.seed is not None else int(story["identity"].get("seed", 0))
            result = _result(run, standing.result, story)
            made.setdefault(result.made["setting"], {})[seed] = result
    paper, rows = listed.get("paper", {}), []
    for setting, results in made.items() or [("", {})]:
        last = setting == list(made or [""])[-1]
        called = f"{name} [{setting}]" if len(made) > 1 else name
        rows.append(Row(called, dict(sorted(results.items())), missing if last else {}, paper))
    return rows


def _once(settings: Mapping[Setting, list[Cell]]) -> dict[Setting, list[Cell]]:
    """Without what is the same runs and tests under other words, as where a sweep was typed in two ways."""
    pairs = {setting: {(one.run, one.test) for one in cells} for setting, cells in settings.items()}
    holders: dict[tuple[str, str], list[Setting]] = {}
    for setting, mine in pairs.items():
        for pair in mine:
            holders.setdefault(pair, []).append(setting)
    kept: dict[Setting, list[Cell]] = {}
    for setting, cells in settings.items():
        mine, listed = pairs[setting], bool(setting[0])
        others = [other for other in holders[next(iter(mine))] if other != setting]
        same = any(mine < pairs[other] or (mine == pairs[other] and other in kept) for other in others)
        if listed or not same or not all(one.run for one in cells):
            kept[setting] = cells
    return kept


def _names(study: str, settings: Sequence[Setting]) -> dict[Setting, str]:
    """What each setting is called: its listed row, if any, and the words that are not those of all others."""
    alike: dict[str, set[str]] = {}  # of each listed row; a grid is one without a name
    for row, words in settings:
        alike[row] = alike.get(row, set(words)) & set(words)
    for shorten in (_short, str):  # the short ones may be the same: kind=x of two groups
        found = {
            (row, words): " ".join(filter(None, [row, *(shorten(word) for word in words if word not in alike[row])]))
            for row, words in settings
        }
        if len(set(found.values())) == len(found):
            break
    return {setting: name or study for setting, name in found.items()}


def _by_identity(folder: Path, names: Iterable[str]) -> list[Row]:
    """Rows of runs that no sweep asked for: all seeds of a setting are one."""
    settings: dict[str, tuple[dict[str, Any], dict[int, Result]]] = {}
    for name in names:
        run = Run(folder / name)
        for path in sorted((run.path / "tests").glob("*.json")) if run.status.get("state") == "done" else []:
            record = read_json(path)
            if isinstance(record, dict) and record["identity"]["weights"] == "best":
                story = _story(run)
                result = _result(run, record, story)
                shown = story["identity"] | {"test": record["identity"]}
                settings.setdefault(result.made["setting"], (shown, {}))[1][int(shown.get("seed", 0))] = result
    flat = {key: dict(_flat({k: v for k, v in shown.items() if k != "seed"})) for key, (shown, _) in settings.items()}
    every = sorted({key for one in flat.values() for key in one})
    differing = [key for key in every if len({str(one.get(key)) for one in flat.values()}) > 1]
    rows = []
    for key, (_, results) in settings.items():
        name = " ".join(f"{name}={flat[key].get(name)}".replace(" ", "") for name in differing) or folder.name
        rows.append(Row(name, dict(sorted(results.items())), {}, {}))
    return rows


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
    names = [" ".join(str(one["row"][key]) for key in differing) for one in same]
    rows = []
    for one, name in zip(same, names, strict=True):
        made = {
            **{"hash": one["hash"], "setting": one["hash"], "commit": _commit(one["commit"], one["dirty"])},
            **{"machine": _machine(one["machine"]), "time": one["time"], "seconds": sum(one["seconds"].values())},
        }
        keys = [key for key in ("accuracy", "overall", "map", "map_all") if key in one["splits"][0]]
        results = {
            number: Result(one["hash"], {f"transfer/{key}": split[key] for key in keys}, made)
            for number, split in enumerate(one["splits"])
        }
        # what differs may be none of the heads: how pictures are prepared, say
        rows.append(Row(name if names.count(name) == 1 else f"{name} [{one['hash']}]", results, {}, {}))
    metrics = rows[0].results[0].metrics
    columns = [Column(key, key.removeprefix("transfer/")) for key in metrics]
    return Table(study.name, "split", study.header, columns, rows, study.report, len(found) - len(same))


def _columns(wanted: Sequence[str] | None, results: Sequence[Result]) -> list[Column]:
    """The metrics at every test size; as they are if no result has more than one.

    Raises:
        UserError: no result has such a metric.
    """
    keys = dict.fromkeys(key for one in results for key in one.metrics)
    names = wanted or (["map"] if "test/map" in keys else ["top1"])
    known = sorted(key.split("/")[1] for key in keys if key.count("/") == 1)
    for name in names if results else []:
        if name.removesuffix("_error") not in known:
            raise UserError(f"report.metrics={name} is not allowed; there are {', '.join(known)}, and 1 - X as X_error")
    sizes = [dict.fromkeys(key.split("/")[1] for key in one.metrics if key.count("/") == 2) for one in results]
    if all(len(one) < 2 for one in sizes):
        return [Column(f"test/{name}", name) for name in names]
    every = dict.fromkeys(size for one in sizes for size in one)
    return [Column(f"test/{size}/{name}", f"{name} at {size} px") for name in names for size in every]


def _story(run: Run) -> dict[str, Any]:
    """What the run is (`identity`) and how it was made (`starts`)."""
    found: dict[str, Any] = read_json(run.path / "provenance.json") or {"identity": {}, "starts": [{}]}
    return found


def _result(run: Run, record: Mapping[str, Any], story: Mapping[str, Any]) -> Result:
    identity, last, summary = story["identity"], story["starts"][-1], run.summary
    code, head = last.get("code") or {}, identity.get("head") or {}
    commits = dict.fromkeys(
        _commit(start["code"]["commit"], start["code"]["dirty"]) for start in story["starts"] if "code" in start
    )
    made = {
        "hash": run.hash,
        "setting": digest({**{k: v for k, v in identity.items() if k != "seed"}, "test": record["identity"]}),
        "commit": " ".join(commits) if code else "",
        "machine": _machine(last.get("machine") or {}),
        "time": record.get("time"),
        "seconds": summary.get("seconds"),
        "parameters": summary.get("parameters"),
        "bins": sum(n * n for n in head.get("bins") or [1]),
        "note": run.status.get("note"),
    }
    return Result(run.path.name, record["metrics"], made)


def _commit(commit: object, dirty: object) -> str:
    return f"{str(commit or '?')[:10]}{'+changes' if dirty else ''}"


def _machine(found: Mapping[str, Any]) -> str:
    gpus = found.get("gpus") or []
    return ", ".join([*gpus, f"{found.get('cores')} cores", str(found.get("processor"))])


def _short(word: str) -> str:
    """An override as a name: a group's option speaks for itself, a value needs its key."""
    key, _, value = word.partition("=")
    return value if "." not in key and not value.replace(".", "").isdigit() else f"{key.rpartition('.')[2]}={value}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
