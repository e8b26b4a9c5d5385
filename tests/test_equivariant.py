"""The blocks of the equivariant architectures against e3nn's own modules, and their symmetry, parity included."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.util.test import assert_equivariant
from scipy import integrate
from torch import Tensor, nn

from simkit.equivariant import (
    EdgeTensorProduct,
    ExactConstant,
    FeatureNorm,
    Gate,
    IrrepsLinear,
    LinearReadout,
    NormNonlinearity,
    RadialMLP,
    SpeciesLinear,
    SphericalHarmonics,
    edge_geometry,
    feature_irreps,
    reachable,
    row_slices,
    scalars_and_vectors,
    shared_couplings,
)
from simkit.equivariant.layout import parse_irreps
from simkit.equivariant.nonlinear import unit_variance
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.heads import Features
from simkit.radial import PolynomialCutoff, SineBasis

BOTH = o3.Irreps("0e+0o+1o+1e+2e+2o")
NATURAL = o3.Irreps("0e+1o+2e")
C = 5


@pytest.fixture(autouse=True)
def float64_and_seed() -> Iterator[None]:
    """e3nn's modules and its assertion take dtype and randomness from global state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20260102)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def to_e3nn(x: Tensor, irreps: o3.Irreps, channels: int = C) -> Tensor:
    """Rows and channels [N, dim, C] to e3nn's order: per irrep, multiplicity and channel first, component last."""
    parts = [
        x[:, rows].reshape(len(x), ir.dim, mul * channels).transpose(1, 2).reshape(len(x), -1)
        for (mul, ir), rows in zip(irreps, irreps.slices(), strict=True)
    ]
    return torch.cat(parts, dim=1)


def from_e3nn(x: Tensor, irreps: o3.Irreps, channels: int = C) -> Tensor:
    wide = widened(irreps, channels)
    parts = [
        x[:, rows].reshape(len(x), mul * channels, ir.dim).transpose(1, 2).reshape(len(x), -1, channels)
        for (mul, ir), rows in zip(irreps, wide.slices(), strict=True)
    ]
    return torch.cat(parts, dim=1)


def widened(irreps: o3.Irreps, channels: int = C) -> o3.Irreps:
    return o3.Irreps([(mul * channels, ir) for mul, ir in irreps])


