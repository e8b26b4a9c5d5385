"""Neural potentials with free parameters: changes of weights, relaxed and averaged geometries, failures."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from simkit import potentials
from simkit.calculator import Calculator
from simkit.errors import ConfigError
from simkit.inference.priors import IndependentPrior, Normal
from simkit.inference.simulations import run_block
from simkit.inference.simulator import simulation_seeds
from simkit.inference.simulators import build
from simkit.inference.simulators.potential_changes import changed, read_change
from simkit.inference.simulators.potentials import PotentialSimulator
from simkit.potential import Potential
from simkit.units import BOLTZMANN

SEEDS = simulation_seeds(11, 0, 16)


def network(seed: int) -> Potential:
    return potentials.build("painn", elements=[1, 6, 8], channels=8, seed=seed, dtype="float64")


def lennard_jones() -> Potential:
    return potentials.build("lennard_jones", elements=[18], cutoff=8.0, dtype="float64")


def energy_of(model: Potential, atoms: Atoms) -> float:
    copy = atoms.copy()
    copy.calc = Calculator(model, dtype="float64")
    return float(copy.get_potential_energy())


def test_changes_of_weights() -> None:
    """Energies of methanol under each operation, against weights changed by hand."""
    model, other, atoms = network(1), network(2), molecule("CH3OH")
    before, target = energy_of(model, atoms), energy_of(other, atoms)
    entries = {
        "strength": {"scale": "scale"}, "carbon": {"add": "reference", "element": "C"},
        "hydrogen": {"set": "reference", "index": 0}, "mix": {"towards": other}, "head": {"scale": "heads.energy.*"},
    }  # fmt: skip
    change = {name: read_change(name, entry, model) for name, entry in entries.items()}

    def energy(name: str, value: float) -> float:
        return energy_of(changed(model, [change[name]], [value]), atoms)

    assert energy("strength", 1.7) == pytest.approx(1.7 * before, rel=1e-12)  # all references are zero
    assert energy("carbon", 0.3) == pytest.approx(before + 0.3, rel=1e-12)
    assert energy("hydrogen", -0.2) == pytest.approx(before - 4 * 0.2, rel=1e-12)
    assert energy("mix", 0.0) == pytest.approx(before, rel=1e-12)
    assert energy("mix", 1.0) == pytest.approx(target, rel=1e-12)
    halfway = network(1)
    with torch.no_grad():
        for own, theirs in zip(halfway.parameters(), other.parameters(), strict=True):
            own.copy_(0.5 * (own + theirs))
    assert energy("mix", 0.5) == pytest.approx(energy_of(halfway, atoms), rel=1e-10)
    scaled = network(1)
    with torch.no_grad():
        for weight in scaled.heads["energy"].parameters():
            weight.mul_(0.6)
    assert energy("head", 0.6) == pytest.approx(energy_of(scaled, atoms), rel=1e-10)
    assert energy_of(model, atoms) == before


def test_a_relaxed_dimer_with_options_of_its_physics() -> None:
    """Minimum at 2^(1/6) sigma, of depth epsilon; built by name, from plain types."""
    simulator = build(
        "potential", potential=lennard_jones(), structures=Atoms("Ar2", positions=[[0, 0, 0], [4.0, 0, 0]]),
        prior={"epsilon": {"uniform": [0.005, 0.02], "unit": "eV"}, "size": {"uniform": [0.9, 1.1]}},
        parameters={"epsilon": {"set": "options.epsilon"}, "size": {"scale": "options.sigma"}},
        observables=["energy", "distance 0 1"], at="relaxed", fmax=1e-7,
    )  # fmt: skip
    theta = simulator.prior.sample(4, 0)
    found = simulator.split(simulator.simulate(theta, SEEDS[:4]))
    np.testing.assert_allclose(found["energy"], -theta[:, 0], rtol=1e-8)
    np.testing.assert_allclose(found["distance 0 1"], 2 ** (1 / 6) * 3.4 * theta[:, 1], rtol=1e-5)
    assert [o.unit for o in simulator.observables] == ["eV", "angstrom"]


def test_given_structures_and_errors() -> None:
    """Energies, forces and geometry of two structures as they are, and errors of measurement."""
    atoms = [molecule("H2O2"), molecule("CH3OH")]
    atoms[1].rattle(0.05, seed=1)
    names = ["energy", "forces", "angle 1 0 2", "dihedral 2 0 1 3"]
    options = {"parameters": {"strength": {"scale": "scale"}}, "observables": names}
    prior = {"strength": {"uniform": [0.5, 2.0]}}
    simulator = PotentialSimulator(network(1), atoms, prior, **options)  # type: ignore[arg-type]
    theta = np.array([[0.7], [1.3], [2.0]])
    x = simulator.simulate(theta, SEEDS[:3])
    found = simulator.split(x)
    assert [o.shape for o in simulator.observables] == [(2,), (10, 3), (2,), (2,)]
    for k, molecule_ in enumerate(atoms):
        molecule_.calc = Calculator(network(1), dtype="float64")
        part = slice(0, 4) if k == 0 else slice(4, 10)
        np.testing.assert_allclose(found["energy"][:, k], theta[:, 0] * molecule_.get_potential_energy(), rtol=1e-10)
        forces = theta[:, 0, None, None] * molecule_.get_forces()
        np.testing.assert_allclose(found["forces"][:, part], forces, rtol=1e-9, atol=1e-12)
        assert found["angle 1 0 2"][0, k] == pytest.approx(molecule_.get_angle(1, 0, 2))
        assert found["dihedral 2 0 1 3"][0, k] == pytest.approx(molecule_.get_dihedral(2, 0, 1, 3))
    noisy = PotentialSimulator(network(1), atoms, prior, noise={"forces": 0.1}, **options)  # type: ignore[arg-type]
    errors = noisy.split(noisy.simulate(theta, SEEDS[:3]) - x)
    assert errors["forces"].std() == pytest.approx(0.1, rel=5 / math.sqrt(2 * 90))
    assert not errors["energy"].any()
    assert len({noisy.identity(), simulator.identity()}) == 2


@pytest.mark.slow
def test_a_pool_of_processes_gives_the_same() -> None:
    prior, entry = {"strength": {"uniform": [0.5, 2.0]}}, {"strength": {"scale": "scale"}}
    simulator = PotentialSimulator(network(1), molecule("CH3OH"), prior, parameters=entry, noise={"energy": 0.1})
    theta = simulator.prior.sample(6, 3)
    found = run_block(simulator, theta, SEEDS[:6], workers=2).x
    np.testing.assert_allclose(found, simulator.simulate(theta, SEEDS[:6]), rtol=1e-12)


def test_dynamics_of_dimers() -> None:
    """A stiff Morse dimer at 30 K: mean potential energy kT / 2 above the minimum, within 5 standard errors of 12 molecules."""
    model = potentials.build("morse", elements=[29], cutoff=8.0, dtype="float64")
    dimer = Atoms("Cu2", positions=[[0, 0, 0], [2.866, 0, 0]])
    simulator = PotentialSimulator(
        model, [dimer] * 12, {"temperature": {"uniform": [10.0, 50.0]}}, observables=["energy", "distance 0 1"], at="md",
        timestep=0.004, equilibration=200, steps=900, every=5,
    )  # fmt: skip
    theta = np.array([[30.0], [30.0]])
    found = simulator.split(simulator.simulate(theta, SEEDS[:2]))
    excess = (found["energy"].ravel() + 0.3429) / (0.5 * BOLTZMANN * 30.0)
    assert abs(excess.mean() - 1) < 5 * excess.std(ddof=1) / math.sqrt(24)
    assert excess.std(ddof=1) < 0.4
    assert np.abs(found["distance 0 1"] - 2.866).max() < 0.05
    assert not np.array_equal(found["energy"][0], found["energy"][1])
    again = simulator.split(simulator.simulate(theta[1:], SEEDS[1:2]))
    np.testing.assert_array_equal(again["energy"][0], found["energy"][1])


def test_failures_are_rows_of_nan() -> None:
    """A negative depth has no minimum to relax to; a temperature at which the dimer's dynamics break down; NaN."""
    prior = IndependentPrior({"epsilon": Normal(0.01, 0.01)})
    dimer = Atoms("Ar2", positions=[[0, 0, 0], [4.0, 0, 0]])
    entry = {"epsilon": {"set": "options.epsilon"}}
    simulator = PotentialSimulator(lennard_jones(), dimer, prior, parameters=entry, at="relaxed")
    x = simulator.simulate(np.array([[0.01], [-0.01], [np.nan]]), SEEDS[:3])
    np.testing.assert_array_equal(np.isfinite(x).ravel(), [True, False, False])
    hot = PotentialSimulator(
        lennard_jones(), dimer, {"temperature": {"uniform": [10.0, 1e9]}}, at="md", steps=50, equilibration=10
    )
    x = hot.simulate(np.array([[50.0], [1e9]]), SEEDS[:2])
    np.testing.assert_array_equal(np.isfinite(x).ravel(), [True, False])


