"""SchNet's convolution with filters that bring their slopes, from edges and from tables, against plain PyTorch; training with tables."""

import copy
from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor

import simkit
from simkit.graph import AtomGraph
from simkit.kernels.blocks import BLOCK
from simkit.kernels.filter_message import filter_message_reference
from simkit.kernels.slope_message import Pairs, SlopeFilters
from simkit.kernels.table_message import TableFilters, TablePairs
from simkit.potential import Potential
from simkit.potentials import schnet as schnet_module
from simkit.radial import PolynomialCutoff

FIRST, STEP, KNOTS, CUTOFF = 3, 0.25, 12, PolynomialCutoff(4.0)


class Case:
    """Atoms, filters of edges or at knots, and edges: several between the same atoms, some from an atom to itself, some at a knot."""

    def __init__(self, kind: str, channels: int, edges: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(channels + edges)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        r = (FIRST + torch.rand(edges, generator=generator, dtype=torch.float64) * (KNOTS - 1.001)) * STEP
        r[::5] = STEP * (FIRST + 2)
        self.kind, self.r = kind, r.to(dtype)
        self.index = torch.randint(0, 6, (2, edges), generator=generator)
        rows = KNOTS if kind == "table" else edges
        self.x, self.values, self.slopes = normal(7, channels), normal(rows, channels), normal(rows, channels)
        self.g, self.hx, self.hr = normal(7, channels), normal(7, channels), normal(edges)

    def filters(self) -> SlopeFilters | TableFilters:
        cutoff = torch.stack([CUTOFF(self.r), CUTOFF.slope(self.r)])
        if self.kind == "slopes":
            return SlopeFilters(self.values, self.slopes, Pairs(*self.index, cutoff))
        pairs = TablePairs(self.index[0], self.index[1], self.r, cutoff, FIRST, STEP)
        return TableFilters(self.values, self.slopes, pairs)

    def found(self) -> list[Tensor]:
        """The message, its derivatives, and those of its derivatives with respect to x and r."""
        filters = self.filters()
        dx, dr = filters.forces(self.x, self.g)
        *first, d_slopes = filters.backward(self.x, self.g)
        if d_slopes is None:
            d_slopes = torch.zeros_like(self.slopes)
        second = filters.second(self.x, self.g, self.hx, self.hr)
        without = filters.second(self.x, self.g, None, self.hr)
        return [filters.forward(self.x), dx, dr, *first, d_slopes, *second, *without]

    def expected(self) -> list[Tensor]:
        """The same by autograd."""
        x, values, slopes, g, r = (
            t.clone().requires_grad_(True) for t in (self.x, self.values, self.slopes, self.g, self.r)
        )
        weights = values, slopes
        m = self._written_out(x, values, slopes, r)
        dx, dr = torch.autograd.grad(m, (x, r), g, create_graph=True)
        first = torch.autograd.grad(m, weights, g, retain_graph=True, materialize_grads=True)
        along_r = (dr * self.hr).sum()
        scalars = ((dx * self.hx).sum() + along_r, along_r)
        second = [
            part
            for scalar in scalars
            for part in torch.autograd.grad(scalar, (x, *weights, g), retain_graph=True, materialize_grads=True)
        ]
        return [t.detach() for t in (m, dx, dr, dx, dr, *first, *second)]

    def _written_out(self, x: Tensor, values: Tensor, slopes: Tensor, r: Tensor) -> Tensor:
        sender, receiver = self.index
        if self.kind == "slopes":  # filter and cutoff function as what they are to first order around the distances
            shift = r - r.detach()
            weight = CUTOFF(r.detach()) + CUTOFF.slope(r.detach()) * shift
            return filter_message_reference(
                x, values + slopes * shift.unsqueeze(1), weight, sender, receiver, both=True
            )
        # the cubic of each interval as the one that has the values and slopes at its ends
        k = (r.detach().double() / STEP).long()
        t = (r / STEP - k).unsqueeze(1)
        k = k - FIRST
        rise, begin, end = values[k + 1] - values[k], slopes[k] * STEP, slopes[k + 1] * STEP
        filters = values[k] + t * (begin + t * (3 * rise - 2 * begin - end + t * (begin + end - 2 * rise)))
        return filter_message_reference(x, filters, CUTOFF(r), sender, receiver, both=True)


KINDS = pytest.mark.parametrize("kind", ["slopes", "table"])


@KINDS
@pytest.mark.parametrize("channels", [1, 5, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("edges", [0, 1, 40])
def test_filters_equal_autograd(kind: str, channels: int, edges: int) -> None:
    case = Case(kind, channels, edges)
    for a, b in zip(case.found(), case.expected(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@KINDS
def test_filters_in_float32(kind: str) -> None:
    case = Case(kind, BLOCK + 3, 40, torch.float32)
    for a, b in zip(case.found(), case.expected(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@KINDS
def test_filters_take_transposed_tensors(kind: str) -> None:
    case = Case(kind, 3, 8)
    expected = case.found()
    for name in ("x", "values", "slopes", "g", "hx"):
        setattr(case, name, getattr(case, name).t().contiguous().t())
    assert not case.x.is_contiguous()
    for a, b in zip(case.found(), expected, strict=True):
        assert torch.equal(a, b)


@KINDS
def test_filters_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    case, threads = Case(kind, 3 * BLOCK + 5, 30), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(case.found())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_forces_from_tables_are_the_slopes_of_what_is_interpolated() -> None:
    case, step = Case("table", 2, 6), 1e-6
    case.r += 0.004  # off the knots, where the second derivative jumps
    _, dr = case.filters().forces(case.x, case.g)
    values = []
    for shift in (step, -2 * step):
        case.r += shift
        values.append((case.filters().forward(case.x) * case.g).sum())
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), dr.sum(), rtol=1e-6, atol=1e-7)


def model_and_graph(dtype: torch.dtype) -> tuple[Potential, AtomGraph]:
    torch.manual_seed(3)
    model = simkit.potentials.build("schnet", cutoff=5.0, elements=[1, 6, 8], channels=24, layers=3, basis=16)
    frames = []
    for seed in range(12):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.1, seed=seed)
        frames.append(atoms)
    return model.cast(dtype), AtomGraph.from_ase(frames, 5.0)


def training_results(model: Potential, graph: AtomGraph, outputs: tuple[str, ...]) -> list[Tensor]:
    out = model(graph, outputs, differentiable=True)
    loss = torch.stack([value.double().square().mean() for value in out.values()]).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return [*(v.detach() for v in out.values()), *gradients]


@pytest.mark.parametrize("outputs", [("energy",), ("energy", "forces"), ("forces",)])
def test_training_with_tables_equals_training_without(
    outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graph = model_and_graph(torch.float32)
    used: list[int] = []

    class Counted(TablePairs):
        def __init__(self, *args: Any) -> None:
            used.append(1)
            super().__init__(*args)

    monkeypatch.setattr(schnet_module, "TablePairs", Counted)
    found = training_results(model, graph, outputs)
    assert used
    exact = training_results(copy.deepcopy(model).cast(torch.float64), graph, outputs)
    assert len(used) == 1  # not in float64
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=5e-5 * float(b.abs().max()))


def test_tables_are_for_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = model_and_graph(torch.float32)

    def refuse(*_: object) -> None:
        raise AssertionError("a table was made")

    monkeypatch.setattr(schnet_module, "TablePairs", refuse)
    with torch.no_grad():
        model(graph, ("energy",))
    model(graph, ("energy", "forces"))
    one = AtomGraph.from_ase([molecule("H2O")], 5.0)
    assert torch.isfinite(model(one, ("energy", "forces"), differentiable=True)["forces"]).all()
    with pytest.raises(AssertionError, match="a table"):
        model(graph, ("energy", "forces"), differentiable=True)
