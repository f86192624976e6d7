"""Which run a configuration names, and which test: judged before anything is created. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppnet.config import schema
from sppnet.data import ImageSet, build_sizes, images_of, load_splits
from sppnet.data.build import check_training
from sppnet.data.duplicates import describe_duplicates
from sppnet.runs.identity import digest, eval_identity, run_identity
from sppnet.runs.run_directory import Run


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


def validate(cfg: Mapping[str, Any]) -> None:
    """Check every name and value of a configuration, and its size schedule.

    Raises:
        UserError: the first key that is wrong, its value, and what is allowed.
    """
    schema.check(cfg)
    build_sizes(cfg["sizes"])


def plan(cfg: dict[str, Any]) -> Plan:
    """Check `cfg` and work out which run it names: `<paths.runs>/<study>/<name>-<hash>`.

    Raises:
        UserError: a key, a value, the data set or the weights file is not as it must be.
    """
    validate(cfg)
    images = images_of(cfg)
    check_training(cfg["data"], images)
    identity = run_identity(cfg, images)
    name = cfg["name"] or "-".join([cfg["data"]["name"], str(cfg["backbone"].get("name") or "net"), _head(cfg["head"])])
    where = Path(cfg["paths"]["runs"]).expanduser() / cfg["study"] / f"{name}-{digest(identity)}"
    return Plan(cfg, identity, Run(where), digest(eval_identity(cfg, "best", images)), images)


def check_duplicates(planned: Plan) -> None:
    """Refuse what `data.duplicates=error` refuses, also of a run that is done: the key is no part of its identity.

    Raises:
        UserError: a file is there twice; or as `sppnet.data.load_splits`.
    """
    data = planned.cfg["data"]
    if data["duplicates"] == "error":
        describe_duplicates(data, planned.images, load_splits(data, planned.images).parts())


def _head(head: Mapping[str, Any]) -> str:
    bins = "_".join(map(str, head["bins"]))
    return f"spp_{bins}" if head["name"] == "spp" and len(bins) < 30 else str(head["name"])
