"""The symmetric contraction against e3nn's tensor products, against character theory, and its symmetries."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.util.test import assert_equivariant
from global_settings import float64_and_seed
from numpy.typing import NDArray
from torch import Tensor

from simkit import symmetric_contraction
from simkit.errors import ConfigError
from simkit.symmetric_contraction import Ladder, Monomials, SymmetricContraction, TrilinearForm, make_ladder

Array = NDArray[np.float64]
NATURAL = [str(o3.Irreps.spherical_harmonics(degree)) for degree in range(4)]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260311):
        yield


def evaluated(ladder: Ladder, x: Tensor) -> list[Tensor]:
    """Every equivariant at the points x [N, dim], from the list of its coefficients: [N, 2l + 1] each."""
    monomials = {order: Monomials(x.shape[1], order).factors for order, _ in ladder.equivariants}
    products = {order: x[:, factors].prod(dim=2) for order, factors in monomials.items()}
    return [products[order] @ torch.from_numpy(e.polynomials).t() for order, e in ladder.equivariants]


# ------------------------------------------------------------------------------------------------- what it is made of


def multiplicity(irreps: o3.Irreps, order: int, target: o3.Irrep) -> int:
    """How often ``target`` occurs in the symmetric power of a representation: the integral of characters over O(3)."""
    angles = (
        (np.arange(400) + 0.5) * math.pi / 400
    )  # trigonometric polynomials, which the midpoint rule integrates exactly

    def character(ir: o3.Irrep, inversion: int, times: int) -> Array:
        half = 0.5 * times * angles
        cosines = 1.0 + 2.0 * sum((np.cos(2 * m * half) for m in range(1, ir.l + 1)), np.zeros_like(half))
        return cosines * float(ir.p) ** (inversion * times)

    total = 0.0
    for inversion in (0, 1):
        power = [sum(mul * character(ir, inversion, k) for mul, ir in irreps) for k in range(order + 1)]
        symmetric = [np.ones_like(angles)]  # Newton's identities for the complete symmetric polynomials
        for n in range(1, order + 1):
            symmetric.append(sum(power[k] * symmetric[n - k] for k in range(1, n + 1)) / n)
        overlap = symmetric[order] * character(target, inversion, 1) * (1.0 - np.cos(angles))
        total += 0.5 * overlap.mean()
    assert total == pytest.approx(round(total), abs=1e-9)
    return round(total)


@pytest.mark.parametrize(
    ("irreps", "correlation"),
    [
        (NATURAL[0], 3),
        (NATURAL[1], 5),
        (NATURAL[2], 4),
        (NATURAL[3], 4),
        ("0e+0o+1e+1o", 3),
        ("2x0e+2x1o", 3),
        ("1e+2o", 3),
    ],
)
def test_complete(irreps: str, correlation: int) -> None:
    """As many independent equivariants of each order and type as there can be."""
    targets = o3.Irreps("0e+0o+1e+1o+2e")
    ladder = make_ladder(irreps, str(targets), correlation)
    found: dict[tuple[int, o3.Irrep], int] = {}
    for order, equivariant in ladder.equivariants:
        found[order, equivariant.irrep] = found.get((order, equivariant.irrep), 0) + 1
    for order, (_, target) in itertools.product(range(1, correlation + 1), targets):
        assert found.get((order, target), 0) == multiplicity(o3.Irreps(irreps), order, target), (order, target)


@pytest.mark.parametrize(
    ("target", "couplings", "independent"), [("0e", [1, 4, 23], [1, 4, 8]), ("1o", [1, 6, 51], [1, 3, 12])]
)
def test_spans_all_couplings(target: str, couplings: list[int], independent: list[int]) -> None:
    """e3nn's tensor products of A with itself, through every intermediate irrep, are combinations of the equivariants, and no fewer.

    The couplings are as many as there are paths in the U matrices of mace-torch 0.3.16, which keeps them all.
    """
    ladder, x = make_ladder(NATURAL[3], target, 3), torch.randn(150, 16)
    values = evaluated(ladder, x)
    powers, irreps = x, o3.Irreps(NATURAL[3])
    for order in (1, 2, 3):
        if order > 1:
            product = o3.FullTensorProduct(irreps, NATURAL[3])
            powers, irreps = product(powers, x), product.irreps_out
        dim = o3.Irrep(target).dim
        slices = [rows for (_, ir), rows in zip(irreps, irreps.slices(), strict=True) if ir == o3.Irrep(target)]
        brute = (
            torch.cat([powers[:, rows].reshape(len(x), -1, dim) for rows in slices], dim=1)
            .transpose(1, 2)
            .flatten(0, 1)
        )
        own = torch.stack(
            [v for v, (n, _) in zip(values, ladder.equivariants, strict=True) if n == order], dim=-1
        ).flatten(0, 1)
        assert brute.shape[1] == couplings[order - 1]
        assert own.shape[1] == independent[order - 1] == torch.linalg.matrix_rank(brute, rtol=1e-10)
        solution = torch.linalg.lstsq(own, brute).solution
        torch.testing.assert_close(own @ solution, brute, rtol=0, atol=1e-11 * float(brute.abs().max()))


def test_symmetric_tensors() -> None:
    """Third derivatives are 3! U: symmetric in their indices, and e3nn's coupling of (1, 1) to 2 and with 2 to 0 averaged over orders."""
    x = torch.zeros(1, 9, 1, requires_grad=True)
    ladder = make_ladder(NATURAL[2], "0e", 3)
    module = SymmetricContraction(NATURAL[2], "0e", 3, 1, 1)
    third = [k for k, (order, _) in enumerate(ladder.equivariants) if order == 3]
    found = []
    for k in third:
        with torch.no_grad():
            module.weight.zero_()
            module.weight[0, k] = 1.0
        (first,) = torch.autograd.grad(module(x, torch.tensor([0])).sum(), x, create_graph=True)
        rows = [torch.autograd.grad(first[0, i, 0], x, create_graph=True)[0] for i in range(9)]
        tensor = [[torch.autograd.grad(row[0, j, 0], x, retain_graph=True)[0] for j in range(9)] for row in rows]
        found.append(torch.stack([torch.stack(line) for line in tensor]).reshape(9, 9, 9) / 6.0)
    for u in found:
        for order in itertools.permutations(range(3)):
            torch.testing.assert_close(u.permute(order), u, rtol=0, atol=1e-15)
        assert float(u.square().sum()) == pytest.approx(1.0, abs=1e-12)
    expected = torch.zeros(9, 9, 9)
    expected[1:4, 1:4, 4:9] = o3.wigner_3j(1, 1, 2)
    expected = sum(expected.permute(order) for order in itertools.permutations(range(3)))
    expected = expected / expected.norm()
    assert any(torch.allclose(sign * u, expected, rtol=0, atol=1e-14) for u in found for sign in (1.0, -1.0))


