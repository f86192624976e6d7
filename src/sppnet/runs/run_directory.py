"""The run directory: its layout, its lock, its status and the results stored in it.

All state of a run is in its directory (`config.yaml`, `status.json`, `metrics.jsonl`, `summary.json`, `tests/`,
`provenance.json`, `checkpoints/`); loggers only mirror it. Commands validate, lock, then create, so a mistake leaves
nothing behind. Does not import torch.
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

FAILED_RANK = "failed_rank.txt"  # in a run directory: the error of a task other than the first, which ended the run
State = Literal["queued", "running", "done", "failed", "preempted"]


@dataclass(frozen=True)
class Run:
    """A run directory. Constructing a `Run` does not touch the disk."""

    path: Path

    @property
    def hash(self) -> str:
        """The hash of the run's identity, from the directory's name."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def last(self) -> Path:
        """The checkpoint that training resumes from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation score."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last.exists() or self.best.exists()

    @property
    def status(self) -> dict[str, Any]:
        """The content of `status.json`; empty if there is none."""
        return read_record(self.path / "status.json")

    @property
    def done(self) -> bool:
        """Whether training and its test have finished and the best weights are there."""
        return self.status.get("state") == "done" and self.best.is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`: metrics and totals of a finished run."""
        return read_record(self.path / "summary.json")

    def test_file(self, test: str) -> Path:
        """Path of the record of the test with this hash."""
        return self.path / "tests" / f"{test}.json"

    def result(self, test: str) -> dict[str, Any] | None:
        """The record of the test with this hash; None if it does not exist or is incomplete."""
        record = read_record(self.test_file(test))
        complete = all(isinstance(record.get(key), dict) and record[key] for key in ("metrics", "identity"))
        return record if complete else None

    def write_status(self, state: State, reason: str | None = None, **progress: Any) -> None:
        """Write `status.json`; fields that are not passed (step, steps, epoch, ...) keep their value."""
        previous = {key: value for key, value in self.status.items() if key not in {"state", "reason"}}
        process = {"host": socket.gethostname(), "pid": os.getpid(), "updated": _now()}
        write_json(self.path / "status.json", {"state": state, "reason": reason} | previous | process | progress)

    def begin(self, cfg: Mapping[str, Any], overrides: list[str], identity: Mapping[str, Any]) -> None:
        """Write configuration, overrides and provenance; called with the lock held, at every start of the run."""
        for temporary in (*self.path.glob(".*.tmp"), *self.path.glob("checkpoints/.*.tmp")):  # of a killed process
            temporary.unlink(missing_ok=True)
        (self.path / FAILED_RANK).unlink(missing_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        (self.path / "tests").mkdir(exist_ok=True)
        lasting = [line for line in overrides if not line.startswith("force=")]  # force is for this start alone
        write_text(self.path / "overrides.txt", "".join(f"{line}\n" for line in lasting))
        write_text(
            self.path / "config.yaml",
            yaml.safe_dump({"layout": schema.LAYOUT, **cfg, "force": False}, sort_keys=False),
        )
        history = {"identity": identity, "starts": []} | read_record(self.path / "provenance.json")
        history["starts"].append({"time": _now()} | provenance())
        write_json(self.path / "provenance.json", history)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory, which is created if it does not exist.

        Raises:
            UserError: another process holds the lock, the directory is not writable, or its file system has no locks.
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
        """Whether a process holds the lock now."""
        return is_locked(self.path / "lock")

    def clear(self) -> None:
        """Delete everything but the lock; called with the lock held."""
        for entry in self.path.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
