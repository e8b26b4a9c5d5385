"""Features in e3nn's order, and comparisons with e3nn up to second derivatives."""

from collections.abc import Callable

import torch
from e3nn import o3
from torch import Tensor

BOTH = o3.Irreps("0e+0o+1o+1e+2e+2o")
NATURAL = o3.Irreps("0e+1o+2e")
C = 5


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
