"""A run and its directory: where it lies, who has it, how far it is, what it was made from.

The directory is the truth (`config.yaml`, `status.json`, `metrics.jsonl`, `summary.json`, `tests/`, `provenance.json`,
`checkpoints/`); loggers only mirror it. Order: validate, lock, then create, so that a mistake leaves nothing behind.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sppnet.config import schema
from sppnet.errors import UserError
from sppnet.runs.provenance import provenance
from sppnet.storage.files import LockHeldError, file_lock, is_locked, read_record, write_json, write_text

FAILED_RANK = "failed_rank.txt"  # in a run directory: why a task other than the first failed, and so the run
State = Literal["queued", "running", "done", "failed", "preempted"]


@dataclass(frozen=True)
class Run:
    """A run directory. Making one of these touches nothing on disk."""

    path: Path

    @property
    def hash(self) -> str:
        """The hash of the run's identity, as it stands in the directory's name."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def last(self) -> Path:
        """The checkpoint from which training goes on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation score."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.last.exists() or self.best.exists()

    @property
    def status(self) -> dict[str, Any]:
        """The last status written; empty if none was."""
        return read_record(self.path / "status.json")

    @property
    def done(self) -> bool:
        """Training and its test have ended well."""
        return self.status.get("state") == "done" and self.best.is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """The result of a run that is done."""
        return read_record(self.path / "summary.json")

    def test_file(self, test: str) -> Path:
        """Where the figures of the test with this hash lie."""
        return self.path / "tests" / f"{test}.json"

    def result(self, test: str) -> dict[str, Any] | None:
        """The record of the test with this hash; None if it is not there, or not whole."""
        found = read_record(self.test_file(test))
        whole = all(isinstance(found.get(key), dict) and found[key] for key in ("metrics", "identity"))
        return found if whole else None

    def write_status(self, state: State, reason: str | None = None, **progress: Any) -> None:
        """Write `status.json`; what is not given anew (step, steps, epoch, ...) stays as it was."""
        kept = {key: value for key, value in self.status.items() if key not in {"state", "reason"}}
        where = {"host": socket.gethostname(), "pid": os.getpid(), "updated": _now()}
        write_json(self.path / "status.json", {"state": state, "reason": reason} | kept | where | progress)

    def begin(self, cfg: Mapping[str, Any], overrides: list[str], identity: Mapping[str, Any]) -> None:
        """Write what the run is made of; called with the lock held, at every start of the run."""
        for left in (*self.path.glob(".*.tmp"), *self.path.glob("checkpoints/.*.tmp")):  # of a process that was killed
            left.unlink(missing_ok=True)
        (self.path / FAILED_RANK).unlink(missing_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        (self.path / "tests").mkdir(exist_ok=True)
        kept = [line for line in overrides if not line.startswith("force=")]  # asked for this start, not for later ones
        write_text(self.path / "overrides.txt", "".join(f"{line}\n" for line in kept))
        write_text(
            self.path / "config.yaml",
            yaml.safe_dump({"layout": schema.LAYOUT, **cfg, "force": False}, sort_keys=False),
        )
        seen = {"identity": identity, "starts": []} | read_record(self.path / "provenance.json")
        seen["starts"].append({"time": _now()} | provenance())
        write_json(self.path / "provenance.json", seen)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory, which is created if need be.

        Raises:
            UserError: another process holds it, it cannot be written to, or its file system has no locks.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / "lock", wait=False))
            except LockHeldError as holder:
                raise UserError(f"{self.path} is in use by {holder}; a run has one process at a time") from None
            except OSError as error:
                raise UserError(f"cannot write to the run directory {self.path}: {error.strerror}") from None
            yield

    def held(self) -> bool:
        """Whether a process holds the directory now."""
        return is_locked(self.path / "lock")

    def clear(self) -> None:
        """Remove everything but the lock; called with the lock held."""
        for entry in self.path.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
