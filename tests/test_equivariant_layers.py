"""Linear maps and nonlinearities of the equivariant architectures against e3nn's own modules, and their symmetry, parity included."""

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.util.test import assert_equivariant
from equivariant_cases import BOTH, NATURAL, C, assert_same, derivatives, flat, from_e3nn, normal, to_e3nn, widened
from global_settings import float64_and_seed
from scipy import integrate
from torch import Tensor, nn

from simkit.equivariant import (
    FeatureNorm,
    Gate,
    IrrepsLinear,
    LinearReadout,
    NormNonlinearity,
    RadialMLP,
    SpeciesLinear,
    row_slices,
)
from simkit.equivariant.nonlinear import unit_variance
from simkit.heads import Features


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with float64_and_seed(20260102):
        yield


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
