"""Numbers from trajectories."""

import numpy as np
from numpy.typing import ArrayLike

from simkit.errors import DataError


def energy_drift(time_fs: ArrayLike, total_energy: ArrayLike, n_atoms: int) -> float:
    """Return the drift of the total energy in meV/atom/ps: the slope of a straight line fitted by least squares.

    Args:
        time_fs: times [T], fs, not all the same; total_energy: [T], eV; n_atoms: atoms in the structure.

    Raises:
        DataError: if there are fewer than two different times, or something is not finite.
    """
    time, energy = np.asarray(time_fs, dtype=float), np.asarray(total_energy, dtype=float)
    if time.ndim != 1 or time.shape != energy.shape or n_atoms < 1:
        raise DataError(f"expected times and energies of one length, found shapes {time.shape} and {energy.shape}")
    if not (np.isfinite(time).all() and np.isfinite(energy).all()):
        raise DataError("times and energies must be finite")
    # Differences first: the energy may be 1e5 times larger than its fluctuation.
    t = time - time.mean() if len(time) else time
    if not t.any():
        raise DataError("a drift needs energies at two different times at least")
    slope = float(t @ (energy - energy[0]) / (t @ t))
    return slope * 1e6 / n_atoms  # eV/fs -> meV/ps
