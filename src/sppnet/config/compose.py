"""Compose configurations from overrides, without a command line, and explain Hydra's errors in one line."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sppnet.config import option_files, timm_networks
from sppnet.config.command_schemas import COMMANDS, SlurmOptions
from sppnet.config.load import check_unresolved, load, unknown_key
from sppnet.config.overrides import is_choice, sets_hydra, sets_key
from sppnet.config.renamed_keys import RENAMED_OPTIONS
from sppnet.config.schema import Backbone, Config, Section
from sppnet.config.sweep_jobs import ExpandedJob, expand
from sppnet.errors import UserError, format_value

timm_networks.register()
Cfg = TypeVar("Cfg")
EMPTY = "_empty_"  # an option of every group that sets nothing, with which `sppnet.config.overlay` composes


def compose_config(overrides: list[str]) -> Config:
    """Compose the configuration of `sppnet train`.

    Raises:
        UserError: the overrides cannot be composed, or a key or a value is not allowed.
    """
    with explained("train", overrides):
        cfg = compose_hydra("train", overrides)
    loaded = load_composed("train", cfg, overrides)
    assert isinstance(loaded, Config)
    return loaded


def load_composed(command: str, cfg: DictConfig, overrides: Sequence[str]) -> Section:
    """Resolve and check the configuration of `command` that Hydra composed from `overrides`.

    Raises:
        UserError: a value is missing or not allowed, or a label could be taken for the name of another network.
    """
    plain = unresolved(cfg)
    loaded = load(COMMANDS[command], resolve(command, plain))
    if isinstance(loaded, Config):
        _check_label(command, loaded.backbone, plain, overrides)
    return loaded


def _check_label(command: str, backbone: Backbone, plain: dict[str, Any], overrides: Sequence[str]) -> None:
    """Refuse a `backbone.name` that only labels the network, but could be taken for the name of another one.

    It is checked if `overrides` set it or the class of the network. What a file sets belongs together.
    """
    chooses = "arch" in (backbone.model_extra or {}) or not backbone.target.startswith("sppnet.")
    sets_class = sets_key(overrides, "backbone._target_")
    if chooses or backbone.name is None or not (sets_class or sets_key(overrides, "backbone.name")):
        return
    if sets_class:
        labelled, allowed = f"backbone._target_={backbone.target}", [backbone.target.rpartition(".")[2].lower()]
    else:
        filed = compose_choices(command, overrides)
        option = filed.hydra.runtime.choices.get("backbone")
        name = unresolved(filed)["backbone"].get("name")  # it may refer to keys that the other overrides set
        label = select(OmegaConf.create({**plain, "backbone": {**plain["backbone"], "name": name}}), "backbone.name")
        labelled, allowed = f"backbone={option}", [label or option, option]
    if not f"{backbone.name}-".startswith(tuple(f"{name}-" for name in allowed)):
        raise UserError(
            f"backbone.name={backbone.name} does not choose a network, but labels {labelled}; such a label is"
            f" {allowed[0]} or begins with {allowed[0]}-; backbone=torchvision and backbone=timm choose a network by"
            " its name"
        )


def select(cfg: DictConfig, key: str) -> Any:
    """Return the value of `key`; None if it is missing or an interpolation in it cannot be resolved."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None


def compose_plain(command: str, overrides: list[str]) -> dict[str, Any]:
    """Compose the configuration of `command` as plain data; mandatory values may be missing.

    Raises:
        UserError: the overrides cannot be composed.
    """
    with explained(command, overrides):
        return _to_dict(OmegaConf.create(unresolved(compose_hydra(command, overrides))))


@contextmanager
def explained(command: str, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Turn an error of Hydra or OmegaConf into a UserError whose message is one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, command, overrides)) from error


