"""Rows of runs that no sweep asked for: by data set, and named by what differs in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sppnet.report import row_names
from sppnet.report.run_results import result, story
from sppnet.report.table import Result, Row
from sppnet.runs.run_directory import Run

Setting = tuple[dict[str, Any], dict[int, Result]]  # its configuration and its test's, as one level of keys; by seed


def by_data(folder: Path, runs: Iterable[str]) -> dict[str, list[Row]]:
    """Rows of runs that no sweep asked for, by the name of the data they were tested on: all seeds of a setting are
    one."""
    settings: dict[str, Setting] = {}
    for name in runs:
        run = Run(folder / name)
        for path in sorted((run.path / "tests").glob("*.json")) if run.status.get("state") == "done" else []:
            record = run.result(path.stem)
            if record and record["identity"]["weights"] == "best":
                origin = story(run)
                found = result(run, record, origin)
                keys = dict(row_names.flat(origin["identity"] | {"test": record["identity"]}))
                settings.setdefault(found.made["setting"], (keys, {}))[1][int(keys.get("seed", 0))] = found
    sets: dict[str, dict[str, Setting]] = {}
    for key, setting in settings.items():
        sets.setdefault(str(setting[0]["test.fingerprint"]), {})[key] = setting
    called = _data_names(folder, sets)
    return {called[data]: _called(folder, rows) for data, rows in sets.items()}


def _called(folder: Path, settings: Mapping[str, Setting]) -> list[Row]:
    """The rows of one data set, each by what differs between them."""
    shown, runs = [], []
    for keys, results in settings.values():
        run = next(iter(results.values())).run
        backbone = _configuration(folder / run).get("backbone") or {}
        shown.append({"backbone.name": backbone.get("name")} | keys)
        runs.append(run)
    called = row_names.by_difference(shown, runs, list(settings)) if len(runs) > 1 else [folder.name]
    return [
        Row(name, dict(sorted(results.items())), {}, {})
        for name, (_, results) in zip(called, settings.values(), strict=True)
    ]


def _data_names(folder: Path, sets: Mapping[str, Mapping[str, Setting]]) -> dict[str, str]:
    """What each data set, given by its fingerprint, is called: as a run that was trained on it calls it, with the name
    of its folder where two are called the same."""
    candidates = []
    for data, settings in sets.items():
        own = [results for keys, results in settings.values() if keys.get("data.fingerprint") == data]
        cfg = _configuration(folder / next(iter(own[0].values())).run).get("data") or {} if own else {}
        name = re.sub(r"[^\w.+=-]", "_", str(cfg.get("name") or "other"))
        root = re.sub(r"[^\w.+=-]", "_", Path(str(cfg.get("root") or "")).name)
        candidates.append((name if own else "", f"{name}_{root}" if root else "", f"{name}_{data[:6]}"))
    return dict(zip(sets, row_names.pick(candidates, list(sets)), strict=True))


def _configuration(run: Path) -> dict[str, Any]:
    """The stored configuration of a run; empty where it cannot be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load((run / "config.yaml").read_text(encoding="utf-8"), loader)
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
