"""Determines the run and the test that a configuration names, before anything is created. Does not import torch.

NumPy and Pillow, which `sppnet.data` imports, take as long as Hydra. They are imported only when a run is planned, so
that commands which plan none, such as `--cfg job`, start quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppnet.config import schema
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

    cfg: dict[str, Any]
    identity: dict[str, Any]
    run: Run
    test: str
    images: ImageSet

    @property
    def result(self) -> dict[str, Any] | None:
        """The record of the test; None if the run is not done or has no such record. The checkpoints need not exist."""
        return self.run.result(self.test) if self.run.status.get("state") == "done" else None


def validate(cfg: Mapping[str, Any]) -> None:
    """Check every key and value of a configuration, including the size schedule.

    Raises:
        UserError: a key or value is not allowed; the message names the first such key, its value and what is allowed.
    """
    from sppnet.data import build_sizes

    schema.check(cfg)
    build_sizes(cfg["sizes"])


def plan_run(cfg: dict[str, Any]) -> PlannedRun:
    """Validate `cfg` and name its run directory: `<paths.runs>/<study>/<name>-<hash>`.

    Raises:
        UserError: a key, a value, the data set or the weights file is invalid.
    """
    from sppnet.data import build_images_from_config
    from sppnet.data.build import check_training

    validate(cfg)
    images = build_images_from_config(cfg)
    check_training(cfg["data"], images)
    identity = run_identity(cfg, images)
    backbone = str(cfg["backbone"].get("name") or "net")
    name = cfg["name"] or "-".join([cfg["data"]["name"], backbone, _head_label(cfg["head"])])
    path = Path(cfg["paths"]["runs"]).expanduser() / cfg["study"] / f"{name}-{digest(identity)}"
    return PlannedRun(cfg, identity, Run(path), digest(eval_identity(cfg, "best", images)), images)


def check_duplicates(planned: PlannedRun) -> None:
    """If `data.duplicates` is `error`, refuse a data set with duplicate files.

    Finished runs are checked too: they may have used another value of this key, which is not part of their identity.

    Raises:
        UserError: a file occurs in two parts or classes, or the data set cannot be split.
    """
    from sppnet.data import load_splits
    from sppnet.data.duplicates import describe_duplicates

    data = planned.cfg["data"]
    if data["duplicates"] == "error":
        describe_duplicates(data, planned.images, load_splits(data, planned.images).parts())


def _head_label(head: Mapping[str, Any]) -> str:
    bins = "_".join(map(str, head["bins"]))
    return f"spp_{bins}" if head["name"] == "spp" and len(bins) < 30 else str(head["name"])
