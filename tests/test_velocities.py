"""Starting velocities of a batch."""

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from simkit.md.state import State
from simkit.md.velocities import draw_velocities
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION


def argon() -> Atoms:
    return bulk("Ar", "fcc", a=5.4, cubic=True).repeat(2)


def test_momenta_temperature_and_names() -> None:
    frozen = argon()
    frozen.set_constraint(FixAtoms([0, 5]))
    structures = [argon(), molecule("CH3CH2OH"), frozen, molecule("CO2"), Atoms("H")]
    state = State.from_atoms(structures)
    draw_velocities(state, 250.0, seed=8)
    # Three less for the total momentum, and as many as a free molecule has axes to turn about.
    assert state.degrees.tolist() == [93.0, 21.0, 90.0, 4.0, 3.0]
    np.testing.assert_allclose(state.temperature().numpy(), 250.0, rtol=1e-12)
    found = state.to_atoms()
    for k in (0, 1, 3):
        assert np.abs(found[k].get_momenta().sum(0)).max() < 1e-12
    for k in (1, 3):
        assert np.abs(found[k].get_angular_momentum()).max() < 1e-10
    assert (found[2].get_velocities()[[0, 5]] == 0).all()
    alone = State.from_atoms(structures[1:2])
    alone.replicas[:] = 1
    draw_velocities(alone, 250.0, seed=8)
    assert torch.equal(alone.velocities, state.velocities[32:41])


def test_the_distribution_is_maxwells() -> None:
    """Mean squares of 300 components within 5 standard errors, which are sqrt(2/300) of them; a frozen atom holds the momentum."""
    atoms = Atoms("Ar100He100Ne", np.arange(603).reshape(201, 3), constraint=FixAtoms([200]))
    state = State.from_atoms([atoms])
    draw_velocities(state, 300.0, seed=1)
    for part, mass in ((slice(0, 100), state.masses[0]), (slice(100, 200), state.masses[100])):
        kinetic = float((state.velocities[part] ** 2).mean() * mass)
        expected = BOLTZMANN * 300.0 * FORCE_TO_ACCELERATION
        assert abs(kinetic / expected - 1) < 5 * np.sqrt(2 / 300)
