"""Average precision by both definitions of PASCAL VOC: that of VOC 2007, and that of VOC 2010 and later.

As in the official evaluation, an image whose objects of a class are all marked difficult is left out for that class,
and images with equal scores keep their order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]


def average_precision(scores: Floats, relevant: Bools, ignored: Bools | None = None) -> tuple[float, float]:
    """Return the average precision of one class, over VOC 2007's eleven points and over all points.

    - Eleven points: the mean, over the recalls 0, 0.1, ..., 1, of the best precision at that recall or higher.
    - All points (since VOC 2010): the area under the precision-recall curve, after each precision is replaced by the
      best one at that recall or higher.

    Args:
        scores: (N,) confidence that an image has the class.
        relevant: (N,) whether an image has the class.
        ignored: (N,) whether to leave the image out; None to use all images.

    Returns:
        Both average precisions; NaN if no image is relevant.

    Raises:
        ValueError: the lengths differ, or a score is not a number.
    """
    ignored = np.zeros(len(relevant), dtype=np.bool_) if ignored is None else ignored
    if not len(scores) == len(relevant) == len(ignored):
        raise ValueError(
            f"{len(scores)} scores, {len(relevant)} labels and {len(ignored)} ignore flags differ in length"
        )
    if np.isnan(scores).any():
        raise ValueError("a score is not a number, so the images cannot be ranked")
    scores, relevant = scores[~ignored], relevant[~ignored]
    hits = relevant[np.argsort(-scores, kind="stable")]
    total = int(hits.sum())
    if not total:
        return float("nan"), float("nan")
    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or higher
    # compare the recall with i / 10 in integers: with floats, rounding might keep a recall of 3/10 below 0.3
    eleven = sum(best[np.argmax(10 * true_positives >= i * total)] for i in range(11)) / 11
    return float(eleven), float(best[hits].sum() / total)
