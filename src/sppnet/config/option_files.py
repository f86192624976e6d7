"""The configuration groups and their option files on disk. Nothing here imports Hydra or torch."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

_config_dir: Path | None = None


def root() -> Path:
    """Return the folder that holds `conf/` and `experiments/`: the installed package, or the root of a checkout."""
    return PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]


def unnamed_option(overrides: Sequence[str]) -> str:
    """Return the error message for the first override that sets a group to anything but an option's name.

    A list is an example of such a value. The message is "" if every group is set to an option's name.
    """
    allowed = {group: sorted(path.stem for path in options(group)) for group in group_names()}
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if value.lstrip().startswith("{") and "/" not in group:  # sets keys of the group's section
            continue
        if group in allowed and value not in allowed[group]:
            return f"{group}={value} is not allowed: must be one of {', '.join(allowed[group])}"
    return ""


def use_config_dir(words: Sequence[str]) -> None:
    """Make the functions below also search the folder named by `--config-dir` in `words`.

    If `words` lacks that option, they search only `conf/`.
    """
    global _config_dir
    _config_dir = None
    group_names.cache_clear()
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in {"--config-dir", "-cd"}:
            _config_dir = Path(value if equals else following).absolute()
            return


def config_dir() -> Path | None:
    """Return the folder named by `--config-dir`; None if that option was not typed."""
    return _config_dir


def folders() -> list[Path]:
    """Return the folders that contain the groups: `conf/` and, if `--config-dir` was typed, the folder it names."""
    return [root() / "conf", *filter(None, [config_dir()])]


def options(group: str) -> list[Path]:
    """Return the option files of a group, without hidden files, such as those that macOS puts beside others."""
    places = [root(), *folders()[1:]] if group == "experiments" else folders()
    return [path for place in places for path in sorted((place / group).glob("[!.]*.yaml"))]


def option_with(group: str, key: str) -> str:
    """Return an option of a group whose file sets `key`, such as `views=ten`; "" if there is none."""
    files = options(group) if group else []
    names = [path.stem for path in files if re.search(rf"(?m)^{re.escape(key)}:", path.read_text("utf-8", "replace"))]
    return f"{group}={names[0]}" if names else ""


@functools.cache
def group_names() -> list[str]:
    """Return the names of all groups, including groups inside a group, such as `data/crop`."""
    files = [(folder, path) for folder in folders() if folder.is_dir() for path in folder.rglob("*.yaml")]
    groups = {path.parent.relative_to(folder).as_posix() for folder, path in files} - {"."}
    return sorted(
        {group for group in groups if not re.search(r"(^|/)\.", group)} | {"experiments"}
    )  # no hidden folders


def digest() -> str:
    """Return a digest of all configuration files and of the environment variables that they name.

    As long as the digest stays the same, the same overrides give the same configuration.
    """
    paths = {path for place in (*folders(), root() / "experiments") for path in place.rglob("*.yaml")}
    entries = sorted(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes() for path in paths)
    names = sorted({name.decode() for entry in entries for name in re.findall(rb"oc\.env:\s*['\"]?(\w+)", entry)})
    entries += [os.fsencode(f"{name}={os.environ[name]}") for name in names if name in os.environ]
    return hashlib.sha256(b"\0".join(entries)).hexdigest()[:16]
