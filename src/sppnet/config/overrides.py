"""Prepare a command line for Hydra: check its options and overrides (`KEY=VALUE`), and quote names and paths.

A "word" is one argument of the command line as the shell passes it. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.config import option_files
from sppnet.config.command_schemas import COMMANDS, FROM_CHECKPOINT, SlurmOptions
from sppnet.config.keys import key_named, keys
from sppnet.config.schema import Trainer
from sppnet.errors import UserError

# Hydra's sweep functions whose arguments may be strings.
TEXT_FUNCTIONS = ("choice(", "shuffle(", "sort(")
# A quoted string, an escaped character, or a sequence of characters that are not special in Hydra's grammar.
PART = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\\.|[^\s,\[\](){}'"\\]+""")
VARIABLE = r"\$\{oc\.env:(?:[^${}]|\$\{oc\.env:[^${}]*\})*\}"  # another variable can be its default
# A variable, perhaps decoded, alone in quotes or without quotes; or any other interpolation.
INTERPOLATION = re.compile(
    rf"""(?<!\\)(?P<quote>['"]?)(?:\$\{{oc\.decode:\s*(?P<decoded>{VARIABLE})\s*\}}|(?P<bare>{VARIABLE}))(?P=quote)"""
    r"|\$\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
)
UNAVAILABLE_OPTIONS = {
    "experimental_rerun": "--experimental-rerun is not available; repeat the run's command",
    "config_name": "--config-name is not available, because the command sets it; add your files with --config-dir DIR",
    "config_path": "--config-path is not available; add your files with --config-dir DIR",
}


def normalise(command: str, words: Sequence[str]) -> list[str]:
    """Rewrite a command line so that Hydra reads it as the user means it. Rewriting the result again changes nothing.

    Options are moved before the overrides, because Hydra's parser refuses `a=1 -m b=2`. Environment variables are
    replaced (see `fill_environment`). Strings that Hydra's grammar cannot parse (`~/photos`, `runs/a(1)`) or would read
    as numbers (`study=2024_05`) are quoted.

    Raises:
        UserError: an option is unknown or unavailable, or a word is not an override.
    """
    words = list(map(fill_environment, words))
    if command == "train":
        _check_storable(words)
    # The value of --info is optional, so a bare --info would take the next override as its value.
    bare = {"--info", "-i"}
    options = [
        "--info=all" if word in bare and (not following or "=" in following) else word
        for word, following in itertools.pairwise([*words, ""])
    ]
    arguments = _parse(options)
    for name, message in UNAVAILABLE_OPTIONS.items():
        if getattr(arguments, name) is not None:
            raise UserError(message)
    for override in arguments.overrides:
        if problem := override_problem(command, override):
            raise UserError(problem)
        if override.lstrip("+").startswith("hydra.searchpath="):
            raise UserError("hydra.searchpath is not available; add your files with --config-dir DIR")
        key, _, value = override.partition("=")
        if value.startswith("[") and _takes_one_option(command, key):
            hint = "; a sweep lists its options without brackets"
        elif is_mapping(override) and "/" in key:
            hint = f"; {key.replace('/', '.')}={{...}} sets keys of the chosen option"
        else:
            hint = ""
        if hint and (problem := option_files.unnamed_option([override])):
            raise UserError(f"{problem}{hint}")
        if value.endswith(".yaml") and is_choice(override):
            raise UserError(f"{override} is not allowed: leave out .yaml")
        if key in text_keys() and value.startswith("~") and os.path.expanduser(value) == value:  # noqa: PTH111
            raise UserError(f"{override}: there is no home directory {value.partition('/')[0]}")
        options.remove(override)
    return [*options, *map(quote_names, arguments.overrides)]


