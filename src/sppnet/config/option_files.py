"""The groups of the configuration and their options, as they lie on disk. Nothing here imports Hydra or torch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

_config_dir: Path | None = None


def root() -> Path:
    """Where `conf/` and `experiments/` lie: inside the installed package, or two levels up in a checkout."""
    return PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]


def unnamed_option(overrides: Sequence[str]) -> str:
    """Which group was given no name of an option, and what its names are; Hydra says neither."""
    allowed = {group: sorted(path.stem for path in options(group)) for group in names()}
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if group in allowed and value not in allowed[group]:
            return f"{group}={value} is not allowed; it takes one of {', '.join(allowed[group])}"
    return ""


def use_config_dir(words: Sequence[str]) -> None:
    """Search the folder of `--config-dir` in a command line, if it names one, from now on."""
    global _config_dir
    _config_dir = None
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in {"--config-dir", "-cd"}:
            _config_dir = Path(value if equals else following).absolute()
            return


def config_dir() -> Path | None:
    """The folder of `--config-dir`."""
    return _config_dir


def folders() -> list[Path]:
    """Where groups lie: ours, and what --config-dir adds."""
    return [root() / "conf", *filter(None, [config_dir()])]


def options(group: str) -> list[Path]:
    """The files of a group's options."""
    within = root() if group == "experiments" else None
    return [path for folder in ([within] if within else folders()) for path in (folder / group).glob("*.yaml")]


def names() -> list[str]:
    """All groups."""
    found = {path.name for folder in folders() if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    return sorted(found | {"experiments"})


def digest() -> str:
    """Of every configuration file: as long as it is the same, the same overrides compose to the same configuration."""
    places = [*(folder / name for folder in folders() for name in ("", *names())), root() / "experiments"]
    files = sorted({path for place in places for path in place.glob("*.yaml")})
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]
