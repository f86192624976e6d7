"""A linear one-vs-rest SVM on features, fitted by scikit-learn (liblinear), and its scores."""

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
ROWS = 512  # number of test images whose features are in memory at once
COLUMNS = 2048  # number of feature dimensions in each block of the matrix product
RIDGE = 1e-7  # added to each squared norm, which is 1, so that a Cholesky factor exists even if images are identical
TOLERANCE = 1e-4  # for the gradient's norm; the default of LinearSVC
ITERATIONS = 1_000  # limit for Newton's method, which usually needs about 10


def accuracies(features_ND: Array, labels: IntArray, split: Split, classes: int, c: float) -> dict[str, Any]:
    """Train an SVM on the train part of a split and classify the test part.

    Args:
        features_ND: features of the whole data set, possibly memory-mapped.
        labels: (N,) class numbers.
        split: the train and test indices.
        classes: number of classes.
        c: the SVM's C.

    Returns:
        `accuracy` (mean over the tested classes), `overall` (over all test images), `per_class` (NaN for untested
        classes), and whether the fit `converged`.
    """
    train, test = _in_span(features_ND, split)
    model, converged = _fit(train, labels[split.train], c)
    targets = labels[split.test]
    hits = model.predict(test) == targets
    masks = [targets == label for label in range(classes)]
    per_class = np.asarray([hits[mask].mean() if mask.any() else np.nan for mask in masks])
    return {
        "accuracy": _mean(per_class),
        "overall": float(hits.mean()),
        "per_class": per_class.tolist(),
        "converged": converged,
    }


def precisions(features_ND: Array, has_NK: Bools, difficult_NK: Bools, split: Split, c: float) -> dict[str, Any]:
    """Train an SVM per class and rank the test images by its scores (VOC 2007, section 3.2).

    Args:
        features_ND: features of the whole data set, possibly memory-mapped.
        has_NK: whether each image has each class.
        difficult_NK: whether each image is ignored for each class, both in training and in testing.
        split: the train and test indices.
        c: the SVM's C.

    Returns:
        `map` (eleven points) and `map_all` (all points), which are means over the classes that occur in both parts;
        `per_class` and `per_class_all`, which are NaN for all other classes; and whether all fits `converged`.
    """
    train, test = _in_span(features_ND, split)
    precision_pairs, converged = [], True
    for has, difficult in zip(has_NK.T, difficult_NK.T, strict=True):
        use = ~difficult[split.train]
        targets = has[split.train][use]
        if targets.all() or not targets.any():
            precision_pairs.append((float("nan"), float("nan")))
            continue
        model, fit_converged = _fit(train[use], targets, c)
        converged = converged and fit_converged
        precision_pairs.append(average_precision(model.decision_function(test), has[split.test], difficult[split.test]))
    eleven_points, all_points = np.asarray(precision_pairs).T
    means = {"map": _mean(eleven_points), "map_all": _mean(all_points)}
    per_class = {"per_class": eleven_points.tolist(), "per_class_all": all_points.tolist()}
    return means | per_class | {"converged": converged}


def one_hot(labels: Sequence[tuple[int, ...]], classes: int) -> Bools:
    """Encode N tuples of class numbers as booleans (N, K)."""
    has_NK = np.zeros((len(labels), classes), dtype=np.bool_)
    for index, label in enumerate(labels):
        has_NK[index, [int(number) for number in label]] = True
    return has_NK


def _fit(train: Array, targets: npt.NDArray[Any], c: float) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=c, dual=False, tol=TOLERANCE, max_iter=ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train, targets)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _in_span(features_ND: Array, split: Split) -> tuple[Array, Array]:
    """Express both parts in an orthonormal basis of the span of the training features, if that shortens the features.

    The weights of a linear SVM lie in that span, and scalar products do not depend on the basis. So the SVM is the
    same, but the fit is many times faster: a split of Caltech-101 has only 3,060 training images, with 12,800 features
    each. If X is the matrix of the training features and L is the Cholesky factor of their scalar products
    (X X' = L L'), the rows of L are the training features in such a basis.
    """
    train = features_ND[split.train]
    count, length = train.shape
    if count >= length:
        return train, features_ND[split.test]
    products = RIDGE * np.eye(count)
    for start in range(0, length, COLUMNS):
        block = train[:, start : start + COLUMNS].astype(np.float64)
        products += block @ block.T
    lower = np.linalg.cholesky(products)
    blocks = np.array_split(split.test, -(-len(split.test) // ROWS))
    across = np.concatenate([features_ND[block] @ train.T for block in blocks])
    return lower, solve_triangular(lower, across.T, lower=True).T


def _mean(values: npt.NDArray[np.floating]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
