"""The same picture twice: in two parts of a set, where a test would be on what was trained on, or in two classes."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.image_files import Files
from sppnet.data.decode import DataError
from sppnet.data.splits import IntArray
from sppnet.errors import UserError


def duplicates(cfg: Mapping[str, Any], images: ImageSet, parts: Mapping[str, IntArray] | None = None) -> list[str]:
    """What is to be said of files that are, under two names, in two parts or two classes; nothing if they are ignored.

    Candidates have the same digest; they are compared in full. Only sets of image files are looked through.

    Args:
        cfg: the config's `data`, plain.
        images: the set.
        parts: positions of the images in `train`, `val` and `test`; None where each may come into any part.

    Raises:
        UserError: there is such a file and `data.duplicates` is `error`.
    """
    how = cfg["duplicates"]
    if how == "ignore" or not isinstance(images, Files):
        return []
    filecmp.clear_cache()  # it goes by times of change
    part_of = np.full(len(images), "", dtype="<U5")
    for part, members in (parts or {}).items():  # val may be the test part itself, which comes last
        part_of[members] = part
    groups = list(_equal_files(images, part_of.tolist(), anywhere=parts is None))
    facts = (_between_parts(images, groups, part_of.tolist(), parts), _between_classes(images, groups))
    lines = [f"data={cfg['name']}: {fact}" for fact in facts if fact]
    if lines and how == "error":
        raise UserError(f"{lines[0]}; data.duplicates=error refuses that, warn goes on")
    return [f"{line} (data.duplicates=error refuses that, ignore says nothing)" for line in lines]


def _equal_files(images: Files, part_of: Sequence[str], anywhere: bool) -> Iterator[list[int]]:
    """Groups of images whose files are equal to the last byte, in several parts or classes, or anywhere."""
    halves = np.ascontiguousarray(images.digests).view("<u8")
    _, inverse, counts = np.unique(halves[:, 0], return_inverse=True, return_counts=True)
    candidates: dict[bytes, list[int]] = {}
    for index in np.flatnonzero((counts[inverse] > 1) & halves.any(1)).tolist():  # zeros: could not be read
        candidates.setdefault(images.digests[index].tobytes(), []).append(index)
    for members in candidates.values():
        if len(members) > 1 and (anywhere or len({(part_of[i], images.label(i)) for i in members}) > 1):
            yield from (group for group in _compared(images, members) if len(group) > 1 and _opens(images, group[0]))


def _compared(images: Files, members: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in members:
        for group in groups:
            if _equal(images, group[0], index):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _equal(images: Files, one: int, other: int) -> bool:
    try:
        return filecmp.cmp(images.path(one), images.path(other), shallow=False)
    except OSError:  # it cannot be read any more
        return False


def _opens(images: Files, index: int) -> bool:
    """Whether a file is a picture at all: empty files and saved error pages are for `data.bad_files`."""
    try:
        images.shape(index)
    except DataError:
        return False
    return True


def _between_parts(
    images: Files, groups: Sequence[Sequence[int]], part_of: Sequence[str], parts: Mapping[str, IntArray] | None
) -> str:
    """What to say of files in two parts; empty if there are none."""
    if parts is None:
        count = sum(len(group) - 1 for group in groups)
        twice = f"{_of(count, len(images))} there a second time, and may be trained and tested on"
        return f"{twice} ({_example(images, groups[0])})" if groups else ""
    lines, example = [], ""
    for part, others in (("test", ("train", "val")), ("val", ("train",))):
        count, where = 0, set()
        for group in groups:
            here = [index for index in group if part_of[index] == part]
            there = [index for other in others for index in group if part_of[index] == other]
            if here and there:
                count += len(here)
                where |= {part_of[index] for index in there}
                example = example or _example(images, (here[0], there[0]))
        if count:
            lines.append(f"{_of(count, part_of.count(part), part)} in {' or '.join(sorted(where))}, too")
    return f"{', and '.join(lines)} ({example})" if lines else ""


def _between_classes(images: Files, groups: Sequence[Sequence[int]]) -> str:
    mixed = [group for group in groups if len({images.label(index) for index in group}) > 1]
    if not mixed:
        return ""
    first = mixed[0][0]
    other = next(index for index in mixed[0] if images.label(index) != images.label(first))
    count = sum(len(group) - 1 for group in mixed)
    return f"{_of(count, len(images))} in another class, too ({_example(images, (first, other))})"


def _of(count: int, total: int, part: str = "") -> str:
    return f"{count} of {total} images{f' in {part}' if part else ''} {'is' if count == 1 else 'are'}"


def _example(images: Files, pair: Sequence[int]) -> str:
    return f"{images.name(pair[0])} is the same file as {images.name(pair[1])}"
