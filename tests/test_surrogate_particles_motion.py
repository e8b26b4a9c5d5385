"""Graph networks of particles as simulators: rollouts, training by the common loop, files, and ASE's dynamics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.fd import calculate_numerical_forces
from ase.md.verlet import VelocityVerlet
from torch import Tensor

from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.surrogates import models
from simkit.surrogates.files import load, save
from simkit.surrogates.models.graph_network import HamiltonianGraphNetwork
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.particle_calculator import ParticleCalculator
from simkit.surrogates.preparation import MotionParts, build_model
from simkit.surrogates.recipe import read_surrogate_recipe
from simkit.surrogates.samples import single_states
from simkit.surrogates.systems.lennard_jones import LennardJonesParticles
from simkit.surrogates.systems.protocol import Protocol
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions
from simkit.units import FORCE_TO_ACCELERATION, KCAL_PER_MOL


def make(particles: int = 9, dimensions: int = 2, **options: Any) -> Any:
    """A float64 model of random weights, but with signs that make close particles repel each other, in a box of 3 units."""
    given: dict[str, Any] = {
        "cutoff": 1.4, "contact": 0.6, "width": 12, "scale": 0.1, "box": (3.0,) * dimensions, **options
    }  # fmt: skip
    model: Any = models.build("graph-network", particles * dimensions, dtype="float64", dimensions=dimensions, **given)
    with torch.no_grad():
        pairs = model.potential.edge_energy
        for weight in (pairs.edge.weight[:, -4:], pairs.rest[0].weight, pairs.rest[2].weight):
            weight.abs_()
        model.potential.node_energy[2].weight *= 0.1
    return model


def start(particles: int = 9, dimensions: int = 2, seed: int = 2) -> Tensor:
    """Particles near the points of a lattice of one unit, with momenta that add up to nothing."""
    generator = np.random.default_rng(seed)
    per_side = round(particles ** (1 / dimensions))
    sites = np.stack(np.unravel_index(np.arange(particles), (per_side,) * dimensions), axis=-1)
    x = sites + generator.uniform(-0.1, 0.1, sites.shape)
    p = 0.3 * generator.standard_normal(x.shape)
    return torch.from_numpy(np.concatenate([x.ravel(), (p - p.mean(0)).ravel()]))


def leapfrog(model: HamiltonianGraphNetwork, state: Tensor, h: float, steps: int, masses: Tensor) -> Tensor:
    """Velocity Verlet written out."""
    q, p = state.chunk(2)
    for _ in range(steps):
        p = p + h / 2 * model.forces(q)
        q = q + h * p / masses
        p = p + h / 2 * model.forces(q)
    return torch.cat([q, p])


def test_rollouts_are_velocity_verlet_and_conserve() -> None:
    species = (0, 1, 0, 0, 1, 0, 1, 1, 0)
    model, state = make(masses=[1, 2.5], species=species), start()
    masses = torch.tensor([1, 2.5], dtype=torch.float64)[list(species)].repeat_interleave(2)
    times = torch.linspace(0, 2, 11, dtype=torch.float64)
    with torch.no_grad():
        frames = model.rollout(state, times, timestep=0.02)
        expected = leapfrog(model, state, 0.02, 100, masses)
        back = model.rollout(frames[-1], -times, timestep=0.02)
    torch.testing.assert_close(frames[-1], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(back[-1], state, rtol=0, atol=1e-8)
    assert float((frames[-1] - frames[0])[:18].abs().max()) > 0.3
    total = frames[:, 18:].unflatten(1, (9, 2)).sum(1)
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)


def test_the_error_of_the_energy_falls_with_the_square_of_the_step() -> None:
    model, state = make(), start()
    times = torch.linspace(0, 1.6, 17, dtype=torch.float64)
    errors = []
    with torch.no_grad():
        for h in (0.02, 0.01):
            energy = model.energy(model.rollout(state, times, timestep=h))
            errors.append(float((energy - energy[0]).abs().max()))
    assert 1e-8 < errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


def test_lists_are_kept_in_rollouts() -> None:
    model = make()
    with torch.no_grad():
        model.rollout(start().expand(3, -1), torch.linspace(0, 1, 51, dtype=torch.float64))
    assert 1 <= model.neighbors.builds < 25


def test_gradients_by_retracing_are_those_of_backpropagation() -> None:
    state = start()
    found = []
    for gradient in ("backpropagation", "reversible"):
        model = make(learn_masses=True)
        begin = state.clone().requires_grad_(True)
        frames = model.rollout(begin, torch.tensor([0.0, 0.3]), timestep=0.05, gradient=gradient)
        frames[-1, :18].square().sum().backward()
        found.append([begin.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_files_keep_the_system_and_serve_any_number(tmp_path: Path) -> None:
    model = make(masses=[1, 2], species=(0, 1, 0, 0, 1, 0, 1, 1, 0), learn_masses=True)
    model.info = {"units": {"length": "angstrom", "energy": "kcal/mol"}}
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    if not isinstance(again, HamiltonianGraphNetwork):
        raise TypeError(type(again))
    assert torch.equal(again.derivative(0.0, start()), model.derivative(0.0, start()))
    large = again.with_particles(16, box=(4.0, 4.0), species=(0, 1) * 8)
    expected = model.with_particles(16, box=(4.0, 4.0), species=(0, 1) * 8).forces(start(16)[:32])
    assert torch.equal(large.forces(start(16)[:32]), expected)
    assert (large.info, large.name, large.dof, large.training) == (model.info, "graph-network", 32, False)
    save(large, tmp_path / "large.safetensors")
    assert load(tmp_path / "large.safetensors").describe() == large.describe()
    with pytest.raises(ConfigError, match="species"):
        again.with_particles(4, species=(0, 1))
    with pytest.raises(ConfigError, match="box must be"):
        again.with_particles(4, box=(1.0,))


def data(count: int, seed: int) -> Any:
    protocol = Protocol("a test", {"all": count}, 1.0, 11, equilibration=1.0)
    return LennardJonesParticles(temperature=2.0).generate(protocol, seed)


def test_sixteen_particles_teach_sixty_four(tmp_path: Path) -> None:
    """After little training, forces of 64 particles are right to a few percent, and the energies stay where they were."""
    given = LennardJonesParticles().surroundings()
    model = models.build("graph-network", 32, scale=10.0, width=16, rounds=1, **given)
    samples = single_states(data(24, 0), "canonical", torch.float32)
    options = TrainingOptions(
        epochs=16, batch_size=24, optimizer="adam", learning_rate=5e-3, warmup_steps=10, ema_decay=0.9,
        validate_every=16, device="cpu",
    )  # fmt: skip
    fit(Trainee(model), MotionObjective(ObjectiveOptions(noise=1e-4)), samples, None, options, tmp_path)
    system = LennardJonesParticles(64)
    state = torch.from_numpy(system.integrate(system.sample(1, 1), np.array([0.0, 2.0]))[0, -1])
    if not isinstance(model, HamiltonianGraphNetwork):
        raise TypeError(type(model))
    large = model.eval().double().with_particles(64, box=(system.box,) * 2)
    true = system.vector_field(0.0, state)[128:]
    error = (large.forces(state[:128]).detach() - true).norm() / true.norm()
    assert float(error) < 0.1
    with torch.no_grad():
        frames = large.rollout(state, torch.linspace(0, 1, 21, dtype=torch.float64), timestep=0.005)
        learned = large.energy(frames)
    kinetic = float(state[128:].square().sum() / 2)
    assert float((learned - learned[0]).abs().max()) / kinetic < 2e-3
    actual = system.energy(frames)
    assert float((actual - actual[0]).abs().max()) / kinetic < 0.1


def test_recipes_fill_in_the_system() -> None:
    system = LennardJonesParticles(temperature=2.0, dimensions=2, density=0.4, mass=2.0)
    recipe = read_surrogate_recipe(
        None, ["data.system=lennard_jones", "model.name=graph-network", "model.width=8", "model.cutoff=2.0"]
    )
    model = build_model(recipe, MotionParts(data(1, 0), None, None, system))
    if not isinstance(model, HamiltonianGraphNetwork):
        raise TypeError(type(model))
    options = model.options.model_dump()
    assert (options["cutoff"], options["masses"], options["box"]) == (2.0, (2.0,), (system.box,) * 2)
    assert model.particles == 16


def symbols_of(species: tuple[int, ...], names: tuple[str, ...]) -> list[str]:
    return [names[k] for k in species]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_calculator_agrees_with_the_model_and_with_differences(dimensions: int) -> None:
    count = 3**dimensions
    species = tuple(k % 2 for k in range(count))
    model, state = make(count, dimensions, masses=[1, 2], species=species), start(count, dimensions)
    calculator = ParticleCalculator(model, length=2.0, energy=0.25, elements=["Ar", "Kr"])
    atoms = calculator.structure(state)
    assert atoms.get_chemical_symbols() == symbols_of(species, ("Ar", "Kr"))
    assert atoms.get_masses().tolist() == [1.0 + k for k in species]
    q, p = state.chunk(2)
    assert atoms.get_potential_energy() == pytest.approx(0.25 * float(model.potential(q).detach()), rel=1e-12)
    forces = model.forces(q).detach().reshape(count, dimensions).numpy() * 0.125
    np.testing.assert_allclose(atoms.get_forces()[:, :dimensions], forces, rtol=1e-10, atol=1e-12)
    assert not atoms.get_forces()[:, dimensions:].any()
    kinetic = 0.25 * float((p**2).sum() / 2 - (p**2).reshape(count, dimensions)[np.array(species) == 1].sum() / 4)
    assert atoms.get_kinetic_energy() == pytest.approx(kinetic, rel=1e-12)
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[0, 1, 4], icarts=range(dimensions))
    np.testing.assert_allclose(atoms.get_forces()[[0, 1, 4], :dimensions], numerical, rtol=1e-5, atol=1e-7)
    # Another number of atoms, wrapped or not, is another system.
    twice = atoms.repeat((2, 1, 1))
    twice.wrap()
    twice.calc = calculator
    assert twice.get_potential_energy() == pytest.approx(2 * atoms.get_potential_energy(), rel=1e-10)


def test_ase_dynamics_are_rollouts() -> None:
    model, state = make(), start()
    atoms = ParticleCalculator(model, length=1.0, energy=1.0).structure(state)
    total = atoms.get_total_energy()
    dynamics = VelocityVerlet(atoms, timestep=0.01)  # in ASE's unit of time, angstrom sqrt(amu/eV)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
    dynamics.run(150)
    with torch.no_grad():
        q, p = model.rollout(state, torch.tensor([0.0, 1.5], dtype=torch.float64), timestep=0.01)[-1].chunk(2)
    np.testing.assert_allclose(atoms.positions[:, :2].ravel(), q.numpy(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(atoms.get_momenta()[:, :2].ravel(), p.numpy(), rtol=0, atol=1e-9)
    assert np.abs(np.array(energies) - total).max() < 5e-3 * atoms.get_kinetic_energy()
    assert units.fs**2 == pytest.approx(FORCE_TO_ACCELERATION, rel=1e-6)


def test_units_come_from_the_model_or_are_given() -> None:
    model, state = make(), start()
    with pytest.raises(ConfigError, match="length=1, energy=1"):
        ParticleCalculator(model)
    with pytest.raises(ConfigError, match="energy"):
        ParticleCalculator(model, length=1.0)
    with pytest.raises(ConfigError, match="found -1"):
        ParticleCalculator(model, length=-1.0, energy=1.0)
    named = make()
    named.info = {"units": {"length": "nm", "energy": "kcal/mol"}}
    atoms = ParticleCalculator(named).structure(state)
    assert atoms.cell.lengths().tolist() == pytest.approx([30.0, 30.0, 0.0])
    plain = ParticleCalculator(model, length=1.0, energy=1.0).structure(state)
    assert atoms.get_potential_energy() == pytest.approx(KCAL_PER_MOL * plain.get_potential_energy())


def test_unusable_structures() -> None:
    model = make()
    calculator = ParticleCalculator(model, length=1.0, energy=1.0, elements=["Ar"])
    with pytest.raises(ElementError, match="Ar; found Kr"):
        Atoms("ArKr", positions=[[0, 0, 0], [1, 0, 0]], calculator=calculator).get_potential_energy()
    with pytest.raises(GeometryError, match="along the axes"):
        Atoms("Ar", cell=[[3, 0, 0], [1, 3, 0], [0, 0, 0]], pbc=[1, 1, 0], calculator=calculator).get_forces()
    with pytest.raises(GeometryError, match="2 dimensions"):
        Atoms("Ar", cell=[3, 3, 3], pbc=True, calculator=calculator).get_forces()
    with pytest.raises(ConfigError, match="one state"):
        calculator.structure(start().expand(2, -1))
    with pytest.raises(ConfigError, match="each of 1 species"):
        ParticleCalculator(model, length=1.0, energy=1.0, elements=["Ar", "Kr"])
    free = Atoms("Ar", calculator=calculator)
    assert (free.get_potential_energy(), free.get_forces().any()) == (pytest.approx(0.0, abs=1e-14), False)
