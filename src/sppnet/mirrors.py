"""wandb and TensorBoard mirror what `metrics.jsonl` has: losing them loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger

from sppnet.identity import digest
from sppnet.runs import Run


def mirrors(cfg: Mapping[str, Any], run: Run) -> list[Logger]:
    """The loggers that `logger` asks for beside `metrics.jsonl`."""
    made: list[Logger] = []
    if "tensorboard" in cfg["logger"]:
        from lightning.pytorch.loggers import TensorBoardLogger

        made.append(TensorBoardLogger(run.path, name="tensorboard", version=""))
    if "wandb" in cfg["logger"]:
        from lightning.pytorch.loggers import WandbLogger
        from wandb import Settings

        node = cfg["logger"]["wandb"]
        made.append(
            WandbLogger(
                name=run.path.name,
                id=digest({"study": cfg["study"], "run": run.path.name}),  # a resumed run is the same wandb run
                resume="allow",
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