def test_what_potential_simulators_refuse() -> None:
    model, water = network(1), molecule("H2O")
    good = {"parameters": {"a": {"scale": "scale"}}, "prior": {"a": {"uniform": [0, 1]}}}
    for settings, message in (
        ({"parameters": {"a": {"scale": "scal"}}}, "did you mean 'scale'"),
        ({"parameters": {"a": {"multiply": "scale"}}}, "expected one of set, add, scale, towards"),
        ({"parameters": {"a": {"add": "reference", "element": "N"}}}, "none of the model's elements"),
        ({"parameters": {"a": {"add": "reference", "index": 3}}}, "no entry 3"),
        ({"parameters": {"a": {"add": "scale", "index": 0}}}, "no entry 0"),
        ({"parameters": {"a": {"set": "options.chanels"}}}, "no number 'chanels'"),
        ({"parameters": {"a": {"towards": lennard_jones()}}}, "other weights or elements"),
        ({"parameters": {}}, "no parameter 'a'"),
        ({"observables": ["distance 0 3"]}, "atoms below 3"),
        ({"observables": ["distance 1 1"]}, "different"),
        ({"observables": ["forces"], "at": "md"}, "not of md"),
        ({"noise": {"forces": 1.0}}, "which is not observed"),
        ({"at": "hot"}, "given, relaxed or md"),
    ):
        with pytest.raises(ConfigError, match=message):
            PotentialSimulator(model, water, **(good | settings))  # type: ignore[arg-type]
