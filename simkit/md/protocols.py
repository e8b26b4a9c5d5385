"""What the parts of a simulation are to each other: forces, ensembles and observers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.md.state import State


class Forces(Protocol):
    """A model as the source of forces.

    Attributes:
        device: where the tensors of the state must be.
    """

    device: torch.device

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        """Fill ``state.forces`` and, where asked for, ``state.energy`` and ``state.stress`` in place from positions and cells.

        Raises:
            GeometryError: if the model cannot take a replica.
        """

    def identity(self) -> str:
        """A hash of everything that decides the forces: a restart compares it."""

    def forget(self) -> None:
        """Drop what was kept from earlier calls: the next one starts from the state alone, as in a new process."""


class Ensemble(Protocol):
    """Equations of motion.

    All that an ensemble remembers from step to step lies in the state (``state.extra``), so that a restart from a copy of the state goes on
    to the bit. Random numbers are functions of (seed, step, replica, atom), see `simkit.integrators.philox`.
    """

    timestep: float
    needs_stress: bool

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values; a restart compares them."""

    def start(self, state: State) -> None:
        """Check that the ensemble fits the state, set its degrees of freedom, and make the variables that are not there yet.

        Raises:
            ConfigError: if it does not fit, such as a barostat for an isolated molecule.
        """

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make ``steps`` steps. Before and after, forces (stress, where needed) and energy are those of the positions."""

    def conserved(self, state: State) -> Tensor:
        """The quantity that the equations of motion conserve, [B] eV, up to the error of the timestep."""


@dataclass(frozen=True)
class Frame:
    """What an observer sees: copies on the host of the quantities that it asked for, and some that are always there.

    Attributes:
        step, time_fs: of the simulation.
        values: by name, see `Observer.needs`: positions, velocities, forces [N, 3]; cells, stress, pressure [B, 3, 3]; energy,
            kinetic_energy, temperature, volume, conserved [B]. Float64 NumPy arrays in simkit's units.
    """

    step: int
    time_fs: float
    values: Mapping[str, NDArray[np.float64]]


class Observer(Protocol):
    """Something that looks at a simulation every ``interval`` steps, the first time at step 0, and keeps or judges what it sees.

    Attributes:
        interval: steps between two looks.
        needs: names of what it wants to see in `Frame.values`. The simulation fetches the union of all once.
    """

    interval: int
    needs: frozenset[str]

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """Begin, or with ``kept`` go on after that many frames: what a killed run wrote beyond them is cut off.

        Raises:
            OutputError: if the file cannot be written, exists already (kept None), or holds fewer frames or another system.
        """

    def observe(self, frame: Frame) -> None:
        """Take a frame; the simulation counts them. Raises SimkitError to end the simulation, saying why."""

    def flush(self) -> None:
        """Make everything that was seen safe on the disk; called before each checkpoint."""

    def close(self) -> None:
        """End; called whatever happened."""
