"""What a run came to, and what made it, as its directory has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sppnet.report.table import Result
from sppnet.runs.identity import digest, format_mismatch
from sppnet.runs.run_directory import Run
from sppnet.storage.files import read_record


def story(run: Run) -> dict[str, Any]:
    """What the run is (`identity`) and how it was made (`starts`)."""
    found = read_record(run.path / "provenance.json")
    return {"identity": found.get("identity") or {}, "starts": found.get("starts") or [{}]}


def result(run: Run, record: Mapping[str, Any], origin: Mapping[str, Any]) -> Result:
    """What a test of a run came to (`record`), with what made the run (`origin`, its `story`)."""
    identity, last, summary = origin["identity"], origin["starts"][-1], run.summary
    code, head = last.get("code") or {}, identity.get("head") or {}
    commits = dict.fromkeys(
        commit(start["code"]["commit"], start["code"]["dirty"]) for start in origin["starts"] if "code" in start
    )
    trained, tested = identity.get("trainer") or {}, record["identity"].get("limit") or {}
    limit = trained.get("limit_batches") or tested.get("batches")
    version = identity.get("format") or record["identity"].get("format")
    cut = f"trainer.limit_batches={limit}" if limit else None
    made = {
        "hash": run.hash,
        "setting": digest({**{k: v for k, v in identity.items() if k != "seed"}, "test": record["identity"]}),
        "commit": " ".join(commits) if code else "",
        "machine": machine(last.get("machine") or {}),
        "time": record.get("time"),
        "seconds": summary.get("seconds"),
        "parameters": summary.get("parameters"),
        "bins": sum(n * n for n in head.get("bins") or [1]),
        "note": "; ".join(filter(None, [run.status.get("note"), cut, format_mismatch(version)])) or None,
        "limited": bool(limit),
        "format": version,
        "data": record["identity"]["fingerprint"],
    }
    return Result(run.path.name, record["metrics"], made)


def commit(name: object, dirty: object) -> str:
    """The code by its commit, and whether it was changed since."""
    return f"{str(name or '?')[:10]}{'+changes' if dirty else ''}"


def machine(found: Mapping[str, Any]) -> str:
    """The machine in a few words."""
    gpus = found.get("gpus") or []
    return ", ".join([*gpus, f"{found.get('cores')} cores", str(found.get("processor"))])
