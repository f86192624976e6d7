"""Prepare a command line for Hydra: check its options and overrides, and rewrite it so that Hydra reads it as meant.

A "word" is one argument of the command line as the shell passes it. Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from sppnet.config import option_files
from sppnet.config.command_schemas import COMMANDS, FROM_CHECKPOINT
from sppnet.config.keys import key_named
from sppnet.config.overrides import fill_environment, is_choice, is_mapping, key_of, quote_names, sets_hydra, text_keys
from sppnet.errors import UserError

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


def _parse(words: Sequence[str]) -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; see --hydra-help for the options, and set keys with KEY=VALUE")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_intermixed_args(list(words))
