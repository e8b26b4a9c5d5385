"""How far two sets of samples are from each other: the accuracy of a classifier, and the maximum mean discrepancy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist, pdist

from simkit.errors import DataError, MissingDependencyError
from simkit.inference.priors import Array

ROWS = 2000
"""Rows of a kernel matrix that are held at once."""


def classifier_two_sample_test(
    first: ArrayLike, second: ArrayLike, *, seed: int = 1, folds: int = 5, workers: int = 1
) -> float:
    """Return the accuracy of a classifier that tells two sets of samples apart: 0.5 if they are alike, 1 if nothing is.

    As in the benchmark of Lueckmann et al., "Benchmarking simulation-based inference" (AISTATS 2021): both sets are standardised by
    mean and standard deviation of the first; a perceptron with two hidden layers of 10 D rectified units, trained by Adam for at most
    10,000 epochs, is scored by the mean accuracy of a shuffled 5-fold cross-validation. The benchmark's own seed is 1.

    Args:
        first: [N, D]; in the benchmark, the reference posterior's.
        second: [M, D].
        seed: of the folds, the weights and the batches.
        workers: processes that share the folds.

    Raises:
        DataError: if the sets do not have the same parameters, are too small, not finite, or a parameter of the first is constant.
        MissingDependencyError: without scikit-learn.
    """
    try:
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise MissingDependencyError("the classifier needs scikit-learn: pip install 'simkit[inference]'") from error
    x, y = _samples(first, second)
    if min(len(x), len(y)) < folds:
        raise DataError(f"{folds} folds need at least {folds} samples in each set; found {len(x)} and {len(y)}")
    mean, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    if not (sd > 0).all():
        raise DataError(
            f"parameter {int(np.argmin(sd > 0))} of the first samples is constant, so that they cannot be standardised"
        )
    width = 10 * x.shape[1]
    classifier = MLPClassifier(
        hidden_layer_sizes=(width, width), activation="relu", solver="adam", max_iter=10_000, random_state=seed
    )
    data = (np.concatenate([x, y]) - mean) / sd
    target = np.repeat([0.0, 1.0], [len(x), len(y)])
    shuffled = KFold(n_splits=folds, shuffle=True, random_state=seed)
    scores = cross_val_score(classifier, data, target, cv=shuffled, scoring="accuracy", n_jobs=workers)
    return float(scores.mean())


def mean_discrepancy(first: ArrayLike, second: ArrayLike, *, bandwidth: float | None = None) -> float:
    """Return the squared maximum mean discrepancy, estimated without bias: about 0 if both sets are alike, possibly below it.

    Gretton et al., "A kernel two-sample test", JMLR 13, 723 (2012), equation 3, with the kernel exp(-d^2 / (2 h^2)).

    Args:
        first: [N, D]; second: [M, D].
        bandwidth: h; the median distance within the first set where not given, as in the benchmark of Lueckmann et al. (2021).

    Raises:
        DataError: if the sets do not have the same parameters, or hold less than two samples or values that are not finite.
    """
    x, y = _samples(first, second)
    h = float(np.median(pdist(x))) if bandwidth is None else bandwidth
    if not h > 0:
        raise DataError(f"the bandwidth must be positive; found {h}")
    n, m = len(x), len(y)
    # A sample's kernel with itself is 1, and left out.
    within = (_kernel_sum(x, x, h) - n) / (n * (n - 1)) + (_kernel_sum(y, y, h) - m) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y, h) / (n * m)


def _kernel_sum(x: Array, y: Array, bandwidth: float) -> float:
    parts = (cdist(x[row : row + ROWS], y, "sqeuclidean") for row in range(0, len(x), ROWS))
    return float(sum(np.exp(part / (-2 * bandwidth**2)).sum() for part in parts))


def _samples(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise DataError(f"expected two sets of samples, [N, D] and [M, D]; found {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("the samples hold values that are not finite; leave them out first")
    return x, y
