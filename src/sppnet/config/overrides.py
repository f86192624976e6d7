"""The words of a command line, before Hydra reads them: its options, overrides `KEY=VALUE`, and paths among these.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sppnet.config import option_files
from sppnet.config.schema import RULES
from sppnet.errors import UserError

TEXTS = {key for key, rule in RULES.items() if rule.text} | {
    *("checkpoint", "input", "output", "draw", "photographs", "hydra.sweeper.only"),
    *(f"hydra.launcher.{name}" for name in ("partition", "account", "qos")),
}
PLACES = frozenset({
    *("checkpoint", "input", "output", "draw", "photographs"),
    *("data.root", "paths.runs", "paths.cache", "backbone.weights"),
})  # fmt: skip
FUNCTIONS_OF_TEXTS = ("choice(", "shuffle(", "sort(")
# Quoted texts, escaped characters, and what stands between the marks of Hydra's grammar.
PART = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\\.|[^\s,\[\](){}'"\\]+""")
NOT_OURS = {
    "experimental_rerun": "--experimental-rerun is not available: a run is repeated from its own config.yaml",
    "config_name": "--config-name is not available: a command has its own; --config-dir DIR adds files of yours",
    "config_path": "--config-path is not available: a command has its own; --config-dir DIR adds files of yours",
}


