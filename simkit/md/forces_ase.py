"""`CalculatorForces`: any ASE calculator as the forces of replicas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.calculators.calculator import CalculatorError
from torch import Tensor

from simkit.errors import ConfigError, GeometryError
from simkit.md.state import State, begin_stress
from simkit.md.system import model_hash

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator


class CalculatorForces:
    """Forces of an ASE calculator, which sees the replicas one after the other: slow, and good for everything.

    A restart goes on to the bit if the calculator's results depend on the structure alone, not on those it saw before.
    """

    device = torch.device("cpu")

    def __init__(self, calculator: BaseCalculator) -> None:
        self._calculator = calculator
        self._bound: Tensor | None = None
        self._replicas: list[Atoms] = []

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        """Fill forces, energies and, where asked for, stress.

        Raises:
            ConfigError: if the state is not on the CPU, or a stress is asked for where not all is periodic.
            GeometryError: if the calculator fails for a replica.
        """
        if state.positions is not self._bound:
            self._bind(state)
        begin_stress(state, stress)
        positions, cells = state.positions.numpy(), state.cells.numpy()
        for k, atoms in enumerate(self._replicas):
            part = slice(state.offsets[k], state.offsets[k + 1])
            if not np.isfinite(positions[part]).all():
                raise GeometryError(f"replica {k} has positions that are not finite")
            atoms.positions[:] = positions[part]
            atoms.cell[:] = cells[k]
            try:
                state.forces[part] = torch.from_numpy(np.asarray(atoms.get_forces(apply_constraint=False)))
                state.energy[k] = float(atoms.get_potential_energy())
                if stress:
                    state.stress[k] = torch.from_numpy(atoms.get_stress(voigt=False, apply_constraint=False))
            except CalculatorError as error:
                raise GeometryError(f"the calculator failed for replica {k}: {error}") from error

    def identity(self) -> str:
        """A hash of the calculator's name and parameters."""
        return model_hash(self._calculator)

    def forget(self) -> None:
        """Drop the structures."""
        self._bound, self._replicas = None, []

    def _bind(self, state: State) -> None:
        if state.device.type != "cpu":
            raise ConfigError(f"ASE calculators take structures on the CPU; the state is on {state.device}")
        self._replicas = state.to_atoms()
        for atoms in self._replicas:
            atoms.set_constraint()
            atoms.calc = self._calculator
        self._bound = state.positions
