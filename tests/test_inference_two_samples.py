"""Distances between sets of samples, against accuracies and discrepancies that are known."""

import math
import sys

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPClassifier

from simkit.errors import DataError, MissingDependencyError
from simkit.inference.two_samples import ROWS, classifier_two_sample_test, mean_discrepancy


def normal(count: int, seed: int, dim: int = 2, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, dim))
    values[:, 0] += shift
    return values


def test_samples_of_one_distribution_cannot_be_told_apart() -> None:
    accuracy = classifier_two_sample_test(normal(600, 1), normal(600, 2))
    # The standard error of an accuracy over 1200 samples; a trained classifier is not a coin, so that folds are a little below a half.
    assert abs(accuracy - 0.5) < 5 * math.sqrt(0.25 / 1200)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shifted_normal_distributions_give_the_best_possible_accuracy(shift: float) -> None:
    """Scales differ by thousands, which standardisation takes away. The best classifier is right with probability Phi(shift / 2)."""
    scale = np.array([1e-3, 1e3])
    accuracy = classifier_two_sample_test(normal(1000, 3) * scale, normal(1000, 4, shift=shift) * scale)
    best = float(norm.cdf(shift / 2))
    error = math.sqrt(best * (1 - best) / 2000)
    assert best - 0.02 - 5 * error < accuracy < best + 5 * error


def test_it_is_the_definition_of_the_benchmark() -> None:
    """Folds, standardisation and accuracy written out."""
    x, y = normal(300, 5), 1.5 * normal(250, 6)
    mean = x.sum(axis=0) / 300
    sd = np.sqrt(((x - mean) ** 2).sum(axis=0) / 299)
    data, target = np.concatenate([(x - mean) / sd, (y - mean) / sd]), np.array([0] * 300 + [1] * 250)
    accuracies = []
    for train, test in KFold(n_splits=5, shuffle=True, random_state=7).split(data):
        network = MLPClassifier((20, 20), activation="relu", solver="adam", max_iter=10000, random_state=7)
        network.fit(data[train], target[train])
        accuracies.append(sum(network.predict(data[test]) == target[test]) / len(test))
    assert classifier_two_sample_test(x, y, seed=7) == pytest.approx(sum(accuracies) / 5, abs=1e-12)


def test_the_discrepancy_is_that_of_loops() -> None:
    x, y = normal(12, 1), normal(9, 2, shift=1.0)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-float(((a - b) ** 2).sum()) / (2 * 0.7**2))

    first = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    second = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([kernel(a, b) for a in x for b in y])
    assert mean_discrepancy(x, y, bandwidth=0.7) == pytest.approx(float(first + second - 2 * between), abs=1e-14)
    distances = [np.linalg.norm(x[i] - x[j]) for i in range(12) for j in range(i)]
    assert mean_discrepancy(x, y) == mean_discrepancy(x, y, bandwidth=float(np.median(distances)))


@pytest.mark.parametrize("shift", [0.0, 0.8])
def test_the_discrepancy_of_normal_distributions(shift: float) -> None:
    """Its expectation in closed form: convolutions of normal distributions."""
    values = np.array(
        [mean_discrepancy(normal(150, k), normal(150, 100 + k, shift=shift), bandwidth=1.0) for k in range(40)]
    )
    same = (1 / 3) ** (2 / 2)
    expected = 2 * same * (1 - math.exp(-(shift**2) / (2 * 3)))
    assert abs(values.mean() - expected) < 5 * values.std(ddof=1) / math.sqrt(40)
    if shift == 0:
        assert values.min() < 0


def test_rows_are_summed_in_blocks() -> None:
    x, y = normal(ROWS + 7, 1, dim=1), normal(40, 2, dim=1)
    between = np.exp(-((x - y.T) ** 2) / 2).mean()
    within_y = (np.exp(-((y - y.T) ** 2) / 2).sum() - 40) / (40 * 39)
    within_x = (np.exp(-((x - x.T) ** 2) / 2).sum() - len(x)) / (len(x) * (len(x) - 1))
    assert mean_discrepancy(x, y, bandwidth=1.0) == pytest.approx(within_x + within_y - 2 * between, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.ones((9, 2)), np.ones((9, 3)), "two sets of samples"),
        (np.ones(9), np.ones(9), "two sets of samples"),
        (np.full((9, 1), np.nan), np.ones((9, 1)), "not finite"),
        (np.ones((9, 1)), np.ones((9, 1)), "constant"),
        (np.ones((4, 1)), np.ones((9, 1)), "at least 5"),
    ],
)
def test_bad_samples_are_named(x: np.ndarray, y: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        classifier_two_sample_test(x, y)


def test_a_bandwidth_must_be_positive() -> None:
    with pytest.raises(DataError, match="bandwidth must be positive"):
        mean_discrepancy(np.ones((9, 1)), np.ones((9, 1)))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(MissingDependencyError, match=r"simkit\[inference\]"):
        classifier_two_sample_test(normal(10, 1), normal(10, 2))
