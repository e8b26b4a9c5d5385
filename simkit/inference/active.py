"""Exploration for active learning: dynamics on a committee's mean that notes where its members disagree, and ends where they are lost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from simkit.datasets.npz_file import read_npz
from simkit.errors import ConfigError, DataError, OutputError, SimkitError
from simkit.files import atomic_path
from simkit.inference.committee import CommitteeForces
from simkit.labeling.sample import changed_bonds
from simkit.md.simulation import Simulation

if TYPE_CHECKING:
    from simkit.md.protocols import Ensemble, Frame
    from simkit.md.state import State

Floats = NDArray[np.float64]


class LeftTrust(SimkitError):
    """A trajectory was ended on purpose: the committee does not know where it is, or the molecule fell apart."""


@dataclass(frozen=True)
class Exploration:
    """A trajectory on a committee's mean, T frames of N atoms, without its start.

    Attributes:
        numbers: [N] atomic numbers. pbc: [3]. charge: total, e.
        steps: [T] at which the frames were taken. positions: [T, N, 3] angstrom. cells: [T, 3, 3] angstrom.
        disagreement: [T, N] eV/angstrom, see `simkit.inference.committee.force_disagreement`.
        temperature: [T] of the motion, K.
        ended: why it ended early; empty where it did not.
    """

    numbers: NDArray[np.int64]
    pbc: NDArray[np.bool_]
    charge: float
    steps: NDArray[np.int64]
    positions: Floats
    cells: Floats
    disagreement: Floats
    temperature: Floats
    ended: str = ""

    def scores(self) -> Floats:
        """Return the largest disagreement of an atom for each frame, [T] eV/angstrom."""
        return self.disagreement.max(axis=1, initial=0.0)

    def frame(self, k: int) -> Atoms:
        """Return a frame; its ``info`` says at which step it was taken and how much the committee disagreed."""
        atoms = Atoms(self.numbers, self.positions[k], cell=self.cells[k], pbc=self.pbc)
        score = float(self.disagreement[k].max())
        atoms.info.update(charge=round(self.charge), source="active", step=int(self.steps[k]), disagreement=score)
        return atoms

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an npz file, atomically.

        Raises:
            OutputError: if it cannot be written.
        """
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **vars(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Exploration:
        """Read a file by `save`.

        Raises:
            DataError: if it is none.
        """
        arrays: dict[str, Any] = read_npz(Path(path))
        try:
            return cls(**{**arrays, "charge": float(arrays["charge"]), "ended": str(arrays["ended"])})
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} holds no exploration of active learning ({error}); remove it and resume") from None


class DisagreementWatch:
    """An observer that keeps frames and the committee's disagreement, and ends the simulation where that leaves what can be trusted.

    It costs nothing but the copies: the disagreement was found with the forces of the step.

    Args:
        interval: steps between two looks. forces: of the simulation that is watched, one replica.
        upper: of the largest disagreement of an atom, eV/angstrom; beyond it the trajectory ends. The frame is kept.
        reference: bonds are compared with this molecule's, see `simkit.labeling.sample.changed_bonds`; None for no comparison.
    """

    needs = frozenset({"positions", "cells", "temperature"})

    def __init__(self, interval: int, forces: CommitteeForces, upper: float, reference: Atoms | None) -> None:
        if not upper > 0:
            raise ConfigError(f"the upper bound of the disagreement must be positive, found {upper} eV/angstrom")
        self.interval, self._forces, self._upper, self._reference = interval, forces, upper, reference
        self.steps: list[int] = []
        self.rows: list[tuple[Floats, Floats, Floats, float]] = []

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        if state.size != 1 or kept is not None:
            raise ConfigError("a committee's disagreement is watched for one replica, from its start")

    def observe(self, frame: Frame) -> None:
        """Keep a frame, but the first, which is the start.

        Raises:
            LeftTrust: if the committee disagrees too much, or bonds were broken or formed.
        """
        if frame.step == 0:
            return
        places, cell = frame.values["positions"], frame.values["cells"][0]
        disagreement = self._forces.disagreement.cpu().numpy().copy()
        self.steps.append(frame.step)
        self.rows.append((places, cell, disagreement, float(frame.values["temperature"][0])))
        score = float(disagreement.max())
        if not score <= self._upper:
            raise LeftTrust(
                f"the committee disagrees by {score:.3g} eV/angstrom, more than {self._upper:g}, at step {frame.step}"
            )
        if self._reference is None:
            return
        moved = self._reference.copy()
        moved.positions = places
        if count := changed_bonds(self._reference, moved):
            raise LeftTrust(f"{count} bonds were broken or formed at step {frame.step}")

    def flush(self) -> None:
        """See `Observer.flush`."""

    def close(self) -> None:
        """See `Observer.close`."""


def explore(
    forces: CommitteeForces,
    start: Atoms,
    ensemble: Ensemble,
    *,
    steps: int,
    interval: int,
    temperature: float,
    seed: int,
    upper: float,
    watch_bonds: bool = True,
) -> Exploration:
    """Run dynamics on a committee's mean until the steps are done, it leaves what can be trusted, or it breaks down.

    Args:
        start: a structure, whose velocities are drawn anew for ``temperature`` (K) with the ``seed``.
        steps: of the ensemble. interval: steps between two frames that are kept.
        upper, watch_bonds: see `DisagreementWatch`; bonds of periodic structures are not watched.

    Raises:
        ConfigError: if an option is unusable, or the ensemble does not fit.
        ElementError, GeometryError: if the committee cannot take the start.
        KeyboardInterrupt: if interrupted.
    """
    reference = start if watch_bonds and not start.pbc.any() else None
    watch = DisagreementWatch(interval, forces, upper, reference)
    simulation = Simulation(forces, start, ensemble, temperature=temperature, seed=seed, observers=[watch])
    ended = ""
    try:
        simulation.run(steps)
    except (ConfigError, OutputError):
        raise
    except SimkitError as error:  # frames up to here are as good as any
        ended = str(error)
    finally:
        simulation.close()
    n = len(start)
    places, cells, disagreement, temperatures = zip(*watch.rows, strict=True) if watch.rows else ((), (), (), ())
    return Exploration(
        numbers=np.asarray(start.numbers, dtype=np.int64),
        pbc=np.array(start.pbc),
        charge=float(start.info.get("charge", 0.0)),
        steps=np.array(watch.steps, dtype=np.int64),
        positions=np.array(places, dtype=np.float64).reshape(-1, n, 3),
        cells=np.array(cells, dtype=np.float64).reshape(-1, 3, 3),
        disagreement=np.array(disagreement, dtype=np.float64).reshape(-1, n),
        temperature=np.array(temperatures, dtype=np.float64),
        ended=ended,
    )
