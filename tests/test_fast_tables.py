"""Tables of filters: against polynomials, splines of SciPy and the exact filters of models."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from fast_cases import ARCHITECTURES, CUTOFF, differences, everything, model
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor

from simkit.errors import ConfigError
from simkit.fast import painn, schnet
from simkit.fast.rows import Rows
from simkit.fast.tables import FEWEST, SLOPE_ERROR, Function, HermiteTables, _tabulated
from simkit.fast.workspace import Workspace
from simkit.graph import AtomGraph

EXACT = {"painn": painn._filters, "schnet": schnet._filters}


def interpolated(tables: HermiteTables, distances: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes [K, F] of the first table by the basis that kernels are given."""
    pairs = [Atoms("H2", [[0, 0, 0], [0, r, 0]]) for r in distances]
    rows = Rows(Workspace(), AtomGraph.from_ase(pairs, 2 * CUTOFF), CUTOFF, tables.intervals, dtype)
    np.testing.assert_allclose(rows.distance[::2], distances, rtol=1e-14)
    basis, table = rows.basis.array[::2].astype(np.float64), tables.values[0].double().numpy()
    ends = np.concatenate([table[rows.knot[::2]], table[rows.knot[::2] + 1]], axis=1)
    return np.einsum("kb,kbf->kf", basis[:, :4], ends), np.einsum("kb,kbf->kf", basis[:, 4:], ends)


def test_cubic_polynomials_are_exact() -> None:
    a = torch.tensor([1.0, 0.0, -0.3], dtype=torch.float64)
    b = torch.tensor([0.0, 1.0, 0.7], dtype=torch.float64)

    def cubic(r: Tensor) -> Tensor:
        r = r[:, None]
        return (r - CUTOFF) ** 2 * (a + b * r)

    tables = HermiteTables([cubic], CUTOFF, torch.float64)
    assert tables.intervals == FEWEST
    step = CUTOFF / FEWEST
    rng = np.random.default_rng(0)
    r = np.concatenate(
        [step * np.arange(1, FEWEST), rng.uniform(step, CUTOFF, 200), [CUTOFF, CUTOFF + 0.3, 1.9 * CUTOFF]]
    )
    values, slopes = interpolated(tables, r, torch.float64)
    x, low, high = torch.from_numpy(r)[:, None], a, b
    inside = x < CUTOFF
    exact = (x - CUTOFF) * (2 * (low + high * x) + high * (x - CUTOFF))
    np.testing.assert_allclose(values, (cubic(x[:, 0]) * inside).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(slopes, (exact * inside).numpy(), rtol=0, atol=1e-9)
    assert (values[-3:] == 0).all()
    assert (slopes[-3:] == 0).all()


def by_differences(function: Function, r: Tensor, step: float = 1e-3) -> Tensor:
    """Slopes by central differences of sixth order."""
    terms = [weight * (function(r + k * step) - function(r - k * step)) for k, weight in ((1, 45), (2, -9), (3, 1))]
    return torch.stack(terms).sum(0) / (60 * step)


def wave(r: Tensor) -> Tensor:
    return (torch.sin(4 * r) * (CUTOFF - r) ** 2)[:, None]


def test_the_basis_is_that_of_a_hermite_spline(rng: np.random.Generator) -> None:
    tables = HermiteTables([wave], CUTOFF, torch.float64)
    knots = np.linspace(0, CUTOFF, tables.intervals + 1)
    table = tables.values[0].numpy()
    spline = CubicHermiteSpline(knots, table[:, 0], table[:, 1] * tables.intervals / CUTOFF)
    r = rng.uniform(0.1, CUTOFF, 300)
    values, slopes = interpolated(tables, r, torch.float64)
    np.testing.assert_allclose(values, spline(r), rtol=0, atol=1e-13)
    np.testing.assert_allclose(slopes, spline(r, 1), rtol=0, atol=1e-11)


def test_twice_as_many_knots_make_an_eighth_of_the_error() -> None:
    errors = [_tabulated(wave, CUTOFF, intervals)[1] for intervals in (64, 128, 256, 512)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 8.0, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", ["cosine", "polynomial"])
@pytest.mark.parametrize("architecture", sorted(EXACT))
def test_filters_are_within_the_stated_bound(architecture: str, function: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    potential = model(architecture, dtype=name, cutoff_function=function)
    fast = potential.fast()
    assert fast.engine is not None
    tables = fast.engine.tables
    assert tables.error <= SLOPE_ERROR[dtype]
    exact: Any = potential.representation.double()
    r = torch.from_numpy(np.random.default_rng(1).uniform(0.01, CUTOFF - 0.01, 1000))
    rounding = 20 * torch.finfo(dtype).eps
    for layer, table in enumerate(tables.values):
        assert table.dtype == dtype
        assert (table[-1] == 0).all()
        one = HermiteTables.__new__(HermiteTables)
        one.intervals, one.values = tables.intervals, [table]
        values, slopes = interpolated(one, r.numpy(), dtype)
        wanted, wanted_slopes = (
            EXACT[architecture](exact, layer, r),
            by_differences(partial(EXACT[architecture], exact, layer), r),
        )
        largest = float(wanted_slopes.abs().max())
        error = np.abs(slopes - wanted_slopes.numpy()).max() / largest
        # Slopes are sums of values divided by the step: so are their rounding errors.
        bound = 1.1 * tables.error + rounding * tables.intervals / CUTOFF * float(wanted.abs().max()) / largest
        assert error < bound
        step = CUTOFF / tables.intervals
        # An error of the slope acts over half an interval, from a knot where there is none.
        allowed = bound * largest * step + rounding * float(wanted.abs().max())
        assert np.abs(values - wanted.numpy()).max() < allowed


def test_what_is_too_rough_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vary too fast for tables of 8192 intervals.*fast=False"):
        HermiteTables([lambda r: torch.sin(3000 * r)[:, None] * (CUTOFF - r)[:, None] ** 2], CUTOFF, torch.float32)


def test_models_that_are_too_rough_go_on_with_the_reference() -> None:
    potential = model("schnet", basis=3000, layers=1)
    fast = potential.fast()
    assert "vary too fast" in fast.reason
    graph = everything()
    assert all(value == 0 for value in differences(fast(graph), potential(graph)).values())
    assert fast.comparisons == fast.calls == 0


def test_all_fast_architectures_have_their_tables_tested() -> None:
    assert sorted(EXACT) == sorted(ARCHITECTURES)
