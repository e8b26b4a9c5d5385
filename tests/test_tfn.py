"""Tensor field networks against their equations in loops, and their symmetry and size."""

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
from scipy import integrate
from torch import Tensor, nn

from simkit import potentials
from simkit.equivariant import SphericalHarmonics, edge_geometry
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.potentials.tfn import Layer, TensorFieldNetworkOptions

C = 3


def silu_squared(z: float) -> float:
    return (z / (1 + math.exp(-z))) ** 2 * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


GAIN = integrate.quad(silu_squared, -12, 12, limit=200, epsabs=1e-14)[0] ** -0.5


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260104):
        yield


def frames() -> list[Atoms]:
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=2)
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    places = [[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0, 0.75, 0.35]]
    return [ethanol, Atoms("HCO", scaled_positions=places, cell=cell, pbc=True)]


def build(**options: Any) -> Potential:
    small = {"channels": C, "layers": 3, "l_max": 2, "basis": 6, "radial_channels": 5, "neighbors": 7.0}
    potential = potentials.build("tfn", cutoff=4.0, elements=[1, 6, 8], dtype="float64", **small | options)
    with torch.no_grad():  # biases start at zero
        for name, weight in potential.named_parameters():
            if name.endswith("nonlinearity.bias"):
                weight.copy_(0.4 * torch.randn_like(weight))
    return potential


def radial_functions(layer: Any, r: Tensor, options: dict[str, Any], cutoff: float) -> Tensor:
    """R(r) of every path and channel, [paths, C]: one hidden layer on Gaussians that a cutoff function takes to zero."""
    count, x = options["basis"], r / cutoff
    spacing = cutoff / (count - 1)
    f = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
    scale = math.sqrt(count / math.sqrt(math.pi))
    basis = torch.stack([torch.exp(-0.5 * (r / spacing - k) ** 2) * f * scale for k in range(count)])
    hidden = GAIN * nn.functional.silu(layer.radial.weights[0].t() @ basis / math.sqrt(count))
    weights = layer.radial.weights[1]
    return (weights.t() @ hidden / math.sqrt(len(weights))).view(-1, C)


def in_loops(potential: Potential, graph: AtomGraph) -> Tensor:
    """The equations with loops over layers, edges, paths and irreps; features are a dict from irrep to [C, 2l + 1] per atom."""
    rep: Any = potential.representation
    options, species = potential.options, potential.species(graph.z)
    edges = list(zip(graph.edge_index[0].tolist(), graph.edge_index[1].tolist(), graph.edge_vectors(), strict=True))
    x: list[dict[Any, Tensor]] = [{o3.Irrep("0e"): rep.embedding.weight[s].unsqueeze(1)} for s in species]
    for layer in rep.layers:
        product, new = layer.product, []
        for i in range(len(x)):
            sums: dict[Any, list[Tensor]] = {}
            for index, path in enumerate(product.paths):
                a, b = product.irreps_in[path.input].ir, product.irreps_out[path.output].ir
                total = torch.zeros(C, b.dim)
                for sender, receiver, vector in edges:
                    if receiver == i:
                        r = vector.norm()
                        y = o3.spherical_harmonics(path.degree, vector, normalize=True, normalization="component")
                        weight = radial_functions(layer, r, options, potential.cutoff)[index]
                        coupled = torch.einsum("ca,k,akb->cb", x[sender][a], y, o3.wigner_3j(a.l, path.degree, b.l))
                        total = total + weight[:, None] * coupled * math.sqrt(b.dim)
                sums.setdefault(b, []).append(total / math.sqrt(options["neighbors"]))
            mixed = {}
            own = dict(
                zip([ir for _, ir in layer.mix_own.irreps_out if ir in x[i]], layer.mix_own.weights, strict=True)
            )
            for k, (_, ir) in enumerate(product.irreps_out):
                paths, matrix = torch.cat(sums[ir]), layer.mix_neighbors.weights[k]
                mixed[ir] = matrix.t() @ paths / math.sqrt(len(matrix))
                if ir in x[i]:
                    mixed[ir] = mixed[ir] + own[ir].t() @ x[i][ir] / math.sqrt(C)
                mixed[ir] = mixed[ir] / math.sqrt(2)
                bias = layer.nonlinearity.bias[k].unsqueeze(1)
                if str(ir) == "0e":
                    mixed[ir] = GAIN * nn.functional.silu(mixed[ir] + bias)
                else:
                    norm = (mixed[ir].square().sum(dim=1, keepdim=True) + 1e-6).sqrt()
                    mixed[ir] = mixed[ir] * torch.sigmoid(norm + bias)
            new.append(mixed)
        x = new
    return torch.stack([features[o3.Irrep("0e")][:, 0] for features in x])


