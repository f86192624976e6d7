"""Finds identical image files in different parts or classes of a data set.

If copies of a file are in different parts, the network may be tested on training images.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sppnet.config.schema import Data
from sppnet.data.datasets.base import ImageSet
from sppnet.data.datasets.image_files import Files
from sppnet.data.decode import DataError
from sppnet.data.splits import IntArray
from sppnet.errors import UserError


def describe_duplicates(cfg: Data, images: ImageSet, parts: Mapping[str, IntArray] | None = None) -> list[str]:
    """Return up to two lines: one reports identical files in different parts, the other those in different classes.

    Files with the same digest are compared byte by byte. Only data sets of image files are checked. The result is empty
    if `data.duplicates` is `ignore`.

    Args:
        cfg: the config's `data`.
        images: the data set.
        parts: image indices of `train`, `val` and `test`; None if any image may end up in any part.

    Raises:
        UserError: there are identical files, and `data.duplicates` is `error`.
    """
    action = cfg.duplicates
    if action == "ignore" or not isinstance(images, Files):
        return []
    filecmp.clear_cache()  # the cache relies on modification times, so it may miss that a file has changed
    part_of = np.full(len(images), "", dtype="<U5")
    for part, members in (parts or {}).items():  # `test` comes last and overrides `val` if both contain the same images
        part_of[members] = part
    groups = list(_find_equal_files(images, part_of.tolist(), anywhere=parts is None))
    facts = (_describe_parts(images, groups, part_of.tolist(), parts), _describe_classes(images, groups))
    lines = [f"data={cfg.name}: {fact}" for fact in facts if fact]
    if lines and action == "error":
        raise UserError(f"{lines[0]}; use data.duplicates=warn to continue anyway")
    return [f"{line} (data.duplicates=error makes this an error; data.duplicates=ignore hides it)" for line in lines]


def _find_equal_files(images: Files, part_of: Sequence[str], anywhere: bool) -> Iterator[list[int]]:
    """Yield groups of images with identical files.

    Unless `anywhere` is True, skip groups whose images all belong to the same part and the same class.
    """
    halves = np.ascontiguousarray(images.digests).view("<u8")
    _, inverse, counts = np.unique(halves[:, 0], return_inverse=True, return_counts=True)
    candidates: dict[bytes, list[int]] = {}
    for index in np.flatnonzero((counts[inverse] > 1) & halves.any(1)).tolist():  # skip unreadable files, with digest 0
        candidates.setdefault(images.digests[index].tobytes(), []).append(index)
    for members in candidates.values():
        if len(members) > 1 and (anywhere or len({(part_of[i], images.label(i)) for i in members}) > 1):
            groups = _group_by_content(images, members)
            yield from (group for group in groups if len(group) > 1 and _is_image(images, group[0]))


def _group_by_content(images: Files, members: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in members:
        for group in groups:
            if _are_equal(images, group[0], index):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _are_equal(images: Files, first: int, second: int) -> bool:
    try:
        return filecmp.cmp(images.path(first), images.path(second), shallow=False)
    except OSError:  # a file is no longer readable
        return False


def _is_image(images: Files, index: int) -> bool:
    """Whether a file is an image. Empty files and saved HTML error pages are not; `data.bad_files` deals with them."""
    try:
        images.shape(index)
    except DataError:
        return False
    return True


def _describe_parts(
    images: Files, groups: Sequence[Sequence[int]], part_of: Sequence[str], parts: Mapping[str, IntArray] | None
) -> str:
    if parts is None:
        count = sum(len(group) - 1 for group in groups)
        copies = (
            f"{_count_of(count, len(images))} in the data set a second time and may be used for both training and"
            " testing"
        )
        return f"{copies} ({_example(images, groups[0])})" if groups else ""
    clauses, example = [], ""
    for part, sources in (("test", ("train", "val")), ("val", ("train",))):
        count, found_in = 0, set()
        for group in groups:
            members = [index for index in group if part_of[index] == part]
            twins = [index for source in sources for index in group if part_of[index] == source]
            if members and twins:
                count += len(members)
                found_in |= {part_of[index] for index in twins}
                example = example or _example(images, (members[0], twins[0]))
        if count:
            clauses.append(f"{_count_of(count, part_of.count(part), part)} also in {' or '.join(sorted(found_in))}")
    return f"{', and '.join(clauses)} ({example})" if clauses else ""


def _describe_classes(images: Files, groups: Sequence[Sequence[int]]) -> str:
    mixed = [group for group in groups if len({images.label(index) for index in group}) > 1]
    if not mixed:
        return ""
    first = mixed[0][0]
    second = next(index for index in mixed[0] if images.label(index) != images.label(first))
    count = sum(len(group) - 1 for group in mixed)
    return f"{_count_of(count, len(images))} also in a different class ({_example(images, (first, second))})"


def _count_of(count: int, total: int, part: str = "") -> str:
    return f"{count} of {total} images{f' in {part}' if part else ''} {'is' if count == 1 else 'are'}"


def _example(images: Files, pair: Sequence[int]) -> str:
    return f"{images.name(pair[0])} is the same file as {images.name(pair[1])}"