def test_normalisation() -> None:
    for order, equivariant in make_ladder(NATURAL[3], "0e+1o+2e", 3).equivariants:
        squares = (equivariant.polynomials**2 / Monomials(16, order).counts).sum(axis=1)
        np.testing.assert_allclose(squares, 1.0, atol=1e-12)


def test_few_products() -> None:
    """Of the 136 products of two components and the 816 of three, few are needed."""
    for target, expected in (("0e", [60, 26]), ("0e+1o", [94, 131])):
        steps = make_ladder(NATURAL[3], target, 3).steps
        assert [len({entry[:2] for entry in step.entries}) for step in steps] == expected


# ------------------------------------------------------------------------------------------------------ how it is used


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "correlation"),
    [
        (NATURAL[3], "0e+1o", 3),
        (NATURAL[2], "0e+1o+2e", 4),
        (NATURAL[1], "0e", 1),
        ("1o+0e", "2e+0e+1o", 2),  # no path of order 1 to 2e, and irreps in any order
        ("0e+0o+1e+1o", "0e+0o+1e+1o", 3),
        ("0o", "0o", 2),  # nothing of order 2
        ("2x0e+2x1o", "0e+1o", 2),
    ],
)
def test_weighted_sum(irreps_in: str, irreps_out: str, correlation: int) -> None:
    """The contraction is the sum of the equivariants with the weights of species and channel, also where blocks are small."""
    channels, species = 3, torch.tensor([1, 0, 1, 1, 0])
    module = SymmetricContraction(irreps_in, irreps_out, correlation, channels, 2)
    x = torch.randn(5, o3.Irreps(irreps_in).dim, channels)
    ladder = make_ladder(str(module.irreps_in), str(module.irreps_out), correlation)
    rows = {ir: piece for (_, ir), piece in zip(module.irreps_out, module.irreps_out.slices(), strict=True)}
    expected = torch.zeros(5, module.irreps_out.dim, channels)
    for c in range(channels):
        for k, ((_, e), values) in enumerate(zip(ladder.equivariants, evaluated(ladder, x[:, :, c]), strict=True)):
            expected[:, rows[e.irrep], c] += module.weight.detach()[species, k, c].unsqueeze(1) * values
    torch.testing.assert_close(module(x, species), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    module, species = SymmetricContraction(NATURAL[3], "0e+1o", 3, 4, 3), torch.arange(7) % 3
    x = torch.randn(7, 16, 4, requires_grad=True)

    def values_and_gradient() -> tuple[Tensor, ...]:
        out = module(x, species)
        return (out, *torch.autograd.grad(out.square().sum(), (x, module.weight)))

    whole = values_and_gradient()
    monkeypatch.setattr(symmetric_contraction, "BLOCK", 1000)  # two atoms at a time, and one left over
    for a, b in zip(values_and_gradient(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * float(b.detach().abs().max()))


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "correlation"),
    [(NATURAL[3], "0e+1o", 3), (NATURAL[2], "0e+1o+2e", 4), ("0e+0o+1e+1o+2e", "0e+0o+1e+1o+2o", 3)],
)
def test_equivariance(irreps_in: str, irreps_out: str, correlation: int) -> None:
    module, species = SymmetricContraction(irreps_in, irreps_out, correlation, 1, 2), torch.tensor([0, 1, 1, 0])
    outs = [torch.zeros(0)]

    def function(x: Tensor) -> Tensor:
        outs[0] = module(x.unsqueeze(2), species).squeeze(2)
        return outs[0]

    assert_equivariant(
        function,
        args_in=[torch.randn(4, module.irreps_in.dim)],
        irreps_in=[module.irreps_in],
        irreps_out=[module.irreps_out],
        tolerance=1e-10,
    )
    assert outs[0].abs().mean(dim=0).min() > 1e-3  # no component is equivariant for being zero


