"""Marks on the keys of the configuration: what a key determines, and which commands may change it.

A mark is written beside the type: `num_workers: Annotated[int, affects.nothing]`. A mark on a section applies to all of
its keys, except to those that have a mark of the same kind themselves. A key without a mark determines the weights, and
only training may set it. A forgotten mark is therefore on the safe side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Affects:
    """What a key determines.

    Attributes:
        weights: the key is part of a run's identity.
        test: the key is part of a test's identity.
        points: the key tells the points of a sweep apart: `always`, only if it is `swept`, or `never`.
    """

    weights: bool = False
    test: bool = False
    points: Literal["always", "swept", "never"] = "always"


class affects:  # noqa: N801  (a namespace, so that a mark reads as a sentence)
    """The kinds of `Affects`."""

    weights = Affects(weights=True)  # the default
    weights_and_test = Affects(weights=True, test=True)
    test = Affects(test=True)
    nothing = Affects(points="swept")  # how or where a job runs
    bookkeeping = Affects(points="never")  # where a job is stored, and whether it runs at all
    # Determines results, but the identity holds what the key stands for instead, such as the digest of a file.
    by_content = Affects()


@dataclass(frozen=True)
class Changes:
    """The commands that may change a key of the run whose checkpoint they load, or of the studies that they show.

    `status` stands for `report` too.
    """

    commands: frozenset[str]


def changed_by(*commands: str) -> Changes:
    """Mark a key that `commands` may change; without arguments, a key that belongs to the network for good."""
    return Changes(frozenset(commands))


@dataclass(frozen=True)
class Only:
    """A key that has an effect only if the key `key` has one of `values` or, if there are none, none of `unless`."""

    key: str
    values: tuple[Any, ...] = ()
    unless: tuple[Any, ...] = (None,)


class Passed:
    """Mark of a key that is also passed to the class that the section's `_target_` names."""
