"""Builds the rows of runs that no sweep planned, grouped by test data set and named by their differences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sppnet.report import row_names
from sppnet.report.run_results import build_result, combine, hoist_configuration, read_provenance
from sppnet.report.table import Result, Row
from sppnet.runs.identity import digest
from sppnet.runs.run_directory import Run

Setting = tuple[dict[str, Any], dict[int, Result]]  # flattened identities of run and test, and results by seed


def rows_by_data(folder: Path, runs: Iterable[str]) -> dict[str, list[Row]]:
    """Build the rows of `runs`, grouped by the name of the test data set. A row holds all seeds of a setting."""
    tested = [each for name in runs for each in _tests(Run(folder / name))]
    starts = {(result.provenance["setting"], keys.get("seed"), keys.get("init")) for keys, result in tested}
    counts = Counter((setting, seed) for setting, seed, _ in starts)
    repeated = {setting for (setting, _), count in counts.items() if count > 1}
    settings: dict[str, Setting] = {}
    for keys, result in tested:
        setting = result.provenance["setting"]
        if setting in repeated:  # runs with equal seeds started from several runs of one row
            setting = digest({"setting": setting, "init": keys.get("init")})
        settings.setdefault(setting, (keys, {}))[1][int(keys.get("seed", 0))] = result
    settings = _combine_metrics(settings)
    by_data: dict[str, dict[str, Setting]] = {}
    for setting_hash, setting in settings.items():
        by_data.setdefault(str(setting[0]["test.fingerprint"]), {})[setting_hash] = setting
    names = _data_names(folder, by_data)
    return {names[data]: _build_rows(folder, data_settings) for data, data_settings in by_data.items()}


def _tests(run: Run) -> Iterator[tuple[dict[str, Any], Result]]:
    """Yield the flattened identity and the result of each test of a run's best weights."""
    for path in sorted((run.path / "tests").glob("*.json")) if run.status.get("state") == "done" else []:
        record = run.result(path.stem)
        if record and record["identity"]["weights"] == "best":
            provenance = read_provenance(run)
            identity, test = hoist_configuration(provenance["identity"]), hoist_configuration(record["identity"])
            yield dict(row_names.flatten(identity | {"test": test})), build_result(run, record, provenance)


def _combine_metrics(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Combine settings that differ only in the user's metrics; their names do not mention them."""
    combined: dict[str, Setting] = {}
    for setting, (keys, results) in settings.items():
        for other, (other_keys, other_results) in combined.items():
            if both := combine(other_results, results):
                shown = {
                    key: value
                    for key, value in other_keys.items()
                    if not key.startswith(("test.metrics.", "test.code."))
                }
                combined[other] = (shown, both)
                break
        else:
            combined[setting] = (keys, results)
    return combined


def _build_rows(folder: Path, settings: Mapping[str, Setting]) -> list[Row]:
    """Build the rows of one data set, named by their differences."""
    identities, runs = [], []
    for keys, results in settings.values():
        run = next(iter(results.values())).run
        backbone = _load_config(folder / run).get("backbone") or {}
        identities.append({"backbone.name": backbone.get("name")} | keys)
        runs.append(run)
    names = row_names.name_by_difference(identities, runs, list(settings)) if len(runs) > 1 else [folder.name]
    return [
        Row(name, dict(sorted(results.items())), {}, {})
        for name, (_, results) in zip(names, settings.values(), strict=True)
    ]


def _data_names(folder: Path, by_data: Mapping[str, Mapping[str, Setting]]) -> dict[str, str]:
    """Name each data set; the keys of `by_data` and of the result are fingerprints.

    The name comes from the configuration of a run that was trained on the data set. If two data sets have the same
    name, the name of the data folder is added.
    """
    candidates = []
    for data, settings in by_data.items():
        trained = [results for keys, results in settings.values() if keys.get("data.fingerprint") == data]
        cfg = _load_config(folder / next(iter(trained[0].values())).run).get("data") or {} if trained else {}
        name = re.sub(r"[^\w.+=-]", "_", str(cfg.get("name") or "other"))
        root = re.sub(r"[^\w.+=-]", "_", Path(str(cfg.get("root") or "")).name)
        candidates.append((name if trained else "", f"{name}_{root}" if root else "", f"{name}_{data[:6]}"))
    return dict(zip(by_data, row_names.pick_names(candidates, list(by_data)), strict=True))


def _load_config(run: Path) -> dict[str, Any]:
    """Load the stored configuration of a run; empty if it cannot be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        cfg = yaml.load((run / "config.yaml").read_text(encoding="utf-8"), loader)
    except (OSError, yaml.YAMLError):
        return {}
    return cfg if isinstance(cfg, dict) else {}
