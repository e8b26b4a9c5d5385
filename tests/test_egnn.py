"""EGNN and the radial field network against their equations, and what coordinate updates must not break."""

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "no attention": {"attention": False},
    "coordinates": {"update_coordinates": True},
    "radial field": {"update_coordinates": True, "node_features": False},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
moving = pytest.mark.parametrize("options", [VARIANTS["coordinates"], VARIANTS["radial field"]], ids=["both", "radial"])


def make(cutoff: float = 4.0, **options: Any) -> Potential:
    """A small network whose atoms move by a few tenths of an angstrom."""
    sizes = {"channels": 12, "layers": 3} | options
    potential = potentials.build("egnn", cutoff=cutoff, elements=[1, 6, 8], dtype="float64", **sizes)
    rep: Any = potential.representation
    with torch.no_grad():
        for layer in rep.layers:
            if layer.coordinate is not None:
                layer.coordinate[2].weight.mul_(2000.0)
    return potential


def frames() -> list[Atoms]:
    """A molecule, a crystal whose atoms see their own images, and a lone atom."""
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=2)
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    places = [[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0, 0.75, 0.35]]
    return [ethanol, Atoms("HCO", scaled_positions=places, cell=cell, pbc=True), Atoms("C")]


def energies(potential: Potential, atoms: list[Atoms]) -> Any:
    return potential(AtomGraph.from_ase(atoms, potential.cutoff), ("energy",))["energy"].detach().numpy()


def in_loops(potential: Potential, graph: AtomGraph) -> tuple[Tensor, Tensor]:
    """Equations 3 to 6 and 8 with loops over atoms and edges, on positions: features [N, C] and displacements [N, 3]."""
    rep: Any = potential.representation
    shifts = (graph.edge_shift.unsqueeze(1) @ graph.cell[graph.batch[graph.edge_index[1]]]).squeeze(1)
    edges = list(zip(graph.edge_index[0].tolist(), graph.edge_index[1].tolist(), shifts, strict=True))
    x = list(graph.pos)
    h = [rep.embedding.weight[potential.elements.index(int(z))] for z in graph.z]
    f = {}
    for e, (j, i, shift) in enumerate(edges):
        f[e] = 0.5 * (torch.cos(torch.pi * (x[j] + shift - x[i]).norm() / potential.cutoff) + 1)
    for layer in rep.layers:
        received = [torch.zeros(rep.channels, dtype=torch.float64) for _ in x]
        push, total = [torch.zeros(3, dtype=torch.float64) for _ in x], [1.0 for _ in x]
        for e, (j, i, shift) in enumerate(edges):
            difference = x[i] - (x[j] + shift)
            squared = difference.square().sum().reshape(1)
            silu = torch.nn.functional.silu
            m = silu(layer.edge_out(silu(layer.edge_in(torch.cat([h[i], h[j], squared])))))
            if layer.attention is not None:
                m = m * torch.sigmoid(layer.attention(m))
            received[i] = received[i] + f[e] * m
            total[i] = total[i] + f[e]
            if layer.coordinate is not None:
                push[i] = push[i] + f[e] * difference * layer.coordinate(m)
        x = [place + sum_of / count for place, sum_of, count in zip(x, push, total, strict=True)]
        if layer.node is not None:
            h = [before + layer.node(torch.cat([before, m])) for before, m in zip(h, received, strict=True)]
    return torch.stack(h), torch.stack(x) - graph.pos


@variants
def test_equals_its_equations(options: dict[str, Any]) -> None:
    potential = make(cutoff_function="cosine", **options)
    graph = AtomGraph.from_ase(frames(), 4.0)
    with torch.no_grad():
        expected, moved = in_loops(potential, graph)
        found, vectors = potential.representation(potential.species(graph.z), graph.edge_index, graph.edge_vectors())
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert vectors is None
    assert float(moved.norm(dim=1).max()) > 0.1 if options.get("update_coordinates") else not moved.any()


