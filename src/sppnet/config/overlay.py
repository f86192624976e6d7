"""What a command line sets by itself, without the defaults of `conf/`.

Commands that start from a checkpoint apply it to the configuration that the run stored, which takes the place of the
defaults.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sppnet.config import compose, option_files
from sppnet.config.compose import EMPTY
from sppnet.config.keys import key_named, value_of
from sppnet.config.overrides import choice, is_choice, key_of, sets_hydra
from sppnet.config.schema import Config
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
    """Compose the overrides of one job by themselves, without those of `hydra`.

    Raises:
        UserError: the overrides cannot be composed, or one of them removes a key.
    """
    check_removals(words)
    settings = [word for word in words if not is_choice(word) and not sets_hydra(word)]
    forced = [f"++{word.lstrip('+')}" for word in settings]
    with compose.explained(command):
        found = _find_choices([word for word in words if is_choice(word)])
        with _empty_options():
            options = _compose(list(found.words.values()))
        with _empty_options(found.filed):
            empty = [choice(group, EMPTY) for group in found.emptied]
            values = _compose([*found.own, choice("launch", found.launch), *empty, *forced])
    return Overlay(
        options=options,
        values=values,
        expected=tuple(f"{key_of(word)}." for word in settings if not re.match(r"\+\w", word)),
        groups=frozenset(map(_section, found.by_hand)),
        implied=frozenset(map(_section, found.implied)),
    )


@dataclass(frozen=True)
class _Choices:
    """The options that a command line chooses, by group (`data/crop`).

    Attributes:
        words: for each group of `conf/`, and each typed or filed group inside the user's options, the override that
            chooses its option.
        own: the overrides of groups that `conf/` lacks, such as `experiments`, which count as typed themselves.
        launch: the option of `launch`.
        by_hand: the groups of which a word or the study's file chooses an option.
        implied: the groups of which only another chosen option chooses an option.
        filed: the groups inside the user's options of which the study's file overrides the option.
        emptied: the groups whose options must be left out of what is typed.
    """

    words: dict[str, str]
    own: list[str]
    launch: str | list[str]
    by_hand: Set[str]
    implied: Set[str]
    filed: list[str]
    emptied: list[str]


def _find_choices(words: Sequence[str]) -> _Choices:
    typed = {word.lstrip("+").partition("=")[0]: word for word in words}
    with _empty_options() as listed:
        known = {group for group in option_files.group_names() if _outer(group) in listed and _is_known(group)}
        typed |= {group: word.lstrip("+") for group, word in typed.items() if group in known}
        options, origins = compose.chosen_options(PRIMARY, list(typed.values()))
        chosen = {group: option for group, option in options.items() if option != EMPTY and _outer(group) in listed}
        launch = chosen.pop("launch", "local")  # a study's file may set options of its launcher
        by_hand = {group for group in chosen if group in typed or _outer(origins.get(group, "data")) not in listed}
        filed = [group for group in by_hand if group not in known and group not in typed]
        choices = {group: choice(group, option) for group, option in chosen.items() if group in known}
        choices |= {group: typed.get(group, choice(group, chosen[group])) for group in by_hand}
        if not chosen.keys() <= known:  # the study's file may also add groups to the user's options
            by_hand |= chosen.keys() - compose.chosen_options(PRIMARY, list(choices.values()))[0].keys()
    return _Choices(
        words=choices,
        own=[word for group, word in typed.items() if _outer(group) not in listed],
        launch=launch,
        by_hand=by_hand,
        implied=chosen.keys() - by_hand,
        filed=filed,
        emptied=[group for group in chosen if group in known or group in filed],
    )


def check_removals(words: Iterable[str]) -> None:
    """Refuse `~KEY`.

    Raises:
        UserError: an override removes a key.
    """
    if removed := [word for word in words if word.startswith("~")]:
        raise UserError(f"{removed[0]} is not allowed: no key of a run can be removed")


def _is_known(group: str) -> bool:
    """Whether the schema has the section of a group; groups inside the user's options may be of her own."""
    return "/" not in group or key_named(Config, _section(group)) is not None


def _section(group: str) -> str:
    """The section that the options of a group set: `data.crop` for `data/crop`, and for `data/mild@data.crop`."""
    group, _, package = group.partition("@")
    return package or group.replace("/", ".")


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
    for group in sorted(filter(_is_known, option_files.group_names()), reverse=True):  # inner groups first
        outer, _, last = group.replace("/", ".").rpartition(".")
        section = value_of(composed, outer)
        if isinstance(section, dict) and section.get(last) == {}:
            del section[last]
    return composed


@contextmanager
def _empty_options(inner: Iterable[str] = ()) -> Iterator[list[str]]:
    """Let Hydra find the option `EMPTY` of each group, and the primary configuration that chooses them.

    Other compositions must not find them, because Hydra's messages list the options of a group.

    Args:
        inner: groups inside the user's options, which the primary configuration is to list, too.

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
        groups = list(filter(_is_known, option_files.group_names()))
        for group in {*groups, *(name.partition("@")[0] for name in inner)}:
            nested = [{name.rpartition("/")[2]: EMPTY} for name in groups if name.rpartition("/")[0] == group]
            store.store(group=group, name=EMPTY, node={"defaults": [*nested, "_self_"]})
        store.store(name=BASE, node={"defaults": [entry for group, entry in entries if group not in listed]})
        chosen = [{group: "local" if group == "launch" else EMPTY} for group in (*listed, *inner)]
        store.store(name=PRIMARY, node={"defaults": ["_self_", BASE, *chosen, {"experiments": None}]})
        yield listed
    finally:
        store.repo = repo