def fill_environment(word: str) -> str:
    """Replace environment variables in a word by their values, as if these had been typed: `seed=${oc.env:SEED}`.

    Otherwise, two sweeps with different values would have the same words, and be the same points of a study. A value
    stays a string if the variable is in quotes. Composing the configuration resolves all other interpolations,
    variables that have no value, or one with quotes, backslashes or `${`, and those in overrides of `hydra`.
    """

    def fill(match: re.Match[str]) -> str:
        variable = match["decoded"] or match["bare"]
        if variable is None:
            return match[0]
        try:
            value = OmegaConf.create([variable])[0]
        except OmegaConfBaseException:
            return match[0]
        if value is None:
            return "null"
        if re.search(r"""['"\\]|\$\{""", value):
            return match[0]
        return value if match["decoded"] else f"{match['quote']}{value}{match['quote']}"

    return word if sets_hydra(word) else INTERPOLATION.sub(fill, word)


def _takes_one_option(command: str, group: str) -> bool:
    """Whether one option sets all of a section. `logger` takes several, for instance."""
    key = key_named(COMMANDS[command], group.replace("/", "."))
    return key is not None and any(f.is_required() for kind in key.alternatives for f in kind.model_fields.values())


def _check_storable(words: Iterable[str]) -> None:
    """Refuse words that a run's overrides.txt (UTF-8, one override per line) cannot store."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{os.fsencode(word)!r} is not valid UTF-8, so a run cannot store it; rename the file or folder"
            ) from None
        if "".join(word.splitlines()) != word:
            raise UserError(
                f"{word!r} contains a line break, but a run stores one override per line; remove the line break, or"
                " rename the file or folder"
            )


@functools.cache
def text_keys() -> dict[str, bool]:
    """The keys whose value is a string even if it looks like a number, and whether it may be true or false instead."""
    schemas = [("", schema) for schema in COMMANDS.values()] + [("hydra.launcher.", SlurmOptions)]
    named = [(f"{prefix}{key.name}", key) for prefix, schema in schemas for key in keys(schema)]
    text = {name: key.takes(bool) for name, key in named if key.takes(str) and not key.takes(int)}
    return {"hydra.sweeper.only": False, **text}


def last_override(key: str, words: Sequence[str]) -> Override | None:
    """Return the last override of `key` on a command line; None if it is absent."""
    typed = [word for word in _parse(words).overrides if word.partition("=")[0].lstrip("+") == key]
    return OverridesParser.create().parse_override(typed[-1]) if typed else None


def shown_job(words: Sequence[str]) -> Namespace | None:
    """Return the options of a command line with `--cfg job` or `--cfg all`; None for any other, and with `-m`."""
    arguments = _parse(words)
    return arguments if arguments.cfg in {"job", "all"} and not arguments.multirun else None


def force_keys(command: str, words: Sequence[str]) -> list[str]:
    """Put `++` before each key that only the options of a run may have, so that Hydra accepts it for `command`.

    `merge` refuses a key that the run lacks as well. Keys that every configuration has stay as they are, since the
    words are printed and recorded.
    """
    arguments = _parse(words)
    if command not in FROM_CHECKPOINT or arguments.shell_completion:  # whose words are no overrides
        return list(words)
    typed = [word for word in arguments.overrides if not re.match(r"[+~]|[^=]*@", word) and not sets_hydra(word)]
    typed = [word for word in typed if not is_choice(word) and not _is_always_there(command, word)]
    return [f"++{word}" if word in typed else word for word in words]


def _is_always_there(command: str, word: str) -> bool:
    key = key_named(COMMANDS[command], key_of(word))
    return key is not None and key.variant is None and key.field.is_required() and not is_mapping(word)


def is_choice(word: str) -> bool:
    """Whether an override chooses an option of a group. A mapping sets keys of the group's section instead."""
    group = word.lstrip("+").partition("=")[0].partition("@")[0]
    return group in option_files.group_names() and not is_mapping(word)


def is_mapping(word: str) -> bool:
    """Whether the value of an override is a mapping, or the first value of a sweep, as in `choice({...}, {...})`."""
    return re.match(r"\s*(\w+\(\s*)*\{", word.partition("=")[2]) is not None