@pytest.mark.parametrize("irreps_out", ["0e", "0e+1o"])
def test_derivatives(irreps_out: str) -> None:
    """First and second derivatives with respect to features and weights, by finite differences."""
    module, species = SymmetricContraction(NATURAL[2], irreps_out, 3, 2, 2), torch.tensor([0, 1])
    x = (0.5 * torch.randn(2, 9, 2)).requires_grad_(True)
    weight = module.weight.detach().clone().requires_grad_(True)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": weight}, (x, species))

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


def test_trilinear_form() -> None:
    """The three readings of a form and the derivatives of each against einsum."""
    table = torch.randn(3, 4, 5) * (torch.rand(3, 4, 5) > 0.5)
    entries = [(i, j, o, float(table[i, j, o])) for i, j, o in table.nonzero().tolist()]
    form = TrilinearForm(entries, (3, 4, 5))
    x, y = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 4, 6, requires_grad=True)
    torch.testing.assert_close(form(x, y), torch.einsum("ijo,nic,njc->noc", table, x, y))
    assert torch.autograd.gradcheck(form, (x, y))
    assert torch.autograd.gradgradcheck(form, (x, y))


def test_exact_after_float32() -> None:
    """A model that was float32 is exactly equivariant again in float64."""
    module = SymmetricContraction(NATURAL[3], "0e+1o", 3, 2, 1)
    module.weight.data = module.weight.data.float().double()
    x, species = torch.randn(4, 16, 2), torch.zeros(4, dtype=torch.int64)
    before = module(x, species)
    assert torch.equal(module.float().double()(x, species), before)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="every irrep of the output once"):
        SymmetricContraction(NATURAL[1], "0e+0e", 2, 1, 1)
    with pytest.raises(ConfigError, match="every irrep of the output once"):
        SymmetricContraction(NATURAL[1], "2x0e", 2, 1, 1)
    with pytest.raises(ConfigError, match="raise the correlation order or l_max"):
        SymmetricContraction(NATURAL[2], "0e+0o", 2, 1, 1)
