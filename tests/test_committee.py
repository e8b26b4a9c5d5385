"""Committees: against their members one by one, equations written out in loops, and energy conservation; what their dynamics notes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError

from simkit import potentials
from simkit.calculator import Calculator
from simkit.errors import ConfigError, DataError, ElementError
from simkit.graph import AtomGraph
from simkit.inference.active import Exploration, explore
from simkit.inference.committee import Committee, CommitteeCalculator, CommitteeForces, force_disagreement
from simkit.md.ensembles import NVE, Langevin
from simkit.md.forces import PotentialForces
from simkit.md.simulation import Simulation
from simkit.md.state import State
from simkit.potential import Potential


def member(seed: int, elements: list[int] | None = None, **options: object) -> Potential:
    values = {"channels": 8, "layers": 1, "basis": 6, "dtype": "float64", "cutoff": 3.5} | options
    return potentials.build("painn", elements=elements or [1, 6, 8], seed=seed, **values)  # type: ignore[arg-type]


@pytest.fixture
def committee() -> Committee:
    return Committee([member(seed) for seed in range(3)])


def shaken(name: str, seed: int) -> Atoms:
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(size=(len(atoms), 3)) * 0.05
    return atoms


def crystal() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def by_hand(members: list[Potential], graph: AtomGraph, outputs: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """The outputs of each member on a graph of its own."""
    found = [one(graph.clone(), outputs) for one in members]
    return {name: [values[name].numpy() for values in found] for name in outputs}


# ------------------------------------------------------------------------------------------------------------ committee


def test_means_and_spreads_are_those_of_the_members(committee: Committee) -> None:
    members = [member(seed) for seed in range(3)]
    graph = AtomGraph.from_ase([crystal(), crystal().repeat((1, 1, 2))], 3.5)
    alone = by_hand(members, graph, ("energy", "forces", "stress"))
    found = committee(graph, committee.outputs)
    for name, values in alone.items():
        np.testing.assert_allclose(found[name].numpy(), sum(values) / 3, rtol=1e-12, atol=1e-12)
    for k in range(graph.num_structures):
        energies = [values[k] for values in alone["energy"]]
        middle = sum(energies) / 3
        expected = (sum((e - middle) ** 2 for e in energies) / 3) ** 0.5
        assert float(found["energy_disagreement"][k]) == pytest.approx(expected, rel=1e-9)
    for atom in range(len(graph.z)):
        total = 0.0
        for forces in alone["forces"]:
            for axis in range(3):
                total += (forces[atom, axis] - sum(other[atom, axis] for other in alone["forces"]) / 3) ** 2 / 3
        assert float(found["disagreement"][atom]) == pytest.approx(total**0.5, rel=1e-9)
    assert set(committee(graph, ("disagreement",))) == {"disagreement"}


def test_members_that_agree_do_not_disagree() -> None:
    forces = torch.randn(1, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1)
    assert float(force_disagreement(forces).abs().max()) < 1e-15
    shifted = forces.clone()
    shifted[0, 2, 1] += 4.0  # deviations of 3, -1, -1, -1: a mean square of 3
    assert float(force_disagreement(shifted)[2]) == pytest.approx(3.0**0.5)


def test_unusable_committees() -> None:
    with pytest.raises(ConfigError, match="at least two members to disagree, found 1"):
        Committee([member(0)])
    with pytest.raises(ElementError, match="same elements"):
        Committee([member(0), member(1, [1, 6])])
    with pytest.raises(ConfigError, match="cast one of them"):
        Committee([member(0), member(1, dtype="float32")])
    with pytest.raises(ConfigError, match="gives no energies"):
        Committee([member(0), member(1, outputs=("homo",))])
    with pytest.raises(ConfigError, match="cannot give dipole"):
        Committee([member(0), member(1)])(AtomGraph.from_ase(molecule("H2O"), 3.5), ("dipole",))


# --------------------------------------------------------------------------------------------------- forces, calculator


def test_forces_of_replicas(committee: Committee) -> None:
    structures = [shaken("CH3CH2OH", 1), shaken("H2O", 2), shaken("CH4", 3)]
    state, alone = State.from_atoms(structures), State.from_atoms(structures)
    forces = CommitteeForces(committee, dtype="float64")
    forces.compute(state)
    each = []
    for seed in range(3):
        PotentialForces(member(seed), dtype="float64").compute(alone)
        each.append(alone.forces.clone())
    np.testing.assert_allclose(state.forces.numpy(), (sum(each) / 3).numpy(), atol=1e-12)
    np.testing.assert_allclose(forces.disagreement.numpy(), force_disagreement(torch.stack(each)).numpy(), atol=1e-12)
    assert forces.identity() == CommitteeForces(committee, dtype="float64").identity()
    assert forces.identity() != CommitteeForces(Committee([member(k) for k in (0, 1, 3)]), dtype="float64").identity()


def test_one_neighbor_list_for_all_members(committee: Committee) -> None:
    structure = crystal().repeat(2)
    runs = []
    for forces in (CommitteeForces(committee, dtype="float64"), PotentialForces(member(0), dtype="float64")):
        Simulation(forces, structure, NVE(0.5), temperature=1500.0, seed=1).run(60)
        runs.append(forces.neighbor_builds)
    assert 1 < runs[0] <= runs[1] + 2


def test_calculator_gives_the_mean_of_the_members(committee: Committee) -> None:
    calculator = CommitteeCalculator(committee, dtype="float64")
    for atoms in (shaken("CH3CH2OH", 0), shaken("CH3CH2OH", 5), shaken("H2O", 1), crystal()):
        atoms.calc = calculator
        energies, forces, stresses = [], [], []
        for seed in range(3):
            other = atoms.copy()
            other.calc = Calculator(member(seed), dtype="float64")
            energies.append(other.get_potential_energy())
            forces.append(other.get_forces())
            stresses.append(other.get_stress() if atoms.pbc.all() else 0.0)
        assert atoms.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), np.mean(forces, axis=0), atol=1e-10)
        expected = np.sqrt(np.mean(np.sum((forces - np.mean(forces, axis=0)) ** 2, axis=2), axis=0))
        np.testing.assert_allclose(calculator.get_property("disagreement", atoms), expected, atol=1e-10)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(), np.mean(stresses, axis=0), atol=1e-12)
        else:
            with pytest.raises(PropertyNotImplementedError):
                atoms.get_stress()


def test_members_are_read_from_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(paths):
        member(seed).save(path)
    atoms = shaken("CH4", 0)
    atoms.calc = CommitteeCalculator(paths, dtype="float64")
    before = atoms.get_potential_energy()
    atoms.calc = CommitteeCalculator(Committee([member(0), member(1)]), dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(before, abs=1e-12)


def test_mean_forces_are_the_derivative_of_the_mean_energy(committee: Committee) -> None:
    atoms = shaken("CH3OH", 4)
    atoms.calc = CommitteeCalculator(committee, dtype="float64")
    forces = atoms.get_forces()
    for atom, axis in ((0, 0), (3, 2)):
        energies = []
        for sign in (1, -1):
            atoms.positions[atom, axis] += sign * 1e-4
            energies.append(atoms.get_potential_energy())
            atoms.positions[atom, axis] -= sign * 1e-4
        assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / 2e-4, abs=1e-6)


def test_dynamics_on_the_mean_conserves_the_energy(committee: Committee) -> None:
    """The error of velocity Verlet goes with the square of the time step."""
    swings = []
    for timestep, steps in ((0.4, 100), (0.2, 200)):
        simulation = Simulation(
            CommitteeForces(committee, dtype="float64"), shaken("CH3OH", 0), NVE(timestep), temperature=400.0, seed=3
        )
        energies = []
        for _ in range(20):
            simulation.run(steps // 20)
            energies.append(float(simulation.ensemble.conserved(simulation.state)[0]))
        swings.append(np.ptp(energies))
    assert swings[0] < 0.02
    assert 2.5 < swings[0] / swings[1] < 6.0


# ---------------------------------------------------------------------------------------------------------- exploration


def run(
    forces: CommitteeForces,
    start: Atoms,
    *,
    steps: int = 40,
    upper: float = 1e3,
    timestep: float = 0.5,
    bonds: bool = False,
) -> Exploration:
    ensemble = Langevin(timestep, 300.0, 0.02, 7)
    return explore(
        forces, start, ensemble, steps=steps, interval=10, temperature=300.0, seed=5, upper=upper, watch_bonds=bonds
    )


def test_exploration_notes_the_disagreement_at_no_cost(committee: Committee) -> None:
    forces = CommitteeForces(committee, dtype="float64", fast=False)
    found = run(forces, shaken("CH3OH", 0))
    assert found.steps.tolist() == [10, 20, 30, 40]
    assert found.ended == ""
    assert forces.evaluations == 41  # one for each step and one at the start
    for k in range(4):
        frame = found.frame(k)
        again = committee(AtomGraph.from_ase(frame, 3.5), ("disagreement",))["disagreement"].numpy()
        np.testing.assert_allclose(found.disagreement[k], again, atol=1e-10)
        assert frame.info["disagreement"] == pytest.approx(again.max(), abs=1e-10)
        assert found.scores()[k] == found.disagreement[k].max()


def test_exploration_ends_where_the_committee_is_lost(committee: Committee) -> None:
    forces = CommitteeForces(committee, dtype="float64")
    whole = run(forces, shaken("CH3OH", 0)).scores()
    upper = float(np.sort(whole)[-2:].mean())
    found = run(forces, shaken("CH3OH", 0), upper=upper)
    first = int(np.flatnonzero(whole > upper)[0])
    np.testing.assert_array_equal(found.scores(), whole[: first + 1])
    assert f"more than {upper:g}, at step {10 * (first + 1)}" in found.ended


def test_exploration_ends_when_a_molecule_falls_apart(committee: Committee) -> None:
    hot = Langevin(0.5, 300.0, 0.02, 7)
    found = explore(
        CommitteeForces(committee, dtype="float64"),
        molecule("CH3OH"),
        hot,
        steps=200,
        interval=5,
        temperature=30000.0,
        seed=0,
        upper=1e6,
    )
    assert "bonds were broken or formed" in found.ended
    assert found.steps[-1] < 200


def test_exploration_that_breaks_down_keeps_what_it_saw(committee: Committee) -> None:
    for one in committee.members:
        one.get_buffer("scale").fill_(1e4)
    found = run(CommitteeForces(committee, dtype="float64"), molecule("CH3OH"), timestep=3.0, steps=100)
    assert "broke down" in found.ended
    assert np.isfinite(found.positions).all()


@pytest.mark.parametrize("make", [lambda: molecule("CH3OH"), lambda: crystal()], ids=["molecule", "crystal"])
def test_explorations_are_kept_in_files(committee: Committee, tmp_path: Path, make: Callable[[], Atoms]) -> None:
    found = run(CommitteeForces(committee, dtype="float64"), make(), steps=20)
    found.save(tmp_path / "run.npz")
    again = Exploration.load(tmp_path / "run.npz")
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert again.frame(1).pbc.tolist() == make().pbc.tolist()
    np.savez(tmp_path / "other.npz", positions=found.positions)
    with pytest.raises(DataError, match="holds no exploration"):
        Exploration.load(tmp_path / "other.npz")
