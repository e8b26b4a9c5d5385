"""Splitting integrators of Newton's and Langevin's equation: tables, and the loops that run any of them.

>>> scheme = get("velocity-verlet")
>>> scheme.letters, scheme.order, scheme.evaluations
('BAB', 2, 1)

The loops, whose random numbers are the same (`simkit.integrators.philox`):

- `simkit.integrators.cpu.Integrator`: Numba, in place on NumPy arrays and CPU tensors;
- `simkit.integrators.cuda.Integrator`: Numba, in place on CUDA tensors;
- `simkit.integrators.torch.integrate`: PyTorch, differentiable.

They know no units: mass times velocity^2 must be an energy. With simkit's units, masses in amu are divided by
`simkit.units.FORCE_TO_ACCELERATION`, which makes them eV fs^2/angstrom^2, and kT is `simkit.units.BOLTZMANN` times kelvin.
"""

from __future__ import annotations

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.integrators.bath import Bath
from simkit.integrators.scheme import Operator, Scheme, Substep
from simkit.integrators.tables import SCHEMES

__all__ = ["Bath", "Operator", "Scheme", "Substep", "available", "get"]


def available() -> list[str]:
    """Return the names of the schemes."""
    return sorted(SCHEMES)


def get(name: str) -> Scheme:
    """Return a scheme by its name.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in SCHEMES:
        raise ConfigError(f"unknown integrator {name!r}{nearest(name, SCHEMES)}")
    return SCHEMES[name]
