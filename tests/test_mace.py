"""MACE against the authors' program, its convolution against e3nn's way of writing it, its symmetries and body order."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from e3nn import o3
from e3nn.util.test import assert_equivariant
from global_settings import float64_and_seed
from torch import Tensor

from simkit import potentials
from simkit.config import parse_options
from simkit.equivariant import (
    EdgeGeometry,
    EdgeTensorProduct,
    SpeciesLinear,
    SphericalHarmonics,
    edge_geometry,
    feature_irreps,
)
from simkit.equivariant import convolution as convolution_module
from simkit.equivariant.convolution import NeighborConvolution, Neighborhoods, neighborhoods
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.potentials.mace import MACE, Interaction, MACEOptions

SMALL = {"channels": 3, "basis": 4, "radial_width": 5, "radial_layers": 2, "readout_width": 4}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260317):
        yield


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.positions += 0.08 * np.cos(np.arange(27.0).reshape(9, 3) * 1.3)
    return atoms


def uneven() -> tuple[Tensor, Tensor]:
    """Edges of atoms with up to 23 neighbors, one without any; edge_index [2, E] sorted by receiver and vectors [E, 3]."""
    points = torch.cat([0.7 * torch.randn(24, 3), 3.0 * torch.randn(30, 3), torch.full((1, 3), 99.0)])
    vectors = points.unsqueeze(0) - points.unsqueeze(1)
    receiver, sender = ((vectors.norm(dim=2) < 2.0) & ~torch.eye(len(points), dtype=torch.bool)).nonzero().t()
    return torch.stack([sender, receiver]), vectors[receiver, sender]


# ------------------------------------------------------------------------------------------------ the authors' program


def test_equals_mace_torch() -> None:
    """Energy and forces of mace-torch 0.3.16 with the same weights.

    Its ScaleShiftMACE has RealAgnosticInteractionBlock and then RealAgnosticResidualInteractionBlock, float64. The weights set here were
    carried over by the linear map between the parametrisations: factors of normalisation, products of consecutive linear maps, and
    weights of its U matrices (51 for 1o at order 3) that give the same polynomials as the 12 independent ones. That map was solved with
    the order of the weights as it is now: if this test fails for a change of that order, so will every saved model.
    """
    options = SMALL | {"layers": 2, "l_max": 3, "hidden_lmax": 1, "correlation": 3, "neighbors": 1.5}
    potential = potentials.build("mace", cutoff=3.0, elements=[1, 6, 8], dtype="float64", **options)
    with torch.no_grad():
        for k, (_, weight) in enumerate(sorted(potential.named_parameters())):
            weight.copy_(
                1.4 * torch.cos((1.0 + 0.13 * k) * torch.arange(weight.numel()).reshape(weight.shape) + 0.7 * k)
            )
    forces = [
        [-0.14278737604651248, -0.03393113895282435, 0.04966351417851023],
        [0.07446502489147291, -0.03871203367239176, -0.07767733648219788],
        [0.2922870980394957, 0.07096620872240089, 0.01352944300179614],
        [-0.01413632009696949, 0.04939462687137579, 0.00121499855908653],
        [0.06591393317954086, -0.19309198815640324, -0.17860232105311924],
        [0.04633120828726888, -0.21452772270961884, 0.2260024552689692],
        [-0.2376608716519798, -0.0072382778441854, -0.02166068956386345],
        [-0.02779140683563166, 0.18526885069140903, -0.15273632601587095],
        [-0.0566212897666848, 0.1818714750502378, 0.14026626210668935],
    ]
    results = potential(AtomGraph.from_ase(ethanol(), 3.0), ("energy", "forces"))
    assert float(results["energy"]) == pytest.approx(-0.43674530875293205, abs=1e-13)
    np.testing.assert_allclose(results["forces"].numpy(), forces, rtol=0, atol=1e-13)


# -------------------------------------------------------------------------------------------------------- convolution


def convolution_pair(hidden: int) -> tuple[NeighborConvolution, EdgeTensorProduct]:
    ins, outs = feature_irreps(hidden, both_parities=False), feature_irreps(3, both_parities=False)
    return NeighborConvolution(ins, 3, outs, 4, basis=3, hidden=6, layers=2), EdgeTensorProduct(ins, 3, outs)


def gradients(value: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [value, *torch.autograd.grad(value.sin().sum(), inputs)]


@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_convolution_equals_the_tensor_product(hidden: int, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of slots, in blocks, add up what an edge-by-edge tensor product adds up; gradients as well."""
    convolution, product = convolution_pair(hidden)
    edge_index, vectors = uneven()
    n = int(edge_index.max()) + 2
    x = torch.randn(n, product.irreps_in.dim, 4, requires_grad=True)
    geometry = edge_geometry(edge_index, vectors, SphericalHarmonics(3))
    assert len(geometry.distances) * 2 == len(vectors)
    if not half:
        geometry = geometry._replace(distances=geometry.distances.repeat(2))
    basis = torch.exp(-geometry.distances.unsqueeze(1) * torch.arange(1.0, 4.0)).requires_grad_(True)
    harmonics = geometry.harmonics.clone().requires_grad_(True)
    sums = product(x, product.coupling(harmonics), convolution.radial(basis), geometry.sender, geometry.receiver)
    near = neighborhoods(geometry, n)
    inputs = (x, basis, harmonics, convolution.radial.weights[2])
    expected = gradients(sums, inputs)
    for block in (2**20, 500):
        monkeypatch.setattr(convolution_module, "BLOCK", block)
        found = convolution(x, near.spread(harmonics), basis, near)
        for a, b in zip(gradients(found, inputs), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))


