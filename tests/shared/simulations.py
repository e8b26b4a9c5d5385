"""What several tests of simulations use: an observer, a crystal and two potentials."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from simkit import potentials
from simkit.classical import ClassicalPotential, LennardJones
from simkit.errors import SimkitError
from simkit.md.protocols import Frame
from simkit.md.state import State
from simkit.potential import Potential


class Recorder:
    """An observer that remembers, and raises when told to."""

    def __init__(self, interval: int, needs: str = "positions velocities energy", fail_at: int = -1) -> None:
        self.interval, self.needs, self.fail_at = interval, frozenset(needs.split()), fail_at
        self.frames: list[Frame] = []
        self.log: list[Any] = []

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        self.log.append(("open", kept))

    def observe(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.step == self.fail_at:
            raise SimkitError("enough")

    def flush(self) -> None:
        self.log.append("flush")

    def close(self) -> None:
        self.log.append("close")

    def steps(self) -> list[int]:
        return [frame.step for frame in self.frames]


def argon(repeat: int = 2) -> Atoms:
    return bulk("Ar", "fcc", a=5.4, cubic=True).repeat(repeat)


def lennard_jones() -> ClassicalPotential:
    return ClassicalPotential([LennardJones(0.0104, 3.4, cutoff=8.0, form="switched")], cell=np.eye(3), pbc=True)


def painn() -> Potential:
    return potentials.build("painn", cutoff=4.0, elements=[1, 6, 8, 14], channels=16, layers=2, basis=8, seed=5)