def flat(function: Callable[[Tensor], Tensor], irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> Callable[..., Tensor]:
    return lambda x: to_e3nn(function(from_e3nn(x, irreps_in)), irreps_out)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def derivatives(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The value, the gradients of a nonlinear scalar of it, and those of a scalar of these gradients."""
    value = function(*inputs)
    weights = torch.linspace(-1.0, 2.0, value.numel()).view(value.shape)
    first = torch.autograd.grad((value.tanh() * weights).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
    return [x.detach() for x in (value, *first, *second)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * max(1.0, float(b.detach().abs().max())))


# ---------------------------------------------------------------------------------------------------------- layout


def test_layout() -> None:
    assert feature_irreps(2, both_parities=True) == BOTH
    assert feature_irreps(2, both_parities=False) == NATURAL
    assert row_slices(o3.Irreps("3x0e+2x1o")) == {o3.Irrep("0e"): slice(0, 3), o3.Irrep("1o"): slice(3, 9)}
    assert reachable(o3.Irreps("0e"), 2, BOTH) == NATURAL
    assert reachable(o3.Irreps("1o"), 1, BOTH) == o3.Irreps("0e+1o+1e+2e")
    x = torch.randn(4, BOTH.dim, 3)
    scalars, vectors = scalars_and_vectors(x, BOTH)
    assert torch.equal(scalars, x[:, 0])
    assert torch.equal(vectors, x[:, 2:5])
    assert torch.equal(scalars_and_vectors(x[:, :1], o3.Irreps("0e"))[1], torch.zeros(4, 3, 3))


@pytest.mark.parametrize("irreps", ["0e+0e", "1o+0e+1o", "0x0e"])
def test_irreps_at_two_places_are_refused(irreps: str) -> None:
    with pytest.raises(ConfigError, match="each irrep once"):
        parse_irreps(irreps)


def test_unusable_irreps_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiplicity 1"):
        EdgeTensorProduct("2x0e", 1, "0e")
    with pytest.raises(ConfigError, match="1e is not in the product of 1x0e with Y up to l = 2"):
        EdgeTensorProduct("0e", 2, "0e+1e")
    with pytest.raises(ConfigError, match="begin with 0e"):
        Gate("1o+0e")
    with pytest.raises(ConfigError, match="0o next to 0e"):
        Gate("0e+1o+0o")
    with pytest.raises(ConfigError, match="0e in the first place"):
        NormNonlinearity("1o+0e", 3)
    with pytest.raises(ConfigError, match="l_max must be from 0 to 11, found 12"):
        feature_irreps(12, both_parities=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExactConstant(torch.tensor(math.pi, dtype=torch.float64)),
        lambda: SphericalHarmonics(3),
        lambda: EdgeTensorProduct(BOTH, 2, BOTH),
        lambda: FeatureNorm(BOTH),
    ],
)
def test_constants_survive_changes_of_dtype(make: Callable[[], nn.Module]) -> None:
    module = make()
    exact = [buffer.clone() for buffer in module.buffers()]
    assert not module.state_dict()
    single = list(module.float().buffers())
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in single)
    for a, b in zip(module.double().buffers(), exact, strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 6, 11])
def test_spherical_harmonics_equal_e3nn(lmax: int) -> None:
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    directions = torch.cat([nn.functional.normalize(torch.randn(40, 3), dim=1), axes])
    ours = SphericalHarmonics(lmax)(directions)
    theirs = o3.spherical_harmonics(list(range(lmax + 1)), directions, normalize=False, normalization="component")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    torch.testing.assert_close(SphericalHarmonics(lmax)(-directions), ours * SphericalHarmonics(lmax).signs)


def test_spherical_harmonics_are_equivariant_and_smooth() -> None:
    harmonics = SphericalHarmonics(4)
    assert_equivariant(
        lambda v: harmonics(nn.functional.normalize(v, dim=1)),
        irreps_in=["1x1o"],
        irreps_out=[o3.Irreps.spherical_harmonics(4)],
    )
    directions = nn.functional.normalize(torch.tensor([[0.0, 0, 1], [1, 2, -3]]), dim=1).requires_grad_(True)
    assert torch.autograd.gradcheck(harmonics, directions)
    assert torch.autograd.gradgradcheck(harmonics, directions)


def test_edge_geometry_keeps_every_edge() -> None:
    """Also between an atom and its own images, and several edges between the same pair."""
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    graph = AtomGraph.from_ase(Atoms("HC", [[0, 0, 0], [1.2, 0.4, 0.5]], cell=cell, pbc=True), 4.0)
    vectors, harmonics = graph.edge_vectors(), SphericalHarmonics(2)
    edges = edge_geometry(graph.edge_index, vectors, harmonics)
    assert edges.distances.shape[0] * 2 == edges.sender.shape[0] == vectors.shape[0]

    def listing(index: Tensor, r: Tensor, y: Tensor) -> Any:
        rows = torch.cat([index.t().to(r.dtype), r.unsqueeze(1), y], dim=1).numpy()
        return rows[np.lexsort(rows.round(9).T)]

    r = vectors.norm(dim=1)
    expected = listing(graph.edge_index, r, harmonics(vectors / r.unsqueeze(1)))
    index = torch.stack([edges.sender, edges.receiver])
    np.testing.assert_allclose(listing(index, edges.distances.repeat(2), edges.harmonics), expected, atol=1e-13)
    empty = edge_geometry(graph.edge_index[:, :0], vectors[:0], harmonics)
    assert (empty.distances.shape, empty.harmonics.shape) == ((0,), (0, 9))


@pytest.mark.parametrize("power", [3, 5, 6])
def test_polynomial_cutoff_of_any_power(power: int) -> None:
    """Flat to second order at the cutoff, and 1 + order x^p at zero."""
    function = PolynomialCutoff(4.0, power)
    x = torch.tensor([4.0 * (1 - 1e-9), 4.2], requires_grad=True)
    value = function(x)
    for bound in (1e-14, 1e-13, 1e-6):
        assert value.abs().max() < bound
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert value[0].item() == pytest.approx(-power * (power + 1) * (power + 2) / 64.0, rel=1e-6)  # the third derivative
    small = torch.tensor([0.04])
    leading = (1.0 - function(small)) / 0.01**power
    assert float(leading) == pytest.approx((power + 1) * (power + 2) / 2, rel=0.03)


def test_trainable_frequencies() -> None:
    basis, fixed = SineBasis(4, 5.0, trainable=True), SineBasis(4, 5.0)
    r = torch.tensor([0.7, 3.0])
    assert torch.equal(basis(r), fixed(r))
    assert [name for name, _ in basis.named_parameters()] == ["orders"]
    assert not list(fixed.parameters())


# ------------------------------------------------------------------------------------------------ tensor product


def e3nn_product(product: EdgeTensorProduct) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """e3nn's uvu product with an output of its own for each path."""
    outputs = o3.Irreps([(C, product.irreps_out[path.output].ir) for path in product.paths])
    instructions = [(path.input, path.degree, k, "uvu", True) for k, path in enumerate(product.paths)]
    module = o3.TensorProduct(
        widened(product.irreps_in),
        o3.Irreps.spherical_harmonics(product.lmax),
        outputs,
        instructions,
        shared_weights=False,
        internal_weights=False,
        irrep_normalization="component",
    )
    return lambda x, y, w: module(to_e3nn(x, product.irreps_in), y, w.flatten(1))


CASES = [(BOTH, 2, BOTH), (NATURAL, 2, NATURAL), (o3.Irreps("0e"), 3, o3.Irreps("0e+1o+2e+3o"))]
CASES += [(BOTH, 1, o3.Irreps("2o+0e+1e")), (NATURAL, 2, o3.Irreps("0e")), (o3.Irreps("1e+0e"), 0, o3.Irreps("0e"))]


@pytest.mark.parametrize(("irreps_in", "lmax", "irreps_out"), CASES)
def test_edge_tensor_product_equals_e3nn(irreps_in: o3.Irreps, lmax: int, irreps_out: o3.Irreps) -> None:
    """Values, first and second derivatives, of sums at receivers and of messages."""
    product = EdgeTensorProduct(irreps_in, lmax, irreps_out)
    reference = e3nn_product(product)
    atoms, edges = 6, 20
    x, y, w = normal(atoms, irreps_in.dim, C), normal(edges, (lmax + 1) ** 2), normal(edges, len(product.paths), C)
    sender, receiver = torch.randint(atoms, (2, edges))

    def ours(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return to_e3nn(product(x, product.coupling(y), w, sender, receiver), product.irreps_mid)

    def theirs(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        messages = reference(x[sender], y, w)
        return messages.new_zeros(atoms, messages.shape[1]).index_add(0, receiver, messages)

    found = derivatives(ours, [x, y, w])
    # In a product without e.g. Y_1 some inputs have no influence; that is the same on both sides.
    assert_same(found, derivatives(theirs, [x, y, w]))
    assert found[0].abs().max() > 0.1
    messages = product.messages(x, product.coupling(y), w, sender)
    assert_same([to_e3nn(product.arrange(messages), product.irreps_mid)], [reference(x[sender], y, w)])
    assert torch.equal(product.disarrange(product.arrange(messages)), messages)


def test_number_of_paths() -> None:
    """Counted from the triangle rule by hand: l_max 2 has 15 triples of degrees, 11 of which keep p = (-1)^l."""
    assert len(EdgeTensorProduct(NATURAL, 2, NATURAL).paths) == 11
    assert len(EdgeTensorProduct(BOTH, 2, BOTH).paths) == 30
    product = EdgeTensorProduct(NATURAL, 2, NATURAL)
    assert product.irreps_mid == o3.Irreps("3x0e+4x1o+4x2e")
    assert [path.output for path in product.paths] == sorted(path.output for path in product.paths)


def test_products_of_the_same_irreps_share_their_coupling() -> None:
    pairs = [(NATURAL, NATURAL), (NATURAL, o3.Irreps("0e")), (NATURAL, NATURAL), (BOTH, NATURAL)]
    products = [EdgeTensorProduct(a, 2, b) for a, b in pairs]
    y = torch.randn(3, 9)
    shared = shared_couplings(products, y)
    assert shared[0] is shared[2]
    for product, coupling in zip(products, shared, strict=True):
        assert torch.equal(coupling, product.coupling(y))


def test_half_the_weights_for_edges_and_their_reverses() -> None:
    product = EdgeTensorProduct(NATURAL, 2, NATURAL)
    x, y, w = normal(4, 9, C), normal(12, 9), normal(6, 11, C)
    sender, receiver = torch.randint(4, (2, 12))

    def half(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return product(x, product.coupling(y), w, sender, receiver)

    assert_same(derivatives(half, [x, y, w]), derivatives(lambda x, y, w: half(x, y, torch.cat([w, w])), [x, y, w]))


@pytest.mark.parametrize(("irreps_in", "lmax", "irreps_out"), CASES)
def test_edge_tensor_product_is_equivariant(irreps_in: o3.Irreps, lmax: int, irreps_out: o3.Irreps) -> None:
    product, harmonics = EdgeTensorProduct(irreps_in, lmax, irreps_out), SphericalHarmonics(lmax)
    sender, receiver = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 0, 3, 2, 2, 0]])
    weights = torch.randn(6, len(product.paths), C)

    def convolve(x: Tensor, vectors: Tensor) -> Tensor:
        y = harmonics(nn.functional.normalize(vectors, dim=1))
        total = product(from_e3nn(x, irreps_in), product.coupling(y), weights, sender, receiver)
        return to_e3nn(total, product.irreps_mid)

    x, vectors = widened(irreps_in).randn(4, -1), torch.randn(6, 3)
    assert_equivariant(
        convolve,
        args_in=[x, vectors],
        irreps_in=[widened(irreps_in), "1x1o"],
        irreps_out=[widened(product.irreps_mid)],
    )


def test_edge_tensor_product_keeps_the_variance() -> None:
    """Component normalisation: components of variance 1 in all factors give components of variance 1."""
    product = EdgeTensorProduct(BOTH, 2, BOTH)
    edges = 4000
    y = SphericalHarmonics(2)(nn.functional.normalize(torch.randn(edges, 3), dim=1))
    messages = product.messages(
        torch.randn(edges, 18, C), product.coupling(y), torch.randn(edges, 30, C), torch.arange(edges)
    )
    second = messages.square().mean(dim=(0, 2))
    assert second.min() > 0.8
    assert second.max() < 1.2


def test_without_edges() -> None:
    product = EdgeTensorProduct(NATURAL, 2, NATURAL)
    none = torch.zeros(0, dtype=torch.int64)
    total = product(torch.randn(3, 9, C), product.coupling(torch.zeros(0, 9)), torch.zeros(0, 11, C), none, none)
    assert torch.equal(total, torch.zeros(3, product.irreps_mid.dim, C))


# ---------------------------------------------------------------------------------------------------- linear maps

SEVERAL = o3.Irreps("3x0e+2x1o+1x2e+2x0o")


def test_irreps_linear_equals_e3nn() -> None:
    target = o3.Irreps("2x0e+1x2e+3x1o")
    ours = IrrepsLinear(SEVERAL, C, target, 4)
    theirs = o3.Linear(widened(SEVERAL), widened(target, 4))
    with torch.no_grad():
        mine = dict(zip([ir for _, ir in target], ours.weights, strict=True))
        for _, instruction, view in theirs.weight_views(yield_instruction=True):
            view.copy_(mine[target[instruction.i_out].ir])
    x = normal(7, SEVERAL.dim, C)

    def reference(x: Tensor) -> Tensor:
        return from_e3nn(theirs(to_e3nn(x, SEVERAL)), target, 4)

    assert_same(derivatives(ours, [x]), derivatives(reference, [x]))
    with_missing = IrrepsLinear(SEVERAL, C, "1e+0e", 4)(x)
    assert torch.equal(with_missing[:, :3], torch.zeros(7, 3, 4))
    assert with_missing[:, 3].abs().min() > 0


def test_species_linear_equals_e3nn() -> None:
    """A product with the one-hot species, which e3nn divides by the square root of their number as well."""
    source, target, elements = NATURAL, o3.Irreps("2x0e+1x1o+1x1e"), 3
    ours = SpeciesLinear(source, C, target, 4, elements)
    theirs = o3.FullyConnectedTensorProduct(widened(source), f"{elements}x0e", widened(target, 4))
    with torch.no_grad():
        for weight, view in zip(ours.weights, theirs.weight_views(), strict=True):
            view.copy_(weight.transpose(0, 1))
    species = torch.tensor([0, 2, 2, 1, 0])
    hot = nn.functional.one_hot(species, elements).to(torch.float64)
    x = normal(5, source.dim, C)

    def reference(x: Tensor) -> Tensor:
        return from_e3nn(theirs(to_e3nn(x, source), hot), target, 4) * math.sqrt(elements)

    found = derivatives(lambda x: ours(x, species), [x])
    assert_same(found, derivatives(reference, [x]))
    assert torch.equal(found[0][:, -3:], torch.zeros(5, 3, 4))  # 1e, which the input lacks


def test_linear_maps_are_equivariant_and_keep_the_variance() -> None:
    channels = 64
    species = torch.randint(3, (500,))
    linear = IrrepsLinear(SEVERAL, channels, "2x0e+1x1o", channels)
    by_species = SpeciesLinear(SEVERAL, channels, "2x0e+1x1o", channels, 3)
    x = torch.randn(500, SEVERAL.dim, channels)
    for value in (linear(x), by_species(x, species)):
        assert value.square().mean().item() == pytest.approx(1.0, abs=0.1)
    small, small_by_species = IrrepsLinear(SEVERAL, C, SEVERAL, C), SpeciesLinear(SEVERAL, C, SEVERAL, C, 3)
    for function in (small, lambda x: small_by_species(x, torch.zeros(len(x), dtype=torch.int64))):
        assert_equivariant(
            flat(function, SEVERAL, SEVERAL), irreps_in=[widened(SEVERAL)], irreps_out=[widened(SEVERAL)]
        )


def test_linear_readout() -> None:
    readout, x = LinearReadout(16), torch.randn(6, 16)
    species = torch.zeros(6, dtype=torch.int64)
    value = readout(Features(x, None, species, species, 1))
    torch.testing.assert_close(value, x @ readout.weight[:, 0] / 4.0)


def test_radial_mlp() -> None:
    """Its formula; it vanishes as smoothly as its input does; initial weights have unit variance."""
    net = RadialMLP(8, 32, 2, 3, 7)
    assert [tuple(w.shape) for w in net.weights] == [(8, 32), (32, 32), (32, 21)]
    x, gain = torch.randn(40, 8), unit_variance(nn.functional.silu)
    hidden = x
    for weight in net.weights[:2]:
        hidden = gain * nn.functional.silu(hidden @ weight / math.sqrt(len(weight)))
    torch.testing.assert_close(net(x), (hidden @ net.weights[2] / math.sqrt(32)).view(40, 3, 7))
    assert torch.equal(net(torch.zeros(2, 8)), torch.zeros(2, 3, 7))
    wide = RadialMLP(64, 256, 2, 4, 64)(torch.randn(500, 64))
    assert wide.square().mean().item() == pytest.approx(1.0, abs=0.15)
    without_hidden = RadialMLP(8, 32, 0, 3, 7)
    torch.testing.assert_close(without_hidden(x), (x @ without_hidden.weights[0] / math.sqrt(8)).view(40, 3, 7))


# -------------------------------------------------------------------------------------------------- nonlinearities


@pytest.mark.parametrize("function", [nn.functional.silu, torch.tanh])
def test_unit_variance(function: Callable[[Tensor], Tensor]) -> None:
    def integrand(z: float) -> float:
        return float(function(torch.tensor(z))) ** 2 * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    moment, _ = integrate.quad(integrand, -12, 12, limit=200)
    assert unit_variance(function) == pytest.approx(moment**-0.5, rel=1e-6)


@pytest.mark.parametrize("irreps", [BOTH, NATURAL, o3.Irreps("0e"), o3.Irreps("0e+0o"), o3.Irreps("0e+1e+3o")])
def test_gate_equals_e3nn(irreps: o3.Irreps) -> None:
    """e3nn sorts the irreps of the input and estimates the norms of its activations by sampling."""
    ours = Gate(irreps)
    gated = o3.Irreps([item for item in irreps if item.ir.l > 0])
    scalars = o3.Irreps([item for item in irreps if item.ir.l == 0])
    activations = [unit_variance(f) for f in (nn.functional.silu, torch.tanh)]

    def silu(x: Tensor) -> Tensor:
        return nn.functional.silu(x) * activations[0]

    def tanh(x: Tensor) -> Tensor:
        return torch.tanh(x) * activations[1]

    theirs = e3nn_nn.Gate(
        widened(scalars),
        [silu, tanh][: len(scalars)],
        o3.Irreps([(C * len(gated), "0e")]) if len(gated) else "",
        [silu] if len(gated) else [],
        widened(gated),
    )
    for activation in (*theirs.act_scalars.acts, *theirs.act_gates.acts):
        if hasattr(activation, "cst"):
            activation.cst = 1.0
    assert theirs.irreps_in.dim == ours.irreps_in.dim * C
    x = normal(6, ours.irreps_in.dim, C)

    def reference(x: Tensor) -> Tensor:
        rows = row_slices(ours.irreps_in)
        ordered = [to_e3nn(x[:, rows[item.ir]], o3.Irreps([item])) for item in ours.irreps_in.sort().irreps]
        return from_e3nn(theirs(torch.cat(ordered, dim=1)), irreps)

    assert_same(derivatives(ours, [x]), derivatives(reference, [x]))
    assert_equivariant(
        flat(ours, ours.irreps_in, irreps), irreps_in=[widened(ours.irreps_in)], irreps_out=[widened(irreps)]
    )


@pytest.mark.parametrize("irreps", [BOTH, NATURAL, o3.Irreps("0e"), o3.Irreps("1o+2e"), o3.Irreps("0e+0o")])
def test_norm_nonlinearity(irreps: o3.Irreps) -> None:
    """Its equation in loops, its symmetry, and finite derivatives of first and second order where features vanish."""
    module = NormNonlinearity(irreps, C)
    with torch.no_grad():
        module.bias.copy_(0.3 * torch.randn_like(module.bias))
    x = torch.randn(4, irreps.dim, C)
    expected = torch.zeros_like(x)
    for k, (ir, rows) in enumerate(row_slices(irreps).items()):
        for n, c in itertools.product(range(4), range(C)):
            part, b = x[n, rows, c], module.bias[k, c].detach()
            if str(ir) == "0e":
                expected[n, rows, c] = nn.functional.silu(part + b) * unit_variance(nn.functional.silu)
            else:
                expected[n, rows, c] = part * torch.sigmoid((part.square().sum() + 1e-6).sqrt() + b)
    torch.testing.assert_close(module(x), expected)
    assert_equivariant(flat(module, irreps, irreps), irreps_in=[widened(irreps)], irreps_out=[widened(irreps)])
    zero = torch.zeros(2, irreps.dim, C, requires_grad=True)
    (first,) = torch.autograd.grad(module(zero).sum(), zero, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), zero)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert torch.autograd.gradcheck(module, x[:1].clone().requires_grad_(True))


def test_feature_norm() -> None:
    """Its formula, its bound, its symmetry, and smoothness where features vanish."""
    module = FeatureNorm(SEVERAL)
    x = 3.0 * torch.randn(6, SEVERAL.dim, C)
    found = module(x)
    for rows in SEVERAL.slices():
        square = x[:, rows].square().mean(dim=(1, 2))
        torch.testing.assert_close(found[:, rows], x[:, rows] * torch.sqrt(2 / (1 + square)).view(-1, 1, 1))
    assert module(1e6 * x).square().mean().item() == pytest.approx(2.0, rel=1e-9)
    assert_equivariant(flat(module, SEVERAL, SEVERAL), irreps_in=[widened(SEVERAL)], irreps_out=[widened(SEVERAL)])
    zero = torch.zeros(1, SEVERAL.dim, C, requires_grad=True)
    assert torch.autograd.gradcheck(module, zero)
    assert torch.autograd.gradgradcheck(module, zero)
