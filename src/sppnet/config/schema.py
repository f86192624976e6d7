"""What a composed configuration may say: every name and value, judged before torch is imported.

One table, key by key. What needs the network (do the sizes leave a map?) is checked by
`sppnet.models.fit_check`, what needs the files by `sppnet.data.datasets.listing`.
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
from sppnet.config.validators import shown as shown
from sppnet.errors import UserError

LAYOUT = 1  # raised when keys of the configuration are renamed or moved; runs and checkpoints hold theirs
MAX_LEVEL = 1024  # as in sppnet.pyramid, which imports torch; what fits in memory is for sppnet.models.network to say
SIDES = list_of(whole(1, 8192))  # what else they must be, their schedule says (`build_sizes`)

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
    "data.crop.ratio": only(CROP, RATIO),  # of validation too, whatever the kind
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
# A section without a `_target_` has no keys but these: another would be ignored in silence, so it is refused.
TARGETS = ("data", "sizes", "backbone", "optim")
CLOSED = (
    *("report", "loss", "paths", "head", "views", "trainer", "logger", "debug"),
    *("data.split", "data.crop", "optim.schedule"),
)
MIRRORS = ("logger.tensorboard", "logger.wandb")  # may be left out
SECTIONS = ("callbacks", *TARGETS, *CLOSED, *MIRRORS)


def check(cfg: Mapping[str, Any]) -> None:
    """Judge every name and value of a resolved configuration.

    Raises:
        UserError: the first key that is wrong, its value, and what is allowed.
    """
    for section in SECTIONS:
        found, node = _get(cfg, section)
        if found and not isinstance(node, Mapping):
            raise UserError(f"{section}={shown(node)} is not allowed; it takes a mapping of keys to values")
        if not found and section not in MIRRORS:
            raise UserError(f"{section} is missing; it cannot be left out")
    for section in ("", *CLOSED, *MIRRORS):
        _check_names(section, _get(cfg, section)[1] if section else cfg)
    check_values(cfg)
    for slot in TARGETS:
        check_target(cfg[slot].get("_target_"), slot)
    for name, node in cfg["callbacks"].items():
        if not isinstance(node, Mapping):
            raise UserError(f"callbacks.{name}={shown(node)} is not allowed; it takes a mapping with _target_")
        check_target(node.get("_target_"), f"callbacks.{name}")
    split = cfg["data"]["split"]
    if split["val"] + split["test"] >= 1:
        raise UserError(f"data.split.val={split['val']} and data.split.test={split['test']} leave nothing to train on")
    data = cfg["data"]
    if data["fit"] == "crop" and data.get("cache") and data.get("short_side") is None:
        raise UserError("data.cache=true keeps images at a shorter side; give one, data.short_side=256 say")


def check_layout(layout: object, where: str) -> None:
    """Refuse a configuration whose keys have other names than today's: nobody could say what it means.

    Args:
        layout: what the run or the checkpoint says; None if it says nothing.
        where: what was read, for the message.

    Raises:
        UserError: it is not `LAYOUT`.
    """
    if layout != LAYOUT:
        found = (
            "without a layout of its configuration"
            if layout is None
            else f"with layout {layout!r} of its configuration"
        )
        raise UserError(
            f"{where} was written {found}; this version of sppnet reads layout {LAYOUT} (see CHANGELOG.md): use the"
            " version that wrote it, or train the run again"
        )


def check_values(cfg: object) -> None:
    """Judge each value by itself; those that are still interpolations are passed over."""
    for key, rule in RULES.items():
        found, value = _get(cfg, key)
        if found and not rule.good(value) and not re.search(r"\$\{|^\?\?\?$", str(value)):
            raise UserError(refusal(key, value, rule))
        needed = rule.required or (rule.only and not _idle(cfg, rule))
        if not found and needed and _get(cfg, key.rpartition(".")[0])[0]:
            raise UserError(f"{key} is missing; it cannot be left out")


def take(cfg: dict[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Take the keys that only one command has (`checkpoint`, say) out of `cfg`, each judged by its rule.

    A key may lie in a section (`svm.C`), which then has no keys but those of `rules`.

    Raises:
        UserError: the first value that is not allowed, and what is.
    """
    taken = {key: cfg.pop(key, None) for key in dict.fromkeys(key.partition(".")[0] for key in rules)}
    for key, rule in rules.items():
        section, _, rest = key.partition(".")
        if rest:
            _check_section(section, taken[section], rules)
        found, value = _get(taken, key)
        if not found:
            raise UserError(f"{key} is missing; it cannot be left out")
        if not rule.good(value):
            raise UserError(refusal(key, value, rule))
    return taken


