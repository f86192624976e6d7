"""Loggers: metrics.jsonl holds every record of a run; wandb and TensorBoard mirror it."""

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

from sppnet.config.schema import Config
from sppnet.errors import notice
from sppnet.runs.identity import digest
from sppnet.runs.run_directory import Run


class WandbMirror(WandbLogger):
    """Lightning's WandbLogger with the optimizer step as wandb's `_step`, so that a record sent twice counts once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # Lightning always passes this setting, and wandb warns about it
        self._last_step: int | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send one record to wandb.

        wandb merges all records with the same step into one row. The last record of an epoch and the first record of
        the next epoch can have the same step, so `epoch` is sent only with the first record of a step.
        """
        row = {key: value for key, value in metrics.items() if key != "epoch" or step != self._last_step}
        self._last_step = step
        self.experiment.log({**row, "trainer/global_step": step}, step=step)


class ReplayRecords(Callback):
    """When an offline run resumes, sends all earlier records to wandb again.

    Each time an offline run starts or resumes, it writes a separate part of the wandb run. When a part is synced, it
    may replace the previous part, and the part of a killed process may be empty. The last part must therefore hold all
    records.
    """

    def __init__(self, logger: WandbMirror, records: Path) -> None:
        self.logger, self.records = logger, records

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # By now, `MetricsFile` has truncated the file to the length that the checkpoint stores.
        if not trainer.is_global_zero or not self.records.exists():
            return
        for line in self.records.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            self.logger.log_metrics(record, record.pop("step"))


def build_mirrors(cfg: Config, run: Run) -> list[Logger]:
    """Build the loggers that mirror metrics.jsonl, from the `logger` section of the configuration."""
    loggers: list[Logger] = []
    if cfg.logger.tensorboard is not None:
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
    if cfg.logger.wandb is not None:
        from wandb import Settings

        wandb = cfg.logger.wandb
        loggers.append(
            WandbMirror(
                name=run.path.name,
                id=digest({"study": cfg.study, "run": run.path.name}),  # stays the same when the run resumes
                # Without a checkpoint, training starts from scratch, so a run that is already on the server under this
                # id must not be continued.
                resume="allow" if run.has_checkpoint else None,
                group=cfg.study,
                tags=wandb.tags or None,
                project=wandb.project,
                entity=wandb.entity,
                offline=wandb.mode == "offline",
                save_dir=run.path,
                settings=Settings(silent=True),  # wandb must print nothing after the run's result
                config=cfg.plain(),
            )
        )
    return loggers


def build_replays(cfg: Config, loggers: Sequence[Logger], records: Path) -> list[Callback]:
    """Build a `ReplayRecords` for an offline wandb logger; the records of an online one are already on the server."""
    offline = cfg.logger.wandb is not None and cfg.logger.wandb.mode == "offline"
    return [ReplayRecords(logger, records) for logger in loggers if isinstance(logger, WandbMirror) and offline]


class MetricsFile(Logger, Callback):
    """Logger that writes metrics.jsonl and stores the length of the file in every checkpoint.

    On resume, the file is truncated to that length, and training writes the later records again. Records hold no
    timestamps, so the file of a resumed run has the same bytes as that of an uninterrupted one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def save_dir(self) -> str:
        """The run directory, where Lightning's own callbacks write files."""
        return str(self.path.parent)

    @property
    def name(self) -> str:
        return ""  # no subdirectory, because `save_dir` is already the run's own directory

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the file, which is first synced to disk because the checkpoint relies on it."""
        if not self.path.exists():
            return {"bytes": 0}
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return {"bytes": os.fstat(file.fileno()).st_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Truncate the file to the length stored in the checkpoint.

        If the file is shorter, print a notice and drop its incomplete last line.
        """
        content = self.path.read_bytes()[: state_dict["bytes"]] if self.path.exists() else b""
        if len(content) < state_dict["bytes"]:
            rank_zero_only(notice)(f"{self.path}: {state_dict['bytes'] - len(content)} bytes of records are lost")
            content = content[: content.rfind(b"\n") + 1]
        self.truncate(len(content))

    @rank_zero_only
    def truncate(self, size: int) -> None:
        with self.path.open("ab") as file:
            file.truncate(size)