def _cause(error: BaseException) -> OmegaConfBaseException | None:
    """The OmegaConf error behind a Hydra error; its `full_key` says which key it is about."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    return cause


def _user_error(error: BaseException) -> UserError | None:
    """The UserError of a resolver behind an OmegaConf error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def expand_sweep(command: str, overrides: list[str]) -> tuple[list[ExpandedJob], dict[str, Any], dict[str, Any]]:
    """Expand the sweep that `overrides` would start with `-m`.

    Returns:
        The jobs, the rows of the sweep (see `hydra_plugins.sppnet.row_sweeper`) and the section `report`.

    Raises:
        UserError: the overrides cannot be composed.
    """
    with explained(command, overrides):
        parsed = OverridesParser.create().parse_overrides(overrides)
        fixed = [word for word, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
        typed = [word for word in overrides if not sets_hydra(word)]
        cfg = compose_hydra(command, fixed)
        with _initialized():
            jobs = expand(command, cfg.hydra.sweeper, typed, GlobalHydra.instance().config_loader())
        return jobs, _to_dict(cfg.hydra.sweeper.get("rows", {})), _to_dict(cfg.report)


def compose_hydra(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the primary configuration `name`, with Hydra's own section and unresolved interpolations.

    Raises:
        HydraException, OmegaConfBaseException: the overrides cannot be composed.
    """
    with _initialized():
        return hydra.compose(name, [*overrides, _searchpath()], return_hydra_config=True)


def compose_choices(command: str, overrides: Iterable[str]) -> DictConfig:
    """Compose only the options that `overrides` choose: what the files say without the other overrides.

    Raises:
        UserError: the options cannot be composed.
    """
    return _compose_choices(command, tuple(filter(is_choice, overrides)), option_files.digest())


@functools.cache
def _compose_choices(command: str, choices: tuple[str, ...], _: str) -> DictConfig:
    with explained(command, choices):
        return compose_hydra(command, choices)


def chosen_options(name: str, overrides: Sequence[str]) -> tuple[dict[str, str | list[str]], dict[str, str]]:
    """Return the option or options of each group of the primary configuration `name`, and where options are chosen.

    The second mapping holds "" for a group that an override sets, and the name of the file (`experiments/heads`) for
    one that a file overrides. It lacks the groups whose option is a default.

    Raises:
        HydraException: the overrides cannot be composed.
    """
    with _initialized():
        loader = GlobalHydra.instance().config_loader()
        found = loader.compute_defaults_list(name, [*overrides, _searchpath()], RunMode.RUN).overrides
    options: dict[str, str | list[str]] = {}
    options |= {group: option for group, option in found.known_choices.items() if option is not None}
    options |= {group: names for group, names in found.override_choices.items() if isinstance(names, list)}
    return options, {group: each.containing_config_path or "" for group, each in found.override_metadata.items()}


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain data with unresolved interpolations, without the section `hydra`."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    return {key: node for key, node in plain.items() if key != "hydra"}


def _to_dict(node: Any) -> dict[str, Any]:
    items: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {str(key): value for key, value in items.items()}


@contextmanager
def _initialized() -> Iterator[None]:
    """Initialise Hydra to compose from `conf/`, also inside a launcher, while Hydra is in use for the sweep."""
    state = GlobalHydra.instance()
    of_sweep = state.hydra
    state.clear()
    try:
        with hydra.initialize_config_dir(str(option_files.root() / "conf"), version_base="1.3"):
            yield
    finally:
        if of_sweep is not None:
            GlobalHydra.instance().initialize(of_sweep)


def _searchpath() -> str:
    folders = [str(option_files.root()), *([str(folder)] if (folder := option_files.config_dir()) else [])]
    quoted = ",".join("'file://" + folder.replace("\\", "\\\\").replace("'", "\\'") + "'" for folder in folders)
    return f"hydra.searchpath=[{quoted}]"


def one_line(error: BaseException) -> str:
    """Return the message of a Hydra error as one line, without the lines that say where the error occurred."""
    if (mistake := _user_error(error)) is not None:  # of one of our resolvers
        return str(mistake)
    places = ("object_type=", "full_key:", "reference_type=", "See http")
    stripped = map(str.strip, str(error).splitlines())
    lines = [line for line in stripped if line and not line.startswith(places)]
    options = next((i for i, line in enumerate(lines) if line.startswith("Available options")), len(lines))
    text = " ".join(lines[:options]) or type(error).__name__
    text = re.sub(r'\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", text)
    if available := [option for option in lines[options + 1 :] if option != EMPTY]:
        text += f"; available options are {', '.join(available)}"
    key = getattr(error, "full_key", None)
    return f"{key}: {text}" if key and str(key) not in text else text


def explain(error: BaseException, command: str, overrides: Sequence[str]) -> str:
    """Explain a Hydra error in one line: what is wrong, and what is available instead."""
    cause = _cause(error)
    key = str(getattr(cause, "full_key", None) or "")
    if isinstance(error, ConfigCompositionException) and "Could not override" in str(error) and key:
        return _unknown_key(key, command, overrides)
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        return f"{error.override} cannot be parsed; quote values with special characters: \"{name}='{value}'\""
    text = re.sub(r"^In '[^']*': ", "", one_line(error))
    match = re.search(r"Could not find '(\w+)/(\w+)'", text)
    if match and (new := RENAMED_OPTIONS.get(f"{match[1]}={match[2]}")):
        return f"{match[1]}={match[2]} is now called {new}"
    if "No match in the defaults list" in text:
        group, groups = text.split("'")[1], option_files.group_names()
        if group in groups:
            return f"{group} cannot be chosen here: sppnet {command} has no such group with the other options"
        return f"unknown group {group}; available groups are {', '.join(groups)}"
    if text.startswith("Error merging override") and cause is not None:
        return f"{text.removeprefix('Error merging override ')} is not allowed: {one_line(cause)}"
    return text.split("Config search path:")[0].rstrip(" ,")


def _unknown_key(key: str, command: str, overrides: Sequence[str]) -> str:
    if (name := key.removeprefix("hydra.launcher.")) in SlurmOptions.model_fields:
        return f"unknown key {key}; it exists with launch=slurm"
    if name != key:
        return f"{unknown_key(SlurmOptions, name, {}, 'hydra.launcher.')} with launch=slurm"
    if key.startswith("hydra."):
        return f"unknown key {key}; add a new key with +{key}=VALUE"
    section, _, name = key.partition(".")
    if name and section in ("callbacks", "metrics"):
        new = f"+{section}.{name.split('.')[0]}"
        kind = section.removesuffix("s")
        return f"unknown key {key}; put + before each key of a new {kind}: {new}._target_=CLASS {new}.KEY=VALUE"
    groups = option_files.group_names()
    needed = {*groups, f"{section}.name"}  # backbone=timm cannot be composed without backbone.name
    chosen = [word for word in overrides if word.partition("=")[0] in needed and "={" not in word]
    try:
        plain = _to_dict(OmegaConf.create(unresolved(compose_hydra(command, chosen))))
    except (HydraException, OmegaConfBaseException):  # several options of a sweep, for example
        plain = compose_plain(command, [])
    return unknown_key(COMMANDS[command], key, plain, groups=groups)


@dataclass(frozen=True)
class Job(Generic[Cfg]):
    """One composed job.

    Attributes:
        cfg: the configuration.
        overrides: the overrides that `cfg` was composed from.
        sweeper: the overrides of `hydra.sweeper`, which describe the study and not the job.
        in_sweep: whether the job belongs to a sweep.
    """

    cfg: Cfg
    overrides: list[str]
    sweeper: tuple[str, ...] = ()
    in_sweep: bool = False


def resolve(command: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Resolve the interpolations in the configuration of `command`.

    Raises:
        UserError: a mandatory value is missing or an interpolation cannot be resolved.
    """
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(plain), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: {error.full_key}=VALUE") from None
    except OmegaConfBaseException as error:
        # The cause is often a wrong value that another key refers to, such as sizes.train=[]. If so, report that value.
        check_unresolved(COMMANDS[command], plain)
        if "'train[1]'" in str(error):
            sizes = format_value(plain["sizes"]["train"])
            raise UserError(f"sizes.train={sizes} is not allowed: sizes.val is its second size; give two") from None
        if error.full_key == "backbone.arch":
            raise UserError("backbone.name must be given: backbone.name=NAME") from None
        raise UserError(one_line(error)) from None
    return cast(dict[str, Any], resolved)
