"""Graph networks of particles: the equations written out, symmetries, neighbors, and how they depend on positions."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simkit.errors import ConfigError, GeometryError
from simkit.surrogates import models
from simkit.surrogates.models.graph_network import GraphNetworkSimulator, HamiltonianGraphNetwork
from simkit.surrogates.models.particle_neighbors import ParticleNeighbors

NAMES = ["graph-network", "graph-network-simulator"]
CUTOFF = 1.5


def make(name: str, particles: int, dimensions: int = 2, seed: int = 0, **options: Any) -> Any:
    """A float64 model in which no weight is special, and whose repulsion is soft."""
    given = {"cutoff": CUTOFF, "contact": 0.5, "width": 12, **options}
    model = models.build(name, particles * dimensions, dtype="float64", dimensions=dimensions, seed=seed, **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return model


def places(particles: int, dimensions: int, side: float, seed: int = 1) -> Tensor:
    """Positions [N, d] at random in a box, none of them close to another one."""
    generator = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < particles:
        x = generator.uniform(0, side, dimensions)
        if all(np.linalg.norm(x - y - side * np.rint((x - y) / side)) > 0.4 for y in found):
            found.append(x)
    return torch.from_numpy(np.array(found))


def motion(model: Any, x: Tensor) -> Tensor:
    """Forces or accelerations [N, d]."""
    move = model.forces if isinstance(model, HamiltonianGraphNetwork) else model.accelerations
    return move(x.flatten()).detach().view_as(x)


def energy(model: Any, x: Tensor) -> float:
    return float(model.potential(x.flatten()).detach())


def pairs_in_loops(x: np.ndarray, box: tuple[float, ...], cutoff: float) -> list[tuple[int, int, np.ndarray]]:
    """Receiver, sender and vector of every edge, over all images that could be near."""
    images = [range(-6, 7) if side else range(1) for side in box]
    found = []
    for i, j in itertools.product(range(len(x)), repeat=2):
        for steps in itertools.product(*images):
            vector = x[j] - x[i] + np.array(steps) * np.array(box)
            if (i != j or any(steps)) and np.linalg.norm(vector) < cutoff:
                found.append((i, j, vector))
    return found


@pytest.mark.parametrize("box", [(0.0, 0.0), (2.5, 2.5), (1.3, 0.0), (2.0, 0.0, 3.0), (1.4, 1.6, 1.8)])
def test_neighbors_are_those_of_a_loop_over_images(box: tuple[float, ...]) -> None:
    x = places(6, len(box), 2.5) + torch.tensor([[0.0], [1.5], [0.0], [-1.5], [0.0], [1.5]])
    sender, receiver, vectors = ParticleNeighbors(box, CUTOFF, 0.2)(x.unsqueeze(0))
    expected = pairs_in_loops(x.numpy(), tuple(box), CUTOFF)
    found = [(i, j, v.numpy()) for i, j, v in zip(receiver.tolist(), sender.tolist(), vectors.unbind(), strict=True)]

    def order(edge: tuple[int, int, np.ndarray]) -> tuple[Any, ...]:
        return edge[0], edge[1], *np.round(edge[2], 6)

    found, expected = sorted(found, key=order), sorted(expected, key=order)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_allclose(one[2], other[2], rtol=0, atol=1e-12)


def test_lists_are_kept_while_they_are_complete() -> None:
    box, generator = (4.0, 4.0), torch.Generator().manual_seed(3)
    kept = ParticleNeighbors(box, CUTOFF, 0.3)
    x = places(16, 2, 4.0).repeat(2, 1, 1)
    for _ in range(25):
        x = x + 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        found, fresh = kept(x), ParticleNeighbors(box, CUTOFF, 0.0)(x)
        assert torch.equal(found[1], fresh[1])
        torch.testing.assert_close(
            *(nn.functional.normalize(v).sum(0) for v in (found[2], fresh[2])), rtol=0, atol=1e-9
        )
        torch.testing.assert_close(found[2].norm(dim=1).sort()[0], fresh[2].norm(dim=1).sort()[0], rtol=0, atol=1e-12)
    assert 1 < kept.builds < 15
    with pytest.raises(GeometryError, match="finite"):
        kept(x * float("nan"))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def layers(network: Any, x: np.ndarray) -> np.ndarray:
    """A perceptron in NumPy."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            x = layer.weight.detach().numpy() @ x
            x = x if layer.bias is None else x + layer.bias.detach().numpy()
        else:
            x = silu(x)
    return x


