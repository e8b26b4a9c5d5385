"""Steps of ensembles on a CPU, compiled by Numba: what they do to the atoms of one replica, lo to hi, in place.

An ensemble has two compiled functions, for what comes before and after the forces. Each is one loop over replicas, because a call from
Python costs more than all the arithmetic of a small replica. No sum crosses replicas or depends on how many there are.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from simkit.integrators.philox import words_of_key, words_of_step
from simkit.md.state import State
from simkit.units import FORCE_TO_ACCELERATION

# What is cached on disk is compiled again when its own file changes, but not when a file that it calls into does: save that one, too.
compiled = functools.partial(njit, nogil=True, error_model="numpy", cache=True)
inlined = functools.partial(compiled, forceinline=True)


def atoms_of(state: State) -> tuple[NDArray[Any], ...]:
    """Views of what all ensembles work on: offsets, positions, velocities, forces, masses, mobile, degrees."""
    tensors = (state.positions, state.velocities, state.forces, state.masses, state.mobile, state.degrees)
    return state.offsets, *(tensor.numpy() for tensor in tensors)


def words(seed: int, step: int, stream: int) -> tuple[np.uint64, ...]:
    """The last two words of the counter, and the key, of `simkit.integrators.philox`."""
    return tuple(map(np.uint64, (*words_of_step(step, stream), *words_of_key(seed))))


@inlined
def kick_one(v, f, masses, mobile, lo, hi, time):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """v += time * F / m."""
    for i in range(lo, hi):
        if mobile[i]:
            factor = time * FORCE_TO_ACCELERATION / masses[i]
            for c in range(3):
                v[i, c] += factor * f[i, c]


@inlined
def drift_one(x, v, lo, hi, time):  # type: ignore[no-untyped-def]  # pragma: no cover
    """x += time * v."""
    for i in range(lo, hi):
        for c in range(3):
            x[i, c] += time * v[i, c]


@inlined
def scale_one(v, lo, hi, factor):  # type: ignore[no-untyped-def]  # pragma: no cover
    """v *= factor."""
    for i in range(lo, hi):
        for c in range(3):
            v[i, c] *= factor


@inlined
def kinetic_energy(v, masses, mobile, lo, hi):  # type: ignore[no-untyped-def]  # pragma: no cover
    """In eV."""
    total = 0.0
    for i in range(lo, hi):
        if mobile[i]:
            total += masses[i] * (v[i, 0] * v[i, 0] + v[i, 1] * v[i, 1] + v[i, 2] * v[i, 2])
    return total * (0.5 / FORCE_TO_ACCELERATION)


@inlined
def kinetic_tensor(v, masses, lo, hi):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Sum of m v (x) v , eV, of a replica without frozen atoms: xx, yy, zz, yz, xz, xy."""
    xx = yy = zz = yz = xz = xy = 0.0
    for i in range(lo, hi):
        a, b, c = v[i, 0], v[i, 1], v[i, 2]
        ma, mb, mc = masses[i] * a, masses[i] * b, masses[i] * c
        xx += ma * a
        yy += mb * b
        zz += mc * c
        yz += mb * c
        xz += ma * c
        xy += ma * b
    unit = 1 / FORCE_TO_ACCELERATION
    return xx * unit, yy * unit, zz * unit, yz * unit, xz * unit, xy * unit


@inlined
def remove_momentum_of_one(v, masses, lo, hi):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Subtract the velocity of the centre of mass."""
    mass = a = b = c = 0.0
    for i in range(lo, hi):
        mass += masses[i]
        a += masses[i] * v[i, 0]
        b += masses[i] * v[i, 1]
        c += masses[i] * v[i, 2]
    for i in range(lo, hi):
        v[i, 0] -= a / mass
        v[i, 1] -= b / mass
        v[i, 2] -= c / mass
