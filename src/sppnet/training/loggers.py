"""wandb and TensorBoard mirror what `metrics.jsonl` has: losing them loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from sppnet.errors import notice
from sppnet.runs.identity import digest
from sppnet.runs.run_directory import Run


class Wandb(WandbLogger):
    """Lightning's, with the optimiser step as wandb's own (`_step`): what is sent twice counts once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # not used, and wandb warns of it even so
        self._last: int | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one record; records of the same step are one row of wandb's, with the epoch of the first: an epoch's
        figures and the first batch after them have a step in common."""
        row = {key: value for key, value in metrics.items() if key != "epoch" or step != self._last}
        self._last = step
        self.experiment.log({**row, "trainer/global_step": step}, step=step)


class Replay(Callback):
    """Begin a resumed part of an offline run with the records of the parts before it.

    A part that is sent may replace the one before it, and one that was killed may hold nothing.
    """

    def __init__(self, logger: Wandb, records: Path) -> None:
        self.logger, self.records = logger, records

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the records, which have been cut to the checkpoint that training goes on from."""
        if not trainer.is_global_zero or not self.records.exists():
            return
        for line in self.records.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            self.logger.log_metrics(record, record.pop("step"))


def mirrors(cfg: Mapping[str, Any], run: Run) -> list[Logger]:
    """The loggers that `logger` asks for beside `metrics.jsonl`."""
    made: list[Logger] = []
    if "tensorboard" in cfg["logger"]:
        from lightning.pytorch.loggers import TensorBoardLogger

        made.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
    if "wandb" in cfg["logger"]:
        from wandb import Settings

        node = cfg["logger"]["wandb"]
        made.append(
            Wandb(
                name=run.path.name,
                id=digest({"study": cfg["study"], "run": run.path.name}),  # a resumed run is the same wandb run
                resume="allow" if run.begun else None,  # None: what the server has of this name is of an older start
                group=cfg["study"],
                tags=node["tags"] or None,
                project=node["project"],
                entity=node["entity"],
                offline=node["mode"] == "offline",
                save_dir=run.path,
                settings=Settings(silent=True),  # the run directory and the result are what is printed last
                config=dict(cfg),
            )
        )
    return made


def replays(cfg: Mapping[str, Any], loggers: Sequence[Logger], records: Path) -> list[Callback]:
    """What repeats `records` to the loggers that wait in files; online, the server knows them."""
    offline = "wandb" in cfg["logger"] and cfg["logger"]["wandb"]["mode"] == "offline"
    return [Replay(logger, records) for logger in loggers if isinstance(logger, Wandb) and offline]


class MetricsFile(Logger, Callback):
    """`metrics.jsonl`: a logger whose position is part of every checkpoint.

    Records that were written after the checkpoint from which a run is resumed are cut off; they are written again.
    No clock goes into it, so that a resumed run leaves the same bytes as an unbroken one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def save_dir(self) -> str:
        """The run directory: where other callbacks of Lightning's put their files."""
        return str(self.path.parent)

    @property
    def name(self) -> str:
        """None needed: the run directory is the name."""
        return ""

    @property
    def version(self) -> str:
        """None needed either."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """How long the file is now, on the disk like the checkpoint that will say so."""
        if not self.path.exists():
            return {"bytes": 0}
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return {"bytes": os.fstat(file.fileno()).st_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Cut the file to what it was when the checkpoint was written; what was lost of it since is said."""
        whole = self.path.read_bytes()[: state_dict["bytes"]] if self.path.exists() else b""
        if len(whole) < state_dict["bytes"]:
            rank_zero_only(notice)(f"{self.path}: {state_dict['bytes'] - len(whole)} bytes of records are lost")
            whole = whole[: whole.rfind(b"\n") + 1]
        self.truncate(len(whole))

    @rank_zero_only
    def truncate(self, size: int) -> None:
        """Cut off what lies behind `size` bytes."""
        with self.path.open("ab") as file:
            file.truncate(size)
