"""Cells that strain: functions of small matrices, homogeneous deformation, and what every barostat checks."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
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
