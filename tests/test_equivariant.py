"""The layout and the geometry of the equivariant architectures against e3nn, and their symmetry, parity included."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from e3nn import o3
from e3nn.util.test import assert_equivariant
from equivariant_cases import BOTH, NATURAL
from global_settings import float64_and_seed
from torch import Tensor, nn

from simkit.equivariant import (
    EdgeTensorProduct,
    ExactConstant,
    FeatureNorm,
    Gate,
    NormNonlinearity,
    SphericalHarmonics,
    edge_geometry,
    feature_irreps,
    reachable,
    row_slices,
    scalars_and_vectors,
)
from simkit.equivariant.layout import parse_irreps
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.radial import PolynomialCutoff, SineBasis


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260102):
        yield


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