def _check_section(section: str, node: object, rules: Mapping[str, Rule]) -> None:
    known = [key.removeprefix(f"{section}.") for key in rules if key.startswith(f"{section}.")]
    if not isinstance(node, Mapping):
        raise UserError(f"{section}={shown(node)} is not allowed; it takes a mapping with {', '.join(known)}")
    if unknown := [str(name) for name in node if name not in known]:
        raise UserError(f"unknown key {section}.{unknown[0]}; {section} has {', '.join(known)}")


def unused(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The keys that have no effect in `cfg`, each with the setting because of which (`head.name=gap`)."""
    return {key: why for key, rule in RULES.items() if _get(cfg, key)[0] and (why := _idle(cfg, rule))}


def _idle(cfg: object, rule: Rule) -> str:
    """The setting with which what `rule` is for has no effect; empty if it has."""
    values = {key: _get(cfg, key)[1] for key in rule.only}
    return next((f"{key}={shown(value)}" for key, value in values.items() if value not in rule.only[key]), "")


def _check_names(section: str, node: Mapping[str, Any] | None) -> None:
    prefix = f"{section}." if section else ""
    known = {key.removeprefix(prefix).split(".")[0] for key in (*RULES, *SECTIONS) if key.startswith(prefix)}
    for name in node or {}:
        if name not in known:
            has = ", ".join(sorted(known)) or "no keys"
            raise UserError(f"unknown key {prefix}{name}; {section or 'the top level'} has {has}")


def _get(cfg: object, key: str) -> tuple[bool, Any]:
    node: Any = cfg
    for part in filter(None, key.split(".")):
        if not isinstance(node, Mapping) or part not in node:
            return False, None
        node = node[part]
    return True, node


TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
SLURM_OPTIONS: dict[str, Rule] = {  # of launch=slurm; conf/launch/slurm.yaml has the defaults
    "partition": or_null(TEXT),
    "account": or_null(TEXT),
    "qos": or_null(TEXT),
    "time": or_null(
        Rule(lambda v: bool(TIME_LIMIT.fullmatch(str(v))), "minutes, or a text like '12:00:00' or '1-12:00:00'")
    ),
    "cpus": whole(1),
    "gpus": whole(0),
    "memory": or_null(either(TEXT, whole(1))),
    "parallel": or_null(whole(1)),
    "warning": whole(1, 65535),
    "setup": list_of(TEXT, least=0),
    "options": Rule(lambda v: isinstance(v, Mapping), "a mapping of long options of sbatch to values"),
}


def check_slurm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the SLURM launcher as plain data.

    Raises:
        UserError: an option is unknown, missing or not allowed.
    """
    plain = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in options.items()}
    if unknown := [key for key in plain if key not in SLURM_OPTIONS]:
        raise UserError(
            f"unknown key hydra.launcher.{unknown[0]}; hydra.launcher has {', '.join(SLURM_OPTIONS)} (other options of"
            " sbatch go to hydra.launcher.options)"
        )
    for key, rule in SLURM_OPTIONS.items():
        if key not in plain:
            raise UserError(f"hydra.launcher.{key} is missing; launch=slurm sets its default")
        if not rule.good(plain[key]):
            raise UserError(f"hydra.launcher.{key}={shown(plain[key])} is not allowed; it takes {rule.words}")
    return plain