def choice(group: str, options: str | Sequence[str]) -> str:
    """The override that chooses an option or several options of a group, whatever characters their names have."""
    if not isinstance(options, str):
        return f"{group}=[{','.join(map(_quoted, options))}]"
    return f"{group}={_quoted(options)}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def sets_hydra(word: str) -> bool:
    """Whether an override sets keys of `hydra`, which describe how jobs are started."""
    return re.match(r"[+~]*hydra[./=]", word) is not None


def key_of(override: str) -> str:
    """The key or group of an override, with dots: `data.crop` for `data/crop=paper`."""
    return override.partition("=")[0].lstrip("+~").replace("/", ".")


def override_problem(command: str, word: str) -> str:
    """Explain why a word is not an override, and suggest one; "" if the word is an override."""
    key, equals, _ = word.partition("=")
    if word.startswith("~") or (equals and key.lstrip("+") and not ("/" in key and Path(word).exists())):
        return ""
    suggestion = _suggest(command, word)
    return f"{word} is not of the form KEY=VALUE" + (f"; did you mean {' '.join(suggestion)}?" if suggestion else "")


def _suggest(command: str, word: str) -> list[str]:
    """Suggest the overrides that a user may have meant by a bare `word`."""
    path = Path(word).expanduser()
    options = [
        f"{group}={word}"
        for group in option_files.group_names()
        if word in {file.stem for file in option_files.options(group)}
    ]
    if options and command not in {"predict", "bench", "models"}:
        return options[:1]
    is_trained = path.suffix in {".ckpt", ".pt"} or (path / "checkpoints").is_dir()
    if command in {"status", "report"}:
        return [f"study={word}"]
    if command == "test" or (command in {"predict", "transfer"} and is_trained):
        return [f"checkpoint={word}"]
    if command == "predict":
        return [f"input={word}"]
    if command == "bench":
        return [f"only=[{word}]"]
    return ["data=folder", f"data.root={word}"] if path.is_dir() else []


def quote_names(word: str) -> str:
    """Quote each name in an override that Hydra's grammar would misread, such as 2024_05, which it reads as 202405.

    An override that may add an argument of Lightning's Trainer gets `++`, with which Hydra takes any key.
    """
    if match := re.match(r"(\+*)trainer\.(\w+)([.=])", word):
        plus, name, end = match.groups()
        if plus or end == "." or name not in Trainer.model_fields:
            word = f"++{word.lstrip('+')}"
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    # A list or a mapping is not the name of an option.
    is_group = (
        name.partition("@")[0] in option_files.group_names() and not value.startswith("[") and not is_mapping(word)
    )
    if not equals or not value or name.startswith("~") or not (name in text_keys() or is_group):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return word if is_group else f"{key}={_quoted(value)}"
    if re.match(r"\w+\(", value) and not value.startswith(TEXT_FUNCTIONS):
        return word

    def quote(match: re.Match[str]) -> str:
        before, part, after = value[: match.start()].rstrip(), match[0], value[match.end() :].lstrip()
        is_item = before[-1:] in {"", ",", "[", "("} and after[:1] in {"", ",", "]", ")"}
        return f"'{part}'" if is_item and is_misread(part, name) else part

    return f"{key}={PART.sub(quote, value)}"


def is_misread(part: str, key: str) -> bool:
    """Whether Hydra reads `part` as a number or a boolean, although `key` takes strings (and no booleans)."""
    try:
        value = parse_value(f"x={part}")
    except HydraException:
        return False
    return isinstance(value, int | float) and not (isinstance(value, bool) and text_keys().get(key))


def parse_value(word: str) -> object:
    """Return the value of an override as Hydra reads it, without quotes and escapes."""
    return OverridesParser.create().parse_override(word).value()


def _parse(words: Sequence[str]) -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; see --hydra-help for the options, and set keys with KEY=VALUE")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_intermixed_args(list(words))
