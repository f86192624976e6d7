"""What a command line sets by itself, without the defaults of `conf/`.

Commands that start from a checkpoint apply it to the configuration that the run stored, which takes the place of the
defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sppnet.config import compose, option_files
from sppnet.config.overrides import is_choice
from sppnet.errors import UserError

EMPTY = "_empty_"  # an option of every group that sets nothing
PRIMARY = "_overlay_"  # a primary configuration that chooses this option of every group


@dataclass(frozen=True)
class Overlay:
    """What a command line sets, as plain data with unresolved interpolations. The names of groups are dotted.

    Attributes:
        options: what the chosen options set.
        values: what the words set, and the typed study's file itself.
        expected: the keys in `values` that were typed without a `+`, so that they must exist.
        groups: the groups of which a word or the study's file chooses an option.
        implied: the groups of which only another chosen option chooses an option: `data=folder` also sets `augment`.
    """

    options: dict[str, Any]
    values: dict[str, Any]
    expected: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    implied: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The keys in `values` and the groups: what was typed, or is set by the study's file."""
        return self.groups.union(leaves(self.values))


def compose_overlay(command: str, words: Sequence[str]) -> Overlay:
    """Compose the overrides of one job, those of `hydra` left out, by themselves.

    Raises:
        UserError: the overrides cannot be composed, or one of them removes a key.
    """
    if removed := [word for word in words if word.startswith("~")]:
        raise UserError(f"{removed[0]} is not allowed: no key of a run can be removed")
    choices = [word.lstrip("+") for word in words if is_choice(word)]
    settings = [f"++{word.lstrip('+')}" for word in words if not is_choice(word)]
    study = [word for word in choices if word.startswith("experiments=")]
    expected = tuple(f"{compose.override_key(word)}." for word in words if word.startswith("++") or word[0] != "+")
    try:
        with _empty_options():
            _, chosen = _compose(choices)
            options, _ = _compose([f"{group}={option}" for group, option in chosen])
            values, _ = _compose([*study, *settings, *(f"{group}={EMPTY}" for group, _ in chosen)])
            implied = {each for pair in chosen for each in _compose(["=".join(pair)])[1] - {pair}} & chosen
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(compose.explain(error, command)) from error
    implied -= {(group, option) for group, option in chosen if f"{group}={option}" in choices}
    return Overlay(
        options,
        values,
        frozenset(name for name in leaves(values) if f"{name}.".startswith(expected)),
        frozenset(group.replace("/", ".") for group, _ in chosen - implied),
        frozenset(group.replace("/", ".") for group, _ in implied),
    )


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all values that are not mappings themselves."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _compose(words: Sequence[str]) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """Return the values that the words set, and the option that is chosen of each group, but for studies."""
    if not words:
        return {}, set()
    cfg = compose.compose_hydra(PRIMARY, words)
    chosen = {(group, option) for group, option in cfg.hydra.runtime.choices.items() if option not in (None, EMPTY)}
    chosen = {pair for pair in chosen if not pair[0].startswith(("hydra/", "experiments"))}
    return compose.unresolved(cfg), chosen


@contextmanager
def _empty_options() -> Iterator[None]:
    """Let Hydra find the option `EMPTY` of each group, and the primary configuration that chooses them.

    Other compositions must not find them, because Hydra's messages list the options of a group.
    """
    base = yaml.safe_load((option_files.root() / "conf" / "base.yaml").read_text(encoding="utf-8"))
    order = [group for entry in base["defaults"] if isinstance(entry, dict) for group in entry]  # Hydra minds it
    store = ConfigStore.instance()
    repo = store.repo
    store.repo = dict(repo)
    try:
        groups = option_files.group_names()
        for group in groups:
            inner = [{name.rpartition("/")[2]: EMPTY} for name in groups if name.rpartition("/")[0] == group]
            store.store(group=group, name=EMPTY, node={"defaults": [*inner, "_self_"]})
        defaults = [*({group: EMPTY} for group in order), {"experiments": None}]
        store.store(name=PRIMARY, node={"defaults": ["_self_", *defaults]})
        yield
    finally:
        store.repo = repo
