"""Check every key and value of a composed configuration before torch is imported.

`RULES` is the table of all keys. `sppnet.models.fit_check` checks the image sizes against the network, and
`sppnet.data.datasets.listing` checks the files of the data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from sppnet.config.instantiate import check_target
from sppnet.config.validators import (
    FLAG,
    INSIDE,
    LABEL,
    NOT_NEGATIVE,
    POSITIVE,
    RATIO,
    SHARE,
    TEXT,
    Rule,
    choice,
    colour,
    either,
    interval,
    list_of,
    only,
    optional,
    or_null,
    refusal,
    whole,
)
from sppnet.config.validators import format_value as format_value
from sppnet.errors import UserError

LAYOUT = 1  # increased when keys are renamed or moved; stored in every run and checkpoint
# This repeats the limit in sppnet.pyramid, which cannot be imported here because it imports torch. The memory that the
# bins need is checked in sppnet.models.fit_check.
MAX_LEVEL = 1024
SIDES = list_of(whole(1, 8192))  # `build_sizes` checks the additional limits of each size schedule

SPP, GRID = {"head.name": ("spp",)}, {"head.name": ("flatten",)}
PLATEAU, COSINE = {"optim.schedule.kind": ("plateau",)}, {"optim.schedule.kind": ("cosine",)}
CROP, WHOLE = {"data.fit": ("crop",)}, {"data.fit": ("full",)}
WINDOWS = {"views.fit": ("windows",)}
SQUARE, RESIZED = CROP | {"data.crop.kind": ("paper",)}, CROP | {"data.crop.kind": ("random_resized",)}

RULES: dict[str, Rule] = {
    "study": LABEL,
    "name": or_null(LABEL),
    "seed": whole(0, 2**32 - 1),
    "force": FLAG,
    "retry": choice("failed", "all", "none"),
    "paths.runs": TEXT,
    "paths.cache": TEXT,
    "loss.kind": choice("auto", "softmax", "sigmoid"),
    "loss.label_smoothing": SHARE,
    "sizes.train": SIDES,
    "sizes.val": SIDES,
    "sizes.test": SIDES,
    "head.name": choice("spp", "flatten", "gap"),
    "head.bins": only(SPP, list_of(whole(1, MAX_LEVEL))),
    "head.pool": only({"head.name": ("spp", "flatten")}, optional(choice("max", "avg"))),
    "head.rule": only(SPP, optional(choice("adaptive", "sliding", "padded"))),
    "head.kernel": only(SPP, optional(choice("auto", "plain"))),
    "head.hidden": list_of(whole(1, 2**20), least=0),
    "head.dropout": SHARE,
    "head.pool_to": only(GRID, optional(or_null(whole(1, MAX_LEVEL)))),
    "backbone.name": optional(LABEL),
    "backbone.weights": optional(or_null(TEXT)),
    "backbone.freeze": optional(FLAG),
    "optim.lr": POSITIVE,
    "optim.weight_decay": optional(NOT_NEGATIVE),
    "optim.schedule.kind": choice("constant", "plateau", "cosine"),
    "optim.schedule.factor": only(PLATEAU, optional(INSIDE)),
    "optim.schedule.patience": only(PLATEAU, optional(whole(0))),
    "optim.schedule.drops": only(PLATEAU, optional(whole(0))),
    "optim.schedule.warmup": only(COSINE, optional(SHARE)),
    "trainer.max_epochs": whole(1),
    "trainer.accelerator": choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": either(whole(1, 1024), list_of(whole(0, 1023), distinct=True)),
    "trainer.num_nodes": whole(1),
    "trainer.precision": choice("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"),
    "trainer.threads": whole(1, 1024),
    "trainer.deterministic": FLAG,
    "trainer.gradient_clip": or_null(POSITIVE),
    "trainer.accumulate": whole(1),
    "trainer.ema": or_null(INSIDE),
    "trainer.compile": FLAG,
    "trainer.channels_last": FLAG,
    "trainer.limit_batches": or_null(whole(1)),
    "trainer.checkpoint_every_n_steps": or_null(whole(1)),
    "trainer.log_every_n_steps": whole(1),
    "trainer.progress": choice("auto", "bar", "lines", "none"),
    "data.name": LABEL,
    "data.root": optional(or_null(TEXT)),
    "data.fit": choice("crop", "full"),
    "data.batch_size": whole(1, 2**20),
    "data.workers": whole(0, 1024),
    "data.bad_files": choice("error", "skip"),
    "data.duplicates": choice("warn", "error", "ignore"),
    "data.short_side": only(CROP, optional(or_null(whole(8, 8192)))),
    "data.resampler": choice("pillow", "torch"),
    "data.cache": only(CROP, FLAG),
    "data.flip": FLAG,
    "data.color": NOT_NEGATIVE,
    "data.aspect_step": only(WHOLE, POSITIVE),
    "data.mean": colour(0),
    "data.std": colour(1e-6),
    "data.split.val": SHARE,
    "data.split.test": INSIDE,
    "data.split.seed": whole(0),
    "data.split.fold": or_null(whole(0)),
    "data.crop.kind": only(CROP, choice("paper", "random_resized")),
    "data.crop.positions": only(SQUARE, choice("random", "fixed")),
    "data.crop.ratio": only(CROP, RATIO),  # validation crops use it with every data.crop.kind
    "data.crop.scale": only(RESIZED, interval(1)),
    "data.crop.aspect": only(RESIZED, interval(1000)),
    "views.name": LABEL,
    "views.fit": choice("center", "warp", "full", "windows"),
    "views.ratio": only({"views.fit": ("center",)}, RATIO),
    "views.aspect_step": only({"views.fit": ("full", "windows")}, POSITIVE),
    "views.scales": only(WINDOWS, optional(list_of(whole(1, 8192), distinct=True))),
    "views.of": only(WINDOWS, optional(whole(1, 8192))),
    "views.positions": only(WINDOWS, optional(Rule(lambda v: v in (5, 9), "5 or 9"))),
    "views.mirror": only(WINDOWS, optional(FLAG)),
    "views.full": only(WINDOWS, optional(or_null(whole(1, 8192)))),
    "views.source": only(WINDOWS, optional(choice("map", "image"))),
    "logger.wandb.project": TEXT,
    "logger.wandb.entity": or_null(TEXT),
    "logger.wandb.tags": list_of(TEXT, least=0),
    "logger.wandb.mode": choice("offline", "online"),
    "debug.traceback": FLAG,
    "report.metrics": or_null(list_of(LABEL, distinct=True)),
    "report.figure": choice("rows", "bins", "sizes"),
    "report.compare": or_null(TEXT),
}
# A section without a `_target_` may have only the keys in RULES. Other keys would have no effect, so they are refused.
TARGETS = ("data", "sizes", "backbone", "optim")
CLOSED = (
    *("report", "loss", "paths", "head", "views", "trainer", "logger", "debug"),
    *("data.split", "data.crop", "optim.schedule"),
)
OPTIONAL_SECTIONS = ("logger.tensorboard", "logger.wandb")
SECTIONS = ("callbacks", *TARGETS, *CLOSED, *OPTIONAL_SECTIONS)


def check(cfg: Mapping[str, Any]) -> None:
    """Check every key and value of a resolved configuration.

    Raises:
        UserError: a key or value is wrong; the message names the first one and what is allowed.
    """
    for section in SECTIONS:
        present, node = _lookup(cfg, section)
        if present and not isinstance(node, Mapping):
            raise UserError(f"{section}={format_value(node)} is not allowed: must be a mapping")
        if not present and section not in OPTIONAL_SECTIONS:
            raise UserError(f"{section} is missing; it is required")
    for section in ("", *CLOSED, *OPTIONAL_SECTIONS):
        _check_names(section, _lookup(cfg, section)[1] if section else cfg)
    check_values(cfg)
    for slot in TARGETS:
        check_target(cfg[slot].get("_target_"), slot)
    for name, node in cfg["callbacks"].items():
        if not isinstance(node, Mapping):
            raise UserError(f"callbacks.{name}={format_value(node)} is not allowed: must be a mapping with _target_")
        check_target(node.get("_target_"), f"callbacks.{name}")
    split = cfg["data"]["split"]
    if split["val"] + split["test"] >= 1:
        raise UserError(f"data.split.val={split['val']} and data.split.test={split['test']} leave nothing to train on")
    data = cfg["data"]
    if data["fit"] == "crop" and data.get("cache") and data.get("short_side") is None:
        raise UserError("data.cache=true requires data.short_side; set data.short_side=256, for example")


def check_layout(layout: object, where: str) -> None:
    """Refuse a stored configuration whose layout (the names of its keys) differs from this version's.

    Args:
        layout: the layout that the run or the checkpoint stores; None if it stores none.
        where: the name of the run or the checkpoint, used in the message.

    Raises:
        UserError: `layout` is not `LAYOUT`.
    """
    if layout != LAYOUT:
        stored = "without a configuration layout" if layout is None else f"with configuration layout {layout!r}"
        raise UserError(
            f"{where} was written {stored}, but this version of sppnet reads layout {LAYOUT} (see CHANGELOG.md); use"
            " the version that wrote it, or train the run again"
        )


def check_values(cfg: object) -> None:
    """Check each value on its own and refuse missing keys. Interpolations and the placeholder `???` are accepted."""
    for key, rule in RULES.items():
        present, value = _lookup(cfg, key)
        if present and not rule.accepts(value) and not re.search(r"\$\{|^\?\?\?$", str(value)):
            raise UserError(refusal(key, value, rule))
        needed = rule.required or (rule.only and not _overruling(cfg, rule))
        if not present and needed and _lookup(cfg, key.rpartition(".")[0])[0]:
            raise UserError(f"{key} is missing; it is required")


def take_own_keys(cfg: dict[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Remove the keys that only one command has (such as `checkpoint`) from `cfg`, check them, and return them.

    A key may be in a section (`svm.C`). Such a section may have only the keys in `rules`.

    Raises:
        UserError: a key or value is wrong; the message names the first one and what is allowed.
    """
    taken = {key: cfg.pop(key, None) for key in dict.fromkeys(key.partition(".")[0] for key in rules)}
    for key, rule in rules.items():
        section, _, rest = key.partition(".")
        if rest:
            _check_section(section, taken[section], rules)
        present, value = _lookup(taken, key)
        if not present:
            raise UserError(f"{key} is missing; it is required")
        if not rule.accepts(value):
            raise UserError(refusal(key, value, rule))
    return taken


