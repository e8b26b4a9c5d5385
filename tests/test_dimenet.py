"""DimeNet++ against PyG's, its bases against scipy and mpmath, its triplets against loops."""

import functools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from numpy.typing import NDArray
from scipy.special import eval_legendre, spherical_jn
from torch import Tensor
from torch_geometric.nn.models import dimenet_utils
from torch_geometric.nn.models.dimenet_utils import bessel_basis as pyg_bessel_basis

from simkit import potentials
from simkit.bessel import PolynomialEnvelope, SphericalBesselBasis, legendre, spherical_bessel_roots
from simkit.graph import AtomGraph
from simkit.initialization import glorot_orthogonal_
from simkit.potential import Potential
from simkit.triplets import make_triplets

SMALL = {"channels": 20, "layers": 2, "triplet_channels": 12, "basis_channels": 5, "output_channels": 24}


def build(cutoff: float, dtype: str = "float64", **options: Any) -> Potential:
    return potentials.build("dimenet++", cutoff=cutoff, elements=[1, 6, 8], dtype=dtype, **(SMALL | options))


def molecules() -> list[Atoms]:
    """With a benzene ring, where the numbers of neighbors differ, and a dimer and an atom alone, which have no triplets."""
    frames = [molecule("CH3CH2OH"), molecule("C6H6"), Atoms("OH", [[0, 0, 0], [0.9, 0.3, 0]]), Atoms("C")]
    for seed, frame in enumerate(frames):
        frame.rattle(0.1, seed=seed)
    return frames


def crystal() -> Atoms:
    """Atoms that see each other through several images, and their own."""
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    return Atoms("HCO", scaled_positions=[[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0.0, 0.75, 0.35]], cell=cell, pbc=True)


# ------------------------------------------------------------------------------------------------------ against PyG


def pyg_triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    """What PyG's own function returns; that one needs torch-sparse."""
    sender, receiver = edge_index
    joined = sender.unsqueeze(1) == receiver.unsqueeze(0)  # edge j -> i by edge k -> j
    first = joined & (receiver.unsqueeze(1) != sender.unsqueeze(0))
    ji, kj = first.nonzero().unbind(dim=1)
    return receiver, sender, receiver[ji], sender[ji], sender[kj], kj, ji


