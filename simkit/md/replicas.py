"""Statistics over independent replicas of one system."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import DataError
from simkit.md.averages import BlockAverage

Floats = NDArray[np.float64]


def mean_average(parts: Sequence[BlockAverage]) -> BlockAverage:
    """Combine the averages of R independent series of one length: errors add in quadrature and are divided by R.

    The block is the longest that any of them chose, and there is a plateau where all of them have one.

    Raises:
        DataError: if there is none, or they have different lengths.
    """
    if not parts or any(len(part.blocks) != len(parts[0].blocks) for part in parts):
        raise DataError("expected averages of series of one length")
    if len(parts) == 1:
        return parts[0]
    count, blocks = len(parts), parts[0].blocks
    errors = np.array([part.errors for part in parts])
    own = np.array([part.uncertainties for part in parts])
    combined = np.sqrt((errors**2).sum(axis=0)) / count
    # d sqrt(sum e^2) = sum e de / sqrt(sum e^2)
    uncertainty = np.sqrt(((errors * own) ** 2).sum(axis=0)) / (count**2 * np.where(combined > 0, combined, np.inf))
    converged = all(part.converged for part in parts)
    if converged:
        chosen = int(np.flatnonzero(blocks == max(part.block for part in parts))[0])
    else:
        chosen = int(combined.argmax())
    return BlockAverage(
        mean=float(np.mean([part.mean for part in parts])),
        error=float(combined[chosen]),
        error_uncertainty=float(uncertainty[chosen]),
        block=int(blocks[chosen]),
        converged=converged,
        blocks=blocks,
        errors=combined,
        uncertainties=uncertainty,
    )


def spread(values: ArrayLike) -> Floats:
    """Standard error of the mean over R independent replicas, from their spread.

    Args:
        values: [R, ...], R at least 2.

    Raises:
        DataError: if there are fewer.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise DataError(f"a spread needs two replicas at least, found {len(array)}")
    return np.asarray(array.std(axis=0, ddof=1) / np.sqrt(len(array)))