def test_neighborhoods() -> None:
    """Every edge has a slot in a row of its receiver, and slots are not many more than edges."""
    edge_index, _ = uneven()
    order = torch.randperm(edge_index.shape[1])
    sender, receiver = edge_index[:, order]
    near = neighborhoods(EdgeGeometry(sender, receiver, torch.empty(0), torch.empty(0)), 55)
    assert near.width == 8
    filled = near.edge < len(order)
    assert torch.equal(near.edge[filled].sort().values, torch.arange(len(order)))
    assert torch.equal(near.receiver.repeat_interleave(8)[filled], receiver[near.edge[filled]])
    assert torch.equal(near.sender[filled], sender[near.edge[filled]])
    assert len(near.edge) <= len(order) + 8 * 55
    values = torch.randn(len(order), 2)
    assert torch.equal(near.spread(values)[filled], values[near.edge[filled]])
    assert not near.spread(values)[~filled].any()


def test_uniform_neighborhoods_need_no_spare_slots() -> None:
    receiver, sender = (1 - torch.eye(14)).nonzero().t()
    near = neighborhoods(EdgeGeometry(sender, receiver, torch.empty(0), torch.empty(0)), 14)
    assert (near.width, len(near.edge), len(near.receiver)) == (13, 182, 14)


def test_spare_rows_add_nothing() -> None:
    """On a GPU there are more rows than needed; they belong to atom 0."""
    convolution, _ = convolution_pair(1)
    edge_index, vectors = uneven()
    geometry = edge_geometry(edge_index, vectors, SphericalHarmonics(3))
    near, x = neighborhoods(geometry, 55), torch.randn(55, 4, 4)
    spare = torch.zeros(24, dtype=torch.int64)
    wider = Neighborhoods(
        near.edges,
        8,
        torch.cat([near.edge, spare + near.edges]),
        torch.cat([near.sender, spare]),
        torch.cat([near.receiver, spare[:3]]),
    )
    basis = torch.rand(len(geometry.distances), 3)
    results = [convolution(x, rows.spread(geometry.harmonics), basis, rows) for rows in (near, wider)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


def test_convolution_without_edges() -> None:
    convolution, _ = convolution_pair(1)
    nothing = torch.empty(0, dtype=torch.int64)
    near = neighborhoods(EdgeGeometry(nothing, nothing, torch.empty(0), torch.empty(0, 16)), 3)
    result = convolution(torch.randn(3, 4, 4), near.spread(torch.empty(0, 16)), torch.empty(0, 3), near)
    assert result.shape == (3, convolution.irreps_mid.dim, 4)
    assert not result.any()


@pytest.mark.parametrize("present", [[0, 1, 2, 3], [2], [3, 0]])
def test_species_linear(present: list[int]) -> None:
    """Grouped by species, as on a CPU, and with a weight per atom, as on a GPU."""
    linear = SpeciesLinear("0e+1o+2e", 3, "0e+2e+3o", 5, 4)
    x, species = torch.randn(11, 9, 3), torch.tensor(present)[torch.randint(len(present), (11,))]
    each = linear._map(x, [weight.index_select(0, species) for weight in linear.weights])
    torch.testing.assert_close(linear(x, species), each, rtol=0, atol=1e-13)
    expected = x[4, :1] @ linear.weights[0][species[4]] / 3**0.5
    torch.testing.assert_close(each[4, :1], expected, rtol=0, atol=1e-13)


# --------------------------------------------------------------------------------------------------------- equivariance


@pytest.mark.parametrize(("hidden", "correlation", "first"), [(0, 3, True), (1, 3, False), (2, 2, False)])
def test_equivariance_of_a_layer(hidden: int, correlation: int, first: bool) -> None:
    values = SMALL | {"l_max": 2, "correlation": correlation, "neighbors": 4.0}
    options, outs = parse_options(MACEOptions, values, "test"), feature_irreps(max(hidden, 1), both_parities=False)
    irreps = feature_irreps(hidden, both_parities=False)
    layer = Interaction(options, 2, irreps, outs, first=first)
    wide_in, wide_out = (o3.Irreps([(3, ir) for _, ir in some]) for some in (irreps, outs))
    receiver, sender = (1 - torch.eye(5)).nonzero().t()
    species, points = torch.tensor([0, 1, 1, 0, 1]), torch.randn(5, 3)
    harmonics = SphericalHarmonics(2)

    def rows(x: Tensor) -> Tensor:
        blocks = [x[:, piece].reshape(5, 3, -1).transpose(1, 2) for piece in wide_in.slices()]
        return torch.cat(blocks, dim=1)

    def function(x: Tensor, points: Tensor) -> Tensor:
        edges = edge_geometry(torch.stack([sender, receiver]), points[sender] - points[receiver], harmonics)
        near = neighborhoods(edges, 5)
        basis = torch.exp(-edges.distances.unsqueeze(1) * torch.arange(1.0, 5.0))
        out = layer(rows(x), species, near.spread(edges.harmonics), basis, near)
        return torch.cat([out[:, piece].transpose(1, 2).flatten(1) for piece in outs.slices()], dim=1)

    x = torch.randn(5, wide_in.dim)
    assert function(x, points).detach().abs().mean(dim=0).min() > 1e-4
    assert_equivariant(
        function,
        args_in=[x, points],
        irreps_in=[wide_in, o3.Irreps("1o")],
        irreps_out=[wide_out],
        tolerance=1e-10,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 1, "hidden_lmax": 0},
        {"layers": 3, "l_max": 2, "hidden_lmax": 2, "correlation": 2},
        {"l_max": 1, "correlation": 4},
        {"l_max": 0, "hidden_lmax": 0, "correlation": 5},
        {"l_max": 4, "correlation": 1, "radial_layers": 0},
    ],
)
def test_any_size(options: dict[str, int]) -> None:
    """Any l_max, correlation and depth: invariant energies, forces as finite differences have them."""
    potential = potentials.build("mace", cutoff=4.0, elements=[1, 6, 8], dtype="float64", **(SMALL | options))

    def energy(atoms: Atoms) -> float:
        return float(potential(AtomGraph.from_ase(atoms, 4.0), ("energy",))["energy"].detach())

    atoms, h = ethanol(), 1e-5
    forces = potential(AtomGraph.from_ase(atoms, 4.0), ("forces",))["forces"].numpy()
    direction = np.random.default_rng(3).normal(size=forces.shape)
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * h * direction
        energies.append(energy(moved))
    assert np.abs(forces).max() > 1e-3
    assert (energies[1] - energies[0]) / (2 * h) == pytest.approx((forces * direction).sum(), rel=1e-6)
    turned = atoms.copy()
    turned.positions = turned.positions @ o3.rand_matrix().numpy() * -1.0
    assert energy(turned) == pytest.approx(energy(atoms), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- the physics


@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_body_order(correlation: int) -> None:
    """The features of one layer hold terms of up to ``correlation`` neighbors at once, and no more."""
    options = parse_options(MACEOptions, SMALL | {"layers": 1, "correlation": correlation, "neighbors": 2.0}, "test")
    model, places = MACE(options, 4.0, 2), 1.2 * torch.randn(4, 3)

    def features(chosen: tuple[int, ...]) -> Tensor:
        vectors, others = places[list(chosen)], torch.arange(1, len(chosen) + 1)
        edge_index = torch.cat([torch.stack([others, 0 * others]), torch.stack([0 * others, others])], dim=1)
        species = torch.tensor([0, *[k % 2 for k in chosen]])
        return model(species, edge_index, torch.cat([vectors, -vectors]))[0][0].detach()

    def together(count: int) -> Tensor:
        """What ``count`` neighbors do beyond the sum of what fewer of them do."""
        subsets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
        return sum(((-1.0) ** (count - len(s)) * features(s) for s in subsets), torch.zeros(3))

    assert together(correlation).abs().min() > 1e-6
    assert together(correlation + 1).abs().max() < 1e-13


def test_isolated_atoms_have_their_reference_energy() -> None:
    """Without being anchored: features of the first layer vanish without neighbors, and so do all that follow."""
    potential = potentials.build("mace", elements=[1, 8], dtype="float64", **SMALL)
    potential.set_references({1: -13.6, 8: -2041.3})
    graph = AtomGraph.from_ase([Atoms("O"), Atoms("OH", positions=[[0, 0, 0], [0, 0, 9.0]])], potential.cutoff)
    np.testing.assert_array_equal(potential(graph, ("energy",))["energy"].detach().numpy(), [-2041.3, -2054.9])


def test_vectors() -> None:
    """Vectors are those of all layers but the last; without any, there is no polarizability."""

    def build(**options: int) -> Potential:
        return potentials.build("mace", elements=[1, 6, 8], outputs=["polarizability"], **(SMALL | options))

    representation = build(layers=3, hidden_lmax=2).representation
    graph = AtomGraph.from_ase(ethanol(), 5.0)
    scalars, vectors = representation(graph.z % 5 % 3, graph.edge_index, graph.edge_vectors().float())
    assert representation.has_vectors
    assert scalars.shape == (9, 9)
    assert vectors.shape == (9, 3, 9)
    assert vectors[:, :, :6].detach().abs().min() > 0
    assert not vectors[:, :, 6:].any()
    for options in ({"layers": 1}, {"hidden_lmax": 0}):
        with pytest.raises(ConfigError, match="polarizability"):
            build(**options)
