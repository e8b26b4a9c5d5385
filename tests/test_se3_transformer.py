"""The SE(3)-Transformer against its equations in loops, its symmetry, and its attention at the cutoff."""

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
from torch import Tensor

from simkit import potentials
from simkit.equivariant import SphericalHarmonics, edge_geometry
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.potentials.se3_transformer import (
    AttentionBlock,
    AttentiveSelfInteraction,
    ScalarConvolution,
    SE3TransformerOptions,
    neighbor_softmax,
)

C, H, HEADS = 3, 4, 2
SMALL = {"channels": C, "value_channels": H, "heads": HEADS, "l_max": 2, "basis": 4, "radial_channels": 5}
INDEX = torch.tensor([[0, 0, 1, 1, 2, 2, 3, 2], [1, 2, 0, 2, 0, 1, 2, 3]])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260105):
        yield


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=2)
    return atoms


def build(**options: Any) -> Potential:
    return potentials.build(
        "se3_transformer", cutoff=4.0, elements=[1, 6, 8], dtype="float64", **SMALL | {"layers": 2} | options
    )


# ------------------------------------------------------------------------------------------------------- attention


def test_neighbor_softmax() -> None:
    """The formula in loops; nothing overflows; the only neighbor leaves smoothly; without cutoff it is a softmax over one more score."""
    receiver = torch.tensor([0, 0, 0, 2, 2])
    scores, weights = torch.randn(5, 2), torch.tensor([1.0, 0.5, 0.0, 0.3, 1.0])
    found = neighbor_softmax(scores, weights, receiver, 4)
    for e in range(5):
        for head in range(2):
            total = 1.0 + sum(weights[k] * scores[k, head].exp() for k in range(5) if receiver[k] == receiver[e])
            assert float(found[e, head]) == pytest.approx(float(weights[e] * scores[e, head].exp() / total), rel=1e-12)
    large = neighbor_softmax(scores + 2000.0, weights, receiver, 4)
    assert large.isfinite().all()
    assert large[:3].sum(dim=0).tolist() == pytest.approx([1.0, 1.0])
    assert neighbor_softmax(scores - 2000.0, weights, receiver, 4).abs().max() == 0.0
    alone = neighbor_softmax(scores[:1], torch.tensor([1e-9]), receiver[:1], 1)
    torch.testing.assert_close(alone, 1e-9 * scores[:1].exp(), rtol=1e-8, atol=0)
    plain = neighbor_softmax(scores[:3], torch.ones(3), receiver[:3], 1)
    torch.testing.assert_close(plain, torch.softmax(torch.cat([scores[:3], torch.zeros(1, 2)]), dim=0)[:3])


def test_neighbor_softmax_derivatives() -> None:
    """The number that is taken out against overflow has no influence on derivatives of first and second order."""
    receiver = torch.tensor([0, 0, 2, 2, 2])
    scores, weights = torch.randn(5, 2, requires_grad=True), torch.rand(5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s, w: neighbor_softmax(s, w, receiver, 3), (scores, weights))
    assert torch.autograd.gradgradcheck(lambda s, w: neighbor_softmax(s, w, receiver, 3), (scores, weights))


def block_inputs(source: o3.Irreps) -> tuple[Tensor, Tensor]:
    return torch.randn(4, source.dim, C), torch.randn(4, 3)


