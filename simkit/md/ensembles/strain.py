"""Cells that strain: functions of small matrices, homogeneous deformation, and what every barostat checks."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.md.ensembles.compiled import inlined
from simkit.md.ensembles.degrees import start_global_thermostat
from simkit.md.state import State

Coupling = Literal["isotropic", "anisotropic"]

_TERMS = 12
"""Of the power series: with a norm below 0.3, what is left out is below 1e-16."""


def exponential(strain: Tensor) -> Tensor:
    """exp of matrices [B, 3, 3] whose norm is well below one, as a cell's strain in a step is."""
    return _series(strain, 0)


def exponential_mean(strain: Tensor) -> Tensor:
    """The integral of exp(s M) over s from 0 to 1, [B, 3, 3]: (exp(M) - 1) / M."""
    return _series(strain, 1)


def _series(matrix: Tensor, shift: int) -> Tensor:
    """Sum over k of M^k / (k + shift)!, by Horner's rule. Nothing waits for the device, as torch.matrix_exp would."""
    one = torch.eye(3, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    total = one
    for k in range(_TERMS, 0, -1):
        total = one + (matrix / (k + shift)) @ total
    return total / math.factorial(shift)


def multiply(vectors: Tensor, matrices: Tensor, structure: Tensor) -> Tensor:
    """Apply the symmetric matrix of each atom's replica, [B, 3, 3], to its vector, [N, 3]."""
    return torch.bmm(vectors[:, None, :], matrices[structure])[:, 0]


def deform(cells: Tensor, matrices: Tensor) -> None:
    """Apply symmetric matrices [B, 3, 3] to the vectors of the cells, in place."""
    cells.copy_(cells @ matrices)


def project(tensors: Tensor, coupling: Coupling) -> Tensor:
    """What of symmetric tensors [B, 3, 3] acts on the cell: all, or the mean of the diagonal in all directions alike."""
    if coupling == "anisotropic":
        return tensors
    mean = trace(tensors) / 3
    return torch.diag_embed(mean[:, None].expand(-1, 3))


def trace(tensors: Tensor) -> Tensor:
    """[B]."""
    return tensors.diagonal(dim1=-2, dim2=-1).sum(-1)


def virial(state: State) -> Tensor:
    """Volume times stress, [B, 3, 3] eV; the potential energy's derivative with respect to strain."""
    return state.stress * state.volume()[:, None, None]


# Below, compiled: a symmetric matrix is a tuple xx, yy, zz, yz, xz, xy.


@inlined
def multiply_symmetric(a, b):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """The product of two symmetric matrices that commute, so that it is symmetric, too."""
    return (
        a[0] * b[0] + a[5] * b[5] + a[4] * b[4],
        a[5] * b[5] + a[1] * b[1] + a[3] * b[3],
        a[4] * b[4] + a[3] * b[3] + a[2] * b[2],
        a[5] * b[4] + a[1] * b[3] + a[3] * b[2],
        a[0] * b[4] + a[5] * b[3] + a[4] * b[2],
        a[0] * b[5] + a[5] * b[1] + a[4] * b[3],
    )


@inlined
def exponentials(m):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`exponential` and `exponential_mean` of one matrix. The first is one plus the matrix times the second."""
    mean = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    for k in range(_TERMS, 0, -1):
        p, w = multiply_symmetric(m, mean), 1.0 / (k + 1)
        mean = (1.0 + w * p[0], 1.0 + w * p[1], 1.0 + w * p[2], w * p[3], w * p[4], w * p[5])
    p = multiply_symmetric(m, mean)
    return (1.0 + p[0], 1.0 + p[1], 1.0 + p[2], p[3], p[4], p[5]), mean


@inlined
def apply(m, x, y, z):  # type: ignore[no-untyped-def]  # pragma: no cover
    """A matrix times a vector."""
    return m[0] * x + m[5] * y + m[4] * z, m[5] * x + m[1] * y + m[3] * z, m[4] * x + m[3] * y + m[2] * z


@inlined
def apply_to_rows(m, vectors, lo, hi):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Apply a matrix to vectors [..., 3] in place."""
    for i in range(lo, hi):
        vectors[i, 0], vectors[i, 1], vectors[i, 2] = apply(m, vectors[i, 0], vectors[i, 1], vectors[i, 2])


@inlined
def determinant(h):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Of a matrix [3, 3]."""
    return (
        h[0, 0] * (h[1, 1] * h[2, 2] - h[1, 2] * h[2, 1])
        - h[0, 1] * (h[1, 0] * h[2, 2] - h[1, 2] * h[2, 0])
        + h[0, 2] * (h[1, 0] * h[2, 1] - h[1, 1] * h[2, 0])
    )


@inlined
def inner_virial(kinetic, stress, volume):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The pressure tensor times the volume: a kinetic tensor less `virial`, the stress [3, 3] being symmetric up to rounding."""
    half = 0.5 * volume
    return (
        kinetic[0] - volume * stress[0, 0],
        kinetic[1] - volume * stress[1, 1],
        kinetic[2] - volume * stress[2, 2],
        kinetic[3] - half * (stress[1, 2] + stress[2, 1]),
        kinetic[4] - half * (stress[0, 2] + stress[2, 0]),
        kinetic[5] - half * (stress[0, 1] + stress[1, 0]),
    )


def check_coupling(coupling: str) -> Coupling:
    """Raises ConfigError if a coupling is not known."""
    if coupling not in ("isotropic", "anisotropic"):
        raise ConfigError(f"coupling must be 'isotropic' or 'anisotropic'; found {coupling!r}")
    return coupling  # type: ignore[return-value]


def start_barostat(state: State, name: str, remove_com: bool) -> None:
    """Check that the cells of a state can strain, and set the degrees of freedom of the atoms.

    Raises:
        ConfigError: if a replica is not periodic in all directions, has a cell without volume, or frozen atoms.
    """
    if not state.pbc.all():
        place = int(np.flatnonzero(~state.pbc.all(axis=1))[0])
        raise ConfigError(
            f"constant pressure needs a cell that is periodic in all directions; replica {place} has pbc {state.pbc[place].tolist()}"
        )
    if not bool(state.mobile.all()):
        place = int(state.structure[~state.mobile][0])
        raise ConfigError(
            f"constant pressure moves all atoms with the cell, but replica {place} has frozen ones; free them or keep the volume"
        )
    if not bool((state.volume() > 0).all()):
        raise ConfigError("constant pressure needs cells of positive volume; found one without")
    start_global_thermostat(state, name, remove_com)
