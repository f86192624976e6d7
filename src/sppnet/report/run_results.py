"""Reads the result and the provenance of one run from its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sppnet.report.table import Column, Result
from sppnet.runs.identity import digest, format_mismatch
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record

PER_METRIC = ("measures", "own_metrics")  # facts of a result about single metrics, by name


def read_provenance(run: Run) -> dict[str, Any]:
    """Read the run's `identity` and `starts`; if `provenance.json` is missing or damaged, they are `{}` and `[{}]`."""
    record = read_record(run.path / "provenance.json")
    return {"identity": record.get("identity") or {}, "starts": record.get("starts") or [{}]}


def hoist_configuration(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a run or a test with the sections of its configuration beside its other parts."""
    return (identity.get("config") or {}) | {name: part for name, part in identity.items() if name != "config"}


def build_result(run: Run, record: Mapping[str, Any], provenance: Mapping[str, Any]) -> Result:
    """Build the result of a test from its `record` and the run's `provenance` (see `read_provenance`)."""
    identity, last, summary = hoist_configuration(provenance["identity"]), provenance["starts"][-1], run.summary
    code, pooling = last.get("code") or {}, identity.get("pooling") or {}
    commits = dict.fromkeys(
        format_commit(start["code"]["commit"], start["code"]["dirty"])
        for start in provenance["starts"]
        if "code" in start
    )
    trainer, test = identity.get("trainer") or {}, record["identity"].get("limit") or {}
    limits = {name: value for name, value in trainer.items() if name.startswith(("limit_", "overfit_"))}
    limits["limit_test_batches"] = test.get("batches")
    cut = ", ".join(f"trainer.{name}={value}" for name, value in limits.items() if value)
    version = identity.get("format") or record["identity"].get("format")
    config = record["identity"].get("config") or {}
    # The user's metrics change neither the weights nor the other metrics.
    protocol = {name: part for name, part in record["identity"].items() if name != "code"}
    setting = {name: part for name, part in identity.items() if name != "seed"}
    if "init" in setting:  # the runs that a row starts from may differ in their seeds
        setting["init"] = last.get("init") or setting["init"]
    protocol["config"] = {name: part for name, part in config.items() if name != "metrics"}
    columns = {
        "hash": run.hash,
        "setting": digest(setting | {"test": record["identity"]}),
        "protocol": digest(setting | {"test": protocol}),
        "measures": _loss_measure(identity)
        | {name: _measure(metric, record["identity"]) for name, metric in (config.get("metrics") or {}).items()},
        "commit": " ".join(commits) if code else "",
        "machine": format_machine(last.get("machine") or {}),
        "time": record.get("time"),
        "seconds": summary.get("seconds"),
        "parameters": summary.get("parameters"),
        "bins": sum(n * n for n in (pooling.get("bins") if "_target_" not in pooling else None) or [1]),
        "note": "; ".join(filter(None, [run.status.get("note"), cut, format_mismatch(version)])) or None,
        "limited": bool(cut),
        "format": version,
        "data": record["identity"]["fingerprint"],
        "own_metrics": record.get("own_metrics", {}),
    }
    return Result(run.path.name, record["metrics"], columns)


def _loss_measure(identity: Mapping[str, Any]) -> dict[str, str]:
    """Digest how the loss of a test is computed, by the name `loss`; empty if the run's identity is not known."""
    loss = identity.get("loss")
    if loss is None:
        return {}
    if "_target_" in loss:
        definition = {name: value for name, value in loss.items() if name not in ("name", "activation")}
    else:  # smoothing and weights of classes act in training only
        definition = {"name": identity.get("loss.name"), "gamma": loss.get("gamma")}
    return {"loss": _measure(definition, identity)}


def _measure(definition: object, identity: Mapping[str, Any]) -> str:
    """Digest how a metric is computed: its `definition`, and the code of the user's classes that it names."""
    text = json.dumps(definition, sort_keys=True)
    code = {target: code for target, code in (identity.get("code") or {}).items() if json.dumps(target) in text}
    return digest({"definition": text, "code": code})


def combine(first: Mapping[int, Result], second: Mapping[int, Result]) -> dict[int, Result] | None:
    """Combine the results, by seed, of two rows whose tests differ only in the user's metrics.

    Returns:
        For each seed, a result with the metrics of both; None if the rows have the same metrics, define one in two ways
        or are not of the same runs and tests.
    """
    results = [*first.values(), *second.values()]
    measures: dict[str, str] = {}
    for result in results:
        for name, value in result.provenance["measures"].items():
            if measures.setdefault(name, value) != value:
                return None
    alike = all(result.provenance["measures"] == results[0].provenance["measures"] for result in results)
    if alike or len({result.provenance["protocol"] for result in results}) > 1:
        return None
    combined = {**first, **second}
    for seed in first.keys() & second.keys():
        one, other = first[seed], second[seed]
        if one.run != other.run:
            return None
        facts = {name: {**one.provenance[name], **other.provenance[name]} for name in PER_METRIC}
        combined[seed] = replace(
            other, metrics={**one.metrics, **other.metrics}, provenance={**other.provenance, **facts}
        )
    return dict(sorted(combined.items()))


def is_same_test(result: Result, other: Result) -> bool:
    """Whether two results are of one run and one test; the metrics of the user's may differ."""
    return result.run == other.run and result.provenance["protocol"] == other.provenance["protocol"]


def measures_alike(result: Result, other: Result, column: Column) -> bool:
    """Whether two results compute the metric of a column in the same way."""
    name = column.name
    measured = name if f"test/{name}" in other.metrics else name.removesuffix("_error")
    return bool(result.provenance["measures"].get(measured) == other.provenance["measures"].get(measured))


def format_commit(commit: object, dirty: object) -> str:
    """Format a commit as its first ten digits, with `+changes` if the checkout had uncommitted changes."""
    return f"{str(commit or '?')[:10]}{'+changes' if dirty else ''}"


def format_machine(record: Mapping[str, Any]) -> str:
    """Format a machine as its GPUs, number of cores and processor."""
    gpus = record.get("gpus") or []
    return ", ".join([*gpus, f"{record.get('cores')} cores", str(record.get("processor"))])