def run_block(block: AttentionBlock, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """The block's attention and its result, for radial functions of the distance without a cutoff."""
    edges = edge_geometry(INDEX, pos[INDEX[0]] - pos[INDEX[1]], SphericalHarmonics(2))
    basis = torch.stack([torch.exp(-0.3 * k * edges.distances) for k in range(1, 5)], dim=1)
    weights = torch.exp(-edges.distances).repeat(2)
    couplings = block.keys.coupling(edges.harmonics), block.values.coupling(edges.harmonics)
    return (
        block.attention(x, edges, basis, weights, couplings[0]),
        block(x, edges, basis, weights, couplings),
    )


def convolve_pair(product: Any, weights: Tensor, x: dict[Any, Tensor], vector: Tensor) -> dict[Any, Tensor]:
    """All paths of one edge, with the paths to an irrep next to each other: irrep -> [paths * H, 2l + 1]."""
    result: dict[Any, list[Tensor]] = {}
    for index, path in enumerate(product.paths):
        a, b = product.irreps_in[path.input].ir, product.irreps_out[path.output].ir
        y = o3.spherical_harmonics(path.degree, vector, normalize=True, normalization="component")
        coupled = torch.einsum("ca,k,akb->cb", x[a], y, o3.wigner_3j(a.l, path.degree, b.l)) * math.sqrt(b.dim)
        result.setdefault(b, []).append(weights[index].unsqueeze(1) * coupled)
    return {ir: torch.cat(parts) for ir, parts in result.items()}


def linear(module: Any, x: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """An `IrrepsLinear` on irrep -> [channels, 2l + 1]."""
    present = [ir for _, ir in module.irreps_out if ir in x]
    return {ir: w.t() @ x[ir] / math.sqrt(len(w)) for ir, w in zip(present, module.weights, strict=True)}


def attention_in_loops(block: Any, x: Tensor, pos: Tensor) -> tuple[dict[tuple[int, int], Tensor], list[Any]]:
    """Values, keys, queries and attention atom by atom, with the last linear map of the keys on the keys, as they are written."""
    features = [
        {
            ir: x[i, rows].t()
            for (_, ir), rows in zip(block.mix_own.irreps_in, block.mix_own.irreps_in.slices(), strict=True)
        }
        for i in range(4)
    ]
    pairs = list(zip(INDEX[1].tolist(), INDEX[0].tolist(), strict=True))
    scores, values = {}, {}
    for i, j in pairs:
        vector = pos[j] - pos[i]
        r = vector.norm()
        basis = torch.stack([torch.exp(-0.3 * k * r) for k in range(1, 5)]).unsqueeze(0)
        values[i, j] = convolve_pair(
            block.values, block.value_radial(basis)[0], linear(block.value_in, features[j]), vector
        )
        keys = convolve_pair(block.keys, block.key_radial(basis)[0], linear(block.key_in, features[j]), vector)
        scores[i, j] = torch.zeros(HEADS)
        for ir, matrix in zip([ir for _, ir in block.query.irreps_out], block.query.weights, strict=True):
            # <W^T x_i, y_ij> = <x_i, W y_ij>: a key with the channels of x_i, for each head from its own channels of y_ij.
            count = matrix.shape[1] // H
            by_head = matrix.view(C, count, HEADS, H // HEADS) / math.sqrt(C)
            y = keys[ir].view(count, HEADS, H // HEADS, ir.dim)
            key = torch.einsum("cphk,phkm->hcm", by_head, y)
            scores[i, j] = scores[i, j] + torch.einsum("cm,hcm->h", features[i][ir], key)
    rows = sum(mul * ir.dim for mul, ir in block.keys.irreps_mid)
    alpha = {}
    for i, j in pairs:
        part = {
            k: torch.exp(-(pos[k] - pos[i]).norm()) * torch.exp(scores[i, k] / math.sqrt(rows * H / HEADS))
            for a, k in pairs
            if a == i
        }
        alpha[i, j] = part[j] / (1 + sum(part.values()))
    totals = []
    for i in range(4):
        total: dict[Any, Tensor] = {}
        for a, j in pairs:
            if a == i:
                for ir, value in values[i, j].items():
                    share = alpha[i, j].repeat_interleave(H // HEADS).repeat(len(value) // H)
                    total[ir] = total.get(ir, 0) + share.unsqueeze(1) * value
        totals.append(linear(block.mix_values, total))
    return alpha, totals


@pytest.mark.parametrize(
    ("source", "target"), [("0e+1o+2e", "0e+1o+2e"), ("0e", "0e+1o+2e"), ("0e+1o+1e", "0e+0o+1o+1e")]
)
def test_attention_equals_its_equations(source: str, target: str) -> None:
    irreps_in, irreps_out = o3.Irreps(source), o3.Irreps(target)
    block = AttentionBlock(irreps_in, irreps_out, SE3TransformerOptions(**SMALL, neighbors=3.0))
    x, pos = block_inputs(irreps_in)
    with torch.no_grad():
        for weight in block.query.weights:
            weight.mul_(5.0)  # so that attention is far from even
        found_alpha, found = run_block(block, x, pos)
        alpha, totals = attention_in_loops(block, x, pos)
        edges = edge_geometry(INDEX, pos[INDEX[0]] - pos[INDEX[1]], SphericalHarmonics(2))
        for e, (i, j) in enumerate(zip(edges.receiver.tolist(), edges.sender.tolist(), strict=True)):
            torch.testing.assert_close(found_alpha[e], alpha[i, j])
        before = torch.zeros(4, irreps_out.dim, C)
        for i, total in enumerate(totals):
            for (_, ir), rows in zip(irreps_out, irreps_out.slices(), strict=True):
                before[i, rows] = math.sqrt(3.0) * total[ir].t()
        before = (before + block.mix_own(x)) / math.sqrt(2)
        torch.testing.assert_close(found, block.nonlinearity(block.norm(before)))
    assert max(float(a.max() / a.min()) for a in (found_alpha[:, 0], found_alpha[:, 1])) > 3.0


# -------------------------------------------------------------------------------------------------------- symmetry


@pytest.mark.parametrize("self_interaction", ["linear", "attentive"])
@pytest.mark.parametrize(
    ("source", "target"), [("0e+0o+1o+1e+2e+2o", "0e+0o+1o+1e+2e+2o"), ("0e+1o+2e", "0e+1o+1e"), ("0e", "0e+1o+2e")]
)
def test_attention_block_is_equivariant(source: str, target: str, self_interaction: str) -> None:
    irreps_in, irreps_out = o3.Irreps(source), o3.Irreps(target)
    options = SE3TransformerOptions(**SMALL, self_interaction=self_interaction)
    block = AttentionBlock(irreps_in, irreps_out, options)
    last = ScalarConvolution(irreps_out, options)

    def run(x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.view(4, C, -1).transpose(1, 2)
        attention, y = run_block(block, x, pos)
        edges = edge_geometry(INDEX, pos[INDEX[0]] - pos[INDEX[1]], SphericalHarmonics(2))
        scalars = last(y, edges, torch.exp(-edges.distances).unsqueeze(1).expand(-1, 4))
        return y.transpose(1, 2).flatten(1), attention, scalars

    x, pos = block_inputs(irreps_in)
    # One irrep after the other for each channel is an e3nn layout as well.
    assert_equivariant(
        run,
        args_in=[x.transpose(1, 2).flatten(1), pos],
        irreps_in=[irreps_in * C, "cartesian_points"],
        irreps_out=[irreps_out * C, f"{HEADS}x0e", f"{C}x0e"],
    )


def test_attentive_self_interaction() -> None:
    """Equivariant, without effect of other atoms, and not linear."""
    irreps = o3.Irreps("0e+0o+1o+2e")
    module = AttentiveSelfInteraction(irreps, irreps, C)

    def run(x: Tensor) -> Tensor:
        return module(x.view(-1, C, irreps.dim).transpose(1, 2)).transpose(1, 2).flatten(1)

    x = (irreps * C).randn(5, -1)
    assert_equivariant(run, args_in=[x], irreps_in=[irreps * C], irreps_out=[irreps * C])
    torch.testing.assert_close(run(x[:2]), run(x)[:2])
    assert not torch.allclose(run(2 * x), 2 * run(x), rtol=0.1)


@pytest.mark.parametrize("parity", [False, True])
def test_features_are_equivariant(parity: bool) -> None:
    potential = build(parity=parity, layers=3)
    graph = AtomGraph.from_ase(ethanol(), 4.0)
    species, index = potential.species(graph.z), graph.edge_index

    def run(pos: Tensor) -> tuple[Tensor, Tensor]:
        scalars, vectors = potential.representation(species, index, pos[index[0]] - pos[index[1]])
        return scalars, vectors.transpose(1, 2).flatten(1)

    assert run(graph.pos)[1].abs().max() > 0.01
    assert_equivariant(run, args_in=[graph.pos], irreps_in=["cartesian_points"], irreps_out=[f"{C}x0e", f"{C}x1o"])


# --------------------------------------------------------------------------------------------------- size and options


@pytest.mark.parametrize("self_interaction", ["linear", "attentive"])
@pytest.mark.parametrize(("l_max", "layers", "parity"), [(0, 2, True), (1, 4, True), (2, 1, False)])
def test_every_weight_matters(l_max: int, layers: int, parity: bool, self_interaction: str) -> None:
    """No weight is carried along that the energy of a general structure does not depend on."""
    potential = build(l_max=l_max, layers=layers, parity=parity, self_interaction=self_interaction)
    energy = potential(AtomGraph.from_ase(ethanol(), 4.0), ("energy",), differentiable=True)["energy"]
    names, weights = zip(*potential.representation.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(energy.sum(), weights), strict=True):
        assert (gradient != 0).all(), name
    assert potential.representation.has_vectors == (l_max > 0)


def test_size() -> None:
    """Term by term for the default: 7 blocks, 32 channels, l_max 3, 16 channels of values; paths counted by hand."""
    c, h, w = 32, 16, 32
    expected = 5 * c + (c * 16 + 16) + 17  # embedding, and the readout
    # Of each block: irreps that enter and leave, paths of values and of keys.
    for entering, leaving, values, keys in [(1, 4, 4, 1)] + 6 * [(4, 4, 23, 23)]:
        expected += 2 * entering * c * h + keys * h * c  # inputs of values and keys; queries
        expected += 2 * (16 * w + w * w) + w * (values + keys) * h
        expected += values * h * c + min(entering, leaving) * c * c + leaving * c
    expected += 16 * w + w * w + w * 4 * c + 4 * c * c + c * c
    assert potentials.build("se3_transformer", elements=[1, 6, 7, 8, 9]).num_parameters == expected


def test_heads_must_share_the_channels() -> None:
    with pytest.raises(ConfigError, match="value_channels must be a multiple of heads, found 4 and 3"):
        build(heads=3)
