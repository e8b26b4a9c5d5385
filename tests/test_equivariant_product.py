"""The tensor product of the equivariant architectures against e3nn's, and its symmetry, parity included."""

from collections.abc import Callable, Iterator

import pytest
import torch
from e3nn import o3
from e3nn.util.test import assert_equivariant
from equivariant_cases import BOTH, NATURAL, C, assert_same, derivatives, from_e3nn, normal, to_e3nn, widened
from global_settings import float64_and_seed
from torch import Tensor, nn

from simkit.equivariant import EdgeTensorProduct, SphericalHarmonics, shared_couplings


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260102):
        yield


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
