"""What a run was made with: commit and uncommitted changes, packages, machine. Nothing here imports torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from sppnet.groups import root

CODE = ("--", ".", ":(exclude)experiments/results")


@functools.cache
def provenance() -> dict[str, Any]:
    """Code, packages and machine of this process, as plain data."""
    return {"command": sys.argv, "code": code(), "machine": machine(), "packages": packages()}


def code() -> dict[str, Any]:
    """Version, and in a checkout the commit, the diff of what is not committed and the names of what is not in git.

    But for `experiments/results`, which a report writes and no run reads.
    """
    from sppnet import __version__

    here = root()
    if not (here / ".git").exists():
        return {"version": __version__, "commit": None, "dirty": None, "untracked": None}
    return {
        "version": __version__,
        "commit": _git(here, "rev-parse", "HEAD"),
        "dirty": _git(here, "diff", "HEAD", *CODE),
        "untracked": _git(here, "ls-files", "--others", "--exclude-standard", *CODE),
    }


def machine() -> dict[str, Any]:
    """Host, processor, cores this process may use, Python; GPUs by the driver's list (no torch needed)."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
    }


def packages() -> dict[str, str]:
    """Name and version of every installed distribution."""
    found = ((dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in found if name))


def _git(where: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[str]:
    cards = Path("/proc/driver/nvidia/gpus").glob("*/information")
    return [
        line.split(":", 1)[1].strip() for card in cards for line in card.read_text().splitlines() if "Model" in line
    ]
