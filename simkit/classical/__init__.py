"""Classical potentials for many atoms on a CPU: pair terms over a half neighbor list, direct Coulomb sums and harmonic bonds.

>>> import numpy as np
>>> argon = ClassicalPotential([LennardJones(epsilon=0.0103, sigma=3.4, cutoff=8.5)])
>>> positions, forces = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]), np.empty((2, 3))
>>> energy, virial = argon.evaluate(positions, forces)
>>> round(energy, 6)
-0.009678

A `ClassicalPotential` is a force function of `simkit.integrators.cpu.Integrator`; `ClassicalCalculator` makes it an ASE calculator. Units
are the caller's; only the Coulomb terms have a constant, which is that of eV, angstrom and elementary charges by default.
"""

from __future__ import annotations

from simkit.classical.calculator import ClassicalCalculator
from simkit.classical.potential import ClassicalPotential
from simkit.classical.terms import Coulomb, DampedShiftedCoulomb, HarmonicBonds, LennardJones, Morse

__all__ = [
    "ClassicalCalculator",
    "ClassicalPotential",
    "Coulomb",
    "DampedShiftedCoulomb",
    "HarmonicBonds",
    "LennardJones",
    "Morse",
]