def edge_network(network: Any, hi: np.ndarray, hj: np.ndarray, features: np.ndarray) -> np.ndarray:
    first = network.edge.weight.detach().numpy() @ features + network.edge.bias.detach().numpy()
    first = first + network.receiver.weight.detach().numpy() @ hi + network.sender.weight.detach().numpy() @ hj
    return layers(network.rest, silu(first))


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("box", [(), (2.2, 2.6)])
def test_the_energy_is_that_of_loops_over_particles_and_pairs(rounds: int, box: tuple[float, ...]) -> None:
    species = (0, 1, 1, 0, 0)
    model = make(
        "graph-network", 5, rounds=rounds, box=box, masses=[1, 2], species=species, scale=3.0, waves=4, contact=0.7
    )
    potential, x = model.potential, places(5, 2, 2.0).numpy()
    edges = pairs_in_loops(x, box or (0.0, 0.0), CUTOFF)
    table = potential.embedding.weight.detach().numpy()
    # The two last "particles" are one of each species without neighbors.
    h = [*(table[k] for k in species), *table]

    def features(r: float) -> np.ndarray:
        return np.array([math.sin(n * math.pi * r / CUTOFF) / r for n in range(1, 5)] + [(0.7 / r) ** k for k in (1, 2, 4, 8)])  # fmt: skip

    def envelope(r: float) -> float:
        u = r / CUTOFF  # p = 6
        return 1 - 28 * u**6 + 48 * u**7 - 21 * u**8

    for message, update in zip(potential.messages.messages, potential.messages.updates, strict=True):
        received = [np.zeros(12) for _ in h]
        for i, j, vector in edges:
            r = float(np.linalg.norm(vector))
            received[i] = received[i] + edge_network(message, h[i], h[j], features(r)) * envelope(r)
        h = [own + layers(update, np.concatenate([own, more])) for own, more in zip(h, received, strict=True)]
    expected = 0.0
    for i, j, vector in edges:
        r = float(np.linalg.norm(vector))
        expected += edge_network(potential.edge_energy, h[i], h[j], features(r)).item() * envelope(r)
    if rounds:
        for i, kind in enumerate(species):
            expected += (layers(potential.node_energy, h[i]) - layers(potential.node_energy, h[5 + kind])).item()
    assert energy(model, torch.from_numpy(x)) == pytest.approx(3.0 * expected, rel=1e-10)