@moving
def test_layers_are_equivariant(options: dict[str, Any]) -> None:
    """With the input, the moved atoms are rotated and reflected; features stay (appendix A of the paper)."""
    potential = make(**options)
    rep: Any = potential.representation
    graph = AtomGraph.from_ase(frames(), 4.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    rotation = torch.from_numpy(rotation * -np.linalg.det(rotation))  # improper

    def run(vectors: Tensor) -> tuple[Tensor, Tensor]:
        weight = rep.cutoff_function(vectors.norm(dim=1)).unsqueeze(1)
        h = rep.embedding(potential.species(graph.z))
        total = h.new_zeros(len(h), 1).index_add(0, graph.edge_index[1], weight)
        for layer in rep.layers:
            h, vectors = layer(h, *graph.edge_index, vectors, weight, total)
        return h, vectors

    h, moved = run(graph.edge_vectors())
    h_rotated, moved_rotated = run(graph.edge_vectors() @ rotation.T)
    torch.testing.assert_close(h_rotated, h, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moved_rotated, moved @ rotation.T, rtol=1e-11, atol=1e-11)
    assert (moved - graph.edge_vectors()).norm(dim=1).max() > 0.1


@moving
def test_forces_and_stress_with_moving_atoms(options: dict[str, Any]) -> None:
    potential, h = make(**options), 1e-4
    crystal = frames()[1]
    graph = AtomGraph.from_ase(crystal, 4.0)
    found = potential(graph, ("forces", "stress"))
    displaced = []
    for k in range(9):
        for sign in (1, -1):
            frame = crystal.copy()
            frame.positions[k // 3, k % 3] += sign * h
            displaced.append(frame)
    for k in range(9):
        for sign in (1, -1):
            strain = np.eye(3)
            strain[k // 3, k % 3] += sign * h
            frame = crystal.copy()
            frame.set_cell(frame.cell.array @ strain.T, scale_atoms=True)
            displaced.append(frame)
    values = energies(potential, displaced).reshape(2, 3, 3, 2)
    slopes = (values[..., 0] - values[..., 1]) / (2 * h)
    assert np.abs(slopes).max() > 0.01
    np.testing.assert_allclose(found["forces"], -slopes[0], rtol=0, atol=1e-7)
    np.testing.assert_allclose(found["stress"][0], slopes[1] / crystal.get_volume(), rtol=0, atol=1e-7)


@moving
def test_smooth_at_the_cutoff_with_moving_atoms(options: dict[str, Any]) -> None:
    """An atom leaves its only neighbor: the second derivative of the energy does not jump."""
    potential = make(**options)
    kinks = []
    for h in (1e-3, 1e-4):
        pairs = [Atoms("OH", [[0, 0, 0], [4.0 + d, 0, 0]]) for d in (-h, 0.0, h)]
        forces = potential(AtomGraph.from_ase(pairs, 4.5), ("forces",))["forces"].reshape(3, 2, 3)[:, 1, 0].numpy()
        kinks.append(abs(forces[2] - 2 * forces[1] + forces[0]) / h)
    assert kinks[1] < 0.2 * kinks[0] + 1e-9
    near = potential(AtomGraph.from_ase(Atoms("OH", [[0, 0, 0], [2.0, 0, 0]]), 4.0), ("forces",))["forces"]
    assert near.abs().max() > 1e-3


@variants
def test_two_derivatives_with_respect_to_edge_vectors(options: dict[str, Any]) -> None:
    potential = make(channels=4, layers=2, **options)
    graph = AtomGraph.from_ase(frames()[1][:2], 2.9)
    species = potential.species(graph.z)

    def features(vectors: Tensor) -> Tensor:
        return potential.representation(species, graph.edge_index, vectors)[0]

    vectors = graph.edge_vectors().requires_grad_(True)
    assert torch.autograd.gradcheck(features, vectors)
    assert torch.autograd.gradgradcheck(features, vectors)


def test_radial_field_keeps_the_features_of_the_element() -> None:
    """Only the last layer makes features, and only the others move atoms."""
    rep: Any = make(update_coordinates=True, node_features=False, layers=4).representation
    assert [layer.node is None for layer in rep.layers] == [True, True, True, False]
    assert [layer.coordinate is None for layer in rep.layers] == [False, False, False, True]


def test_published_size() -> None:
    """128 features, 7 layers and attention, term by term; the readout has one linear map where the paper has two in a row."""
    c, layers = 128, 7
    edge = (2 * c + 1) * c + c + c * c + c + c + 1
    node = 2 * c * c + c + c * c + c
    readout = 2 * (c * c + c) + c + 1
    expected = 5 * c + layers * (edge + node) + readout
    assert potentials.build("egnn", elements=[1, 6, 7, 8, 9]).num_parameters == expected == 727_304
    moved = (layers - 1) * (c * c + c + c)
    assert (
        potentials.build("egnn", elements=[1, 6, 7, 8, 9], update_coordinates=True).num_parameters == expected + moved
    )


@pytest.mark.parametrize("options", [{"update_coordinates": False}, {"update_coordinates": True, "layers": 1}])
def test_a_radial_field_that_moves_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match="radial field network.*set update_coordinates to True and layers to 2 or more"
    ):
        potentials.build("egnn", elements=[1], node_features=False, **options)
