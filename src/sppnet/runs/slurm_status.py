"""The fields of `status.json` that describe the SLURM job of a run. Does not import torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sppnet.runs.identity import digest
from sppnet.runs.provenance import code_state
from sppnet.slurm.job import inside_slurm, name, restarts
from sppnet.storage.files import read_json


def slurm_fields() -> dict[str, Any]:
    """The fields `slurm` (job name and restarts) and `note` (code changes since submission); None outside a job."""
    if not inside_slurm():
        return {"slurm": None, "note": None}
    return {"slurm": {"job": name(), "restarts": restarts()}, "note": _changed_code_note()}


def _changed_code_note() -> str | None:
    """A note that says how the code has changed since submission; None if it has not changed."""
    submission = read_json(Path(os.environ["SPPNET_SUBMISSION"]) / "submission.json") or {}
    now = code_state()
    if submission.get("code_digest") in {None, digest(now)}:
        return None
    before = submission["code"]
    if before["version"] != now["version"]:
        return f"ran sppnet {now['version']}, but was submitted with sppnet {before['version']}"
    commit, commit_before = ((code["commit"] or "unknown")[:10] for code in (now, before))
    if commit == commit_before:
        return f"ran commit {commit} with uncommitted changes that differ from those at submission"
    return f"ran commit {commit}, but was submitted at commit {commit_before}"
