"""Configurations composed without a command line: what overrides mean now, what a sweep comes to, and the wording of
Hydra's errors. Nothing here imports torch.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sppnet.config import option_files, schema
from sppnet.config.overrides import Expanded, expand
from sppnet.errors import UserError


def again(command: str, overrides: list[str]) -> dict[str, Any]:
    """What `overrides` compose to now, as plain data; mandatory values may be missing.

    Raises:
        UserError: it does not compose.
    """
    try:
        return _plain(_compose(command, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, command)) from error


def known(command: str, overrides: list[str]) -> list[str]:
    """`overrides` without those of groups (and of their keys) whose option is not there any more.

    A backbone of somebody's own, say, whose `--config-dir` was not given: what it was stands in its run.
    """
    while True:
        try:
            _compose(command, overrides)
        except MissingConfigException as error:
            group = str(error.missing_cfg_file).partition("/")[0]
            left = [word for word in overrides if re.split(r"[.=]", word.lstrip("+~"))[0] != group]
            if len(left) == len(overrides):
                raise UserError(explain(error, command)) from error
            overrides = left
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error, command)) from error
        else:
            return overrides


def sweep(command: str, overrides: list[str]) -> tuple[list[Expanded], dict[str, Any], dict[str, Any]]:
    """What `-m` with `overrides` comes to, without starting it.

    Returns:
        The jobs, the listed rows of the sweep (see `hydra_plugins.sppnet.row_sweeper`), the node `report`.

    Raises:
        UserError: it does not compose.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        kept = [word for word, one in zip(overrides, parsed, strict=True) if not one.is_sweep_override()]
        typed = [word for word in overrides if not re.match(r"[+~]*hydra[./=]", word)]
        with _settled():
            cfg = hydra.compose(command, [*kept, _searchpath()], return_hydra_config=True)
            node = cfg.hydra.sweeper
            rows = _plain(node.get("rows", {}))
            loader = GlobalHydra.instance().config_loader()
            jobs = expand(rows, node.get("only", []), node.get("params"), typed, loader)
            return jobs, rows, _plain(cfg.report)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, command)) from error


def _compose(command: str, overrides: list[str]) -> DictConfig:
    with _settled():
        return hydra.compose(command, [*overrides, _searchpath()])


def _plain(node: Any) -> dict[str, Any]:
    made: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {str(key): value for key, value in made.items()}


def _settled() -> AbstractContextManager[None]:
    return hydra.initialize_config_dir(str(option_files.root() / "conf"), version_base="1.3")


def _searchpath() -> str:
    folders = [str(option_files.root()), *([str(folder)] if (folder := option_files.config_dir()) else [])]
    quoted = ",".join("'file://" + folder.replace("\\", "\\\\").replace("'", "\\'") + "'" for folder in folders)
    return f"hydra.searchpath=[{quoted}]"


def one_line(error: BaseException) -> str:
    """What an error of Hydra says, without its hints of where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("object_type=", "full_key:", "reference_type=", "See http"))
    ]
    options = next((i for i, line in enumerate(lines) if line.startswith("Available options")), len(lines))
    text = " ".join(lines[:options]) or type(error).__name__
    if lines[options + 1 :]:
        text += f"; there are {', '.join(lines[options + 1 :])}"
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key and str(key) not in text else text


def explain(error: BaseException, command: str) -> str:
    """One line for an error of Hydra: what is wrong, and what there is instead."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    key = str(getattr(cause, "full_key", "") or "")
    if isinstance(error, ConfigCompositionException) and "Could not override" in str(error) and key:
        return _unknown_key(key, command)
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        return (
            f"{error.override} cannot be read; a value of blanks or special characters is quoted: \"{name}='{value}'\""
        )
    text = re.sub(r"^In '[^']*': ", "", one_line(error))
    if "No match in the defaults list" in text:
        return f"unknown group {text.split(chr(39))[1]}; groups are {', '.join(option_files.names())}"
    if text.startswith("Error merging override") and cause is not None:
        return f"{text.removeprefix('Error merging override ')} is not allowed: {one_line(cause)}"
    return text.split("Config search path:")[0].rstrip(" ,")


def _unknown_key(key: str, command: str) -> str:
    """`key` is in no config: name its neighbours, from the configuration as it is without overrides."""
    if key.startswith("hydra."):
        return f"unknown key {key}; a new key is added with +{key}=VALUE"
    if (name := key.removeprefix("callbacks.")) != key:
        new = f"+callbacks.{name.split('.')[0]}"
        return f"unknown key {key}; each key of a new callback has a plus: {new}._target_=CLASS {new}.KEY=VALUE"
    node: Any = _compose(command, [])
    where = ""
    for part in key.split("."):
        if not isinstance(node, DictConfig):
            return f"unknown key {key}; {where} is a plain value"
        if part not in node:
            names = sorted({str(name) for name in node} | set(() if where else option_files.names()))
            near = get_close_matches(part, names, n=1)
            hint = f"did you mean {'.'.join(filter(None, (where, near[0])))}? " if near else ""
            others = [
                path.stem
                for path in option_files.options(where)
                if re.search(rf"(?m)^{re.escape(part)}:", path.read_text())
            ]
            hint += f"{where}={others[0]} has it; " if where and others else ""
            has = f"{where or 'the top level'} has {', '.join(names) or 'no keys'}"
            return f"unknown key {key}; {hint}{has}{_added(key, where)}"
        node, where = node[part], f"{where}.{part}".lstrip(".")
    return f"unknown key {key} in this combination of options (a new key is added with +{key}=VALUE)"


def _added(key: str, where: str) -> str:
    """How a key is added to a section whose class may take more than the section has."""
    return f"; another argument of its class is added with +{key}=VALUE" if where in schema.TARGETS else ""


@dataclass(frozen=True)
class Job:
    """One composed job: its resolved configuration as plain data and the overrides that were typed for it.

    `sweeper` are those of `hydra.sweeper`, which say nothing of a single job and much of the study that it is of.
    """

    cfg: dict[str, Any]
    overrides: list[str]
    sweeper: tuple[str, ...] = ()


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve `cfg` into plain dicts and lists, without Hydra's own node.

    Raises:
        UserError: a mandatory value is missing or an interpolation leads nowhere.
    """
    keys = [str(key) for key in cfg if key != "hydra"]
    kept = OmegaConf.masked_copy(cfg, keys)
    try:
        made = OmegaConf.to_container(kept, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        # often one wrong value (sizes.train=[]) leaves nowhere for another key's interpolation to lead
        schema.check_values(OmegaConf.to_container(kept, resolve=False))
        raise UserError(one_line(error)) from None
    assert isinstance(made, dict)
    return {str(key): value for key, value in made.items()}
