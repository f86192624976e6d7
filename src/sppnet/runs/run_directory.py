"""A run and its directory: where it lies, who has it, how far it is, what it was made from.

The directory is the truth (`config.yaml`, `status.json`, `metrics.jsonl`, `summary.json`, `tests/`, `provenance.json`,
`checkpoints/`); loggers only mirror it. Order: validate, lock, then create, so that a mistake leaves nothing behind.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from sppnet.config import schema
from sppnet.errors import UserError
from sppnet.runs.identity import check_identity, digest, run_identity
from sppnet.storage.files import missing, no_lock
from sppnet.runs.provenance import provenance

if TYPE_CHECKING:
    from sppnet.data import ImageSet

FAILED_RANK = "failed_rank.txt"  # in a run directory: why a task other than the first failed, and so the run
State = Literal["queued", "running", "done", "failed", "preempted"]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either whole or as it was: temporary name, sync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no (readable) file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_record(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none, or something else."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


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
        for left in self.path.glob(".*.tmp"):  # by a process that was killed as it wrote
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
        """Hold the directory, which is made if need be; the kernel lets go of it however the process ends.

        By a POSIX record lock, which belongs to this process alone: flock's would live on in DataLoader workers that
        outlive a killed run by some seconds, and refuse its restart.

        Raises:
            UserError: another process holds it, it cannot be written to, or its file system has no locks.
        """
        made = missing(self.path / "lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            for path in made[1:]:
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise UserError(f"cannot write to the run directory {self.path}: {error.strerror}") from None
        try:
            try:
                _take(handle)
            except (BlockingIOError, PermissionError):
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                raise UserError(f"{self.path} is in use by {holder}; a run has one process at a time") from None
            except OSError as error:
                raise no_lock(self.path / "lock", error, made) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def held(self) -> bool:
        """Whether a process has the directory now."""
        try:
            with (self.path / "lock").open("rb") as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # or it cannot be told, as on a file system without locks
        return False

    def clear(self) -> None:
        """Remove everything but the lock; called with the lock held."""
        for entry in self.path.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _take(handle: int, tries: int = 5) -> None:
    """Lock a file; somebody who only looks whether it is locked (`Run.held`) has it for an instant."""
    for left in reversed(range(tries)):
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if not left:
                raise
            time.sleep(0.02)
        else:
            return


@dataclass(frozen=True)
class Plan:
    """A valid configuration, the run it names and the test it asks for.

    `images` is the data set as it was listed for the identity: what is trained on is that and no later listing.
    """

    cfg: dict[str, Any]
    identity: dict[str, Any]
    run: Run
    test: str  # hash of the test
    images: ImageSet

    @property
    def result(self) -> dict[str, Any] | None:
        """The figures of the test, if this run is done and they are there; its checkpoints need not be."""
        return self.run.result(self.test) if self.run.status.get("state") == "done" else None


def plan(cfg: dict[str, Any]) -> Plan:
    """Check `cfg` and work out which run it names: `<paths.runs>/<study>/<name>-<hash>`.

    Raises:
        UserError: a key, a value, the data set or the weights file is not as it must be.
    """
    schema.check(cfg)
    from sppnet.data import images_of  # imports numpy and Pillow
    from sppnet.data.build import check_training

    images = images_of(cfg)
    check_training(cfg["data"], images)
    identity = run_identity(cfg, images)
    name = cfg["name"] or "-".join([cfg["data"]["name"], str(cfg["backbone"].get("name") or "net"), _head(cfg["head"])])
    where = Path(cfg["paths"]["runs"]).expanduser() / cfg["study"] / f"{name}-{digest(identity)}"
    return Plan(cfg, identity, Run(where), digest(check_identity(cfg, "best", images)), images)


def check_duplicates(planned: Plan) -> None:
    """Refuse what `data.duplicates=error` refuses, also of a run that is done: the key is no part of its identity.

    Raises:
        UserError: a file is there twice; or as `sppnet.data.load_sets`.
    """
    data = planned.cfg["data"]
    if data["duplicates"] == "error":
        from sppnet.data import load_sets
        from sppnet.data.duplicates import duplicates

        duplicates(data, planned.images, load_sets(data, planned.images).parts())


def _head(head: Mapping[str, Any]) -> str:
    bins = "_".join(map(str, head["bins"]))
    return f"spp_{bins}" if head["name"] == "spp" and len(bins) < 30 else str(head["name"])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
