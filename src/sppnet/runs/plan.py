"""Determines the run and the test that a configuration names, before anything is created. Does not import torch.

NumPy and Pillow, which `sppnet.data` imports, take as long as Hydra. They are imported only when a run is planned, so
that commands which plan none, such as `--cfg job`, start quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.config.schema import SPP, AnyPooling, Config, OwnPooling
from sppnet.runs.checkpoint_files import init_weights
from sppnet.runs.identity import digest, eval_identity, run_identity
from sppnet.runs.run_directory import Run

if TYPE_CHECKING:
    from sppnet.data import ImageSet


@dataclass(frozen=True)
class PlannedRun:
    """A valid configuration with the run and the test that it names.

    Attributes:
        cfg: the configuration.
        identity: everything that determines the weights; its hash is part of the run directory's name.
        run: the run directory, which may not exist yet.
        test: the hash of the test.
        images: the data set, with the list of images that `identity` covers. Training uses this list, even if files
            have been added since.
    """

    cfg: Config
    identity: dict[str, Any]
    run: Run
    test: str
    images: ImageSet

    @property
    def result(self) -> dict[str, Any] | None:
        """The record of the test; None if the run is not done or has no such record. The checkpoints need not exist."""
        return self.run.result(self.test) if self.run.status.get("state") == "done" else None

    @property
    def starts_anew(self) -> bool:
        """Whether training starts from initial weights, which `init` may name, and not from the run's own checkpoint.

        Without last.ckpt, a run may start again although it has a best.ckpt.
        """
        return self.cfg.force or not (self.run.done or self.run.last.exists())


def plan_run(cfg: Config) -> PlannedRun:
    """Name the run directory of a configuration: `<paths.runs>/<study>/<name>-<hash>`.

    Raises:
        UserError: the size schedule, the data set or the weights file is invalid.
    """
    from sppnet.data import build_images_from_config, build_sizes
    from sppnet.data.build import check_training

    build_sizes(cfg.sizes)
    images = build_images_from_config(cfg)
    check_training(cfg.data, images)
    identity = run_identity(cfg, images)
    name = cfg.name or "-".join([cfg.data.name, cfg.backbone.name or "net", _pooling_label(cfg.pooling)])
    path = Path(cfg.paths.runs).expanduser() / cfg.study / f"{name}-{digest(identity)}"
    return PlannedRun(cfg, identity, Run(path), digest(eval_identity(cfg, "best", images)), images)


def check_init(planned: PlannedRun) -> None:
    """Check, if training starts from `init`, that this network exists: it may have been planned only, or deleted.

    Raises:
        UserError: the run that `init` names is not done, or has no checkpoint.
    """
    if planned.cfg.init is not None and planned.starts_anew:
        init_weights(planned.cfg.init)


def check_duplicates(planned: PlannedRun) -> None:
    """If `data.duplicates` is `error`, refuse a data set with duplicate files.

    Finished runs are checked too: they may have used another value of this key, which is not part of their identity.

    Raises:
        UserError: a file occurs in two parts or classes, or the data set cannot be split.
    """
    from sppnet.data import load_splits
    from sppnet.data.duplicates import describe_duplicates

    data = planned.cfg.data
    if data.duplicates == "error":
        describe_duplicates(data, planned.images, load_splits(data, planned.images).parts())


def _pooling_label(pooling: AnyPooling) -> str:
    if isinstance(pooling, OwnPooling):
        return pooling.name or pooling.target.rpartition(".")[2].lower()
    bins = "_".join(map(str, pooling.bins)) if isinstance(pooling, SPP) else ""
    return f"spp_{bins}" if bins and len(bins) < 30 else pooling.name
