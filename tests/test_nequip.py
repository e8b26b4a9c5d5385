"""NequIP against the authors' package, and its symmetry and size."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from e3nn import o3
from e3nn.util.test import assert_equivariant
from global_settings import float64_and_seed
from torch import Tensor, nn

from simkit import potentials
from simkit.equivariant import SphericalHarmonics, edge_geometry, layer_irreps
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.potentials.nequip import InteractionBlock, NequIPOptions

ELEMENTS = [1, 6, 8]


@pytest.fixture
def float64() -> Iterator[None]:
    with float64_and_seed(20260103):
        yield


def frames() -> list[Atoms]:
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=2)
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    places = [[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0, 0.75, 0.35]]
    return [ethanol, Atoms("HCO", scaled_positions=places, cell=cell, pbc=True)]


def build(**options: Any) -> Potential:
    return potentials.build("nequip", cutoff=4.0, elements=ELEMENTS, dtype="float64", **options)


def formula_weights(potential: Potential) -> None:
    """Give every parameter numbers that need no random generator."""
    with torch.no_grad():
        for k, (name, weight) in enumerate(potential.named_parameters()):
            if name.endswith("orders"):
                weight.mul_(torch.linspace(0.98, 1.03, len(weight), dtype=torch.float64))
            else:
                n = torch.arange(weight.numel(), dtype=torch.float64)
                weight.copy_((1.7 * torch.sin(1.0 + k + 2.3 * n + 0.001 * n**2)).view(weight.shape))


# Made with nequip 0.19.1 (torch 2.13, e3nn 0.6) from the same weights in its own layout, on the same edges: NequIPGNNModel with
# learnable_shift=True (a self-connection in every layer, as in the paper), bessel_trainable=True, 4 layers, l_max 2, 6 features,
# radial_mlp_depth 2, radial_mlp_width 10, avg_num_neighbors 9, activations scaled to the exact second moments instead of sampled ones.
# Energies in eV of ethanol and of the crystal, forces in eV/angstrom on the first and on the last atom.
RECORDED = {
    False: (
        [41.201890001178285, 4.9388750027848625],
        [4.631142526841607, -3.8088963737520323, -0.025166930073125093],
        [-2.173144631270757, 0.05866902200701474, 0.24412250724975001],
    ),
    True: (
        [-4.249332348873121, 0.31459874552103373],
        [1.8058306734058684, -0.8420409141900789, 1.1831154945273672],
        [-0.0932199704504709, -0.3416469419558853, -0.05450262557990658],
    ),
}


@pytest.mark.parametrize("parity", [False, True])
def test_equals_the_nequip_package(parity: bool) -> None:
    potential = build(channels=6, radial_channels=10, parity=parity, neighbors=9.0)
    formula_weights(potential)
    results = potential(AtomGraph.from_ase(frames(), 4.0), ("energy", "forces"))
    energy, first, last = RECORDED[parity]
    assert results["energy"].tolist() == pytest.approx(energy, abs=1e-10)
    assert results["forces"][0].tolist() == pytest.approx(first, abs=1e-10)
    assert results["forces"][-1].tolist() == pytest.approx(last, abs=1e-10)


def test_irreps_of_the_layers() -> None:
    """What can arise from scalars and can reach scalars: 1e needs two layers on either side, 0o three."""
    both, natural = o3.Irreps("0e+0o+1o+1e+2e+2o"), o3.Irreps("0e+1o+2e")
    scalars = o3.Irreps("0e")
    assert layer_irreps(1, 2, both_parities=True) == [scalars, scalars]
    assert layer_irreps(3, 2, both_parities=True) == [scalars, natural, natural, scalars]
    assert layer_irreps(4, 2, both_parities=True) == [scalars, natural, o3.Irreps("0e+1o+1e+2e+2o"), natural, scalars]
    assert layer_irreps(6, 2, both_parities=True)[3] == both
    assert layer_irreps(5, 2, both_parities=False) == [scalars, *[natural] * 4, scalars]
    assert layer_irreps(3, 0, both_parities=True) == [scalars] * 4
    assert layer_irreps(5, 1, both_parities=True)[2:4] == [o3.Irreps("0e+1o+1e")] * 2


@pytest.mark.parametrize(
    ("l_max", "layers", "parity"), [(0, 2, True), (1, 5, True), (2, 4, True), (3, 2, False), (2, 1, True)]
)
def test_every_weight_matters(l_max: int, layers: int, parity: bool) -> None:
    """No weight is carried along that the energy of a general structure does not depend on."""
    potential = build(channels=3, radial_channels=4, l_max=l_max, layers=layers, parity=parity)
    energy = potential(AtomGraph.from_ase(frames(), 4.0), ("energy",), differentiable=True)["energy"]
    for name, gradient in zip(
        [name for name, _ in potential.named_parameters()],
        torch.autograd.grad(energy.sum(), list(potential.parameters())),
        strict=True,
    ):
        assert (gradient != 0).all(), name


def test_size() -> None:
    """Term by term for the default, 64 channels, l_max 2 and 4 layers; paths and irreps counted by hand."""
    c, elements = 64, 5
    # Of each layer: irreps that enter, paths to 0e, paths to other irreps, gates, irreps other than 0e that pass the self-connection.
    layers = [(1, 1, 2, 2, 0), (3, 3, 12, 4, 2), (5, 3, 12, 2, 2), (3, 3, 0, 0, 0)]
    expected = elements * c + 8 + c  # embedding, frequencies, readout
    for irreps, to_scalars, to_others, gates, passing in layers:
        expected += irreps * c * c
        expected += 8 * 64 + 64 * 64 + 64 * (to_scalars + to_others) * c
        expected += (to_scalars * (1 + gates) + to_others) * c * c
        expected += elements * (1 + gates + passing) * c * c
    assert potentials.build("nequip", elements=[1, 6, 7, 8, 9]).num_parameters == expected == 772_488


ALL = "0e+0o+1o+1e+2e+2o"


@pytest.mark.parametrize(
    ("source", "target"), [(ALL, ALL), ("0e+1o+2e", "0e+1o+1e"), ("0e+1o", "0e"), ("0e", "0e+1o+2e")]
)
@pytest.mark.usefixtures("float64")
def test_interaction_block_is_equivariant(source: str, target: str) -> None:
    c = 4
    block = InteractionBlock(o3.Irreps(source), o3.Irreps(target), NequIPOptions(channels=c), 3)
    harmonics = SphericalHarmonics(2)
    index = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
    species = torch.tensor([0, 2, 1])

    def run(x: Tensor, pos: Tensor) -> Tensor:
        edges = edge_geometry(index, pos[index[0]] - pos[index[1]], harmonics)
        basis = torch.stack([torch.exp(-k * edges.distances) for k in range(1, 9)], dim=1)
        y = block(x.view(3, c, -1).transpose(1, 2), species, edges, basis, block.product.coupling(edges.harmonics))
        return y.transpose(1, 2).flatten(1)

    # One irrep after the other for each channel is an e3nn layout as well.
    wide_in, wide_out = o3.Irreps(source) * c, o3.Irreps(target) * c
    assert_equivariant(
        run,
        args_in=[wide_in.randn(3, -1), torch.randn(3, 3)],
        irreps_in=[wide_in, "cartesian_points"],
        irreps_out=[wide_out],
    )


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.usefixtures("float64")
def test_features_are_equivariant(parity: bool) -> None:
    potential = build(channels=4, radial_channels=8, parity=parity)
    graph = AtomGraph.from_ase(frames()[0], 4.0)
    species, index = potential.species(graph.z), graph.edge_index
    scalars, vectors = potential.representation(species, index, graph.edge_vectors())
    assert scalars.shape == (9, 4)
    assert vectors.shape == (9, 3, 4)
    assert vectors.abs().max() > 0.01

    def run(pos: Tensor) -> tuple[Tensor, Tensor]:
        scalars, vectors = potential.representation(species, index, pos[index[0]] - pos[index[1]])
        return scalars, vectors.transpose(1, 2).flatten(1)

    assert_equivariant(run, args_in=[graph.pos], irreps_in=["cartesian_points"], irreps_out=["4x0e", "4x1o"])


def test_vectors_where_there_are_any() -> None:
    assert build(channels=4, layers=2, l_max=1).representation.has_vectors
    for options in ({"layers": 1}, {"l_max": 0}):
        potential = build(channels=4, **options)
        assert not potential.representation.has_vectors
        graph = AtomGraph.from_ase(frames()[0], 4.0)
        _, vectors = potential.representation(potential.species(graph.z), graph.edge_index, graph.edge_vectors())
        assert vectors is None


def test_neighbors_divide_the_sum() -> None:
    """A quarter of the neighbors is twice the message: the same as twice the weights of the second linear map."""
    few, many = build(channels=4, neighbors=3.0), build(channels=4, neighbors=12.0)
    graph = AtomGraph.from_ase(frames(), 4.0)
    energy = few(graph, ("energy",))["energy"]
    assert not torch.allclose(energy, many(graph, ("energy",))["energy"], atol=1e-3)
    rep: Any = many.representation
    with torch.no_grad():
        for weight in [w for layer in rep.layers for w in layer.linear_2.weights]:
            weight.mul_(2.0)
    torch.testing.assert_close(energy, many(graph, ("energy",))["energy"], rtol=1e-11, atol=1e-11)


def test_published_cutoff_and_basis() -> None:
    """2 / rc sin(n pi r / rc) / r times the polynomial with p = 6, seen through the first radial network."""
    potential = build(channels=4, layers=1, l_max=0, radial_layers=0)
    rep: Any = potential.representation
    x = 1.3 / 4.0
    envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    basis = torch.tensor([2 / 4.0 * math.sin(n * math.pi * x) / 1.3 * envelope for n in range(1, 9)]).double()
    weights = rep.layers[0].radial(basis[None])[0, 0]
    vectors = torch.tensor([[1.3, 0, 0], [-1.3, 0, 0]], dtype=torch.float64)
    index, species = torch.tensor([[1, 0], [0, 1]]), torch.tensor([0, 2])
    scalars, _ = rep(species, index, vectors)
    block = rep.layers[0]
    x0 = rep.embedding(species)
    message = (x0 @ block.linear_1.weights[0] / 2.0)[[1, 0]] * weights / math.sqrt(12.0)
    own = torch.stack([x0[k] @ block.self_connection.weights[0][species[k]] / 2.0 for k in range(2)])
    expected = nn.functional.silu(message @ block.linear_2.weights[0] / 2.0 + own) * block.gate._silu
    torch.testing.assert_close(scalars, expected)
