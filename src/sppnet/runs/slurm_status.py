"""What the status of a run says of the SLURM job that does it. Nothing here imports torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sppnet.runs.identity import digest
from sppnet.runs.provenance import code
from sppnet.slurm.job import inside, name, restarts
from sppnet.storage.files import read_json


def mark() -> dict[str, Any]:
    """What status.json says of the job: its name, and how often it was started."""
    if not inside():
        return {"slurm": None, "note": None}
    return {"slurm": {"job": name(), "restarts": restarts()}, "note": _other_code()}


def _other_code() -> str | None:
    """That the code is not what it was when the job was sent."""
    sent = read_json(Path(os.environ["SPPNET_SUBMISSION"]) / "submission.json") or {}
    if sent.get("code_digest") in {None, digest(code())}:
        return None
    before, now = sent["code"]["commit"], code()["commit"]
    if before == now:
        return f"ran commit {str(now)[:10]} with other changes than were there when it was sent"
    return f"ran commit {str(now)[:10]}, was sent with {str(before)[:10]}"
