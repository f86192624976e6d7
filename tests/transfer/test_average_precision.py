"""Average precision against examples by hand, and against its definition on random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.transfer.average_precision import average_precision


def ap(hits: str, ignored: str = "") -> tuple[float, float]:
    """Average precision of images in this order: 1 relevant, 0 not; 1 in `ignored` leaves an image out."""
    relevant = np.array([hit == "1" for hit in hits], dtype=bool)
    marks = np.array([mark == "1" for mark in ignored.ljust(len(hits), "0")], dtype=bool)
    return average_precision(-np.arange(len(hits), dtype=float), relevant, marks)


@pytest.mark.parametrize(
    ("hits", "eleven", "all_points"),
    [
        ("1", 1.0, 1.0),
        ("1100", 1.0, 1.0),
        ("01", 0.5, 0.5),
        # two of four: recall 1/2 at precision 1, recall 1 at 2/3; of the eleven points 6 see 1, 5 see 2/3
        ("1010", (6 * 1 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
        # precision 1/2 at recall 1/2, 2/3 at recall 1: the better one counts at the lower recall too
        ("0110", 2 / 3, 2 / 3),
        # three: recalls 1/3, 2/3, 1 at precisions 1, 2/4, 3/5; 4 points (0 to 0.3) see 1, 7 see 3/5
        ("100110", (4 * 1 + 7 * 0.6) / 11, (1 + 0.6 + 0.6) / 3),
        ("0001", 0.25, 0.25),
    ],
)
def test_examples_by_hand(hits: str, eleven: float, all_points: float) -> None:
    assert ap(hits) == pytest.approx((eleven, all_points), abs=1e-12)


def test_an_image_with_difficult_objects_alone_counts_neither_for_nor_against() -> None:
    assert ap("1010", "0100") == ap("110")  # as a miss it would have cost precision
    assert ap("0110", "0010") == ap("010")  # as a hit it would have raised it
    assert ap("1010", "0100") != ap("1010")


def test_no_relevant_image_has_no_precision() -> None:
    assert all(math.isnan(value) for value in (*ap("000"), *ap("10", "10"), *ap("")))


def test_equal_scores_stay_in_the_order_given() -> None:
    same = np.zeros(3)
    assert average_precision(same, np.array([True, False, False])) == (1.0, 1.0)
    assert average_precision(same, np.array([False, False, True])) == pytest.approx((1 / 3, 1 / 3))


def test_recall_is_compared_in_whole_numbers() -> None:
    """3 of 10 reach the recall 0.3, which as a float is a little more than three tenths."""
    hits = "111" + "0" * 60 + "1" * 7
    assert ap(hits)[0] == pytest.approx((4 * 1 + 7 * 10 / 70) / 11, abs=1e-12)


def test_different_lengths_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        average_precision(np.zeros(3), np.array([True]))
    with pytest.raises(ValueError, match="not a number"):
        average_precision(np.array([0.0, np.nan]), np.array([True, False]))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_it_is_what_the_official_evaluation_computes(rows: list[tuple[int, bool, bool]]) -> None:
    """VOC 2007's own loop, with 1 for relevant, 0 for difficult and -1 for the others."""
    scores, relevant, ignored = (np.array(column) for column in zip(*rows, strict=True))
    truth = np.where(ignored, 0, np.where(relevant, 1, -1))[np.argsort(-scores, kind="stable")]
    positives = int((truth > 0).sum())
    precisions = average_precision(scores.astype(float), relevant, ignored)
    if not positives:
        assert math.isnan(precisions[0])
        return
    hits, misses = np.cumsum(truth > 0), np.cumsum(truth < 0)
    counted = hits + misses > 0
    recall, precision = hits[counted] / positives, hits[counted] / (hits + misses)[counted]
    points = [max(precision[recall >= tenth / 10 - 1e-9], default=0.0) for tenth in range(11)]
    assert precisions[0] == pytest.approx(sum(points) / 11, abs=1e-12)
    heights = np.maximum.accumulate(precision[::-1])[::-1]
    assert precisions[1] == pytest.approx(float(np.sum(np.diff(recall, prepend=0.0) * heights)), abs=1e-12)
