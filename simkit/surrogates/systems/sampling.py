"""Distributions of initial states that several systems share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def on_circles(count: int, seed: int, smallest: float, largest: float) -> NDArray[np.float64]:
    """Return states (q, p), [count, 2]: directions of points uniform in a square, radii uniform in an interval.

    This is how Greydanus et al. 2019 draw them (experiment-spring/data.py): diagonal directions are more frequent than others.
    """
    generator = np.random.default_rng(seed)
    directions = generator.uniform(-1, 1, (count, 2))
    radii = generator.uniform(smallest, largest, (count, 1))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True) * radii
