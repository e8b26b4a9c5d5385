"""Simulated fluids: forces and observables against `simkit.classical` and `simkit.md`, states against published values and exact limits."""

import math

import numpy as np
import pytest
from ase import Atoms

from simkit import integrators
from simkit.classical import ClassicalPotential, LennardJones, Morse
from simkit.errors import ConfigError
from simkit.inference.priors import IndependentPrior, Normal, Uniform
from simkit.inference.simulator import simulation_seeds
from simkit.inference.simulators.fluid_observables import BAR, Measurement, Motion
from simkit.inference.simulators.fluids import AMU_PER_CUBIC_ANGSTROM, LennardJonesFluid, MorseFluid
from simkit.inference.simulators.small_box import SmallBox, fill_forces, lattice, lattice_order
from simkit.integrators import cpu
from simkit.md.correlation import mean_autocorrelation
from simkit.md.ensembles import Bussi
from simkit.md.rdf import radial_distribution
from simkit.md.replicas import spread
from simkit.md.simulation import Simulation
from simkit.md.transport import mean_squared_displacement
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

SEEDS = simulation_seeds(7, 0, 16)
TERMS = [
    LennardJones(0.0103, 3.4, 8.0, tail=True),
    LennardJones(0.0103, 3.4, 8.0, "force-shifted"),
    Morse(0.0103, 1.6, 3.8, 8.0),
]


