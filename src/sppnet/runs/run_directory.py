"""The run directory: its layout, its lock, its status and the results stored in it. Does not import torch.

All state of a run is in its directory (`config.yaml`, `overrides.txt`, `provenance.json`, `status.json`,
`metrics.jsonl`, `bad_files.txt`, `summary.json`, `tests/`, `checkpoints/`); loggers only mirror it. Commands validate
the configuration before they lock the directory and create files, so an invalid configuration leaves nothing behind.
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

from sppnet.config.schema import LAYOUT, Config
from sppnet.errors import UserError
from sppnet.runs.provenance import provenance
from sppnet.storage.files import LockHeldError, file_lock, is_locked, read_record, write_json, write_text

FAILED_RANK = "failed_rank.txt"  # in a run directory: the error that ended the run, if a rank above 0 raised it
State = Literal["queued", "running", "done", "failed", "preempted"]


@dataclass(frozen=True)
class Run:
    """A run directory. Constructing a `Run` does not touch the disk."""

    path: Path

    @property
    def hash(self) -> str:
        """The hash of the run's identity, taken from the directory's name."""
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
        """The contents of `status.json`; empty if the file is missing or unreadable."""
        return read_record(self.path / "status.json")

    @property
    def failed_rank(self) -> str:
        """The error of a rank above 0 that has ended the run; "" if none has."""
        path = self.path / FAILED_RANK
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    @property
    def done(self) -> bool:
        """Whether training and the test have finished and `best.ckpt` exists."""
        return self.status.get("state") == "done" and self.best.is_file()

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of `summary.json`: the metrics and totals of a finished run."""
        return read_record(self.path / "summary.json")

    @property
    def own_test(self) -> str:
        """The hash of the test that ended the training, whose metrics are in `summary.json`; "" if there is none."""
        if named := self.status.get("test"):
            return named if self.result(named) else ""
        # older versions did not note it; a test of fewer sizes measures some of the same metrics
        summary, found = self.summary, dict[str, int]()
        for path in sorted((self.path / "tests").glob("*.json")):
            metrics = (self.result(path.stem) or {}).get("metrics", {})
            if metrics and all(repr(summary.get(name)) == repr(value) for name, value in metrics.items()):  # NaN too
                found[path.stem] = len(metrics)
        return max(found, key=found.__getitem__, default="")

    def test_file(self, test: str) -> Path:
        """The path at which the record of the test with the hash `test` is stored."""
        return self.path / "tests" / f"{test}.json"

    def result(self, test: str) -> dict[str, Any] | None:
        """The record of the test with the hash `test`; None if it does not exist or is incomplete."""
        record = read_record(self.test_file(test))
        complete = all(isinstance(record.get(key), dict) and record[key] for key in ("metrics", "identity"))
        return record if complete else None

    def write_status(self, state: State, reason: str | None = None, **progress: Any) -> None:
        """Write `status.json`. Progress fields (step, steps, epoch, ...) that are not passed keep their values."""
        previous = {key: value for key, value in self.status.items() if key not in {"state", "reason"}}
        process = {"host": socket.gethostname(), "pid": os.getpid(), "updated": _now()}
        write_json(self.path / "status.json", {"state": state, "reason": reason} | previous | process | progress)

    def begin(self, cfg: Config, overrides: list[str], identity: Mapping[str, Any], init: str | None = None) -> None:
        """Write the configuration, overrides and provenance. Called at every start of the run, with the lock held.

        `init` identifies the weights that the run starts from (see `sppnet.runs.identity.init_setting`). Later starts
        keep that of the first, because the run that it describes may have been deleted.
        """
        for temporary in (*self.path.glob(".*.tmp"), *self.path.glob("checkpoints/.*.tmp")):  # left by a killed process
            temporary.unlink(missing_ok=True)
        (self.path / FAILED_RANK).unlink(missing_ok=True)
        (self.path / "checkpoints").mkdir(exist_ok=True)
        (self.path / "tests").mkdir(exist_ok=True)
        lasting = [line for line in overrides if not line.startswith("force=")]  # force applies only to this start
        write_text(self.path / "overrides.txt", "".join(f"{line}\n" for line in lasting))
        write_text(
            self.path / "config.yaml",
            yaml.safe_dump({"layout": LAYOUT, **cfg.plain(), "force": False}, sort_keys=False),
        )
        history = {"identity": identity, "starts": []} | read_record(self.path / "provenance.json")
        first = history["starts"][0].get("init") if history["starts"] else None
        history["starts"].append({"time": _now(), "init": first or init} | provenance())
        write_json(self.path / "provenance.json", history)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory; create the directory if it does not exist.

        Raises:
            UserError: another process holds the lock, the directory is not writable, or its file system does not
                support locks.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / "lock", wait=False))
            except LockHeldError as holder:
                raise UserError(f"{self.path} is in use by {holder}; only one command can use it at a time") from None
            except OSError as error:
                raise UserError(f"{self.path}: cannot write to this run directory ({error.strerror})") from None
            yield

    def held(self) -> bool:
        """Whether another process currently holds the lock."""
        return is_locked(self.path / "lock")

    def clear(self) -> None:
        """Delete everything in the directory except the lock file. Called with the lock held."""
        for entry in self.path.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