@functools.cache
def bessel_formulas(orders: int, count: int) -> Any:
    """PyG's formulas, with exact roots (PyG rounds them to float32) and not simplified once more, which takes 8 seconds."""
    formulas = dimenet_utils.spherical_bessel_formulas(orders)

    def exact(orders: int, count: int) -> NDArray[np.float64]:
        return np.array([[float(mpmath.besseljzero(n + 0.5, k + 1)) for k in range(count)] for n in range(orders)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dimenet_utils, "Jn_zeros", exact)
        patch.setattr(dimenet_utils, "spherical_bessel_formulas", lambda n: formulas)
        patch.setattr(dimenet_utils.sym, "simplify", lambda expression: expression)
        return pyg_bessel_basis(orders, count)


def pyg_twin(potential: Potential, graph: AtomGraph, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """PyG's DimeNet++ with the weights of ``potential``, on the edges of ``graph``."""
    from torch_geometric.nn.models import DimeNetPlusPlus, dimenet

    monkeypatch.setattr(dimenet_utils, "bessel_basis", bessel_formulas)
    monkeypatch.setattr(dimenet, "radius_graph", lambda pos, r, batch, max_num_neighbors: graph.edge_index)
    monkeypatch.setattr(dimenet, "triplets", pyg_triplets)
    o = potential.options
    twin = DimeNetPlusPlus(
        hidden_channels=o["channels"],
        out_channels=1,
        num_blocks=o["layers"],
        int_emb_size=o["triplet_channels"],
        basis_emb_size=o["basis_channels"],
        out_emb_channels=o["output_channels"],
        num_spherical=o["spherical"],
        num_radial=o["radial"],
        cutoff=potential.cutoff,
        envelope_exponent=o["envelope_exponent"],
        num_before_skip=o["before_skip"],
        num_after_skip=o["after_skip"],
        num_output_layers=o["output_layers"],
    ).double()

    def copy(target: torch.nn.Module, source: Any) -> None:
        target.load_state_dict(source.state_dict())

    rep: Any = potential.representation
    head: Any = potential.heads["energy"]
    with torch.no_grad():
        twin.rbf.freq.copy_(rep.frequencies)
        twin.emb.emb.weight[potential.elements] = rep.embedding.emb.weight
        for theirs, weight in zip(twin.output_blocks, head.linear.weight.chunk(o["layers"] + 1, dim=1), strict=True):
            theirs.lin.weight.copy_(weight)
    copy(twin.emb.lin_rbf, rep.embedding.lin_rbf)
    copy(twin.emb.lin, rep.embedding.lin)
    for theirs, ours in zip(twin.output_blocks, rep.outputs, strict=True):
        copy(theirs.lin_rbf, ours.lin_rbf)
        copy(theirs.lin_up, ours.lin_up)
        copy(theirs.lins, ours.lins)
    layers = ["lin_rbf1", "lin_rbf2", "lin_sbf1", "lin_sbf2", "lin_kj", "lin_ji", "lin_down", "lin_up", "lin"]
    for theirs, ours in zip(twin.interaction_blocks, rep.interactions, strict=True):
        for name in layers:
            copy(getattr(theirs, name), getattr(ours, name))
        copy(theirs.layers_before_skip, ours.before_skip)
        copy(theirs.layers_after_skip, ours.after_skip)
    return twin


PUBLISHED = {"channels": 128, "layers": 4, "triplet_channels": 64, "basis_channels": 8, "output_channels": 256}
OTHER = {"spherical": 3, "radial": 4, "envelope_exponent": 3, "before_skip": 2, "after_skip": 1, "output_layers": 1}


@pytest.mark.parametrize(("cutoff", "options"), [(5.0, PUBLISHED), (2.6, PUBLISHED), (3.1, OTHER)])
def test_equals_pyg(cutoff: float, options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    potential, graph = build(cutoff, **options), AtomGraph.from_ase(molecules(), cutoff)
    with torch.no_grad():  # biases that are zero at first would hide a mistake
        generator = torch.Generator().manual_seed(1)
        for name, parameter in potential.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    twin = pyg_twin(potential, graph, monkeypatch)
    graph.pos.requires_grad_(True)
    theirs = twin(graph.z, graph.pos, graph.batch)
    (gradient,) = torch.autograd.grad(theirs.sum(), graph.pos)
    ours = potential(graph, ("energy", "forces"))
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(ours["energy"], theirs.detach().squeeze(1), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours["forces"], -gradient, rtol=1e-11, atol=1e-11)


def test_size() -> None:
    """PyG's model of the published size has 1 885 830 parameters, of which 95 x 128 are the embedding of all elements."""
    potential = potentials.build("dimenet++", elements=[1, 6, 7, 8, 9])
    assert potential.num_parameters == 1_885_830 - (95 - 5) * 128 == 1_874_310


# ------------------------------------------------------------------------------------------------------- structures


@pytest.mark.parametrize("one_block", [False, True])
def test_triplets_equal_loops(one_block: bool) -> None:
    """Over edges, with the images written out: k is i where both atom and image agree."""
    frames = [*molecules(), crystal(), crystal()[:1], bulk("Si")]
    graph = AtomGraph.from_ase(frames, 3.6)
    edges = graph.edge_index.shape[1]
    order = torch.randperm(edges, generator=torch.Generator().manual_seed(0)) if one_block else torch.arange(edges)
    edge_index = graph.edge_index[:, order]
    sender, receiver = edge_index.tolist()
    shift = graph.edge_shift[order].round().long().tolist()
    triplets = make_triplets(edge_index, graph.edge_vectors()[order], len(graph.z), one_block=one_block)
    found = {}
    for block in triplets.blocks:
        for atom in range(len(block.incoming)):
            for o, i in block.exists[atom].nonzero().tolist():
                key = (int(block.outgoing[atom, o]), int(block.incoming[atom, i]))
                assert key not in found
                found[key] = True
    by_receiver: dict[int, list[int]] = {}
    for edge, atom in enumerate(receiver):
        by_receiver.setdefault(atom, []).append(edge)
    expected = set()
    images = 0
    for ji in range(len(sender)):
        for kj in by_receiver.get(sender[ji], []):
            same_atom = sender[kj] == receiver[ji]
            same_image = all(a + b == 0 for a, b in zip(shift[kj], shift[ji], strict=True))
            if not (same_atom and same_image):
                expected.add((ji, kj))
                images += same_atom
    assert set(found) == expected
    assert images > 100  # triplets i -> j -> i through two images
    outgoing = torch.cat([block.outgoing.flatten() for block in triplets.blocks])
    assert torch.equal(outgoing[triplets.position], torch.arange(len(sender)))
    if one_block:
        assert len(triplets.blocks) == 1
        return
    assert len(triplets.blocks) > 2
    padded = sum(block.exists.numel() for block in triplets.blocks)
    pairs = sum(len(edges) ** 2 for edges in by_receiver.values())
    assert padded < 4 * pairs


@pytest.mark.parametrize("frame", [bulk("Si"), molecule("C6H6")[:6], molecule("CH4")])
def test_triplets_of_equal_atoms_need_no_gathering(frame: Atoms) -> None:
    graph = AtomGraph.from_ase(frame, 3.0)
    (block,) = make_triplets(graph.edge_index, graph.edge_vectors(), len(frame)).blocks
    assert block.in_order
    assert torch.equal(block.incoming.flatten(), torch.arange(graph.edge_index.shape[1]))


def test_padding_that_adds_up_to_the_number_of_edges_is_gathered() -> None:
    """Two blocks, where the padded size of the first is by chance the number of all edges."""
    chain = Atoms("CCC", [[0, 0, 0], [1.3, 0, 0], [2.6, 0.1, 0]])  # one, two and one neighbor
    ring = molecule("C6H6")[:6]
    ring.positions += 50.0
    frame = chain + ring
    graph = AtomGraph.from_ase(frame, 1.6)
    triplets = make_triplets(graph.edge_index, graph.edge_vectors(), len(frame))
    assert len(triplets.blocks) == 2
    assert not any(block.in_order for block in triplets.blocks)


def test_no_edges() -> None:
    potential = build(3.0)
    results = potential(AtomGraph.from_ase([Atoms("C"), Atoms("O")], 3.0), ("energy", "forces"))
    assert torch.equal(results["forces"], torch.zeros(2, 3, dtype=torch.float64))
    assert make_triplets(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3), 2).blocks == []


def test_a_supercell_has_the_energy_of_its_cells() -> None:
    """It would not if triplets i -> j -> i through different images were left out, as PyG does: then the cell would matter."""
    potential = build(3.4)
    energies, of_pyg = [], []
    for copies in (1, 2):
        frame = crystal() * (copies, 1, 1)
        graph = AtomGraph.from_ase(frame, 3.4)
        energies.append(float(potential(graph, ("energy",))["energy"].detach()))
        kept = pyg_triplets(graph.edge_index, len(frame))
        of_pyg.append(len(kept[-1]))
    assert energies[1] == pytest.approx(2 * energies[0], rel=1e-13)
    assert of_pyg[1] > 2 * of_pyg[0]


@pytest.mark.parametrize("frame", [molecule("CO2"), Atoms("HHHH", [[0, 0, z] for z in (0.0, 1.0, 2.2, 3.3)])])
def test_atoms_on_a_line(frame: Atoms) -> None:
    """Angles of 0 and pi, where the angle itself has no derivative: first and second derivatives against differences."""
    potential, graph = build(4.0), AtomGraph.from_ase(frame, 4.0)

    def forces(pos: Tensor) -> Tensor:
        moved = graph.clone()
        moved.pos = pos
        return potential(moved, ("forces",), differentiable=True)["forces"]

    assert torch.autograd.gradcheck(forces, graph.pos.clone().requires_grad_(True))
    h, energies = 1e-6, []
    for sign in (1, -1):
        moved = graph.clone()
        moved.pos = graph.pos.clone()
        moved.pos[1] += sign * h * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        energies.append(float(potential(moved, ("energy",))["energy"].detach()))
    expected = float(forces(graph.pos)[1].detach() @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert -(energies[0] - energies[1]) / (2 * h) == pytest.approx(expected, rel=1e-7)


# ------------------------------------------------------------------------------------------------------------ bases


def test_roots() -> None:
    expected = [[float(mpmath.besseljzero(n + 0.5, k)) for k in range(1, 7)] for n in range(7)]
    np.testing.assert_allclose(spherical_bessel_roots(7, 6), expected, rtol=1e-15)


@pytest.mark.parametrize(("orders", "roots"), [(1, 1), (7, 6), (12, 32)])
def test_spherical_bessel_functions(orders: int, roots: int) -> None:
    """Values, first and second derivatives, from arguments where formulas with powers of 1/x lose every digit."""
    basis = SphericalBesselBasis(orders, roots).double()
    x = np.concatenate([np.geomspace(1e-3, 0.1, 100), np.linspace(0.1, 1.0, 400)])
    z = spherical_bessel_roots(orders, roots)
    expected = np.zeros((3, len(x), orders, roots))
    for n in range(orders):
        norm = np.sqrt(2.0) / np.abs(spherical_jn(n + 1, z[n]))
        t = np.outer(x, z[n])
        j, dj = spherical_jn(n, t), spherical_jn(n, t, derivative=True)
        expected[0, :, n] = norm * j
        expected[1, :, n] = norm * z[n] * dj
        expected[2, :, n] = norm * z[n] ** 2 * (-(2 / t) * dj - (1 - n * (n + 1) / t**2) * j)  # Bessel's equation
    found = derivatives(basis, torch.from_numpy(x))
    for k, bound in enumerate((1e-13, 1e-12, 1e-10)):  # scipy's own second derivative loses digits at small arguments
        away = x > 0.02
        error = np.abs(found[k] - expected[k].reshape(len(x), -1))[away if k == 2 else slice(None)]
        assert error.max() < bound * np.abs(expected[k]).max()
    single = basis.float()(torch.from_numpy(x).float()).double().numpy()
    error = np.abs(single - expected[0].reshape(len(x), -1))
    assert error.max() < 2**-24 * (8 + z.max()) * np.abs(expected[0]).max()


def derivatives(basis: SphericalBesselBasis, x: Tensor) -> list[NDArray[np.float64]]:
    """Values and two derivatives with respect to x of every function, [3, E, functions]."""
    x = x.clone().requires_grad_(True)
    value = basis(x)
    columns = []
    for column in value.unbind(dim=1):
        (first,) = torch.autograd.grad(column.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, retain_graph=True)
        columns.append(torch.stack([column, first, second]).detach())
    return list(torch.stack(columns, dim=2).numpy())


def test_basis_is_orthonormal() -> None:
    """The integral of b_ln b_lm r^2 over the unit sphere is 1 for n = m and 0 otherwise (DimeNet, section 4)."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    x, w = (nodes + 1) / 2, weights / 2
    values = SphericalBesselBasis(7, 6).double()(torch.from_numpy(x)).numpy().reshape(-1, 7, 6)
    product = np.einsum("x,xln,xlm->lnm", w * x**2, values, values)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(6), (7, 6, 6)), atol=1e-12)


@pytest.mark.parametrize("exponent", [1, 5, 8])
def test_envelope(exponent: int) -> None:
    p = exponent + 1
    envelope = PolynomialEnvelope(exponent)
    x = torch.linspace(0.05, 1.0, 200, dtype=torch.float64)
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    torch.testing.assert_close(envelope(x), 1 / x + a * x ** (p - 1) + b * x**p + c * x ** (p + 1), rtol=0, atol=1e-12)
    near = torch.tensor(1 - 1e-6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(envelope(near), near, create_graph=True)
    (second,) = torch.autograd.grad(first, near)
    assert abs(float(first.detach())) < 1e-9
    assert abs(float(second)) < 1e-2
    assert float(envelope(torch.tensor(1.2))) == 0.0
    # Digits survive in float32: 0.0028 of the value is left at 0.97 for exponent 5.
    single = envelope(x.float()).double()
    torch.testing.assert_close(single, envelope(x.float().double()), rtol=1e-5, atol=1e-12)


def test_legendre() -> None:
    x = torch.linspace(-1, 1, 51, dtype=torch.float64)
    expected = [math.sqrt((2 * n + 1) / (4 * math.pi)) * eval_legendre(n, x.numpy()) for n in range(9)]
    np.testing.assert_allclose(legendre(x, 9).numpy(), np.stack(expected, axis=1), atol=1e-14)
    first = torch.linspace(0, 2, 51, dtype=torch.float64)
    torch.testing.assert_close(legendre(x, 4, first), legendre(x, 4) * first.unsqueeze(1), rtol=1e-13, atol=1e-14)


# -------------------------------------------------------------------------------------------------- initial weights


@pytest.mark.parametrize("shape", [(128, 128), (8, 42), (256, 128), (1, 640), (1, 1)])
def test_glorot_orthogonal(shape: tuple[int, int]) -> None:
    """Semi-orthogonal up to a factor, which makes the mean square 2 / (inputs + outputs)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        weight = glorot_orthogonal_(torch.empty(shape, dtype=torch.float64))
    assert float(weight.square().mean()) == pytest.approx(2 / sum(shape), rel=1e-12)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(values, values[:1].expand_as(values), rtol=1e-12, atol=0)
