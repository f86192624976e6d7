"""Reads the result and the provenance of one run from its directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sppnet.report.table import Result
from sppnet.runs.identity import digest, format_mismatch
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record


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
    protocol["config"] = {name: part for name, part in config.items() if name != "metrics"}
    columns = {
        "hash": run.hash,
        "setting": digest({**{k: v for k, v in identity.items() if k != "seed"}, "test": protocol}),
        "defined": (config.get("metrics") or {}) | {"code": record["identity"].get("code")},
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


def combine(first: Result, second: Result) -> Result | None:
    """Combine two tests of a run that differ only in the user's metrics.

    Returns:
        A result with the metrics of both; None if they have the same metrics, define one in two ways or are tests of
        other things.
    """
    one, other = first.provenance, second.provenance
    same = (first.run, one["setting"]) == (second.run, other["setting"]) and one["defined"] != other["defined"]
    shared = one["defined"].keys() & other["defined"].keys() - {"code"}
    if not same or any(one["defined"][name] != other["defined"][name] for name in shared):
        return None
    if shared and one["defined"]["code"] != other["defined"]["code"]:
        return None
    defined = one["defined"] | other["defined"]
    own = one["own_metrics"] | other["own_metrics"]
    return replace(
        second,
        metrics={**first.metrics, **second.metrics},
        provenance={**other, "defined": defined, "own_metrics": own},
    )


def format_commit(commit: object, dirty: object) -> str:
    """Format a commit as its first ten digits, with `+changes` if the checkout had uncommitted changes."""
    return f"{str(commit or '?')[:10]}{'+changes' if dirty else ''}"


def format_machine(record: Mapping[str, Any]) -> str:
    """Format a machine as its GPUs, number of cores and processor."""
    gpus = record.get("gpus") or []
    return ", ".join([*gpus, f"{record.get('cores')} cores", str(record.get("processor"))])