@pytest.mark.parametrize("parity", [False, True])
def test_equals_its_equations(parity: bool) -> None:
    potential = build(parity=parity, layers=4 if parity else 3)
    graph = AtomGraph.from_ase(frames()[1], 3.0)
    with torch.no_grad():
        expected = in_loops(potential, graph)
        species = potential.species(graph.z)
        scalars, _ = potential.representation(species, graph.edge_index, graph.edge_vectors())
    torch.testing.assert_close(scalars, expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 0.05


@pytest.mark.parametrize(
    ("source", "target"),
    [("0e+0o+1o+1e+2e+2o", "0e+0o+1o+1e+2e+2o"), ("0e+1o+2e", "0e+1o+1e"), ("0e+1o", "0e"), ("0e", "0e+1o+2e")],
)
def test_layer_is_equivariant(source: str, target: str) -> None:
    options = TensorFieldNetworkOptions(channels=C, basis=4, radial_channels=5)
    layer = Layer(o3.Irreps(source), o3.Irreps(target), options)
    harmonics = SphericalHarmonics(2)
    index = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])

    def run(x: Tensor, pos: Tensor) -> Tensor:
        edges = edge_geometry(index, pos[index[0]] - pos[index[1]], harmonics)
        basis = torch.stack([torch.exp(-k * edges.distances) for k in range(1, 5)], dim=1)
        y = layer(x.view(3, C, -1).transpose(1, 2), edges, basis, layer.product.coupling(edges.harmonics))
        return y.transpose(1, 2).flatten(1)

    # One irrep after the other for each channel is an e3nn layout as well.
    wide_in, wide_out = o3.Irreps(source) * C, o3.Irreps(target) * C
    assert_equivariant(
        run,
        args_in=[wide_in.randn(3, -1), torch.randn(3, 3)],
        irreps_in=[wide_in, "cartesian_points"],
        irreps_out=[wide_out],
    )


@pytest.mark.parametrize("parity", [False, True])
def test_features_are_equivariant(parity: bool) -> None:
    potential = build(parity=parity, layers=4)
    graph = AtomGraph.from_ase(frames()[0], 4.0)
    species, index = potential.species(graph.z), graph.edge_index

    def run(pos: Tensor) -> tuple[Tensor, Tensor]:
        scalars, vectors = potential.representation(species, index, pos[index[0]] - pos[index[1]])
        return scalars, vectors.transpose(1, 2).flatten(1)

    assert run(graph.pos)[1].abs().max() > 0.01
    assert_equivariant(run, args_in=[graph.pos], irreps_in=["cartesian_points"], irreps_out=[f"{C}x0e", f"{C}x1o"])


@pytest.mark.parametrize(
    ("l_max", "layers", "parity"), [(0, 2, True), (1, 5, True), (2, 4, True), (3, 2, False), (2, 1, False)]
)
def test_every_weight_matters(l_max: int, layers: int, parity: bool) -> None:
    """No weight is carried along that the energy of a general structure does not depend on."""
    potential = build(l_max=l_max, layers=layers, parity=parity)
    energy = potential(AtomGraph.from_ase(frames(), 4.0), ("energy",), differentiable=True)["energy"]
    names, weights = zip(*potential.representation.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(energy.sum(), weights), strict=True):
        assert (gradient != 0).all(), name
    assert potential.representation.has_vectors == (l_max > 0 and layers > 1)


def test_size() -> None:
    """Term by term for the default, 64 channels, l_max 2 and 4 layers; paths and irreps counted by hand."""
    c = 64
    # Of each layer: paths, output irreps, irreps in input and output.
    expected = 5 * c + (c * 32 + 32) + 33  # embedding, and the readout
    for paths, irreps, common in [(3, 3, 1), (11, 3, 3), (11, 3, 3), (3, 1, 1)]:
        expected += 16 * 64 + 64 * paths * c + (paths + common) * c * c + irreps * c
    assert potentials.build("tfn", elements=[1, 6, 7, 8, 9]).num_parameters == expected