def normalise(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command line in a form that Hydra takes; doing it twice changes nothing.

    Options come before overrides (Hydra's parser refuses `a=1 -m b=2`). Texts that its grammar would trip over
    (`~/photos`, `runs/a(1)`) or read as numbers (`study=2024_05`) are quoted.

    Args:
        command: names the primary configuration file.
        words: what follows the command.

    Raises:
        UserError: an unknown option, or one that has no use here; a word that is no override.
    """
    if command == "train":
        _check_lines(words)
    # the value of --info is optional: without one it would take the override that then follows it
    bare = {"--info", "-i"}
    options = ["--info=all" if a in bare and (not b or "=" in b) else a for a, b in itertools.pairwise([*words, ""])]
    arguments = _parse(options)
    for name, message in NOT_OURS.items():
        if getattr(arguments, name) is not None:
            raise UserError(message)
    for override in arguments.overrides:
        if problem := no_override(command, override):
            raise UserError(problem)
        key, _, value = override.partition("=")
        if key in PLACES and value.startswith("~") and os.path.expanduser(value) == value:  # noqa: PTH111
            raise UserError(f"{override}: there is no home directory {value.partition('/')[0]}")
        options.remove(override)
    return [*options, *map(as_typed, arguments.overrides)]


def _check_lines(given: Iterable[str]) -> None:
    """Refuse what the files of a run, which are UTF-8 and keep a word in a line, have no place for."""
    for word in given:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(word)!r} is not valid UTF-8, which a run's files are; rename it") from None
        if "".join(word.splitlines()) != word:
            raise UserError(f"{word!r} has a line end, and a run keeps a word in a line; rename it, or leave that out")


def text_of(key: str, words: Sequence[str]) -> str | None:
    """The text that a command line gives `key` last, without quotes; None for null, a sweep of several, or none."""
    given = [word for word in _parse(words).overrides if word.partition("=")[0].lstrip("+") == key]
    if not given:
        return None
    override = OverridesParser.create().parse_override(given[-1])
    value = None if override.is_sweep_override() else override.value()
    return None if value is None else str(value)


def no_override(command: str, word: str) -> str:
    """What is wrong with a word that is not of the form KEY=VALUE, and what was meant; empty if nothing is wrong."""
    key, equals, _ = word.partition("=")
    if word.startswith("~") or (equals and key.lstrip("+") and not ("/" in key and Path(word).exists())):
        return ""
    meant = _meant(command, word)
    return f"{word} is not of the form KEY=VALUE" + (f"; did you mean {' '.join(meant)}?" if meant else "")


def _meant(command: str, word: str) -> list[str]:
    path = Path(word).expanduser()
    of_group = [
        f"{group}={word}"
        for group in option_files.names()
        if word in {file.stem for file in option_files.options(group)}
    ]
    if of_group and command not in {"predict", "bench", "models"}:
        return of_group[:1]
    trained = path.suffix in {".ckpt", ".pt"} or (path / "checkpoints").is_dir()
    if command in {"status", "report"}:
        return [f"study={word}"]
    if command == "test" or (command in {"predict", "transfer"} and trained):
        return [f"checkpoint={word}"]
    if command == "predict":
        return [f"input={word}"]
    if command == "bench":
        return [f"only=[{word}]"]
    return ["data=folder", f"data.root={word}"] if path.is_dir() else []


def as_typed(word: str) -> str:
    """An override with the texts in it quoted where Hydra's grammar would read something else (2024_05 is 202405)."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    group = name.partition("@")[0] in option_files.names() and not value.startswith(
        "["
    )  # no name, which Hydra finds, too
    if not equals or not value or name.startswith("~") or not (name in TEXTS or group):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return word if group else f"{key}='{escaped}'"
    if re.match(r"\w+\(", value) and not value.startswith(FUNCTIONS_OF_TEXTS):
        return word

    def quoted(found: re.Match[str]) -> str:
        before, part, after = value[: found.start()].rstrip(), found[0], value[found.end() :].lstrip()
        whole = before[-1:] in {"", ",", "[", "("} and after[:1] in {"", ",", "]", ")"}
        return f"'{part}'" if whole and _misread(part, name) else part

    return f"{key}={PART.sub(quoted, value)}"


def _misread(part: str, key: str) -> bool:
    """Whether Hydra reads `part` as a number or, where that is no value of `key`, as true or false."""
    value = OverridesParser.create().parse_override(f"x={part}").value()
    return isinstance(value, int | float) and not (isinstance(value, bool) and key == "draw")


def unquoted(word: str) -> object:
    """The value of an override, as Hydra reads it; quotes and escapes are gone."""
    return OverridesParser.create().parse_override(word).value()


def _parse(words: Sequence[str]) -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; options of Hydra are listed by --hydra-help, keys are given as KEY=VALUE")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_intermixed_args(list(words))


class Expanded(NamedTuple):
    """A job of a sweep: its overrides, and the name of the row that it comes from ("" in a plain grid)."""

    row: str
    words: list[str]


def expand(
    rows: Mapping[str, Any],
    only: Sequence[str] | str,
    params: Mapping[str, str] | None,
    typed: Sequence[str],
    loader: ConfigLoader,
) -> list[Expanded]:
    """Every row at every point of the axes; jobs that are the same are one, called by the first row that they are of.

    Args:
        rows: by name: `set`, a list of overrides; none for a plain grid.
        only: the row or rows that are wanted; all, if none is named.
        params: the axes: by key, what it takes.
        typed: overrides that replace what a row or an axis says.
        loader: of Hydra, for values that stand for groups.

    Raises:
        HydraException: a row that is not there, or an override that cannot be parsed.
    """
    wanted = [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in rows:
            raise HydraException(f"hydra.sweeper.only={name} is not allowed; rows are {', '.join(rows)}")
    parser = OverridesParser.create(config_loader=loader)
    axes = [
        as_typed(f"{key}={value}") if isinstance(value, str) else f"{key}={value}"
        for key, value in (params or {}).items()
    ]
    jobs: dict[tuple[str, ...], Expanded] = {}
    for name in wanted or list(rows) or [""]:
        row = [as_typed(word) for word in rows[name]["set"]] if name else []
        [made] = BasicSweeper.split_arguments(parser.parse_overrides([*axes, *row, *typed]), None)
        for job in made:
            jobs.setdefault(tuple(sorted(job)), Expanded(name, job))
    return list(jobs.values())