def _check_section(section: str, node: object, rules: Mapping[str, Rule]) -> None:
    names = [key.removeprefix(f"{section}.") for key in rules if key.startswith(f"{section}.")]
    if not isinstance(node, Mapping):
        raise UserError(f"{section}={format_value(node)} is not allowed: must be a mapping (keys: {', '.join(names)})")
    if unknown := [str(name) for name in node if name not in names]:
        raise UserError(f"unknown key {section}.{unknown[0]}; {section} has {', '.join(names)}")


def keys_without_effect(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Map each key of `cfg` that has no effect to the setting that disables it (such as `head.name=gap`)."""
    return {key: setting for key, rule in RULES.items() if _lookup(cfg, key)[0] and (setting := _overruling(cfg, rule))}


def _overruling(cfg: object, rule: Rule) -> str:
    """Return the setting that disables the key of `rule`; "" if the key has an effect."""
    values = {key: _lookup(cfg, key)[1] for key in rule.only}
    return next((f"{key}={format_value(value)}" for key, value in values.items() if value not in rule.only[key]), "")


def _check_names(section: str, node: Mapping[str, Any] | None) -> None:
    prefix = f"{section}." if section else ""
    names = {key.removeprefix(prefix).split(".")[0] for key in (*RULES, *SECTIONS) if key.startswith(prefix)}
    for name in node or {}:
        if name not in names:
            has = ", ".join(sorted(names)) or "no keys"
            raise UserError(f"unknown key {prefix}{name}; {section or 'the top level'} has {has}")


def _lookup(cfg: object, key: str) -> tuple[bool, Any]:
    node: Any = cfg
    for part in filter(None, key.split(".")):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
SLURM_OPTIONS: dict[str, Rule] = {  # options of launch=slurm; conf/launch/slurm.yaml has the defaults
    "partition": or_null(TEXT),
    "account": or_null(TEXT),
    "qos": or_null(TEXT),
    "time": or_null(
        Rule(
            lambda v: bool(TIME_LIMIT.fullmatch(str(v))),
            "a number of minutes, or a time such as '12:00:00' or '1-12:00:00'",
        )
    ),
    "cpus": whole(1),
    "gpus": whole(0),
    "memory": or_null(either(TEXT, whole(1))),
    "parallel": or_null(whole(1)),
    "warning": whole(1, 65535),
    "setup": list_of(TEXT, least=0),
    "options": Rule(lambda v: isinstance(v, Mapping), "a mapping from sbatch's long options to values"),
}


def check_slurm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of the SLURM launcher and return them as plain data.

    Raises:
        UserError: an option is unknown, missing or not allowed.
    """
    plain = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()}
    if unknown := [key for key in plain if key not in SLURM_OPTIONS]:
        raise UserError(
            f"unknown key hydra.launcher.{unknown[0]}; hydra.launcher has {', '.join(SLURM_OPTIONS)} (set"
            " other sbatch options in hydra.launcher.options)"
        )
    for key, rule in SLURM_OPTIONS.items():
        if key not in plain:
            raise UserError(f"hydra.launcher.{key} is missing; launch=slurm sets its default")
        if not rule.accepts(plain[key]):
            raise UserError(refusal(f"hydra.launcher.{key}", plain[key], rule))
    return plain
