"""`ClassicalForces`: a `ClassicalPotential` as the forces of replicas."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.classical import ClassicalCalculator, ClassicalPotential
from simkit.errors import ConfigError, GeometryError
from simkit.md.state import State, begin_stress

LIST, LIST_CELLS = "classical.list", "classical.list_cells"
"""Names in ``State.extra`` of positions [N, 3] and cells [B, 3, 3] that neighbor lists were built from.

The last bits of sums depend on them: with them, a restart goes on to the bit.
"""


class ClassicalForces:
    """Forces of a classical potential, on the CPU; each replica has a neighbor list of its own, and they are evaluated in turn.

    The energy is left out where it is not asked for, and is nan then. The terms, species and exclusions are the same for all replicas.

    Args:
        model: the potential; its cell and periodicity give way to those of each replica.
    """

    device = torch.device("cpu")

    def __init__(self, model: ClassicalPotential | ClassicalCalculator) -> None:
        self._model = model.in_box(np.eye(3), True) if isinstance(model, ClassicalCalculator) else model
        self._bound: Tensor | None = None
        self._boxes: list[ClassicalPotential] = []
        self._builds: list[int] = []
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._cells = self._virials = np.empty((0, 3, 3))

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        """Fill forces and, where asked for, energies and stress.

        Raises:
            ConfigError: if the terms do not fit a replica, or a stress is asked for where not all is periodic.
            GeometryError: if a coordinate is not finite, atoms coincide or a cell has no volume.
        """
        if state.positions is not self._bound:
            self._bind(state)
        begin_stress(state, stress)
        self._follow_cells(state.cells.numpy())
        energies, measure = state.energy.numpy(), energy or stress
        for k, (box, (positions, forces)) in enumerate(zip(self._boxes, self._parts, strict=True)):
            try:
                if measure:
                    energies[k], self._virials[k] = box.evaluate(positions, forces)
                else:
                    box(positions, forces)
            except GeometryError as error:
                raise GeometryError(f"replica {k}: {error}") from error
            if box.builds != self._builds[k]:
                self._note(state, k)
        if not energy:
            energies.fill(np.nan)
        if stress:
            torch.div(torch.from_numpy(self._virials), -state.volume()[:, None, None], out=state.stress)

    def identity(self) -> str:
        """A hash of the terms with their parameters, species, exclusions and skin."""
        digest = hashlib.sha256()
        for term in self._model.terms:
            digest.update(type(term).__name__.encode())
            for field in dataclasses.fields(term):
                digest.update(f"{field.name}={np.asarray(getattr(term, field.name)).tolist()};".encode())
        for values in self._model.atoms_and_skin():
            digest.update(f"{None if values is None else np.asarray(values).tolist()};".encode())
        return digest.hexdigest()

    def forget(self) -> None:
        """Drop neighbor lists; they are built again from the positions in ``State.extra``."""
        self._bound, self._boxes = None, []

    def _bind(self, state: State) -> None:
        if state.device.type != "cpu":
            raise ConfigError(f"classical potentials run on the CPU; the state is on {state.device}")
        bounds = state.offsets.tolist()
        slices = [slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
        self._parts = [(state.positions[part].numpy(), state.forces[part].numpy()) for part in slices]
        places = state.extra.setdefault(LIST, state.positions.clone())
        cells = state.extra.setdefault(LIST_CELLS, state.cells.clone())
        self._boxes = [self._model.in_box(cells[k].numpy(), state.pbc[k]) for k in range(state.size)]
        for box, part in zip(self._boxes, slices, strict=True):
            box.build_list(places[part].numpy())
        self._builds = [box.builds for box in self._boxes]
        self._cells, self._virials = np.array([box.cell for box in self._boxes]), np.empty((state.size, 3, 3))
        self._bound = state.positions

    def _follow_cells(self, cells: NDArray[np.float64]) -> None:
        """Tell the boxes whose cell has changed."""
        for k in np.flatnonzero((cells != self._cells).any(axis=(1, 2))):
            self._boxes[k].set_cell(cells[k])
        self._cells[:] = cells

    def _note(self, state: State, k: int) -> None:
        """Keep what the list of a replica was built from."""
        self._builds[k] = self._boxes[k].builds
        reference = self._boxes[k].list_positions
        if reference is not None:
            state.extra[LIST][state.offsets[k] : state.offsets[k + 1]] = torch.from_numpy(reference)
            state.extra[LIST_CELLS][k] = torch.from_numpy(self._boxes[k].cell)
