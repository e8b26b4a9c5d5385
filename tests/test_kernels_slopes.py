"""SchNet's filters that carry their slopes, and its three ways through the network, against plain PyTorch and finite differences."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import Tensor

import simkit
from simkit.graph import AtomGraph
from simkit.kernels.activations import ShiftedSoftplus
from simkit.kernels.blocks import BLOCK
from simkit.kernels.filter_bank import EDGES, filter_bank, filter_bank_reference
from simkit.kernels.orders import Derivatives, promise, wanted_derivatives
from simkit.potential import Potential
from simkit.radial import CosineCutoff, GaussianBasis, PolynomialCutoff


def normals(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes) + sum(map(sum, shapes)))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_(True) for x in made]


def bank_inputs(layers: int, width: int, edges: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    phi, *weights = normals(
        (2 * edges, 5), (5, layers * width), (layers * width,), (layers, width, width), (layers, width), dtype=dtype
    )
    return [phi.detach(), *weights]


def bank_results(function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> list[Tensor]:
    """Filters, and gradients of a scalar to which each of them adds differently."""
    filters = torch.stack(function(*inputs))
    factors = torch.arange(1.0, filters.numel() + 1, dtype=filters.dtype).cos().view(filters.shape)
    return [filters.detach(), *torch.autograd.grad((filters.tanh() * factors).sum(), inputs[1:])]


@pytest.mark.parametrize(("layers", "width", "edges"), [(1, 1, 1), (2, 5, 0), (3, 7, 2 * EDGES + 3), (2, BLOCK, 9)])
def test_filter_bank_equals_its_reference(layers: int, width: int, edges: int) -> None:
    inputs = bank_inputs(layers, width, edges)
    for a, b in zip(bank_results(filter_bank, inputs), bank_results(filter_bank_reference, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_filter_bank_in_float32() -> None:
    inputs = bank_inputs(3, 20, 40, torch.float32)
    for a, b in zip(bank_results(filter_bank, inputs), bank_results(filter_bank_reference, inputs), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_filter_bank_against_finite_differences() -> None:
    phi, *weights = bank_inputs(2, 3, 4)
    assert torch.autograd.gradcheck(lambda *w: filter_bank(phi, *w), weights)
    basis = GaussianBasis(5, 4.0).double()
    r, step = torch.linspace(0.5, 4.5, 9, dtype=torch.float64), 1e-5
    above, below = (filter_bank(torch.cat(basis.with_slopes(r + s)), *weights)[:2] for s in (step, -step))
    for a, b, slope in zip(above, below, filter_bank(torch.cat(basis.with_slopes(r)), *weights)[2:], strict=True):
        torch.testing.assert_close((a - b) / (2 * step), slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("cutoff", [CosineCutoff(4.0), PolynomialCutoff(4.0), PolynomialCutoff(4.0, power=6)])
def test_slopes_of_the_radial_functions(cutoff: CosineCutoff | PolynomialCutoff) -> None:
    r = torch.linspace(0.01, 4.5, 40, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(cutoff(r).sum(), r)
    torch.testing.assert_close(cutoff.slope(r.detach()), expected, rtol=1e-12, atol=1e-14)
    basis = GaussianBasis(6, 4.0).double()
    values, slopes = basis.with_slopes(r.detach())
    torch.testing.assert_close(values, basis(r).detach(), rtol=1e-14, atol=0)
    for k in range(6):
        (expected,) = torch.autograd.grad(basis(r)[:, k].sum(), r)
        torch.testing.assert_close(slopes[:, k], expected, rtol=1e-12, atol=1e-14)


def test_shifted_softplus_is_accurate_everywhere() -> None:
    x = torch.cat([torch.linspace(-110.0, 110.0, 4001), torch.linspace(-2.0, 2.0, 1001)])
    for dtype, tolerance in ((torch.float32, 1e-7), (torch.float64, 3e-16)):
        values = x.to(dtype)
        exact = torch.from_numpy(np.logaddexp(values.numpy().astype(np.longdouble), 0).astype(np.float64)) - math.log(
            2.0
        )
        error = (ShiftedSoftplus()(values).double() - exact).abs()
        assert float((error / exact.abs().clamp(min=1.0)).max()) < tolerance * 2
    odd = torch.tensor([math.inf, -math.inf, math.nan])
    torch.testing.assert_close(
        ShiftedSoftplus()(odd), torch.tensor([math.inf, -math.log(2.0), math.nan]), equal_nan=True
    )


def schnet(cutoff_function: str, dtype: torch.dtype = torch.float64) -> Potential:
    torch.manual_seed(3)
    options = {"channels": 12, "filters": 10, "layers": 3, "basis": 8, "cutoff_function": cutoff_function}
    return simkit.potentials.build("schnet", cutoff=3.0, elements=[1, 6, 8], **options).cast(dtype)


def graph_of_molecules() -> AtomGraph:
    """Two molecules and a lone atom without edges."""
    return AtomGraph.from_ase([molecule("CH3CH2OH"), molecule("H2O"), molecule("O")], 3.0)


@pytest.mark.parametrize("cutoff_function", ["cosine", "polynomial"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_schnet_is_the_same_by_its_three_ways(cutoff_function: str, dtype: torch.dtype, tolerance: float) -> None:
    """Positions that want gradients lead through all derivatives, training on forces and forces alone through their own ways."""
    model, graph, moved = schnet(cutoff_function, dtype), graph_of_molecules(), graph_of_molecules()
    moved.pos.requires_grad_(True)
    results = []
    for case in (moved, graph):
        out = model(case, ("energy", "forces"), differentiable=True)
        loss = out["energy"].square().sum() + out["forces"].square().sum()
        results.append([out["energy"], out["forces"], *torch.autograd.grad(loss, list(model.parameters()))])
    alone = model(graph, ("energy", "forces"))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(a.detach().abs().max())))
    for name, expected in zip(("energy", "forces"), results[0][:2], strict=True):
        torch.testing.assert_close(alone[name], expected.detach(), rtol=0, atol=tolerance * 10)
        assert not alone[name].requires_grad


def test_training_gradients_of_schnet_against_finite_differences() -> None:
    """Of a loss on forces, with respect to a weight of each kind."""
    model, graph = schnet("polynomial"), graph_of_molecules()

    def loss() -> Tensor:
        return model(graph, ("forces",), differentiable=True)["forces"].square().sum()

    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss(), list(parameters.values()), materialize_grads=True)
    gradients = dict(zip(parameters, found, strict=True))
    step = 1e-6
    for name in parameters:
        if "interactions.1" not in name and "embedding" not in name:
            continue
        weight, index = parameters[name].data.view(-1), parameters[name].numel() // 2
        kept = float(weight[index])
        values = []
        for sign in (1, -1):
            weight[index] = kept + sign * step
            values.append(float(loss().detach()))
        weight[index] = kept
        assert float(gradients[name].reshape(-1)[index]) == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8
        ), name


def test_hessian_of_schnet_against_finite_differences_of_forces() -> None:
    model, graph = schnet("polynomial"), AtomGraph.from_ase(molecule("H2O"), 3.0)

    def forces(pos: Tensor) -> Tensor:
        moved = copy.copy(graph)
        moved.pos = pos
        return model(moved, ("forces",), differentiable=True)["forces"]

    found = torch.autograd.functional.jacobian(forces, graph.pos).reshape(9, 9)
    step = 1e-5
    for k in range(9):
        shift = torch.zeros(9, dtype=torch.float64)
        shift[k] = step
        above, below = (forces(graph.pos + s * shift.view(3, 3)).detach().reshape(-1) for s in (1, -1))
        torch.testing.assert_close(found[:, k], (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


def test_promises_are_nested_and_end() -> None:
    assert wanted_derivatives() == Derivatives.ALL
    with promise(Derivatives.FORCES):
        with promise(Derivatives.TRAINING):
            assert wanted_derivatives() == Derivatives.TRAINING
        assert wanted_derivatives() == Derivatives.FORCES
    with pytest.raises(ValueError, match="inside"), promise(Derivatives.FORCES):
        raise ValueError("inside")
    assert wanted_derivatives() == Derivatives.ALL