def disordered(atoms: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Displaced lattice sites, some of them in other cells."""
    x = lattice(atoms, length) + rng.normal(scale=0.2, size=(atoms, 3))
    return x + length * rng.integers(-2, 3, size=x.shape)


def in_parts(*names: str, **settings: object) -> LennardJonesFluid:
    return LennardJonesFluid(observables=names, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("term", TERMS)
def test_forces_energy_and_virial_are_those_of_the_general_engine(term: LennardJones, rng: np.random.Generator) -> None:
    length = 17.3
    x, f, expected = disordered(108, length, rng), np.empty((108, 3)), np.empty((108, 3))
    box = SmallBox(term, length, 108, 1.0)
    fill_forces(x, f, *box.arguments)
    energy, virial = ClassicalPotential([term], cell=np.eye(3) * length).evaluate(x, expected)
    np.testing.assert_allclose(f, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    beyond, pressure = box.beyond()
    assert box.sums[0] + beyond == pytest.approx(energy, rel=1e-12)
    assert box.sums[1] + 3 * pressure * box.volume == pytest.approx(np.trace(virial), rel=1e-10)


def test_the_list_of_pairs_stays_complete(rng: np.random.Generator) -> None:
    """After every few of 300 hot steps, with a list that is built again as atoms move."""
    length, term = 17.3, TERMS[0]
    box = SmallBox(term, length, 108, 1.0)
    x, f, expected = lattice(108, length), np.empty((108, 3)), np.empty((108, 3))
    v = rng.normal(scale=3e-3, size=x.shape)
    inertia = np.full(108, 39.948 / FORCE_TO_ACCELERATION)
    engine = cpu.Integrator(integrators.get("velocity-verlet"), fill_forces, x, v, f, inertia, arguments=box.arguments)
    engine.evaluate_forces()
    for _ in range(30):
        engine.run(10, timestep=10.0)
        ClassicalPotential([term], cell=np.eye(3) * length, skin=0.0)(x, expected)
        np.testing.assert_allclose(f, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_order_of_a_lattice_and_of_none(rng: np.random.Generator) -> None:
    x = lattice(256, 20.0)
    assert lattice_order(x + 40.0, 20.0) == pytest.approx(1.0)
    assert lattice_order(rng.uniform(0, 20.0, (256, 3)), 20.0) < 4 / math.sqrt(256)
    distances = np.linalg.norm(x - x[0], axis=1)
    assert np.sort(distances)[1] == pytest.approx(20.0 / 4 / math.sqrt(2))


def test_observables_are_those_of_the_analysis_of_trajectories(rng: np.random.Generator) -> None:
    """Of a made-up motion; g(r) starts at 2 angstrom, so that the bins are those of a histogram from 0."""
    length, frames = 17.3, 60
    start = disordered(108, length, rng)
    positions = start + rng.normal(scale=0.3, size=(frames, 108, 3)).cumsum(axis=0)
    velocities = rng.normal(size=(frames, 108, 3)).cumsum(axis=0)
    energies, pressures = rng.normal(size=(2, frames))
    motion = Motion(positions, velocities, 100.0, energies, pressures, length, 0.008)
    names = ("vacf", "msd", "diffusion", "rdf", "energy", "pressure")
    measure = Measurement(names, (2.0, 8.0), 30, (0.1, 0.3, 1.0), (0.4, 1.5), None)
    measure.check("test", length, 0.1, frames)
    vacf, msd, diffusion, rdf, energy, pressure = np.split(measure(motion), [3, 6, 7, 37, 38])
    g = radial_distribution(
        positions, np.eye(3) * length, [True] * 3, {"Ar": np.ones(108, dtype=bool)}, r_max=8.0, bins=40
    )
    np.testing.assert_allclose(rdf, g.total[10:], rtol=1e-12)
    np.testing.assert_allclose(measure.observables()[3].axis, g.distances[10:], rtol=1e-12)
    displacement = mean_squared_displacement(positions)
    np.testing.assert_allclose(msd, displacement[[1, 3, 10]], rtol=1e-10)
    correlation = mean_autocorrelation(velocities)
    np.testing.assert_allclose(vacf, correlation[[1, 3, 10]] / correlation[0], rtol=1e-10)
    lags = np.arange(4, 16)
    slope = np.linalg.lstsq(np.stack([lags * 0.1, np.ones(12)], axis=1), displacement[lags], rcond=None)[0][0]
    assert diffusion[0] == pytest.approx(slope / 6, rel=1e-10)
    assert energy[0] == pytest.approx(1e3 * energies.mean() / 108)
    assert pressure[0] == pytest.approx(pressures.mean() * 160.21766208e4)
    # Yeh and Hummer's correction in SI units.
    corrected = Measurement(("diffusion",), (2.0, 8.0), 30, (0.1,), (0.4, 1.5), 0.25)(motion)[0] - diffusion[0]
    si = 2.837297 * 0.008 * 1.602176634e-19 / (6 * math.pi * 0.25e-3 * length * 1e-10)
    assert corrected == pytest.approx(si * 1e20 / 1e12, rel=1e-6)


def test_a_gas_without_forces_follows_the_exact_laws() -> None:
    """Langevin's equation: mean squared displacement, exp(-friction t), ideal pressure and no structure, within 5 standard errors."""
    prior = {"friction": {"uniform": [1.0, 10.0]}, "temperature": {"uniform": [50.0, 150.0]}}
    fluid = in_parts(
        "msd", "vacf", "pressure", "rdf", prior=prior, fixed={"epsilon": 1e-6, "sigma": 0.1}, lags=[0.1, 0.2, 0.5, 1.0],
        rdf_range=(2.0, 8.0), rdf_bins=3,
    )  # fmt: skip
    friction, temperature = 4.0, 120.0
    x = fluid.simulate(np.tile([friction, temperature], (16, 1)), SEEDS)
    found = fluid.split(x)
    t, kt = np.array([0.1, 0.2, 0.5, 1.0]), BOLTZMANN * temperature
    spread_of_v = 1e6 * kt * FORCE_TO_ACCELERATION / 39.948  # angstrom^2/ps^2
    msd = 6 * spread_of_v / friction**2 * (friction * t - 1 + np.exp(-friction * t))
    ideal = 108 * kt / fluid.length**3 / BAR
    exact = {"msd": msd, "vacf": np.exp(-friction * t), "rdf": np.full(3, 1 - 1 / 108)}
    for name, value in exact.items():
        assert (np.abs(found[name].mean(axis=0) - value) < 5 * spread(found[name])).all(), name
    np.testing.assert_allclose(found["pressure"], ideal, rtol=1e-4)


def reduced(density: float, temperature: float, **settings: object) -> LennardJonesFluid:
    """A state in reduced units, for epsilon = 120 K and sigma = 3.4 angstrom."""
    grams = density / 3.4**3 * 39.948 * AMU_PER_CUBIC_ANGSTROM
    return in_parts("energy", "pressure", density=grams, fixed={"temperature": 120 * temperature}, **settings)


def test_published_energy_and_pressure() -> None:
    """NIST's Lennard-Jones fluid at T* = 0.85 and density 0.776: U* = -5.5121, p* = 0.0068; 0.02 and 0.1 for cutoff and 108 atoms."""
    fluid = reduced(0.776, 0.85)
    found = fluid.split(fluid.simulate(np.tile([120.0, 3.4], (12, 1)), SEEDS[:12]))
    energy = found["energy"] / (1e3 * BOLTZMANN * 120)
    pressure = found["pressure"] * BAR * 3.4**3 / (BOLTZMANN * 120)
    assert abs(energy.mean() + 5.5121) < 5 * spread(energy) + 0.02
    assert abs(pressure.mean() - 0.0068) < 5 * spread(pressure) + 0.1


@pytest.mark.slow
def test_a_liquid_is_that_of_a_simulation() -> None:
    """Energy and pressure of `simkit.md` with Bussi's thermostat in every step, four replicas of the same cube."""
    fluid = reduced(0.82, 0.85)
    found = fluid.split(fluid.simulate(np.tile([120.0, 3.4], (12, 1)), SEEDS[:12]))
    atoms = Atoms("Ar108", positions=lattice(108, fluid.length), cell=np.eye(3) * fluid.length, pbc=True)
    model = ClassicalPotential([LennardJones(120 * BOLTZMANN, 3.4, 8.5, tail=True)], cell=np.eye(3), skin=1.0)
    energies, pressures = [], []
    simulation = Simulation(model, atoms, Bussi(10.0, 102.0, 200.0, 5), replicas=4, temperature=360.0, seed=1)
    simulation.run(1500)
    for _ in range(200):
        simulation.run(10)
        simulation.forces.compute(simulation.state, energy=True, stress=True)
        energies.append(1e3 * simulation.state.energy.numpy() / 108)
        virial = -simulation.state.stress.diagonal(dim1=1, dim2=2).mean(1).numpy()
        pressures.append((108 * BOLTZMANN * 102.0 / fluid.length**3 + virial) / BAR)
    for name, series in (("energy", energies), ("pressure", pressures)):
        means = np.mean(series, axis=0)
        apart = found[name].mean() - means.mean()
        assert abs(apart) < 5 * math.hypot(spread(found[name]), spread(means)), name


def short(**settings: object) -> LennardJonesFluid:
    return LennardJonesFluid(**({"equilibration": 900, "steps": 900} | settings))  # type: ignore[arg-type]


def test_failures_stay_alone_and_rows_do_not_know_their_batch() -> None:
    """Atoms much too large for the cube, a negative depth and NaN among sound parameters."""
    prior = IndependentPrior({"epsilon": Normal(120.0, 50.0), "sigma": Uniform(3.0, 9.0)})
    fluid = short(prior=prior)
    theta = np.array([[120.0, 3.4], [120.0, 8.0], [-10.0, 3.4], [np.nan, 3.4], [130.0, 3.3]])
    x = fluid.simulate(theta, SEEDS[:5])
    np.testing.assert_array_equal(np.isnan(x).all(axis=1), [False, True, True, True, False])
    np.testing.assert_array_equal(np.isfinite(x).all(axis=1), [True, False, False, False, True])
    np.testing.assert_array_equal(fluid.simulate(theta[[4, 0]], SEEDS[[4, 0]]), x[[4, 0]])
    assert not np.array_equal(fluid.simulate(theta[:1], SEEDS[1:2]), x[:1])


def test_lattices_that_do_not_melt_and_long_steps_fail() -> None:
    theta = np.array([[120.0, 3.4]])
    assert np.isnan(short(equilibration=3).simulate(theta, SEEDS[:1])).all()
    assert np.isnan(short(timestep=0.2, lags=[2.0], diffusion_lags=(2.0, 4.0)).simulate(theta, SEEDS[:1])).all()


def test_a_morse_liquid() -> None:
    """It has the minimum and curvature of the Lennard-Jones liquid, whose first maximum it shares."""
    fluid = MorseFluid(observables=("rdf", "energy"), equilibration=900, steps=900)
    assert fluid.prior.names == ("depth", "alpha", "distance")
    assert fluid.prior.units == ("K", "1/angstrom", "angstrom")
    theta = np.array([[120.0, 6 / (2 ** (1 / 6) * 3.4), 2 ** (1 / 6) * 3.4]])
    found = fluid.split(fluid.simulate(theta, SEEDS[:1]))
    peak = np.array(fluid.observables[0].axis)[found["rdf"][0].argmax()]
    assert abs(peak - 3.7) < 0.2
    assert -80 < found["energy"][0] < -40


def test_what_fluids_refuse() -> None:
    for settings, message in (
        ({"atoms": 100}, "face-centred lattice, such as \\[32, 108, 256\\]"),
        ({"cutoff": 9.0}, "at most half of the cube"),
        ({"observables": ["pressur"]}, "did you mean 'pressure'"),
        ({"observables": ["rdf", "rdf"]}, "each once"),
        ({"lags": [0.15]}, "multiples of the time between two frames, 0.1 ps"),
        ({"diffusion_lags": (1.0, 20.0)}, "up to half of what is seen"),
        ({"rdf_range": (0.0, 12.0)}, "rdf_range must rise"),
        ({"steps": 50}, "ten frames at least"),
        ({"fixed": {"temperature": -3.0}}, "above 0; found -3"),
        ({"prior": {"depth": {"uniform": [1, 2]}}}, "no parameter 'depth'"),
    ):
        with pytest.raises(ConfigError, match=message):
            LennardJonesFluid(**settings)  # type: ignore[arg-type]
    assert short().identity() == short().identity()
    assert len({short(**s).identity() for s in ({}, {"cutoff": 8.0}, {"fixed": {"temperature": 90.0}})}) == 3  # type: ignore[arg-type]
