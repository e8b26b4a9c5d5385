"""MPNN against the paper's equations with a matrix per edge, and what the set2set readout keeps and does not keep."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

import simkit
from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.heads import Features
from simkit.potential import Potential


def make(cutoff: float = 4.0, **options: Any) -> Potential:
    sizes: dict[str, Any] = {"channels": 14, "layers": 3, "edge_channels": 9, "edge_layers": 2}
    return potentials.build("mpnn", cutoff=cutoff, elements=[1, 6, 8], dtype="float64", **sizes | options)


def frames() -> list[Atoms]:
    """A molecule, a lone atom, a crystal whose atoms see their own images, and another molecule."""
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=2)
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    places = [[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0, 0.75, 0.35]]
    crystal = Atoms("HCO", scaled_positions=places, cell=cell, pbc=True)
    return [ethanol, Atoms("C"), crystal, molecule("H2O")]


def evaluate(potential: Potential, atoms: Atoms | list[Atoms], *outputs: str) -> Any:
    found = potential(AtomGraph.from_ase(atoms, potential.cutoff), outputs)
    results = [found[name].detach().numpy() for name in outputs]
    return results[0] if len(outputs) == 1 else results


# ------------------------------------------------------------------------------------------------------------ equations


def gru(cell: torch.nn.GRUCell, m: Tensor, h: Tensor) -> Tensor:
    """The gated recurrent unit of Cho et al. 2014, gate by gate."""
    wr, wz, wn = cell.weight_ih.chunk(3)
    ur, uz, un = cell.weight_hh.chunk(3)
    br, bz, bn = cell.bias_ih.chunk(3)
    cr, cz, cn = cell.bias_hh.chunk(3)
    r = torch.sigmoid(wr @ m + br + ur @ h + cr)
    z = torch.sigmoid(wz @ m + bz + uz @ h + cz)
    return (1 - z) * torch.tanh(wn @ m + bn + r * (un @ h + cn)) + z * h


def states_in_loops(potential: Potential, graph: AtomGraph) -> Tensor:
    """Message passing with a matrix A(e_vw) for every edge, edge by edge."""
    rep: Any = potential.representation
    options, rc = potential.options, potential.cutoff
    h = [rep.embedding.weight[potential.elements.index(int(z))] for z in graph.z]
    edges = []
    for (j, i), vector in zip(graph.edge_index.T.tolist(), graph.edge_vectors(), strict=True):
        r, d = vector.norm(), rc / (options["basis"] - 1)
        e = torch.stack([torch.exp(-((r - k * d) ** 2) / (2 * d**2)) for k in range(options["basis"])])
        g = torch.cat([rep.edge_network.hidden(e), torch.ones(1, dtype=torch.float64)])
        matrix = torch.einsum("k,kba->ab", g, rep.edge_network.matrices)
        edges.append((j, i, 0.5 * (torch.cos(torch.pi * r / rc) + 1) * matrix))
    for _ in range(options["layers"]):
        m = [torch.zeros_like(x) for x in h]
        for j, i, matrix in edges:
            m[i] = m[i] + matrix @ h[j]
        h = [gru(rep.update, message, state) for message, state in zip(m, h, strict=True)]
    return torch.stack(h)


def test_states_equal_those_of_a_matrix_per_edge() -> None:
    potential = make(cutoff_function="cosine")
    graph = AtomGraph.from_ase(frames(), 4.0)
    with torch.no_grad():
        expected = states_in_loops(potential, graph)
        found, vectors = potential.representation(potential.species(graph.z), graph.edge_index, graph.edge_vectors())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert vectors is None
    start: Any = potential.representation
    assert (found - start.embedding(potential.species(graph.z))).abs().max() > 0.1


def features_of(potential: Potential, graph: AtomGraph) -> Features:
    species = potential.species(graph.z)
    scalars, _ = potential.representation(species, graph.edge_index, graph.edge_vectors())
    return Features(scalars, None, species, graph.batch, graph.num_structures)


def test_gated_sum_equals_equation_4() -> None:
    potential = make()
    features = features_of(potential, AtomGraph.from_ase(frames(), 4.0))
    head: Any = potential.heads["energy"]
    weight, element = head.hidden.state.weight, head.hidden.element.weight
    expected = []
    for h, s in zip(features.scalars, features.species.tolist(), strict=True):
        hidden = torch.nn.functional.silu(weight @ h + head.hidden.state.bias + element[s])
        i, j = head.gate(hidden[:14]), head.value(hidden[14:])
        expected.append(torch.sigmoid(i) * j)
    torch.testing.assert_close(head(features), torch.cat(expected), rtol=1e-12, atol=1e-13)


def set2set_in_loops(pool: Any, x: Tensor, steps: int) -> Tensor:
    """Vinyals, Bengio & Kudlur 2016, equations 3 to 7, for one structure; the long short-term memory gate by gate."""
    q_star, c = torch.zeros(2 * x.shape[1], dtype=torch.float64), torch.zeros(x.shape[1], dtype=torch.float64)
    q = torch.zeros_like(c)
    lstm = pool.lstm
    for _ in range(steps):
        gates = lstm.weight_ih_l0 @ q_star + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ q + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        q = torch.sigmoid(o) * torch.tanh(c)
        a = torch.softmax(torch.stack([row @ q for row in x]), dim=0)
        q_star = torch.cat([q, sum((w * row for w, row in zip(a, x, strict=True)), torch.zeros_like(c))])
    return q_star


@pytest.mark.parametrize("steps", [1, 4])
def test_set2set_equals_its_equations(steps: int) -> None:
    potential = make(readout="set2set", set2set_steps=steps)
    features = features_of(potential, AtomGraph.from_ase(frames(), 4.0))
    head: Any = potential.heads["energy"]
    expected = []
    for k in range(features.num_structures):
        own = features.structure == k
        x = features.scalars[own] @ head.project.state.weight.T + head.project.state.bias
        x = x + head.project.element.weight[features.species[own]]
        energy = head.net(set2set_in_loops(head.pool, x, steps))
        expected.append((energy / len(x)).expand(len(x)))
    torch.testing.assert_close(head(features), torch.cat(expected), rtol=1e-11, atol=1e-12)


def test_no_matrix_per_edge_is_stored() -> None:
    """What autograd keeps of a step is linear in edges: no tensor of [E, C, C], nor of [E, K, C]."""
    potential = make(channels=40, edge_channels=20, layers=1)
    graph = AtomGraph.from_ase(molecule("CH3CH2OH"), 4.0)
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vectors = graph.edge_vectors().requires_grad_(True)
        potential.representation(potential.species(graph.z), graph.edge_index, vectors)
    edges = graph.edge_index.shape[1]
    rep: Any = potential.representation
    assert rep.edge_network.matrices.numel() in sizes
    others = [size for size in sizes if size != rep.edge_network.matrices.numel()]
    assert max(others) < edges * 21 * 40 / 4


def test_two_derivatives_with_respect_to_edge_vectors() -> None:
    potential = make(cutoff=2.9, channels=4, layers=2, edge_channels=3)
    graph = AtomGraph.from_ase(frames()[2][:2], 2.9)
    species = potential.species(graph.z)

    def features(vectors: Tensor) -> Tensor:
        return potential.representation(species, graph.edge_index, vectors)[0]

    vectors = graph.edge_vectors().requires_grad_(True)
    assert torch.autograd.gradcheck(features, vectors)
    assert torch.autograd.gradgradcheck(features, vectors)


def test_published_size() -> None:
    """73 features, an edge network with 4 hidden layers of 50, and as many message passing steps as one likes."""
    c, k, basis, elements = 73, 50, 25, 5
    edge = (basis * k + k) + 3 * (k * k + k) + (k + 1) * c * c
    cell = 3 * (2 * c * c + 2 * c)
    of_state = c * 2 * c + 2 * c + elements * 2 * c
    expected = elements * c + edge + cell + of_state + 2 * (c + 1)
    assert potentials.build("mpnn", elements=[1, 6, 7, 8, 9]).num_parameters == expected == 325_188
    assert potentials.build("mpnn", elements=[1, 6, 7, 8, 9], layers=3).num_parameters == expected
    of_state = c * c + c + elements * c
    lstm = 4 * (2 * c * c + c * c + 2 * c)
    expected = elements * c + edge + cell + of_state + lstm + (2 * c * c + c) + (c + 1)
    assert potentials.build("mpnn", elements=[1, 6, 7, 8, 9], readout="set2set").num_parameters == expected


# -------------------------------------------------------------------------------------------------------------- set2set


def test_set2set_forces_and_stress_against_finite_differences() -> None:
    potential, h = make(readout="set2set"), 2e-5
    potential.scale.fill_(20.0)
    for frame in (frames()[0], frames()[2]):
        displaced = []
        for atom, axis, sign in itertools.product(range(len(frame)), range(3), (1, -1)):
            copied = frame.copy()
            copied.positions[atom, axis] += sign * h
            displaced.append(copied)
        energies = evaluate(potential, displaced, "energy").reshape(-1, 3, 2)
        forces = evaluate(potential, frame, "forces")
        assert np.abs(forces).max() > 1e-3
        np.testing.assert_allclose(forces, -(energies[..., 0] - energies[..., 1]) / (2 * h), rtol=0, atol=1e-7)
    crystal, strained = frames()[2], []
    for a, b, sign in itertools.product(range(3), range(3), (1, -1)):
        strain = np.eye(3)
        strain[a, b] += sign * h
        copied = crystal.copy()
        copied.set_cell(crystal.cell.array @ strain.T, scale_atoms=True)
        strained.append(copied)
    energies = evaluate(potential, strained, "energy").reshape(3, 3, 2)
    expected = (energies[..., 0] - energies[..., 1]) / (2 * h) / crystal.get_volume()
    np.testing.assert_allclose(evaluate(potential, crystal, "stress")[0], expected, rtol=0, atol=1e-7)


def test_set2set_knows_no_order_and_no_other_structure() -> None:
    potential = make(readout="set2set")
    ethanol, order = frames()[0], np.random.default_rng(4).permutation(9)
    energy, forces = evaluate(potential, ethanol, "energy", "forces")
    shuffled, shuffled_forces = evaluate(potential, ethanol[order], "energy", "forces")
    np.testing.assert_allclose(shuffled, energy, rtol=1e-12)
    np.testing.assert_allclose(shuffled_forces, forces[order], rtol=0, atol=1e-12)
    batch, batch_forces = evaluate(potential, frames(), "energy", "forces")
    np.testing.assert_allclose(batch, [evaluate(potential, frame, "energy")[0] for frame in frames()], rtol=1e-12)
    np.testing.assert_allclose(batch_forces[:9], forces, rtol=0, atol=1e-12)
    turned = ethanol.copy()
    turned.rotate(40, (1, 2, 3))
    np.testing.assert_allclose(evaluate(potential, turned, "energy"), energy, rtol=1e-12)


def test_set2set_shares_the_energy_evenly_and_is_not_extensive() -> None:
    potential = make(readout="set2set")
    ethanol, water = frames()[0], frames()[3]
    energy, energies = evaluate(potential, [ethanol, water], "energy", "energies")
    np.testing.assert_allclose(energies[:9], energy[0] / 9, rtol=1e-12)
    np.testing.assert_allclose(energies[9:], energy[1] / 3, rtol=1e-12)
    water.positions += [0, 40, 0]
    together = evaluate(potential, ethanol + water, "energy")[0]
    assert abs(together - energy.sum()) > 1e-3
    extensive = make()
    assert evaluate(extensive, ethanol + water, "energy")[0] == pytest.approx(
        evaluate(extensive, [ethanol, water], "energy").sum(), rel=1e-12
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_set2set_learns_from_forces(dtype: str) -> None:
    """The second derivatives reach every weight, through the recurrent network as well."""
    potential = make(readout="set2set").cast(getattr(torch, dtype))
    graph = AtomGraph.from_ase(frames()[:2], 4.0)
    parameters = dict(potential.named_parameters())

    def loss() -> Tensor:
        return potential(graph, ("forces",), differentiable=True)["forces"].square().sum()

    gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    unreached = [name for name, g in zip(parameters, gradients, strict=True) if g is None or not g.any()]
    assert unreached == ["heads.energy.net.2.bias"]
    if dtype == "float64":
        weight, h = parameters["heads.energy.pool.lstm.weight_ih_l0"], 1e-5
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                weight[3, 5] += sign * h
            values.append(float(loss().detach()))
        found = gradients[list(parameters).index("heads.energy.pool.lstm.weight_ih_l0")][3, 5]
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(float(found), rel=1e-5, abs=1e-11)


def test_set2set_survives_a_file(tmp_path: Path) -> None:
    potential = make(readout="set2set")
    potential.save(tmp_path / "model.safetensors")
    loaded = simkit.load(tmp_path / "model.safetensors")
    assert np.array_equal(evaluate(loaded, frames(), "energy"), evaluate(potential, frames(), "energy"))


def test_other_properties_with_set2set() -> None:
    """A gap is the value that set2set reads from the structure; values of atoms have readouts that look at the atom."""
    potential = make(readout="set2set", outputs=["energy", "gap", "charges"])
    molecules = [frames()[0], frames()[3]]
    gap, charges = evaluate(potential, molecules, "gap", "charges")
    head: Any = potential.heads["gap"]
    shares = head.readout(features_of(potential, AtomGraph.from_ase(molecules, 4.0)))
    np.testing.assert_allclose(gap, [9 * float(shares[0].detach()), 3 * float(shares[9].detach())], rtol=1e-12)
    assert np.ptp(charges[:9]) > 1e-3


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="anchored=True needs a size-extensive energy"):
        potentials.build("mpnn", elements=[1, 6], readout="set2set", anchored=True)
    with pytest.raises(ConfigError, match="set2set_steps does nothing with readout='sum'"):
        potentials.build("mpnn", elements=[1, 6], set2set_steps=3)
