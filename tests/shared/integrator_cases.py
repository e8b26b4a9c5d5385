"""Forces and runs that the tests of the splitting integrators share."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from simkit import integrators
from simkit.integrators import Bath, cpu

NAMES = integrators.available()
STOCHASTIC = [name for name in NAMES if integrators.get(name).stochastic]
DETERMINISTIC = [name for name in NAMES if name not in STOCHASTIC]
SYMMETRIC = [name for name in DETERMINISTIC if integrators.get(name).symmetric]


@njit
def henon_heiles(x: np.ndarray, f: np.ndarray) -> None:
    """Forces of the potential (x^2 + y^2)/2 + x^2 y - y^3/3 on each atom of two components."""
    for i in range(len(x)):
        f[i, 0] = -x[i, 0] - 2 * x[i, 0] * x[i, 1]
        f[i, 1] = -x[i, 1] - x[i, 0] ** 2 + x[i, 1] ** 2


def run(
    name: str,
    force: Callable[..., Any],
    x: np.ndarray,
    v: np.ndarray,
    steps: int,
    timestep: float,
    masses: Any = None,
    bath: Bath | None = None,
    first_step: int = 0,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities after some steps; the arguments are left alone."""
    x, v, f = x.copy(), v.copy(), np.full_like(x, np.nan)
    integrator = cpu.Integrator(
        integrators.get(name), force, x, v, f, np.ones(len(x)) if masses is None else masses, **options
    )
    integrator.evaluate_forces()
    integrator.run(steps, timestep=timestep, first_step=first_step, bath=bath)
    return x, v