@pytest.mark.parametrize(("dimensions", "box"), [(2, (2.4, 2.4)), (3, ()), (3, (2.2, 0.0, 2.6))])
def test_forces_are_differences_of_the_energy(dimensions: int, box: tuple[float, ...]) -> None:
    model = make("graph-network", 5, dimensions, box=box)
    x, h = places(5, dimensions, 2.2).flatten(), 1e-3
    forces = model.forces(x).detach()
    for k in range(len(x)):
        step = torch.zeros_like(x)
        step[k] = h
        values = [energy(model, x + n * step) for n in (-2, -1, 1, 2)]
        slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
        assert float(forces[k]) == pytest.approx(-slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_particles_do_not_matter(name: str) -> None:
    species = (0, 0, 1, 1, 1, 0)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    x = places(6, 2, 2.4)
    model = make(name, 6, box=(2.4, 2.4), masses=[1, 3], species=species)
    renumbered = model.with_particles(6, box=(2.4, 2.4), species=tuple(species[k] for k in order))
    torch.testing.assert_close(motion(renumbered, x[order]), motion(model, x)[order], rtol=1e-10, atol=1e-10)
    mistaken = model.with_particles(6, box=(2.4, 2.4), species=species)
    assert float((motion(mistaken, x[order]) - motion(model, x)[order]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_translations_and_images(name: str) -> None:
    box = (2.4, 3.0)
    model, x = make(name, 6, box=box), places(6, 2, 2.4)
    images = torch.tensor([[0, 0], [1, 0], [-2, 5], [0, -1], [7, 7], [0, 0]]) * torch.tensor(box, dtype=torch.float64)
    expected = motion(model, x)
    torch.testing.assert_close(
        motion(model, x + torch.tensor([0.7, -31.3], dtype=torch.float64)), expected, rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(motion(model, x + images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_rotations_and_reflections(dimensions: int) -> None:
    model, x = make("graph-network", 6, dimensions), places(6, dimensions, 2.0)
    generator = np.random.default_rng(5)
    for sign in (1, -1):
        turn = np.linalg.qr(generator.standard_normal((dimensions, dimensions)))[0]
        turn[0] *= sign * np.linalg.det(turn)
        assert np.linalg.det(turn) == pytest.approx(sign)
        rotation = torch.from_numpy(turn)
        assert energy(model, x @ rotation.T) == pytest.approx(energy(model, x), rel=1e-12)
        torch.testing.assert_close(motion(model, x @ rotation.T), motion(model, x) @ rotation.T, rtol=1e-9, atol=1e-9)
    f = motion(model, x)
    torch.testing.assert_close(f.sum(0), torch.zeros(dimensions, dtype=torch.float64), rtol=0, atol=1e-12)
    torque = x.T @ f - f.T @ x
    torch.testing.assert_close(torque, torch.zeros_like(torque), rtol=0, atol=1e-12)
    assert float(f.abs().max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_repeated_box_is_the_same_system(name: str) -> None:
    x, side = places(5, 2, 2.1), 2.1
    model = make(name, 5, box=(side, side))
    shifts = side * torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [2, 0], [2, 1]], dtype=torch.float64)
    many = (shifts[:, None] + x).flatten(0, 1)
    large = model.with_particles(30, box=(3 * side, 2 * side))
    torch.testing.assert_close(motion(large, many), motion(model, x).repeat(6, 1), rtol=1e-9, atol=1e-9)
    if name == "graph-network":
        assert energy(large, many) == pytest.approx(6 * energy(model, x), rel=1e-12)


def test_energies_of_clusters_add_up_and_alone_there_is_none() -> None:
    model, x = make("graph-network", 7, masses=[1, 2], species=[0, 1, 0, 1, 1, 0, 1]), places(6, 2, 2.0)
    together = torch.cat([x[:3], x[3:] + 20.0, torch.tensor([[-30.0, 4.0]], dtype=torch.float64)])
    parts = [(x[:3], (0, 1, 0)), (x[3:], (1, 1, 0)), (x[:1], (0,)), (x[:1], (1,))]
    energies = [energy(model.with_particles(len(part), species=kinds), part) for part, kinds in parts]
    assert energy(model, together) == pytest.approx(energies[0] + energies[1], rel=1e-12)
    assert energies[2:] == pytest.approx([0.0, 0.0], abs=1e-14)
    assert torch.equal(motion(model, together)[6], torch.zeros(2, dtype=torch.float64))


def test_pairs_fade_out_at_the_cutoff() -> None:
    """The envelope vanishes with two derivatives, so that the energy does so with the third power of the distance to the cutoff."""
    model = make("graph-network", 2)

    def at(r: float) -> float:
        return energy(model, torch.tensor([[0.0, 0.0], [r, 0.0]], dtype=torch.float64))

    h = 1e-3
    assert at(CUTOFF - 2 * h) / at(CUTOFF - h) == pytest.approx(8.0, rel=0.05)
    assert at(CUTOFF) == at(CUTOFF + h) == 0.0
    assert abs(at(0.9)) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_motion_is_smooth_where_neighbors_come_and_go(name: str) -> None:
    """A particle passes the cutoff of another with neighbors of its own: second differences see no jump of forces or their slopes."""
    model = make(name, 4)
    others = torch.tensor([[0.0, 0.0], [0.6, 0.3], [2.9, 0.6]], dtype=torch.float64)
    h = 1e-4
    path = torch.stack([torch.cat([others, torch.tensor([[CUTOFF + k * h, 0.0]])]) for k in range(-20, 21)])
    forces = torch.stack([motion(model, x) for x in path])
    bends = (forces[2:] - 2 * forces[1:-1] + forces[:-2]).abs().amax((1, 2))
    slope = (forces[1:] - forces[:-1]).abs().max()
    # A jump of the slope by a hundredth of itself would be a bend of this size at one of the points.
    assert float(bends.max()) < 0.01 * float(slope)
    assert float(slope) > 1e-7


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_what_single_states_are(name: str) -> None:
    model = make(name, 5, box=(2.2, 2.2), learn_masses=True) if name == NAMES[0] else make(name, 5, box=(2.2, 2.2))
    states = torch.stack([torch.cat([places(5, 2, 2.2, seed).flatten(), torch.ones(10)]) for seed in range(6)])
    together = model.derivative(0.0, states.reshape(2, 3, 20)).reshape(6, 20)
    alone = torch.stack([model.derivative(0.0, state) for state in states])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)


def test_masses_and_velocities() -> None:
    x = places(4, 2, 2.0).flatten()
    p = torch.randn(8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    m = torch.tensor([1.0, 1, 4, 4, 4, 4, 1, 1], dtype=torch.float64)
    known: HamiltonianGraphNetwork = make("graph-network", 4, masses=[1, 4], species=[0, 1, 1, 0])
    state = torch.cat([x, p])
    torch.testing.assert_close(known.derivative(0.0, state)[:8], p / m)
    torch.testing.assert_close(known.energy(state) - known.potential(x), (p**2 / (2 * m)).sum())
    assert "kinetic.masses.logarithms" not in known.state_dict()
    plain: GraphNetworkSimulator = make("graph-network-simulator", 4, masses=[1, 4], species=[0, 1, 1, 0])
    torch.testing.assert_close(plain.derivative(0.0, state), torch.cat([p / m, m * plain.accelerations(x)]))
    damped: GraphNetworkSimulator = make("graph-network-simulator", 4, velocities=True)
    assert not torch.equal(damped.derivative(0.0, state)[8:], damped.derivative(0.0, torch.cat([x, 2 * p]))[8:])
    with pytest.raises(ConfigError, match="velocities"):
        damped.accelerations(x)


@pytest.mark.parametrize(
    ("dof", "options", "message"),
    [
        (5, {}, "multiple"),
        (4, {"species": [0]}, "2 species|1 species"),
        (4, {"species": [0, 1]}, "species must be from 0 to 0"),
        (4, {"box": [1.0]}, "box must be 2 lengths"),
        (4, {"box": [1.0, -1.0]}, "box must be 2 lengths"),
        (4, {"masses": [0.0]}, "masses must be positive"),
        (4, {"dimensions": 4}, "dimensions"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_unusable_options(name: str, dof: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build(name, dof, **options)
