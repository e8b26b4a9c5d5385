"""Copies of a state: frames for observers, and snapshots that a simulation goes back to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError
from simkit.md.protocols import Ensemble, Forces, Frame
from simkit.md.state import State

QUANTITIES: dict[str, Callable[[State, Ensemble], Tensor]] = {
    "positions": lambda state, _: state.positions,
    "velocities": lambda state, _: state.velocities,
    "forces": lambda state, _: state.forces,
    "cells": lambda state, _: state.cells,
    "energy": lambda state, _: state.energy,
    "stress": lambda state, _: state.stress,
    "pressure": lambda state, _: state.pressure(),
    "kinetic_energy": lambda state, _: state.kinetic_energy(),
    "temperature": lambda state, _: state.temperature(),
    "volume": lambda state, _: state.volume(),
    "conserved": lambda state, ensemble: ensemble.conserved(state),
}
"""What an observer may ask for, see `simkit.md.protocols.Frame`."""

KEPT = ("positions", "velocities", "forces", "cells", "energy", "stress", "degrees")


def check_needs(needs: frozenset[str]) -> None:
    """Raise ConfigError if an observer wants something that there is not."""
    unknown = sorted(needs - QUANTITIES.keys())
    if unknown:
        raise ConfigError(f"an observer needs {', '.join(unknown)}; there are {', '.join(QUANTITIES)}")


def take_frame(state: State, ensemble: Ensemble, forces: Forces, needs: frozenset[str]) -> Frame:
    """Copy what is needed to the host; a stress that the ensemble does not compute is computed for it.

    Raises:
        ConfigError: if a stress or pressure is wanted where not all is periodic.
    """
    if needs & {"stress", "pressure"} and not ensemble.needs_stress:
        forces.compute(state, energy=True, stress=True)
    values: dict[str, NDArray[np.float64]] = {
        name: np.array(QUANTITIES[name](state, ensemble).cpu().numpy()) for name in sorted(needs)
    }
    return Frame(state.step, state.step * ensemble.timestep, values)


def take_snapshot(state: State) -> dict[str, Tensor]:
    """Copies of everything that changes in a simulation, but for the number of the step."""
    found = {name: getattr(state, name).clone() for name in KEPT}
    found.update({f"extra.{name}": value.clone() for name, value in state.extra.items()})
    return found


def put_back(state: State, snapshot: Mapping[str, Any], step: int) -> None:
    """Bring a state back to a snapshot, in place."""
    for name, value in snapshot.items():
        kind, _, entry = name.partition(".")
        if kind == "extra" and entry not in state.extra:
            state.extra[entry] = value.clone().to(state.device)
        else:
            (state.extra[entry] if kind == "extra" else getattr(state, name)).copy_(value)
    state.step = step
