"""What a command line sets by itself, without the defaults of `conf/`.

Commands that start from a checkpoint apply it to the configuration that the run stored, which takes the place of the
defaults.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sppnet.config import compose, option_files
from sppnet.config.compose import EMPTY
from sppnet.config.keys import value_of
from sppnet.config.overrides import is_choice, key_of
from sppnet.errors import UserError

PRIMARY = "_overlay_"  # a primary configuration that chooses the option `EMPTY` of every group
BASE = "_base_"  # what conf/base.yaml overrides; a study's file can override it again, since it is not primary
Path = tuple[Any, ...]  # the names of the sections that a key lies in, and its own


@dataclass(frozen=True)
class Overlay:
    """What a command line sets, as plain data with unresolved interpolations. The names of groups are dotted.

    Attributes:
        options: what the chosen options set.
        values: what the words set, and the typed study's file itself.
        expected: the beginnings of the keys that must exist: those typed without a single `+` (`++` only makes Hydra
            accept a key).
        groups: the groups of which a word or the study's file chooses an option.
        implied: the groups of which only another chosen option chooses an option: `data=folder` also chooses `augment`.
    """

    options: dict[str, Any]
    values: dict[str, Any]
    expected: tuple[str, ...] = ()
    groups: frozenset[str] = frozenset()
    implied: frozenset[str] = frozenset()

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The keys in `values` and the groups: what was typed, or is set by the study's file."""
        return self.groups.union(dotted(path) for path, _ in leaves(self.values))


def compose_overlay(command: str, words: Sequence[str]) -> Overlay:
    """Compose the overrides of one job, those of `hydra` left out, by themselves.

    Raises:
        UserError: the overrides cannot be composed, or one of them removes a key.
    """
    if removed := [word for word in words if word.startswith("~")]:
        raise UserError(f"{removed[0]} is not allowed: no key of a run can be removed")
    with compose.explained(command), _empty_options() as listed:
        # Options of groups that conf/ lacks (`+presets=small`) count as typed themselves, as a study's file does.
        own = [word for word in words if is_choice(word) and _outer(key_of(word)) not in listed]
        choices = [word.lstrip("+") for word in words if is_choice(word) and word not in own]
        settings = [word for word in words if not is_choice(word)]
        forced = [f"++{word.lstrip('+')}" for word in settings]
        options, origins = compose.chosen_options(PRIMARY, [*choices, *own])
        chosen = {group: option for group, option in options.items() if option != EMPTY and _outer(group) in listed}
        launch = chosen.pop("launch", "local")  # a study's file may set options of its launcher
        by_hand = {group for group in chosen if _outer(origins.get(group, "data")) not in listed}
        return Overlay(
            options=_compose([f"{group}={option}" for group, option in chosen.items()]),
            values=_compose([*own, f"launch={launch}", *(f"{group}={EMPTY}" for group in chosen), *forced]),
            expected=tuple(f"{key_of(word)}." for word in settings if not re.match(r"\+\w", word)),
            groups=frozenset(group.replace("/", ".") for group in by_hand),
            implied=frozenset(group.replace("/", ".") for group in chosen.keys() - by_hand),
        )


def _outer(group: str) -> str:
    """The outermost group: `data` for `data/crop` and `data.crop`."""
    return re.split("[/.]", group)[0]


def leaves(node: Mapping[str, Any], sections: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path of each value that is not a mapping of further values, and the value."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*sections, key))
        else:
            yield (*sections, key), value


def dotted(path: Path) -> str:
    """The name of a key, such as `data.root`."""
    return ".".join(map(str, path))


def _compose(words: Sequence[str]) -> dict[str, Any]:
    """Return what the words set. Sections that are empty because no option was chosen are left out."""
    if not words:
        return {}
    composed = compose.unresolved(compose.compose_hydra(PRIMARY, words))
    for group in sorted(option_files.group_names(), reverse=True):  # inner groups first
        outer, _, last = group.replace("/", ".").rpartition(".")
        section = value_of(composed, outer)
        if isinstance(section, dict) and section.get(last) == {}:
            del section[last]
    return composed


@contextmanager
def _empty_options() -> Iterator[list[str]]:
    """Let Hydra find the option `EMPTY` of each group, and the primary configuration that chooses them.

    Other compositions must not find them, because Hydra's messages list the options of a group.

    Yields:
        the groups of the primary configuration, in the order of `conf/base.yaml`: an option can only override groups
        that are listed before its own.
    """
    base = yaml.safe_load((option_files.root() / "conf" / "base.yaml").read_text(encoding="utf-8"))
    entries = [(group, entry) for entry in base["defaults"] if isinstance(entry, dict) for group in entry]
    listed = [group for group, _ in entries if not group.startswith("override ")]
    Plugins.instance()  # adds the options of plugins to the store when it is first called
    store = ConfigStore.instance()
    repo = store.repo
    store.repo = copy.deepcopy(repo)
    try:
        groups = option_files.group_names()
        for group in groups:
            inner = [{name.rpartition("/")[2]: EMPTY} for name in groups if name.rpartition("/")[0] == group]
            store.store(group=group, name=EMPTY, node={"defaults": [*inner, "_self_"]})
        store.store(name=BASE, node={"defaults": [entry for group, entry in entries if group not in listed]})
        defaults = [*({group: "local" if group == "launch" else EMPTY} for group in listed), {"experiments": None}]
        store.store(name=PRIMARY, node={"defaults": ["_self_", BASE, *defaults]})
        yield listed
    finally:
        store.repo = repo
