"""What the tests of the analysis of trajectories share."""

import numpy as np


def everything(n_atoms: int) -> dict[str, np.ndarray]:
    """All atoms as one species."""
    return {"X": np.ones(n_atoms, dtype=bool)}
