"""Which of many frames to label: by how much a committee disagrees, and no two that are alike. Arrays in, indices out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

Strategy = Literal["disagreement", "random"]


def uncertain_frames(scores: ArrayLike, quantile: float, lower: float = 0.0) -> Indices:
    """Return the frames whose score is at least ``lower`` and at least the quantile of all scores, in descending order of the score.

    The window moves with the model: what counts as uncertain falls as the committee learns. Frames without a finite score are left out.

    Args:
        scores: [C], such as the largest disagreement of an atom. quantile: from 0 (all frames) to below 1.

    Raises:
        ConfigError: if the quantile is not in the range. DataError: if scores are not a list of numbers.
    """
    if not 0 <= quantile < 1:
        raise ConfigError(f"quantile: expected a number from 0 to below 1, found {quantile}")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"expected scores [C], found an array of shape {values.shape}")
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(0, dtype=np.int64)
    edge = max(lower, float(np.quantile(values[finite], quantile)))
    chosen = np.flatnonzero(finite & (np.where(finite, values, -np.inf) >= edge))
    return chosen[np.argsort(-values[chosen], kind="stable")]


def farthest_points(points: ArrayLike, count: int, known: ArrayLike | None = None) -> Indices:
    """Return up to ``count`` points, each the farthest from all known and chosen ones (Gonzalez, Theor. Comput. Sci. 38, 293 (1985)).

    As a choice of training data: Sener & Savarese, ICLR 2018. The first is the first point where nothing is known. Points that coincide
    with a known or chosen one, so that their squared distance is zero, are never taken.

    Args:
        points: [C, K]. count: at least 0. known: [L, K], such as those of the frames that are labelled already.

    Raises:
        DataError: if the shapes do not fit or values are not finite.
    """
    x = np.asarray(points, dtype=np.float64)
    others = np.zeros((0, x.shape[-1])) if known is None else np.asarray(known, dtype=np.float64)
    if x.ndim != 2 or others.ndim != 2 or x.shape[1] != others.shape[1]:
        raise DataError(f"expected points [C, K] and known ones [L, K], found {x.shape} and {others.shape}")
    if not (np.isfinite(x).all() and np.isfinite(others).all()):
        raise DataError("points must be finite numbers, found some that are not")
    if count < 1 or len(x) == 0:
        return np.zeros(0, dtype=np.int64)
    nearest = np.full(len(x), np.inf)
    for other in others:
        np.minimum(nearest, _distances(x, other), out=nearest)
    chosen: list[int] = []
    while len(chosen) < min(count, len(x)):
        best = int(np.argmax(nearest))
        if nearest[best] <= 0:
            break
        chosen.append(best)
        np.minimum(nearest, _distances(x, x[best]), out=nearest)
    return np.array(chosen, dtype=np.int64)


def select_frames(
    scores: ArrayLike,
    points: ArrayLike,
    count: int,
    *,
    strategy: Strategy = "disagreement",
    quantile: float = 0.5,
    lower: float = 0.0,
    known: ArrayLike | None = None,
    seed: int = 0,
) -> Indices:
    """Return up to ``count`` different frames to label.

    Args:
        scores: [C], see `uncertain_frames`. points: [C, K], a descriptor of each frame.
        strategy: "disagreement" takes those of `uncertain_frames` that are farthest from each other and from the known ones; "random"
            draws from all frames with a finite score with the seed, the control that any other strategy has to beat.
        quantile, lower: see `uncertain_frames`. known: [L, K], descriptors of the labelled frames.

    Raises:
        ConfigError, DataError: as the functions above.
    """
    values = np.asarray(scores, dtype=np.float64)
    if strategy == "random":
        usable = np.flatnonzero(np.isfinite(values))
        return np.random.default_rng(seed).choice(usable, min(count, len(usable)), replace=False)
    candidates = uncertain_frames(values, quantile, lower)
    return candidates[farthest_points(np.asarray(points, dtype=np.float64)[candidates], count, known)]


def _distances(x: Floats, point: Floats) -> Floats:
    difference: Floats = x - point
    return np.sqrt(np.einsum("ck,ck->c", difference, difference))
