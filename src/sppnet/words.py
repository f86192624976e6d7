"""The words of a command line, before Hydra reads them: its options, overrides `KEY=VALUE`, and paths among these.

Nothing here imports torch.
"""

from __future__ import annotations

import itertools
import sys
from argparse import Namespace
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sppnet.errors import UserError

PATHS = ("checkpoint", "data.root", "backbone.weights", "paths.runs", "paths.cache", "input", "output", "draw")
NOT_OURS = {
    "experimental_rerun": "--experimental-rerun is not available: a run is repeated from its own config.yaml",
    "config_name": "--config-name is not available: a verb has its own; --config-dir DIR adds files of yours",
    "config_path": "--config-path is not available: a verb has its own; --config-dir DIR adds files of yours",
}


def settle() -> None:
    """Bring `sys.argv` into a form that Hydra takes; doing it twice does nothing.

    Options come before overrides (Hydra's parser refuses `a=1 -m b=2`), and paths that its grammar would trip over
    (`~/photos`, `runs/a(1)`) are quoted.

    Raises:
        UserError: an unknown option, or one that has no use here.
    """
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
        options.remove(override)
    sys.argv[1:] = [*options, *map(_quoted, args.overrides)]


def config_dir() -> Path | None:
    """The folder of `--config-dir`. Judges nothing else: who composes in a program of their own has other options."""
    for word, following in itertools.pairwise([*sys.argv[1:], ""]):
        name, equals, value = word.partition("=")
        if name in {"--config-dir", "-cd"}:
            return Path(value if equals else following).absolute()
    return None


def typed(key: str) -> str | None:
    """The text that was typed last for `key`, without quotes; None if it was null, a sweep of several, or not typed."""
    found = [word for word in _parse().overrides if word.partition("=")[0].lstrip("+") == key]
    if not found:
        return None
    override = OverridesParser.create().parse_override(found[-1])
    value = None if override.is_sweep_override() else override.value()
    return None if value is None else str(value)


def _quoted(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in PATHS:
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        pass
    else:
        return word
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _parse() -> Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; options of Hydra are listed by --hydra-help, keys are given as KEY=VALUE")

    parser.error = refuse  # type: ignore[assignment, method-assign]
    return parser.parse_intermixed_args()
