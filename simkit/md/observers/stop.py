"""Observers that end a simulation which is no longer one of anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.typing import NDArray

from simkit.errors import ConfigError, SimkitError
from simkit.md.observers.files import check_interval
from simkit.neighbors import molecule_edges, neighbor_list

if TYPE_CHECKING:
    from simkit.md.protocols import Frame
    from simkit.md.state import State

RUNAWAY = 50.0
"""Times the temperature asked for, or 300 K where that is more."""


class _Stop:
    """What these observers have in common: they look, and keep no file."""

    def __init__(self, interval: int) -> None:
        self.interval = check_interval(interval)
        self._replicas: NDArray[np.uint32] = np.zeros(0, dtype=np.uint32)

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        self._replicas = state.replicas.copy()

    def flush(self) -> None:
        """See `Observer.flush`."""

    def close(self) -> None:
        """See `Observer.close`."""

    def _where(self, frame: Frame, k: int) -> str:
        return f"the simulation was stopped at step {frame.step} ({frame.time_fs:g} fs): replica {self._replicas[k]}"


class StopNotFinite(_Stop):
    """End when an energy is not a number: forces or positions are not either, or will not be in the next step."""

    needs = frozenset({"energy", "kinetic_energy"})

    def __init__(self, interval: int = 1) -> None:
        """Raises ConfigError if the interval is not positive."""
        super().__init__(interval)

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        for name in ("kinetic_energy", "energy"):
            bad = np.flatnonzero(~np.isfinite(frame.values[name]))
            if len(bad):
                what = "potential energy" if name == "energy" else "kinetic energy"
                raise SimkitError(
                    f"{self._where(frame, bad[0])} has a {what} of {frame.values[name][bad[0]]} eV. Relax the starting structure, or "
                    "shorten the time step"
                )


class StopRunaway(_Stop):
    """End when a replica is hotter than anything that the run could mean: ``RUNAWAY`` times its target, or a limit that is given."""

    needs = frozenset({"temperature"})

    def __init__(self, interval: int = 1, *, target: float | None = None, limit: float | None = None) -> None:
        """Set the limit.

        Args:
            interval: steps between two looks.
            target: kelvin, the temperature of the simulation; the limit is 50 times this, or 50 times 300 K where that is more.
            limit: kelvin, instead.

        Raises:
            ConfigError: if the interval, target or limit is not positive.
        """
        super().__init__(interval)
        self.limit = limit if limit is not None else RUNAWAY * max(target or 0.0, 300.0)
        if not self.limit > 0 or (target is not None and not target >= 0):
            raise ConfigError(f"expected a positive target and limit in kelvin, found {target} and {limit}")

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        temperature = frame.values["temperature"]
        bad = np.flatnonzero(~(temperature <= self.limit))
        if len(bad):
            raise SimkitError(
                f"{self._where(frame, bad[0])} is at {temperature[bad[0]]:.4g} K, the limit is {self.limit:g} K. Relax the starting "
                "structure, shorten the time step or lower the temperature; if that does not help, the structure has left what the model "
                "was trained on"
            )


class StopOutsideDomain(_Stop):
    """End when two atoms come closer than the model has seen: a neural network knows nothing of such geometries.

    ``closest`` is the table that a trained model carries as ``info["domain"]["closest"]``. Pairs that are not in the table never came
    within the model's cutoff in its training data; they are found up to the longest distance in the table.
    """

    needs = frozenset({"positions", "cells"})

    def __init__(self, interval: int, closest: Mapping[str, float], *, fraction: float = 0.95) -> None:
        """Set the limits.

        Args:
            interval: steps between two looks.
            closest: least distance in the training data, angstrom, by pair of elements such as "C-H".
            fraction: of the least distance that an atom may come to.

        Raises:
            ConfigError: if the interval or the fraction is not positive, the table is empty, or a pair is unknown.
        """
        super().__init__(interval)
        if not closest:
            raise ConfigError(
                "the model does not know its training domain (no closest distances): train it again to stop by it"
            )
        if not fraction > 0:
            raise ConfigError(f"the fraction of the closest distance must be positive, found {fraction}")
        self._closest = {pair: float(distance) for pair, distance in closest.items()}
        self._fraction = fraction
        self._reach = fraction * max(self._closest.values())
        size = len(atomic_numbers)
        self._limits = np.full((size, size), self._reach)
        for pair, distance in self._closest.items():
            try:
                a, b = (atomic_numbers[symbol] for symbol in pair.split("-"))
            except (KeyError, ValueError):
                raise ConfigError(f"expected pairs of elements such as 'C-H', found {pair!r}") from None
            self._limits[a, b] = self._limits[b, a] = fraction * distance

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        super().open(state, timestep, kept)
        self._numbers = state.numbers.cpu().numpy()
        self._offsets, self._pbc = state.offsets, state.pbc
        self._structure = state.structure.cpu().numpy()

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        pairs, distances = self._near(frame)
        limits = self._limits[self._numbers[pairs[0]], self._numbers[pairs[1]]]
        bad = np.flatnonzero(distances < limits)
        if not len(bad):
            return
        worst = bad[np.argmin(distances[bad] / limits[bad])]
        i, j = pairs[:, worst]
        replica = int(self._structure[i])
        name, known = self._pair(i, j)
        seen = (
            f"the closest in the training data is {known:.3f}"
            if known
            else "never within the cutoff in the training data"
        )
        raise SimkitError(
            f"{self._where(frame, replica)} left the training domain: atoms {i - self._offsets[replica]} and "
            f"{j - self._offsets[replica]} ({name}) are {distances[worst]:.3f} angstrom apart, {seen}. Lower the temperature, or train the "
            "model on structures like this one"
        )

    def _near(self, frame: Frame) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Pairs [2, P] within reach and their distances [P]: isolated replicas all at once, periodic ones in turn."""
        positions, cells = frame.values["positions"], frame.values["cells"]
        found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        if not self._pbc.any():
            edges = molecule_edges(torch.from_numpy(positions), torch.from_numpy(self._offsets), self._reach).numpy()
            return edges, np.linalg.norm(positions[edges[0]] - positions[edges[1]], axis=1)
        for k in range(len(self._pbc)):
            start = int(self._offsets[k])
            part = positions[start : self._offsets[k + 1]]
            near = neighbor_list(part, cells[k], self._pbc[k], self._reach)
            found.append((near.edge_index + start, np.linalg.norm(near.vectors(part, cells[k]), axis=1)))
        return np.concatenate([e for e, _ in found], axis=1), np.concatenate([d for _, d in found])

    def _pair(self, i: int, j: int) -> tuple[str, float | None]:
        from ase.data import chemical_symbols

        low, high = sorted((int(self._numbers[i]), int(self._numbers[j])))
        name = f"{chemical_symbols[low]}-{chemical_symbols[high]}"
        return name, self._closest.get(name, self._closest.get(f"{chemical_symbols[high]}-{chemical_symbols[low]}"))
