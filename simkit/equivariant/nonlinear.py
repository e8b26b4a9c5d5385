"""Equivariant nonlinearities."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from simkit.equivariant.constant import ExactConstant
from simkit.equivariant.layout import parse_irreps
from simkit.errors import ConfigError

EVEN, ODD = o3.Irrep("0e"), o3.Irrep("0o")


@functools.cache
def unit_variance(function: Callable[[Tensor], Tensor]) -> float:
    """Return the factor that gives f(z) a second moment of 1 for z from N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    values = function(torch.from_numpy(nodes)).numpy()
    return float(1.0 / np.sqrt((weights * values**2).sum() / weights.sum()))


class Gate(nn.Module):
    """The gated nonlinearity of Weiler et al. (NeurIPS 2018): scalars pass an activation, other irreps are scaled by one of a scalar.

    Even scalars pass SiLU, odd ones tanh (an odd function: the result is odd again), gates SiLU; each scaled to keep unit variance.

    Args:
        irreps: of the result, multiplicity 1, 0e first.

    Attributes:
        irreps_in: of the input: ``irreps`` and one more multiplicity of 0e per gate. Of the 0e rows, the first is the scalar feature.
    """

    gate_of_row: Tensor

    def __init__(self, irreps: Any) -> None:
        super().__init__()
        self.irreps_out = parse_irreps(irreps, uniform=True)
        if not self.irreps_out or self.irreps_out[0].ir != EVEN:
            raise ConfigError(f"a gate needs irreps that begin with 0e, found {self.irreps_out}")
        rest = self.irreps_out[1:]
        self._odd = 1 if rest and rest[0].ir == ODD else 0
        gated = [ir for _, ir in rest[self._odd :]]
        if ODD in gated:
            raise ConfigError(f"a gate needs 0o next to 0e, found {self.irreps_out}")
        self._gates = len(gated)
        self.irreps_in = o3.Irreps([(1 + len(gated), EVEN), *rest])
        rows = torch.tensor([k for k, ir in enumerate(gated) for _ in range(ir.dim)], dtype=torch.int64)
        self.register_buffer("gate_of_row", rows, persistent=False)
        self._silu, self._tanh = unit_variance(nn.functional.silu), unit_variance(torch.tanh)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, irreps_in.dim, C] to [N, irreps_out.dim, C]."""
        even, odd, rest = x.split([1 + self._gates, self._odd, len(self.gate_of_row)], dim=1)
        scalar, gates = (self._silu * nn.functional.silu(even)).split([1, self._gates], dim=1)
        parts = [scalar]
        if self._odd:
            parts.append(self._tanh * torch.tanh(odd))
        if self._gates:
            parts.append(rest * gates.index_select(1, self.gate_of_row))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class NormNonlinearity(nn.Module):
    """f(x + b) for even scalars and sigmoid(|x| + b) x for other irreps, with biases b per irrep and channel.

    The nonlinearity of tensor field networks (Thomas et al. 2018), whose functions of norms are free. With f = SiLU the two are one:
    f(x) = sigmoid(x) x. The norm is sqrt(|x|^2 + epsilon), smooth where a feature vanishes, and nothing is divided by it.

    Args:
        irreps: multiplicity 1, 0e in the first place if at all.
    """

    row_irrep: Tensor
    sum_rows: Tensor

    EPSILON = 1e-6

    def __init__(self, irreps: Any, channels: int) -> None:
        super().__init__()
        self.irreps = parse_irreps(irreps, uniform=True)
        self._scalars = 1 if self.irreps and self.irreps[0].ir == EVEN else 0
        others = [ir for _, ir in self.irreps[self._scalars :]]
        if EVEN in others:
            raise ConfigError(f"expected 0e in the first place, found {self.irreps}")
        self.bias = nn.Parameter(torch.zeros(len(self.irreps), channels))
        self._gain = unit_variance(nn.functional.silu)
        rows = torch.tensor([k for k, ir in enumerate(others) for _ in range(ir.dim)], dtype=torch.int64)
        self.register_buffer("row_irrep", rows, persistent=False)
        sums = (rows == torch.arange(len(others)).unsqueeze(1)).to(torch.get_default_dtype())
        self.register_buffer("sum_rows", sums, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, irreps.dim, C] to the same shape."""
        scalar, rest = x.split([self._scalars, len(self.row_irrep)], dim=1)
        parts = [self._gain * nn.functional.silu(scalar + self.bias[:1])] if self._scalars else []
        if rest.shape[1]:
            norm = torch.sqrt(torch.matmul(self.sum_rows, rest.square()) + self.EPSILON)
            factor = torch.sigmoid(norm + self.bias[self._scalars :])
            parts.append(rest * factor.index_select(1, self.row_irrep))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class FeatureNorm(nn.Module):
    """x -> sqrt(2 / (1 + s)) x with s the mean square of the components and channels of an irrep: layer normalisation that stays smooth.

    The mean square of the result is 1 for s = 1 and less than 2 for any s; features that vanish are left to vanish.

    Args:
        irreps: any multiplicities.
    """

    row_irrep: Tensor

    def __init__(self, irreps: Any) -> None:
        super().__init__()
        sizes = [mul * ir.dim for mul, ir in parse_irreps(irreps)]
        rows = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)], dtype=torch.int64)
        self.register_buffer("row_irrep", rows, persistent=False)
        means = [(rows == k).double() / size for k, size in enumerate(sizes)]
        self.mean_rows = ExactConstant(torch.stack(means))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, irreps.dim, C] to the same shape."""
        squares = torch.matmul(x.square().mean(dim=2), self.mean_rows.value.t())
        factor = torch.sqrt(2.0 / (1.0 + squares))
        return x * factor.index_select(1, self.row_irrep).unsqueeze(2)
