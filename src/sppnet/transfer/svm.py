"""The linear SVM on features, one class against the rest, and how it is scored. scikit-learn (liblinear) fits it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular  # type: ignore[import-untyped]

from sppnet.data.splits import IntArray
from sppnet.transfer.average_precision import Bools, average_precision
from sppnet.transfer.splits import Split

Array = npt.NDArray[np.floating]
ROWS = 512  # features that are in memory at once beside those trained on
COLUMNS = 2048  # of the features, that are squared at once
ALIKE = 1e-7  # added to each squared length of 1, so that there is a Cholesky factor although images may be alike
TOLERANCE = 1e-4  # of the gradient's length, as liblinear has it
ITERATIONS = 1_000  # of Newton's method; 10 are usual


def accuracies(features_ND: Array, labels: IntArray, split: Split, classes: int, c: float) -> dict[str, Any]:
    """Train on one part of a split, predict the other.

    Args:
        features_ND: (N, D) of the whole set, possibly on disk.
        labels: (N,) class numbers.
        split: the parts.
        classes: how many there are.
        c: the SVM's C.

    Returns:
        `accuracy` (the mean of the accuracies in each class that is tested), `overall`, `per_class` (NaN for a class
        that is not tested) and whether the fit `converged`.
    """
    train, test = _in_span(features_ND, split)
    model, converged = _fit(train, labels[split.train], c)
    truth = labels[split.test]
    hits = model.predict(test) == truth
    tested = [truth == label for label in range(classes)]
    per_class = np.asarray([hits[members].mean() if members.any() else np.nan for members in tested])
    return {
        "accuracy": _mean(per_class),
        "overall": float(hits.mean()),
        "per_class": per_class.tolist(),
        "converged": converged,
    }


def precisions(features_ND: Array, has_NK: Bools, difficult_NK: Bools, split: Split, c: float) -> dict[str, Any]:
    """Train an SVM for each class, rank the test part by it (VOC 2007, section 3.2).

    Args:
        features_ND: (N, D) of the whole set, possibly on disk.
        has_NK: (N, K) whether an image has a class.
        difficult_NK: (N, K) whether it counts neither for nor against the class, in training or testing.
        split: the parts.
        c: the SVM's C.

    Returns:
        `map` (eleven points) and `map_all` (all points), means over the classes that both parts have, `per_class` and
        `per_class_all` (NaN for the other classes) and whether all fits `converged`.
    """
    train, test = _in_span(features_ND, split)
    found, converged = [], True
    for has, difficult in zip(has_NK.T, difficult_NK.T, strict=True):
        use = ~difficult[split.train]
        wanted = has[split.train][use]
        if wanted.all() or not wanted.any():
            found.append((float("nan"), float("nan")))
            continue
        model, good = _fit(train[use], wanted, c)
        converged = converged and good
        found.append(average_precision(model.decision_function(test), has[split.test], difficult[split.test]))
    eleven, every = np.asarray(found).T
    means = {"map": _mean(eleven), "map_all": _mean(every)}
    return means | {"per_class": eleven.tolist(), "per_class_all": every.tolist(), "converged": converged}


def marks(labels: Sequence[tuple[int, ...]], classes: int) -> Bools:
    """(N, K) booleans of N lists of class numbers."""
    made = np.zeros((len(labels), classes), dtype=np.bool_)
    for row, label in enumerate(labels):
        made[row, list(label)] = True
    return made


def _fit(train: Array, wanted: npt.NDArray[Any], c: float) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=c, dual=False, tol=TOLERANCE, max_iter=ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train, wanted)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _in_span(features_ND: Array, split: Split) -> tuple[Array, Array]:
    """The two parts in an orthonormal basis of the span of the training features, where that has fewer dimensions.

    The weights of a linear SVM lie in that span, and scalar products are the same in any basis of it: the same SVM,
    many times faster, as there are far fewer training images than features (3,060 and 12,800 for Caltech-101). With
    the Cholesky factor L of the scalar products X X' = L L', the rows of L are the training features in such a basis.
    """
    train = features_ND[split.train]
    count, length = train.shape
    if count >= length:
        return train, features_ND[split.test]
    products = ALIKE * np.eye(count)
    for start in range(0, length, COLUMNS):
        block = train[:, start : start + COLUMNS].astype(np.float64)
        products += block @ block.T
    lower = np.linalg.cholesky(products)
    blocks = np.array_split(split.test, -(-len(split.test) // ROWS))
    across = np.concatenate([features_ND[block] @ train.T for block in blocks])
    return lower, solve_triangular(lower, across.T, lower=True).T


def _mean(values: npt.NDArray[np.floating]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
