"""What a run was made with: commit and uncommitted changes, packages, machine. Nothing here imports torch."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sppnet.config.option_files import root

CODE = ("--", ".", ":(exclude)experiments/results")


COMMAND = "SPPNET_COMMAND"  # in the environment of the jobs of a sweep: what was typed to start it

_inherited = os.environ.get(COMMAND)
_words: list[str] = []  # of this process


def note(words: Sequence[str]) -> None:
    """Keep the words behind `sppnet`, before anything changes them, for this process and for those that it starts."""
    _words[:] = ["sppnet", *words]
    os.environ[COMMAND] = _inherited or json.dumps(_words)


def provenance() -> dict[str, Any]:
    """What was typed, code, packages and machine of this process, as plain data.

    `command` is what was typed; `job`, in the job of a sweep, what the sweep made of it. `allowed` are the packages
    admitted by `allow=` or by the environment.
    """
    command = json.loads(_inherited) if _inherited else list(_words)
    allowed = [name for name in dict.fromkeys(os.environ.get("SPPNET_ALLOW", "").split(",")) if name]
    started = {"command": command, "job": list(_words) if _inherited else None, "allowed": allowed}
    return started | _surroundings()


@functools.cache
def _surroundings() -> dict[str, Any]:
    return {"code": code(), "machine": machine(), "packages": packages()}


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
