"""What the rows of a table are called: by what differs between them, short, and never two alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST = 40  # characters that a table, and the figure beside it, have room for
PYRAMID = re.compile(r"l\d+((?:_\d+)+)")  # the name of a file in conf/pyramid
NO_NAME = (  # hashes, and the like
    *("seed", "layout", "data.fingerprint"),
    *("test.format", "test.fingerprint", "test.limit"),
)
NAMING = ("name", "_target_", "train")  # of a section: what says most of its other keys, as views=full does


def pick(candidates: Sequence[Sequence[str]], hashes: Sequence[str]) -> list[str]:
    """A name for each row, all different.

    Args:
        candidates: of each row, names to choose from, the best first, as many for every row; the last one is taken
            whatever its length.
        hashes: of each row, what tells it from all others.
    """
    names = [""] * len(candidates)
    for rank in range(len(candidates[0]) if candidates else 0):
        last, texts = rank == len(candidates[0]) - 1, [row[rank] for row in candidates]
        alike = Counter(texts)
        for i, text in enumerate(texts):
            if not names[i] and text and alike[text] == 1 and text not in names and (last or len(text) <= LONGEST):
                names[i] = text
    return [name or f"{row[-1]} [{key}]" for name, row, key in zip(names, candidates, hashes, strict=True)]


def by_difference(rows: Sequence[Mapping[str, Any]], runs: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """Names of rows that no sweep asked for.

    Args:
        rows: the configuration of each as one level of keys; those of its test begin with `test.`.
        runs: the name of a run directory of each.
        hashes: of each.
    """
    kept = _differing(rows)
    short = _short_keys(kept)
    tokens = [{key: f"{short[key]}={_value(row[key])}" for key in kept if row.get(key) is not None} for row in rows]
    common = {key: Counter(row.get(key) for row in tokens).most_common(1)[0][0] for key in kept}
    candidates = []
    for row, run in zip(tokens, runs, strict=True):
        unusual = [token for key, token in row.items() if token != common[key]]
        of_test = [token for key, token in row.items() if key.startswith("test.")]
        candidates.append((" ".join(row.values()), " ".join(unusual), run, " ".join([run, *of_test])))
    return pick(candidates, hashes)


def of_words(words: Iterable[str], row: str, short: bool) -> str:
    """Overrides of a sweep as a name, behind that of the listed `row` which they are of."""
    return " ".join(filter(None, [row, *(_of_word(word, short) for word in words)]))


def pyramid(bins: Sequence[int]) -> str:
    """A pyramid as it is read: `6, 3, 2, 1`, and `6x6` if it has one level."""
    return f"{bins[0]}x{bins[0]}" if len(bins) == 1 else ", ".join(map(str, bins))


def shown(word: str) -> str:
    """The name of a pyramid's file as it is read; any other word as it is."""
    named = PYRAMID.fullmatch(word)
    return pyramid([int(n) for n in named[1].strip("_").split("_")]) if named else word


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The keys and values of nested mappings, as one level."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of_word(word: str, short: bool) -> str:
    """An override as a name: a group's option speaks for itself, a value needs its key."""
    key, _, value = word.partition("=")
    if not short:
        return word
    if key == "pyramid":
        return shown(value)
    if key == "head.bins" and re.fullmatch(r"\[[\d, ]+\]", value):
        return pyramid([int(n) for n in value[1:-1].split(",")])
    return value if "." not in key and not value.replace(".", "").isdigit() else f"{key.rpartition('.')[2]}={value}"


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which rows differ, without those that follow from the name of their section."""
    every = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in every if not key.startswith(NO_NAME)]
    keys = [key for key in keys if len({str(row.get(key)) for row in rows}) > 1]
    keys.sort(key=lambda key: (key.startswith("test."), not _names_others(key)))
    kept: list[str] = []
    for key in keys:
        naming = [other for other in kept if _names_others(other) and _section(other) == _section(key)]
        if not any(_follows(rows, key, other) for other in naming):
            kept.append(key)
    return kept


def _names_others(key: str) -> bool:
    return key.rpartition(".")[2] in NAMING


def _section(key: str) -> str:
    """`head` of head.bins; sizes of a test are of the section `sizes`."""
    return key.removeprefix("test.").split(".")[0]


def _follows(rows: Sequence[Mapping[str, Any]], key: str, other: str) -> bool:
    """Whether rows that agree in `other` agree in `key`."""
    values: dict[str, set[str]] = {}
    for row in rows:
        values.setdefault(str(row.get(other)), set()).add(str(row.get(key)))
    return all(len(same) == 1 for same in values.values())


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key (of a name that of its section), where no other key ends so."""

    def last(key: str) -> str:
        section, _, name = key.rpartition(".")
        return section.rpartition(".")[2] if name in NAMING[:2] and section else name

    alike = Counter(map(last, keys))
    return {key: last(key) if alike[last(key)] == 1 else key for key in keys}


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value)) if value else "none"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    digest = re.fullmatch(r"(?:sha256:)?([0-9a-f]{40,64})", text)
    return digest[1][:6] if digest else re.sub(r"^(?:\w+\.)+(?=[A-Za-z_]\w*$)", "", text)  # a class by its last name
