"""Read and write a single override (`KEY=VALUE`): its key, what it sets, and the quotes that Hydra's grammar needs.

A "word" is an override as it was typed, or as a file lists it. Nothing here imports torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sppnet.config import option_files
from sppnet.config.command_schemas import COMMANDS, SlurmOptions
from sppnet.config.keys import keys
from sppnet.config.schema import Trainer

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


@functools.cache
def text_keys() -> dict[str, bool]:
    """The keys whose value is a string even if it looks like a number, and whether it may be true or false instead."""
    schemas = [("", schema) for schema in COMMANDS.values()] + [("hydra.launcher.", SlurmOptions)]
    named = [(f"{prefix}{key.name}", key) for prefix, schema in schemas for key in keys(schema)]
    texts = [(name, key) for name, key in named if key.takes(str) and not key.takes(int)]
    text = {name: key.takes(bool) for name, key in texts if not key.takes_anything}
    return {"hydra.sweeper.only": False, **text}


@functools.cache
def text_arguments() -> frozenset[str]:
    """The keys whose value is a string for one class and may be anything for another, such as `data.file`."""
    named = (key for schema in COMMANDS.values() for key in keys(schema))
    return frozenset(key.name for key in named if key.takes(str) and key.takes_anything)


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


def keys_set_by(word: str) -> list[set[str]]:
    """The key or group that an override sets, or the keys inside a mapping, with dots; a set for each value of a sweep.

    Raises:
        HydraException: the override cannot be parsed.
    """
    if not is_mapping(word):
        return [{key_of(word)}]
    override = OverridesParser.create().parse_override(word)
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    return [set(_paths(key_of(word), value)) for value in values]


def _paths(name: str, value: object) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield name
        return
    for key, inner in value.items():
        yield from _paths(f"{name}.{key}", inner)


def sets_key(words: Iterable[str], key: str) -> bool:
    """Whether any of the overrides sets `key` itself, also inside a mapping: `backbone={width: 8}`."""
    around = [word for word in words if f"{key}.".startswith(f"{key_of(word)}.")]
    try:
        return any(key in keys for word in around for keys in keys_set_by(word))
    except HydraException:  # a mapping that cannot be parsed again, because its interpolations have been resolved
        return True


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
    is_group = is_choice(word) and not value.startswith("[")  # a list is not the name of an option
    is_text = name in text_keys() or name in text_arguments()
    if not equals or not value or name.startswith("~") or not (is_text or is_group):
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return word if is_group else f"{key}={_quoted(value)}"
    if name in text_arguments() or (re.match(r"\w+\(", value) and not value.startswith(TEXT_FUNCTIONS)):
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
