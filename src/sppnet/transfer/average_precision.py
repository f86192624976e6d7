"""Average precision as PASCAL VOC defines it, in 2007 and since 2010; in numpy, knowing nothing of networks.

An image may be neither relevant nor irrelevant to a class (all its objects of the class are marked difficult): it is
left out, as the official evaluation leaves it out. Images with equal scores stay in the order given, as the official
sort leaves them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


def average_precision(scores: Floats, relevant: Bools, ignored: Bools | None = None) -> tuple[float, float]:
    """Average precision of one class: by VOC 2007's eleven points, and over all points.

    - Eleven points: the mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or a higher one.
    - All points (VOC 2010 on): the area under precision, made monotonic in the same way, over recall.

    Args:
        scores: (N,) how sure it is that an image has the class.
        relevant: (N,) whether it has.
        ignored: (N,) images that are left out; None for none.

    Returns:
        The two figures; NaN where no image is relevant.

    Raises:
        ValueError: the lengths differ, or a score is not a number.
    """
    ignored = np.zeros(len(relevant), dtype=np.bool_) if ignored is None else ignored
    if not len(scores) == len(relevant) == len(ignored):
        raise ValueError(f"{len(scores)} scores, {len(relevant)} labels and {len(ignored)} marks are not of one set")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number; images cannot be ranked by it")
    scores, relevant = scores[~ignored], relevant[~ignored]
    hits = relevant[np.argsort(-scores, kind="stable")]
    total = int(hits.sum())
    if not total:
        return float("nan"), float("nan")
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    # recall >= i / 10 in whole numbers: 3 of 10 must reach 0.3, whatever floats make of it
    eleven = sum(best[np.argmax(10 * found >= i * total)] for i in range(11)) / 11
    return float(eleven), float(best[hits].sum() / total)
