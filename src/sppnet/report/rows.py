"""The rows of a study's table, read from its run directories and from nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sppnet.identity import digest
from sppnet.runs import Run, read_json
from sppnet.standing import Standing, stand
from sppnet.study import Cell, Study

LOWER_IS_BETTER = ("loss", "error")


@dataclass(frozen=True)
class Result:
    """What one seed (or, of features under an SVM, one split) came to.

    Attributes:
        run: the name of its run.
        metrics: figures by name.
        made: `hash`, `setting` (the hash but for the seed), `commit`, `machine`, `time`, `seconds`, `parameters`,
            `bins` of the pyramid, `note`.
    """

    run: str
    metrics: Mapping[str, float]
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One setting: its results by seed, where the seeds stand that have none, and what is published of it."""

    name: str
    results: Mapping[int, Result]
    missing: Mapping[str, Standing]
    paper: Mapping[str, float | None]

    def values(self, metric: str) -> dict[int, float]:
        """A figure for each seed that has it; `x_error` is 1 - `x`."""
        name = metric.removesuffix("_error")
        found = {seed: one.metrics[name] for seed, one in self.results.items() if name in one.metrics}
        return {seed: 1 - value for seed, value in found.items()} if name != metric else found


@dataclass(frozen=True)
class Column:
    """A figure of the table: its name in `metrics`, how it is headed, and whether less of it is better."""

    metric: str
    label: str

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.metric.endswith(LOWER_IS_BETTER)


@dataclass(frozen=True)
class Table:
    """Everything that is shown of a study.

    Attributes:
        name: of its files.
        over: what the spread is over: seeds or splits.
        header: of the study's file.
        columns: the figures.
        rows: in the order of the sweep.
        report: the node `report` of the configuration.
        others: runs of the folder that the study did not ask for.
    """

    name: str
    over: str
    header: Mapping[str, str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    report: Mapping[str, Any]
    others: int

    @property
    def missing(self) -> int:
        """How many cells have no result."""
        return sum(len(row.missing) for row in self.rows)


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
    settings: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in study.cells:
        settings.setdefault((cell.row, cell.setting), []).append(cell)
    rows = []
    for (row, setting), members in settings.items():
        # of a listed row, its name and what is swept beside it; of a grid, what differs between any two
        alike = set.intersection(*(set(words) for other, words in settings if other == row))
        words = [_short(word) for word in setting if word not in alike]
        name = " ".join([*([row] if row else []), *words]) or study.name
        results, missing = {}, {}
        for cell in members:
            run = Run(study.folder / cell.run)
            standing = stand(run, cell.test)
            if standing.result is None:
                missing[str(cell.seed)] = standing
            else:
                results[_seed(run, cell)] = _result(run, standing.result)
        rows.append(Row(name, dict(sorted(results.items())), missing, (study.rows.get(row) or {}).get("paper", {})))
    return rows


def _by_identity(folder: Path, names: Iterable[str]) -> list[Row]:
    """Rows of runs that no sweep asked for: all seeds of a setting are one."""
    settings: dict[str, tuple[dict[str, Any], dict[int, Result]]] = {}
    for name in names:
        run = Run(folder / name)
        for path in sorted((run.path / "tests").glob("*.json")) if run.done else []:
            record = read_json(path)
            if isinstance(record, dict) and record["identity"]["weights"] == "best":
                result = _result(run, record)
                shown = _identity(run) | {"test": record["identity"]}
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
    rows = []
    for one in same:
        made = {
            **{"hash": one["hash"], "setting": one["hash"], "commit": _commit(one["commit"], one["dirty"])},
            **{"machine": _machine(one["machine"]), "time": one["time"], "seconds": sum(one["seconds"].values())},
        }
        keys = [key for key in ("accuracy", "overall", "map", "map_all") if key in one["splits"][0]]
        results = {
            number: Result(one["hash"], {f"transfer/{key}": split[key] for key in keys}, made)
            for number, split in enumerate(one["splits"])
        }
        rows.append(Row(" ".join(str(one["row"][key]) for key in differing), results, {}, {}))
    metrics = rows[0].results[0].metrics
    columns = [Column(key, key.removeprefix("transfer/")) for key in metrics]
    return Table(study.name, "split", study.header, columns, rows, study.report, len(found) - len(same))


def _columns(wanted: Sequence[str] | None, results: Sequence[Result]) -> list[Column]:
    """The metrics at every test size of any result, or as they are if there is but one size."""
    keys = dict.fromkeys(key for one in results for key in one.metrics)
    names = wanted or (["map"] if "test/map" in keys else ["top1"])
    sizes = list(dict.fromkeys(key.split("/")[1] for key in keys if key.count("/") == 2))
    if len(sizes) < 2:
        return [Column(f"test/{name}", name) for name in names]
    return [Column(f"test/{size}/{name}", f"{name} at {size} px") for name in names for size in sizes]


def _result(run: Run, record: Mapping[str, Any]) -> Result:
    story = read_json(run.path / "provenance.json") or {"identity": {}, "starts": [{}]}
    identity, last, summary = story["identity"], story["starts"][-1], run.summary
    code, head = last.get("code") or {}, identity.get("head") or {}
    commits = dict.fromkeys(_commit(start["code"]["commit"], start["code"]["dirty"]) for start in story["starts"])
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


def _identity(run: Run) -> dict[str, Any]:
    return dict((read_json(run.path / "provenance.json") or {}).get("identity") or {})


def _seed(run: Run, cell: Cell) -> int:
    return cell.seed if cell.seed is not None else int(_identity(run).get("seed", 0))


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
