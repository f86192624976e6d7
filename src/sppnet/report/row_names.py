"""Names the rows of a table by their differences. Names are short, and unique in the table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sppnet.config.overrides import parse_value
from sppnet.errors import format_value

MAX_LENGTH = 40  # number of characters that fit in a table and in its figure
PYRAMID_FILE = re.compile(r"l\d+((?:_\d+)+)")  # the name of a file in conf/pyramid
UNNAMED_KEYS = (  # keys with these prefixes, such as fingerprints, never appear in a name
    *("seed", "layout", "data.fingerprint", "callback_order"),
    *("test.format", "test.layout", "test.fingerprint", "test.limit"),
)
# A key that ends in one of these parts, such as views.name, is a naming key: it usually determines all other values of
# its section. If a row's name includes a naming key, it can leave out the section's other keys.
NAMING_KEYS = ("name", "_target_", "train")


def pick_names(candidates: Sequence[Sequence[str]], hashes: Sequence[str]) -> list[str]:
    """Pick a unique name for each row.

    Args:
        candidates: for each row, its possible names, best first; every row has the same number of them. A name longer
            than `MAX_LENGTH` is used only if it is the last one.
        hashes: for each row, a hash that no other row has. It is appended to the last of the names if none is unique.
    """
    names = [""] * len(candidates)
    for rank in range(len(candidates[0]) if candidates else 0):
        is_last, texts = rank == len(candidates[0]) - 1, [row[rank] for row in candidates]
        counts = Counter(texts)
        for i, text in enumerate(texts):
            fits = is_last or len(text) <= MAX_LENGTH
            if not names[i] and text and counts[text] == 1 and text not in names and fits:
                names[i] = text
    return [name or f"{row[-1]} [{key}]" for name, row, key in zip(names, candidates, hashes, strict=True)]


def name_by_difference(
    identities: Sequence[Mapping[str, Any]], runs: Sequence[str], hashes: Sequence[str]
) -> list[str]:
    """Name the rows of runs that no sweep planned, by the keys in which their configurations differ.

    Args:
        identities: the flattened configuration of each row; the keys of the row's test start with `test.`.
        runs: for each row, the name of one of its run directories.
        hashes: for each row, a hash that no other row has.
    """
    keys = _differing_keys(identities)
    short = _short_keys(keys)
    tokens_by_row = [
        {key: f"{short[key]}={_format_value(key, identity[key])}" for key in keys if key in identity}
        for identity in identities
    ]
    common = {key: Counter(tokens.get(key) for tokens in tokens_by_row).most_common(1)[0][0] for key in keys}
    candidates = []
    for tokens, run in zip(tokens_by_row, runs, strict=True):
        unusual = [token for key, token in tokens.items() if token != common[key]]
        of_test = [token for key, token in tokens.items() if key.startswith("test.")]
        candidates.append((" ".join(tokens.values()), " ".join(unusual), run, " ".join([run, *of_test])))
    return pick_names(candidates, hashes)


def name_from_overrides(overrides: Iterable[str], row: str, short: bool) -> str:
    """Join the name of a listed `row` and its overrides; `short` drops keys whose values are clear without them."""
    return " ".join(filter(None, [row, *(_format_override(override, short) for override in overrides)]))


def format_pyramid(bins: Sequence[int]) -> str:
    """Format the levels of a pyramid: `6, 3, 2, 1`, or `6x6` for a single level."""
    return f"{bins[0]}x{bins[0]}" if len(bins) == 1 else ", ".join(map(str, bins))


def format_option(option: str) -> str:
    """Format the name of a pyramid file as its levels; other options are returned unchanged."""
    name = PYRAMID_FILE.fullmatch(option)
    return format_pyramid([int(n) for n in name[1].strip("_").split("_")]) if name else option


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the items of nested mappings, with dotted keys."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _format_override(override: str, short: bool) -> str:
    """Format an override; `short` drops the key of a config group and shortens other keys to their last part."""
    key, _, value = override.partition("=")
    if key == "init":
        path = parse_value(override)
        value = str(path).removesuffix("/checkpoints/best.ckpt").rstrip("/").rpartition("/")[2]
        return value if short and path is not None else f"init={format_value(path) if path is None else value}"
    if not short:
        return override
    if key == "pyramid":
        return format_option(value)
    if key.rpartition(".")[2] == "bins" and re.fullmatch(r"\[[\d, ]+\]", value):
        return format_pyramid([int(n) for n in value[1:-1].split(",")])
    return value if "." not in key and not value.replace(".", "").isdigit() else f"{key.rpartition('.')[2]}={value}"


def _differing_keys(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which `identities` differ, except those determined by a naming key of the same section."""
    all_keys = dict.fromkeys(key for identity in identities for key in identity)
    keys = [key for key in all_keys if not key.startswith(UNNAMED_KEYS)]
    keys = [key for key in keys if len({str(identity.get(key)) for identity in identities}) > 1]
    keys.sort(key=lambda key: (key.startswith("test."), not _is_naming_key(key)))
    independent: list[str] = []
    for key in keys:
        naming = [name for name in independent if _is_naming_key(name) and _is_in(key, _section(name))]
        if not any(_determines(identities, name, key) for name in naming):
            independent.append(key)
    return independent


def _is_naming_key(key: str) -> bool:
    return key.rpartition(".")[2] in NAMING_KEYS


def _section(key: str) -> str:
    """Return the section of a key: `pooling` for `pooling.bins`, `views` for `test.views.name`."""
    return key.removeprefix("test.").rpartition(".")[0]


def _is_in(key: str, section: str) -> bool:
    """Whether a key lies in a section; `test.views.fit` lies in `views`."""
    return f"{key.removeprefix('test.')}.".startswith(f"{section}.")


def _determines(identities: Sequence[Mapping[str, Any]], name: str, key: str) -> bool:
    """Whether identities with the same value of `name` also have the same value of `key`."""
    values: dict[str, set[str]] = {}
    for identity in identities:
        values.setdefault(str(identity.get(name)), set()).add(str(identity.get(key)))
    return all(len(same) == 1 for same in values.values())


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Shorten each key to its last part, or to its section if the last part is `name`, `_target_` or a test size.

    Keys that would then be equal are not shortened.
    """

    def last_part(key: str) -> str:
        section, _, name = key.rpartition(".")
        is_vague = name in NAMING_KEYS[:2] or key == "test.sizes.test"
        return section.rpartition(".")[2] if is_vague and section else name

    counts = Counter(map(last_part, keys))
    return {key: last_part(key) if counts[last_part(key)] == 1 else key for key in keys}


def _format_value(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_format_value(key, item) for item in value) if value else "none"
    text = format_value(value)
    digest = re.fullmatch(r"(?:sha256:)?([0-9a-f]{40,64})", text)
    if digest:
        return digest[1][:6]
    return text.rpartition(".")[2] if key.endswith("_target_") else text  # without the module of a class
