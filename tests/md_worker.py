"""Run by the tests of restarts in a process of its own: simulations that are killed, run out of disk, or are left alone."""

import json
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from simkit.classical import ClassicalPotential, LennardJones
from simkit.md.ensembles import EnsembleOptions, ensemble_from_options
from simkit.md.observers.ase_trajectory import ASETrajectory
from simkit.md.observers.h5md import H5MDTrajectory
from simkit.md.observers.stop import StopNotFinite
from simkit.md.observers.thermo_table import ThermoTable
from simkit.md.protocols import Frame
from simkit.md.simulation import Simulation
from simkit.md.state import State


class Killer:
    """Ends the process at a step, as a power cut would; after the other observers have seen that step."""

    interval, needs = 1, frozenset[str]()

    def __init__(self, step: int) -> None:
        self.step = step

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """Nothing."""

    def observe(self, frame: Frame) -> None:
        """Be killed."""
        if frame.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def crystals(count: int) -> list[Atoms]:
    """Argon crystals, each somewhat shaken in its own way."""
    found = []
    for k in range(count):
        atoms = bulk("Ar", cubic=True, a=5.3) * (2, 2, 2)
        atoms.positions += np.random.default_rng(k).normal(scale=0.05, size=(len(atoms), 3))
        found.append(atoms)
    return found


def simulate(job: dict[str, Any]) -> None:
    """Run as the job says: ``steps`` in all, from the checkpoint if ``restart``, killed at ``kill``."""
    folder = Path(job["out"])
    folder.mkdir(exist_ok=True)
    observers = (
        H5MDTrajectory(folder / "trajectory.h5", 2, forces=True),
        ASETrajectory(folder / "trajectory.traj", 4),
        ThermoTable(folder / "thermo.csv", 1, pressure=True),
        StopNotFinite(),
        Killer(job.get("kill", -1)),
    )
    model = ClassicalPotential([LennardJones(epsilon=0.0103, sigma=3.4, cutoff=4.9)])
    simulation = Simulation(
        model,
        crystals(job.get("replicas", 2)),
        ensemble_from_options(EnsembleOptions(**job["ensemble"])),
        temperature=60.0,
        seed=3,
        observers=observers,
        checkpoint=folder / "checkpoint.npz",
        checkpoint_interval=10,
    )
    if job.get("restart"):
        simulation.restore(folder / "checkpoint.npz")
    if "largest_file" in job:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
    with simulation:
        simulation.run(job["steps"] - simulation.step)


def main(jobs: list[dict[str, Any]]) -> None:
    """Run each job in a copy of this process, and say how they ended: 0, the signal that killed it, or its error."""
    for job in jobs:
        read, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                warnings.simplefilter("error")
                simulate(job)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the parent process must hear of it
                os.write(send, f"{type(error).__name__}: {error}".encode())
                if not job.get("fails"):
                    traceback.print_exc()
            os._exit(0)
        os.close(send)
        status = os.waitpid(pid, 0)[1]
        with os.fdopen(read) as stream:
            text = stream.read().replace("\n", " ")
        sys.stdout.write((text or str(os.WTERMSIG(status))) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # processes are killed here, not the computer: what they wrote is there
    main(json.loads(sys.argv[1]))
