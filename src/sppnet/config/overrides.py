"""The words of a command line, before Hydra reads them: its options, overrides `KEY=VALUE`, and paths among these.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from hydra._internal.utils import get_args_parser
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
    "config_name": "--config-name is not available: a verb has its own; --config-dir DIR adds files of yours",
    "config_path": "--config-path is not available: a verb has its own; --config-dir DIR adds files of yours",
}


def settle(verb: str) -> None:
    """Bring `sys.argv` into a form that Hydra takes; doing it twice does nothing.

    Options come before overrides (Hydra's parser refuses `a=1 -m b=2`). Texts that its grammar would trip over
    (`~/photos`, `runs/a(1)`) or read as numbers (`study=2024_05`) are quoted.

    Args:
        verb: names the primary configuration file.

    Raises:
        UserError: an unknown option, or one that has no use here; a word that is no override.
    """
    if verb == "train":
        _check_lines(sys.argv[1:])
    # --info's value is optional: without one it would take the override that then follows it
    words = [*sys.argv[1:], ""]
    bare = {"--info", "-i"}
    sys.argv[1:] = ["--info=all" if a in bare and (not b or "=" in b) else a for a, b in itertools.pairwise(words)]
    args = _parse()
    for name, said in NOT_OURS.items():
        if getattr(args, name) is not None:
            raise UserError(said)
    options = list(sys.argv[1:])
    for override in args.overrides:
        if wrong := no_override(verb, override):
            raise UserError(wrong)
        key, _, value = override.partition("=")
        if key in PLACES and value.startswith("~") and os.path.expanduser(value) == value:  # noqa: PTH111
            raise UserError(f"{override}: there is no home directory {value.partition('/')[0]}")
        options.remove(override)
    sys.argv[1:] = [*options, *map(as_typed, args.overrides)]


def _check_lines(given: Iterable[str]) -> None:
    """Refuse what the files of a run, which are UTF-8 and keep a word in a line, have no place for."""
    for word in given:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(word)!r} is not valid UTF-8, which a run's files are; rename it") from None
        if "".join(word.splitlines()) != word:
            raise UserError(f"{word!r} has a line end, and a run keeps a word in a line; rename it, or leave that out")


def typed(key: str) -> str | None:
    """The text that was typed last for `key`, without quotes; None if it was null, a sweep of several, or not typed."""
    found = [word for word in _parse().overrides if word.partition("=")[0].lstrip("+") == key]
    if not found:
        return None
    override = OverridesParser.create().parse_override(found[-1])
    value = None if override.is_sweep_override() else override.value()
    return None if value is None else str(value)


def no_override(verb: str, word: str) -> str:
    """What is wrong with a word that is not of the form KEY=VALUE, and what was meant; empty if nothing is wrong."""
    key, equals, _ = word.partition("=")
    if word.startswith("~") or (equals and key.lstrip("+") and not ("/" in key and Path(word).exists())):
        return ""
    meant = _meant(verb, word)
    return f"{word} is not of the form KEY=VALUE" + (f"; did you mean {' '.join(meant)}?" if meant else "")


def _meant(verb: str, word: str) -> list[str]:
    path = Path(word).expanduser()
    of_group = [
        f"{group}={word}"
        for group in option_files.names()
        if word in {file.stem for file in option_files.options(group)}
    ]
    if of_group and verb not in {"predict", "bench"}:
        return of_group[:1]
    trained = path.suffix in {".ckpt", ".pt"} or (path / "checkpoints").is_dir()
    if verb in {"status", "report"}:
        return [f"study={word}"]
    if verb == "test" or (verb in {"predict", "transfer"} and trained):
        return [f"checkpoint={word}"]
    if verb == "predict":
        return [f"input={word}"]
    if verb == "bench":
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


def _parse() -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; options of Hydra are listed by --hydra-help, keys are given as KEY=VALUE")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_intermixed_args()
