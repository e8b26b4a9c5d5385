"""Neighbor lists of classical potentials while the cell changes: against lists that were just built, and how rarely they are."""

import numpy as np
import pytest
from ase import Atoms

from simkit.classical import ClassicalPotential, LennardJones
from simkit.md.ensembles import StochasticCell
from simkit.md.forces_classical import ClassicalForces
from simkit.md.state import State
from simkit.md.velocities import draw_velocities
from simkit.units import GPA

TRICLINIC = np.array([[7.0, 0.0, 0.0], [1.7, 6.5, 0.0], [-0.9, 1.3, 7.4]])
CELLS = {
    "triclinic": (TRICLINIC, (True, True, True)),
    "small": (0.4 * TRICLINIC, (True, True, True)),  # shorter than the cutoff
    "slab": (TRICLINIC, (True, False, True)),
}
TERM = LennardJones(1.0, 0.6, 2.0)  # cut: its energy jumps by -0.003 with each pair that comes within 2


@pytest.mark.parametrize("name", CELLS)
def test_a_random_walk_of_cell_and_atoms_equals_fresh_lists(name: str) -> None:
    cell, pbc = CELLS[name]
    rng = np.random.default_rng(4)
    fractions = np.stack(np.meshgrid(*[np.arange(2 if name == "small" else 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    x = (fractions / (fractions.max() + 1) + rng.integers(-2, 3, size=fractions.shape) * np.array(pbc)) @ cell
    kept = ClassicalPotential([TERM], cell=cell, pbc=pbc, skin=0.6)
    forces, expected = np.empty_like(x), np.empty_like(x)
    sign = np.ones((3, 3))
    for step in range(120):
        if step % 40 == 0:
            sign = rng.choice([-1.0, 1.0], size=(3, 3))
        strain = 0.004 * sign * rng.random((3, 3))
        if not pbc[1]:
            strain[:, 1] = strain[1] = 0.0
        x = x @ (np.eye(3) + strain) + rng.normal(size=x.shape) * 0.02
        cell = cell @ (np.eye(3) + strain)
        kept.set_cell(cell)
        energy, virial = kept.evaluate(x, forces)
        fresh = ClassicalPotential([TERM], cell=cell, pbc=pbc, skin=0.0)
        exact_energy, exact_virial = fresh.evaluate(x, expected)
        assert energy == pytest.approx(exact_energy, rel=1e-11)
        assert np.allclose(virial, exact_virial, rtol=0, atol=1e-10 * np.abs(exact_virial).max())
        assert np.allclose(forces, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    assert 4 <= kept.builds <= 40


def test_the_list_is_built_again_just_before_a_pair_could_be_missed() -> None:
    """A pair barely beyond the list, and a cell that shrinks along it: it may come as near as the cutoff, and no nearer."""
    cutoff, skin = TERM.cutoff, 0.5
    cell, forces = np.diag([12.0, 13.0, 14.0]), np.empty((2, 3))
    x = np.array([[1.0, 1.0, 1.0], [1.0 + (cutoff + skin) * (1 + 1e-9), 1.0, 1.0]])
    kept = ClassicalPotential([TERM], cell=cell, skin=skin)
    assert kept.evaluate(x, forces)[0] == 0.0
    for factor, builds in ((0.9, 1), (0.80001, 1), (0.79999, 2)):
        squeeze = np.diag([factor, 1.0, 1.0])
        kept.set_cell(cell @ squeeze)
        distance = (x[1, 0] - x[0, 0]) * factor
        sixth = (0.6 / distance) ** 6
        assert kept.evaluate(x @ squeeze, forces)[0] == pytest.approx(4 * sixth * (sixth - 1) * (distance < cutoff))
        assert kept.builds == builds
    # In a cell that has not changed, the familiar half of the skin.
    still = ClassicalPotential([TERM], cell=cell, skin=skin)
    for shift, builds in ((0.0, 1), (0.2499, 1), (0.2501, 2)):
        still.evaluate(x + np.array([[0.0, 0.0, 0.0], [shift, 0.0, 0.0]]), forces)
        assert still.builds == builds


def test_a_barostat_keeps_its_lists() -> None:
    side = 12.8
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) * side / 3
    state = State.from_atoms([Atoms("Ar27", positions=grid, cell=np.eye(3) * side, pbc=True)] * 2)
    draw_velocities(state, 120.0, 1)
    model = ClassicalPotential([LennardJones(0.0104, 3.4, 7.0, "switched")], cell=np.eye(3), skin=1.0)
    forces = ClassicalForces(model)
    ensemble = StochasticCell(4.0, 120.0, 0.05 * GPA, 5 / GPA, 200.0, 400.0, 5, "anisotropic")
    forces.compute(state, stress=True)
    ensemble.start(state)
    before = state.cells.clone()
    ensemble.advance(state, forces, 200)
    assert bool((state.cells != before).flatten(1).any(1).all())
    assert max(box.builds for box in forces._boxes) <= 20
    kept = state.forces.clone(), state.energy.clone(), state.stress.clone()
    ClassicalForces(model).compute(state, stress=True)
    for old, new in zip(kept, (state.forces, state.energy, state.stress), strict=True):
        assert np.allclose(old.numpy(), new.numpy(), rtol=1e-9, atol=1e-12)
