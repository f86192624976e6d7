"""The provenance of a run: its command, code version, packages and machine. Does not import torch."""

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

CODE = ("--", ".", ":(exclude)experiments/results")  # git pathspec; leaves out the reports, which no run reads
COMMAND = "SPPNET_COMMAND"  # environment variable that tells a job which command started its sweep

_inherited = os.environ.get(COMMAND)
_command: list[str] = []


def remember_command(arguments: Sequence[str]) -> None:
    """Record the arguments of `sppnet` as typed, for this process and its child processes."""
    _command[:] = ["sppnet", *arguments]
    os.environ[COMMAND] = _inherited or json.dumps(_command)


def provenance() -> dict[str, Any]:
    """The command and the code, packages and machine of this process, as plain data.

    `command` is the command that the user typed. `job` is the command line of this process if a sweep started it, else
    None. `allowed` lists the packages that `allow=` or the environment variable `SPPNET_ALLOW` permits.
    """
    command = json.loads(_inherited) if _inherited else list(_command)
    allowed = [name for name in dict.fromkeys(os.environ.get("SPPNET_ALLOW", "").split(",")) if name]
    job = list(_command) if _inherited else None
    return {"command": command, "job": job, "allowed": allowed, **_surroundings()}


@functools.cache
def _surroundings() -> dict[str, Any]:
    return {"code": code_state(), "machine": machine(), "packages": packages()}


def code_state() -> dict[str, Any]:
    """sppnet's version and, in a git checkout, the commit, the uncommitted changes (`dirty`) and untracked files."""
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
    """The host, its system and processor, the cores available to this process, the GPUs, and the Python version."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "python": platform.python_version(),
    }


def packages() -> dict[str, str]:
    """The version of every installed distribution, by name."""
    versions = ((dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in versions if name))


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


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
