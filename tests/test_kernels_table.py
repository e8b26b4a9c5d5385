"""SchNet's convolution with filters from a table, and training with it, against plain PyTorch, finite differences and the exact filters."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor

import simkit
from simkit.graph import AtomGraph
from simkit.kernels.blocks import BLOCK
from simkit.kernels.filter_message import filter_message_reference
from simkit.kernels.table_message import TablePairs, table_message
from simkit.potential import Potential
from simkit.potentials import schnet as schnet_module
from simkit.radial import PolynomialCutoff

FIRST, STEP, KNOTS, CUTOFF = 3, 0.25, 12, PolynomialCutoff(4.0)


def inputs_of(channels: int, edges: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """x, values, slopes, r, and the pairs: several between the same atoms, some from an atom to itself, some at a knot."""
    generator = torch.Generator().manual_seed(channels + edges)
    shapes = ((7, channels), (KNOTS, channels), (KNOTS, channels))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    r = (FIRST + torch.rand(edges, generator=generator, dtype=torch.float64) * (KNOTS - 1.001)) * STEP
    r[::5] = STEP * (FIRST + 2)
    index = torch.randint(0, 6, (2, edges), generator=generator)
    return [x.to(dtype).requires_grad_(True) for x in (*made, r)], index


def pairs_of(r: Tensor, index: Tensor) -> TablePairs:
    r = r.detach()
    return TablePairs(index[0], index[1], r, torch.stack([CUTOFF(r), CUTOFF.slope(r)]), FIRST, STEP)


def fused(x: Tensor, values: Tensor, slopes: Tensor, r: Tensor, index: Tensor) -> Tensor:
    return table_message(x, values, slopes, r, pairs_of(r, index))


def written_out(x: Tensor, values: Tensor, slopes: Tensor, r: Tensor, index: Tensor) -> Tensor:
    """The cubic of each interval as the one that has the values and slopes at its ends, all derivatives left to PyTorch."""
    k = (r.detach() / STEP).long()
    t = (r / STEP - k).unsqueeze(1)
    k = k - FIRST
    rise, begin, end = values[k + 1] - values[k], slopes[k] * STEP, slopes[k + 1] * STEP
    filters = values[k] + t * (begin + t * (3 * rise - 2 * begin - end + t * (begin + end - 2 * rise)))
    return filter_message_reference(x, filters, CUTOFF(r), index[0], index[1], both=True)


def results(function: Callable[..., Tensor], inputs: list[Tensor], index: Tensor) -> list[Tensor]:
    """Values, gradients of a force-like scalar, and those of losses on values and forces."""
    generator = torch.Generator().manual_seed(1)
    x, values, slopes, r = inputs
    value = function(x, values, slopes, r, index)

    def random_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    scalar = (value.tanh() * random_like(value)).sum()
    weights = torch.autograd.grad(scalar, (x, values, slopes), retain_graph=True)
    forces = torch.autograd.grad(scalar, (x, r), create_graph=True)
    losses = [torch.stack([(a * random_like(a)).sum() for a in kept]).sum() for kept in (forces, forces[1:])]
    second = [g for loss in losses for g in torch.autograd.grad(loss, (x, values, slopes), retain_graph=True)]
    return [a.detach() for a in (value, *weights, *forces, *second)]


@pytest.mark.parametrize("channels", [1, 5, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("edges", [0, 1, 40])
def test_table_message_equals_the_cubics_written_out(channels: int, edges: int) -> None:
    arguments = inputs_of(channels, edges)
    for a, b in zip(results(fused, *arguments), results(written_out, *arguments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_table_message_in_float32() -> None:
    arguments = inputs_of(BLOCK + 3, 40, torch.float32)
    for a, b in zip(results(fused, *arguments), results(written_out, *arguments), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_table_message_against_finite_differences() -> None:
    (x, values, slopes, r), index = inputs_of(2, 6)
    assert torch.autograd.gradcheck(lambda *a: fused(*a, r, index), (x, values, slopes))

    def forces(x: Tensor, values: Tensor, slopes: Tensor, g: Tensor) -> Tensor:
        return torch.autograd.grad(fused(x, values, slopes, r, index), r, g, create_graph=True)[0]

    g = torch.randn(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(forces, (x, values, slopes, g))
    r, step = (r.detach() + 0.004).requires_grad_(True), 1e-6  # off the knots, where the second derivative jumps
    moved = [pairs_of(r + s, index) for s in (step, -step)]
    above, below = (table_message(x, values, slopes, r, pairs) for pairs in moved)
    # All distances move alike, so that the forces add up.
    torch.testing.assert_close(
        ((above - below) * g).sum() / (2 * step), forces(x, values, slopes, g).sum(), rtol=1e-6, atol=1e-7
    )


def test_a_second_derivative_with_respect_to_the_table_is_refused() -> None:
    (x, values, slopes, r), index = inputs_of(2, 6)
    (gradient,) = torch.autograd.grad(fused(x, values, slopes, r, index).sum(), values, create_graph=True)
    assert not gradient.requires_grad


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
