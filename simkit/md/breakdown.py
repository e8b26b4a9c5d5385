"""What is wrong with a state: structures that cannot be simulated, and simulations that broke down."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simkit.errors import GeometryError
from simkit.md.cell_list import check_cell
from simkit.md.state import State

LONGEST_MOVE = 1.0
"""Angstrom in one step. A hydrogen atom at 300 K moves by 0.03 in a femtosecond; no integrator is of use beyond a fraction of a bond."""


def check_start(state: State) -> None:
    """Refuse what no model and no ensemble can take.

    Raises:
        GeometryError: if coordinates or velocities are not finite, or a cell has no volume, naming the replica.
    """
    for name in ("positions", "velocities"):
        bad = _first(state, ~getattr(state, name).isfinite().all(dim=1))
        if bad is not None:
            raise GeometryError(f"the {name} of replica {bad} are not finite (nan or inf); check where they come from")
    cells = state.cells.cpu().numpy()
    for k in np.flatnonzero(state.pbc.any(axis=1)):
        check_cell(cells[k], state.pbc[k], f"replica {k}")


def find_breakdown(state: State, timestep: float) -> str:
    """Say which replica broke down and how; empty if none did. One transfer to the host where all is well."""
    energy, forces = ~state.energy.isfinite(), ~state.forces.isfinite().all(dim=1)
    places = ~(state.positions.isfinite() & state.velocities.isfinite()).all(dim=1)
    moves = torch.linalg.vector_norm(state.velocities, dim=1) * timestep
    if not bool(energy.any() | forces.any() | places.any() | (moves > LONGEST_MOVE).any()):
        return ""
    for atoms, what in ((places, "positions or velocities are not finite"), (forces, "forces are not finite")):
        bad = _first(state, atoms)
        if bad is not None:
            return f"replica {state.replicas[bad]}: {what}"
    if bool(energy.any()):
        bad = int(energy.nonzero()[0])
        return f"replica {state.replicas[bad]}: the potential energy is {float(state.energy[bad])}"
    atom = int(moves.argmax())
    replica = int(state.structure[atom])
    return (
        f"replica {state.replicas[replica]}: atom {atom - int(state.offsets[replica])} moves by {float(moves[atom]):.3g} angstrom "
        f"per step, more than {LONGEST_MOVE:g}"
    )


def _first(state: State, atoms: Tensor) -> int | None:
    """The replica of the first atom marked."""
    found = atoms.nonzero()
    return int(state.structure[found[0, 0]]) if len(found) else None
