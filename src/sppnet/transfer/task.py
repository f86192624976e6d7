"""The keys of `sppnet transfer`, their checks, and the identity of a table row. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppnet.config import schema
from sppnet.config.validators import POSITIVE, Rule, choice, or_null, whole
from sppnet.data import ImageSet
from sppnet.data.datasets.base import digest
from sppnet.errors import UserError, notice
from sppnet.runs.from_checkpoint import HARDWARE, TrainedNetwork, load_stored_config, refuse_changes
from sppnet.runs.identity import file_digest, own_class_digests, weights_identity
from sppnet.runs.plan import validate

LAYERS = ("conv", "pool", "spp", "gap", "fc1", "fc2")
RULES: dict[str, Rule] = {
    "layer": choice(*LAYERS),
    "pool_to": whole(1, schema.MAX_LEVEL),
    "svm.C": POSITIVE,
    "splits": or_null(whole(1, 10_000)),
    "per_class.train": whole(1),
    "per_class.test": whole(1),
    "split_seed": whole(0),
}
PAPERS_SPLITS = 10  # the paper's number of splits for Caltech-101
SPLITS = ("splits", "per_class.train", "per_class.test", "split_seed")
OWN = tuple(dict.fromkeys(key.partition(".")[0] for key in RULES))
TRAINING = ("trainer.limit_batches",)  # no effect here: features are computed for every image
PYRAMID = ("head.bins", "head.pool", "head.rule")
MAY_CHANGE = (
    *("data", "sizes.test", "views", "paths", "debug", "force", "study", *PYRAMID),
    *(key for key in HARDWARE if key not in TRAINING),
)
GIVEN = (*MAY_CHANGE, *OWN, "checkpoint", "backbone", "pyramid", "seed", "experiments", "launch", "hydra")
FORMAT = 2  # increment this when a code change makes the same settings give different features or scores


@dataclass(frozen=True)
class Task:
    """One row of the table: a layer of a network, a view of the images, and how the SVM is trained and tested.

    Attributes:
        cfg: a valid configuration, without the command's own keys.
        own: the command's own keys.
        trained: the trained network; None if `backbone` defines the network.
    """

    cfg: dict[str, Any]
    own: dict[str, Any]
    trained: TrainedNetwork | None

    @property
    def size(self) -> int:
        """The shorter side of the network's input, in pixels."""
        return int(self.cfg["sizes"]["test"][0])

    @property
    def skip(self) -> bool:
        """Whether unreadable images are left out."""
        return bool(self.cfg["data"]["bad_files"] == "skip")

    @property
    def layer(self) -> dict[str, Any]:
        """The description of the row's layer."""
        return self.describe(self.own["layer"])

    def describe(self, name: str) -> dict[str, Any]:
        """Describe a layer as plain data; equal descriptions give equal features."""
        head = self.cfg["head"]
        if name == "pool":
            return {"kind": "pyramid", "bins": [self.own["pool_to"]], "pool": "max", "rule": "adaptive"}
        if name == "spp":
            rule = head.get("rule", "adaptive")
            return {"kind": "pyramid", "bins": head["bins"], "pool": head.get("pool", "max"), "rule": rule}
        return {"kind": "fc", "number": int(name[2:])} if name.startswith("fc") else {"kind": name}

    def source(self) -> dict[str, Any]:
        """Identify the network by the content of its weights and code."""
        code = own_class_digests(self.cfg["backbone"])
        own = {"code": code} if code else {}
        if self.trained is not None:
            return {"checkpoint": file_digest(self.trained.weights)} | own
        node = {key: value for key, value in self.cfg["backbone"].items() if key not in {"weights", "freeze", "name"}}
        weights = weights_identity(self.cfg["backbone"].get("weights"))
        return {"backbone": node, "weights": weights, "seed": self.cfg["seed"] if weights is None else None} | own

    def features(self, images: ImageSet, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything that determines the features of `layer`."""
        views, data = self.cfg["views"], self.cfg["data"]
        view_keys = {"center": ("fit", "ratio"), "warp": ("fit",), "full": ("fit", "aspect_step")}[views["fit"]]
        return {
            "format": FORMAT,
            "images": images.fingerprint(),
            "network": self.source(),
            "layer": dict(layer),
            "view": {key: views[key] for key in view_keys} | {"size": self.size},
            "mean": data["mean"],
            "std": data["std"],
            "precision": self.cfg["trainer"]["precision"],
            "pixels": {key: data.get(key) for key in ("short_side", "resampler")},
        }

    @property
    def splits(self) -> dict[str, int]:
        """The settings for random splits of a single-label data set, in the form that `draw_splits` takes."""
        return {"count": self.own["splits"] or PAPERS_SPLITS, **self.own["per_class"], "seed": self.own["split_seed"]}

    def own_parts(self, images: ImageSet) -> Mapping[str, Sequence[int]] | None:
        """Return the data set's own train and test parts; None if it has none or if `splits` asks for random splits.

        Raises:
            UserError: the data set has parts of its own, but its train or test part is missing or empty.
        """
        parts = images.split() if images.multilabel or self.own["splits"] is None else None
        if parts is not None and not (parts.get("train") and parts.get("test")):
            advice = "" if images.multilabel else f"; splits={PAPERS_SPLITS} draws random splits of all images instead"
            raise UserError(
                f"data={self.cfg['data']['name']}: the data set comes with the part(s) {', '.join(parts)}, but transfer"
                f" needs both train and test, with images in each{advice}"
            )
        return parts

    def identity(self, images: ImageSet) -> dict[str, Any]:
        """Return everything that determines the scores in this row."""
        evaluation = {"protocol": self.protocol(images), "C": float(self.own["svm"]["C"]), "skip": self.skip}
        return self.features(images, self.layer) | evaluation

    def protocol(self, images: ImageSet) -> dict[str, Any]:
        """Identify the data set and its splits; rows with the same protocol can be compared."""
        own = self.own_parts(images) is not None
        if not images.multilabel:
            return {"data": images.fingerprint()} | ({"parts": "own"} if own else {"splits": self.splits})
        difficult = digest(str(tuple(images.difficult(i))) for i in range(len(images)))
        parts = {} if own else {"split": self.cfg["data"]["split"]}
        return {"data": images.fingerprint(), "unclear": difficult} | parts


def make_task(cfg: dict[str, Any], trained: TrainedNetwork | None) -> Task:
    """Build the task from a composed configuration, without importing torch.

    Raises:
        UserError: a value is not allowed, or two values do not fit together.
    """
    own = schema.take_own_keys(cfg, RULES)
    validate(cfg)
    views, layer, sizes = cfg["views"], own["layer"], cfg["sizes"]["test"]
    if views["fit"] == "windows":
        raise UserError(f"views={views['name']} gives several views per image; transfer needs center, warp or full")
    if len(sizes) != 1:
        raise UserError(f"sizes.test={sizes} is not allowed: transfer takes one size, such as sizes.test=[{sizes[0]}]")
    if layer == "conv" and views["fit"] == "full":
        raise UserError(
            "with layer=conv, the number of features depends on the shape of the image; with views=full, use layer=spp,"
            " pool or gap"
        )
    if layer.startswith("fc"):
        _check_hidden(cfg, layer, trained)
    return Task(cfg, own, trained)


def refuse_ineffective(overrides: list[str]) -> None:
    """Reject overrides that cannot affect the features of a backbone without a checkpoint, such as training settings.

    Raises:
        UserError: one of `overrides` has no effect.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if not any(key == allowed or key.startswith((f"{allowed}.", f"{allowed}/")) for allowed in GIVEN):
            raise UserError(
                f"{key} has no effect: without a checkpoint, the features come from the backbone alone, and transfer"
                " does not train it"
            )


def warn_ineffective(task: Task, images: ImageSet, typed: Sequence[str]) -> None:
    """Warn about each key in `typed` that has no effect on the features or the splits."""
    layer, untrained, own = task.own["layer"], task.trained is None, task.own_parts(images) is not None
    reasons = dict.fromkeys(
        ("data.crop", "data.flip", "data.color", "data.fit", "data.aspect_step"), "in sppnet transfer"
    )
    if layer != "pool":
        reasons["pool_to"] = f"with layer={layer}"
    if layer != "spp" and (untrained or not layer.startswith("fc")):
        reasons |= dict.fromkeys(("pyramid", "head"), f"with layer={layer}")
    if untrained and task.cfg["backbone"].get("weights") is not None:
        reasons["seed"] = "with pretrained weights"
    if images.multilabel:
        reasons |= dict.fromkeys(SPLITS, "on a multi-label data set")
    elif own:
        reasons |= dict.fromkeys(SPLITS[1:], "because the data set has its own parts (splits=N draws random splits)")
    if own:
        reasons["data.split"] = "because the data set has its own parts"
    elif not images.multilabel:
        reasons["data.split"] = "because all images are split at random (use splits, per_class and split_seed)"
    for key in typed:
        for name, reason in reasons.items():
            if key == name or key.startswith(f"{name}."):
                notice(f"warning: {key} has no effect {reason}")


def _check_hidden(cfg: Mapping[str, Any], layer: str, trained: TrainedNetwork | None) -> None:
    if trained is None:
        raise UserError(f"layer={layer} is part of a trained head, so it needs checkpoint=RUN")
    hidden = cfg["head"]["hidden"]
    if int(layer[2:]) > len(hidden):
        layers = ", ".join(f"fc{i}" for i in range(1, len(hidden) + 1)) or "none"
        raise UserError(f"layer={layer} does not exist; the head's hidden layers: {layers} (head.hidden={hidden})")
    trained_with = load_stored_config(trained.checkpoint)[0]
    refuse_changes(trained_with, cfg, [key for key in MAY_CHANGE if key not in PYRAMID], f"transfer of {layer}")
