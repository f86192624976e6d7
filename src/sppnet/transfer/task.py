"""The task of `sppnet transfer`: its checks, and the identity of its table row. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sppnet.config.command_schemas import TransferConfig
from sppnet.config.keys import keys
from sppnet.config.marks import affects
from sppnet.config.merge import differences, may_change
from sppnet.config.schema import LAYOUT, MLP, SPP, Config, OwnPooling, Windows
from sppnet.data import ImageSet, build_sizes
from sppnet.data.datasets.base import digest
from sppnet.errors import UserError, format_value, notice
from sppnet.runs.from_checkpoint import TrainedNetwork
from sppnet.runs.identity import file_digest, own_class_digests, weights_identity

PAPERS_SPLITS = 10  # the paper's number of splits for Caltech-101
SPLITS = ("splits", "per_class", "split_seed")
# Without a checkpoint, these groups and keys may be given beside those that `transfer` may change in a run.
GIVEN = {"backbone", "pooling", "seed", "experiments", "launch", "hydra"} | (
    TransferConfig.model_fields.keys() - Config.model_fields.keys()
)
FORMAT = 2  # increment this when a code change makes the same settings give different features or scores


@dataclass(frozen=True)
class Task:
    """One row of the table: a layer of a network, a view of the images, and how the SVM is trained and tested.

    Attributes:
        cfg: the configuration.
        trained: the trained network; None if `backbone` defines the network.
    """

    cfg: TransferConfig
    trained: TrainedNetwork[TransferConfig] | None

    @property
    def size(self) -> int:
        """The shorter side of the network's input, in pixels."""
        return self.cfg.sizes.test[0]

    @property
    def has_random_weights(self) -> bool:
        """Whether the seed draws weights of the network up to the layer."""
        own_pooling = self.cfg.layer == "pooling" and isinstance(self.cfg.pooling, OwnPooling)
        return self.trained is None and (self.cfg.backbone.weights is None or own_pooling)

    @property
    def skip(self) -> bool:
        """Whether unreadable images are left out."""
        return self.cfg.data.bad_files == "skip"

    @property
    def layer(self) -> dict[str, Any]:
        """The description of the row's layer."""
        return self.describe(self.cfg.layer)

    def describe(self, name: str) -> dict[str, Any]:
        """Describe a layer as plain data; equal descriptions give equal features."""
        pooling = self.cfg.pooling
        if name == "spp" and isinstance(pooling, SPP):
            exponent = {"gem": {"p": pooling.p}, "lse": {"r": pooling.r}}.get(pooling.pool, {})
            return {"kind": "pyramid", "bins": pooling.bins, "pool": pooling.pool, "rule": pooling.rule, **exponent}
        if name in ("spp", "pool"):
            bins = self.cfg.pyramid.bins if name == "spp" else [self.cfg.pool_to]
            return {"kind": "pyramid", "bins": bins, "pool": "max", "rule": "adaptive"}
        if name == "pooling" and self.trained is None:
            return {"kind": "pooling", "pooling": pooling.model_dump(by_alias=True, exclude_defaults=True)}
        return {"kind": "fc", "number": int(name[2:])} if name.startswith("fc") else {"kind": name}

    def source(self, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Identify the network up to a layer by the content of its weights and code."""
        backbone = self.cfg.backbone
        parts = {"pooling": ("pooling",), "fc": ("pooling", "head")}.get(layer["kind"], ())
        code = own_class_digests({name: getattr(self.cfg, name).plain() for name in ("backbone", *parts)})
        own = {"code": code} if code else {}
        if self.trained is not None:
            return {"checkpoint": file_digest(self.trained.weights)} | own
        weights = weights_identity(backbone)
        seed = self.cfg.seed if self.has_random_weights else None
        return {"backbone": backbone.node(), "weights": weights, "seed": seed} | own

    def features(self, images: ImageSet, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything that determines the features of `layer`."""
        data = self.cfg.data
        return {
            "format": FORMAT,
            "layout": LAYOUT,
            "images": images.fingerprint(),
            "network": self.source(layer),
            "layer": dict(layer),
            "view": {**self.cfg.views.model_dump(exclude={"name"}), "size": self.size},
            "mean": data.mean,
            "std": data.std,
            "precision": self.cfg.trainer.precision,
            "pixels": {"short_side": data.short_side if data.fit == "crop" else None, "resampler": data.resampler}
            | data.model_dump(include={"decode", "interpolation"}, exclude_defaults=True),  # as in a run's identity
        }

    @property
    def splits(self) -> dict[str, int]:
        """The settings for random splits of a single-label data set, in the form that `draw_splits` takes."""
        cfg = self.cfg
        number = {"train": cfg.per_class.train, "test": cfg.per_class.test}
        return {"count": cfg.splits or PAPERS_SPLITS, **number, "seed": cfg.split_seed}

    def own_parts(self, images: ImageSet) -> Mapping[str, Sequence[int]] | None:
        """Return the data set's own train and test parts; None if it has none or if `splits` asks for random splits.

        Raises:
            UserError: the data set has parts of its own, but its train or test part is missing or empty.
        """
        parts = images.split() if images.multilabel or self.cfg.splits is None else None
        if parts is not None and not (parts.get("train") and parts.get("test")):
            advice = "" if images.multilabel else f"; splits={PAPERS_SPLITS} draws random splits of all images instead"
            raise UserError(
                f"data={self.cfg.data.name}: the data set comes with the part(s) {', '.join(parts)}, but transfer"
                f" needs both train and test, with images in each{advice}"
            )
        return parts

    def identity(self, images: ImageSet) -> dict[str, Any]:
        """Return everything that determines the scores in this row."""
        evaluation = {"protocol": self.protocol(images), "C": float(self.cfg.svm.C), "skip": self.skip}
        return self.features(images, self.layer) | evaluation

    def protocol(self, images: ImageSet) -> dict[str, Any]:
        """Identify the data set and its splits; rows with the same protocol can be compared."""
        own = self.own_parts(images) is not None
        if not images.multilabel:
            return {"data": images.fingerprint()} | ({"parts": "own"} if own else {"splits": self.splits})
        difficult = digest(str(tuple(images.difficult(i))) for i in range(len(images)))
        parts = {} if own else {"split": self.cfg.data.split.plain()}
        return {"data": images.fingerprint(), "unclear": difficult} | parts


def make_task(cfg: TransferConfig, trained: TrainedNetwork[TransferConfig] | None) -> Task:
    """Build the task from a configuration, without importing torch.

    Raises:
        UserError: two values do not fit together.
    """
    build_sizes(cfg.sizes)
    views, layer, sizes = cfg.views, cfg.layer, cfg.sizes.test
    if isinstance(views, Windows):
        raise UserError(f"views={views.name} gives several views per image; transfer needs center, warp or full")
    if len(sizes) != 1:
        raise UserError(f"sizes.test={sizes} is not allowed: transfer takes one size, such as sizes.test=[{sizes[0]}]")
    if layer == "conv" and views.fit == "full":
        raise UserError(
            "with layer=conv, the number of features depends on the shape of the image; with views=full, use layer=spp,"
            " pool or gap"
        )
    if layer.startswith("fc"):
        _check_hidden(cfg, trained)
    if layer == "pooling" and trained is not None:
        _check_pooling(cfg, trained)
    return Task(cfg, trained)


def refuse_ineffective(overrides: list[str]) -> None:
    """Reject overrides that cannot affect the features of a backbone without a checkpoint, such as training settings.

    Raises:
        UserError: one of `overrides` has no effect.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        parts = key.replace("/", ".").split(".")
        # data.mean belongs to a trained network, but here it may be given, like every key of `data`
        sections = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        if parts[0] not in GIVEN and not any(may_change(section, "transfer") for section in sections):
            raise UserError(
                f"{key} has no effect: without a checkpoint, the features come from the backbone alone, and transfer"
                " does not train it"
            )


def warn_ineffective(task: Task, images: ImageSet, typed: Sequence[str]) -> None:
    """Warn about each key in `typed` that has no effect on the features or the splits."""
    layer, untrained, own = task.cfg.layer, task.trained is None, task.own_parts(images) is not None
    reasons = {}
    if layer != "pool":
        reasons["pool_to"] = f"with layer={layer}"
    if layer not in ("spp", "pooling") and (untrained or not layer.startswith("fc")):
        pooled = [
            k for k in keys(Config) if k.name.startswith(("pyramid", "pooling.")) and k.affects != affects.nothing
        ]
        reasons |= {k.name: f"with layer={layer}" for k in pooled if untrained or k.may_change("transfer")}
    if untrained and not task.has_random_weights:
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
        key = "pooling.name" if key == "pooling" else key  # the group; other keys of it may have an effect
        reason = next((reason for name, reason in reasons.items() if f"{key}.".startswith(f"{name}.")), None)
        if reason is not None:
            notice(f"warning: {key.removesuffix('.name')} has no effect {reason}")


def pooling_changes(cfg: Config, trained: TrainedNetwork[Any]) -> list[tuple[str, Any, Any]]:
    """List the keys that make the pooling layer of `cfg` another one than that of training, with old and new values."""
    changes = differences(trained.stored["pooling"], cfg.pooling.plain(), "pooling", data=cfg.plain())
    return [change for change in changes if not may_change(change[0], "predict")]


def _check_hidden(cfg: TransferConfig, trained: TrainedNetwork[TransferConfig] | None) -> None:
    if trained is None:
        raise UserError(f"layer={cfg.layer} is part of a trained head, so it needs checkpoint=RUN")
    hidden = cfg.head.hidden if isinstance(cfg.head, MLP) else []
    if int(cfg.layer[2:]) > len(hidden):
        layers = ", ".join(f"fc{i}" for i in range(1, len(hidden) + 1)) or "none"
        of = (
            f"head.hidden={hidden}"
            if isinstance(cfg.head, MLP)
            else f"head={cfg.head.name or cfg.head.node()['_target_']}"
        )
        raise UserError(f"layer={cfg.layer} does not exist; the head's hidden layers: {layers} ({of})")
    _check_pooling(cfg, trained)


def _check_pooling(cfg: TransferConfig, trained: TrainedNetwork[TransferConfig]) -> None:
    """Refuse another pooling than that of training for a layer that needs the trained one."""
    for name, old, new in pooling_changes(cfg, trained):
        needs = "this layer is" if cfg.layer == "pooling" else "its fully connected layers need"
        raise UserError(
            f"{name}={format_value(new)} is not allowed with layer={cfg.layer}: the checkpoint was trained with"
            f" {format_value(old)}, which {needs}"
        )
