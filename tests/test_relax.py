"""Relaxation and equation of state on ASE's optimisers, and the drift of an energy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import all_changes
from ase.cluster import Icosahedron
from ase.io import read

import simkit
from simkit import potentials
from simkit.errors import ConfigError, DataError, GeometryError, OutputError, SimkitError
from simkit.md.analysis import energy_drift
from simkit.md.eos import equation_of_state
from simkit.md.relax import relax
from simkit.units import GPA

EPSILON, SIGMA = 0.0104, 3.4


def argon_calculator(cutoff: float = 8.0) -> simkit.Calculator:
    model = potentials.build(
        "lennard_jones", cutoff=cutoff, elements=[18], epsilon=EPSILON, sigma=SIGMA, dtype="float64"
    )
    return simkit.Calculator(model, dtype="float64")


class Broken(simkit.Calculator):
    """A small random PaiNN whose second energy is not a number."""

    def __init__(self) -> None:
        super().__init__(potentials.build("painn", elements=[1, 6, 8], cutoff=4.0, channels=8, layers=2))

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.evaluations == 2:
            self.results["energy"] = float("nan")


def test_drift_of_a_straight_line() -> None:
    time = np.linspace(0, 20000, 401)
    energy = -1.5e5 + 2e-9 * time + 1e-4 * np.cos(2 * np.pi * time / 1000)
    assert energy_drift(time, energy, 4) == pytest.approx(2e-9 * 1e6 / 4, rel=0.05)
    assert energy_drift([0.0, 1000.0], [0.0, 1.0], 1) == pytest.approx(1000.0)
    for bad in (([0.0], [1.0]), ([0.0, 1.0], [1.0]), ([0.0, 1.0], [1.0, np.nan]), ([2.0, 2.0], [1.0, 1.0]), ([], [])):
        with pytest.raises(DataError):
            energy_drift(*bad, 1)


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_dimer_relaxes_to_the_minimum(tmp_path: Path, optimizer: str) -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]])
    result = relax(argon_calculator(20.0), atoms, out=tmp_path, fmax=1e-6, optimizer=optimizer)
    assert result.converged
    assert result.atoms.get_distance(0, 1) == pytest.approx(2 ** (1 / 6) * SIGMA, abs=1e-4)
    assert result.energies[-1] == pytest.approx(-EPSILON, abs=1e-9)
    assert atoms.get_distance(0, 1) == 4.2
    assert {path.name for path in tmp_path.iterdir()} == {"trajectory.traj", "relax.csv", "relaxed.xyz", "relax.png"}
    assert len(read(tmp_path / "trajectory.traj", ":")) == len(result.energies)
    log = np.loadtxt(tmp_path / "relax.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(log[:, 1], result.energies)
    assert read(tmp_path / "relaxed.xyz").get_potential_energy() == pytest.approx(result.energies[-1])


def test_thirteen_atoms_relax_to_the_icosahedron(tmp_path: Path) -> None:
    """The energy of the Lennard-Jones cluster of 13 atoms (Cambridge Cluster Database)."""
    atoms = Icosahedron("Ar", 2, latticeconstant=5.5)
    atoms.rattle(0.2, seed=1)
    result = relax(argon_calculator(40.0), atoms, out=tmp_path, fmax=1e-5)
    assert result.converged
    assert result.energies[-1] / EPSILON == pytest.approx(-44.326801, abs=1e-5)


def test_running_out_of_steps_is_reported(tmp_path: Path) -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]])
    result = relax(argon_calculator(20.0), atoms, out=tmp_path, fmax=1e-6, steps=2)
    assert not result.converged
    assert len(result.energies) == 3
    assert result.max_forces[-1] > 1e-6
    with pytest.raises(OutputError, match="holds a relaxation already"):
        relax(argon_calculator(20.0), atoms, out=tmp_path)


NEAREST = 1.375 * 2 ** (1 / 6) * SIGMA
"""A cutoff that leaves an fcc crystal, strained by up to two per cent, with its nearest neighbours alone, at full strength."""


def test_cell_relaxes_to_the_minimum(tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=5.35)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + 0.005 * np.array([[1, 1, 0], [0, -1, 0], [0, 0, 0]])), scale_atoms=True
    )
    result = relax(argon_calculator(NEAREST), atoms, out=tmp_path, fmax=1e-6, cell=True)
    assert result.converged
    assert result.atoms.get_volume() == pytest.approx(SIGMA**3, rel=1e-4)
    assert result.energies[-1] == pytest.approx(-6 * EPSILON, abs=1e-8)
    np.testing.assert_allclose(result.atoms.get_stress(), 0.0, atol=1e-6)


def test_relaxation_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]])
    for error, changes, message in (
        (ConfigError, {"optimizer": "bfg"}, "did you mean 'bfgs'"),
        (ConfigError, {"fmax": 0.0}, "fmax"),
        (ConfigError, {"steps": 0}, "steps"),
        (GeometryError, {"cell": True}, "periodic"),
    ):
        with pytest.raises(error, match=message):
            relax(argon_calculator(), dimer, out=tmp_path, **changes)
    with pytest.raises(SimkitError, match="broke down in step 1"):
        relax(Broken(), molecule("CH3CH2OH"), out=tmp_path)


def test_equation_of_state_of_nearest_neighbours() -> None:
    """E(r) = 24 eps ((s/r)^12 - (s/r)^6) with V = r^3 / sqrt(2): V0 = s^3, E0 = -6 eps, B = 48 eps / s^3, all per atom."""
    result = equation_of_state(argon_calculator(NEAREST), bulk("Ar", "fcc", a=5.36, cubic=True), strain=0.015, points=9)
    assert result.volumes.shape == result.energies.shape == (9,)
    assert result.volume == pytest.approx(4 * SIGMA**3, rel=1e-4)
    assert result.energy == pytest.approx(-24 * EPSILON, rel=1e-5)
    assert result.bulk_modulus == pytest.approx(48 * EPSILON / SIGMA**3 / GPA, rel=0.02)
    inside = np.interp(result.volumes, result.fit_volumes, result.fit_energies)
    np.testing.assert_allclose(inside, result.energies, atol=2e-5)


def test_equation_of_state_refuses_what_has_none() -> None:
    with pytest.raises(GeometryError, match="no minimum"):
        equation_of_state(argon_calculator(), bulk("Ar", "fcc", a=6.2), strain=0.02)
    with pytest.raises(GeometryError, match="periodic"):
        equation_of_state(argon_calculator(), Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]]))
    with pytest.raises(ConfigError, match="points"):
        equation_of_state(argon_calculator(), bulk("Ar", "fcc", a=5.3), points=2)
