"""Real spherical harmonics of edges."""

import math
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from simkit.equivariant.constant import ExactConstant
from simkit.graph import one_direction


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of unit vectors [E, 3] -> [E, (lmax + 1)^2], in e3nn's order, signs and "component" normalisation.

    |Y_l|^2 = 2l + 1. Y_l follows from Y_(l-1) and Y_1 by the Clebsch-Gordan coefficients of (l - 1, 1, l): polynomials without
    singularities, differentiable any number of times.
    """

    signs: Tensor

    def __init__(self, lmax: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.steps = nn.ModuleList()
        probe = nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.7]], dtype=torch.float64), dim=1)
        last = math.sqrt(3.0) * probe
        for degree in range(2, lmax + 1):
            coefficients = o3.wigner_3j(degree - 1, 1, degree, dtype=torch.float64).reshape(-1, 2 * degree + 1)
            exact = o3.spherical_harmonics(degree, probe, normalize=False, normalization="component")
            raw = self._raise(last, probe, coefficients)
            # The two are parallel; their ratio is the norm and the sign of one step.
            coefficients = coefficients * ((exact * raw).sum() / raw.square().sum())
            self.steps.append(ExactConstant(coefficients))
            last = exact
        signs = [(-1.0) ** degree for degree in range(lmax + 1) for _ in range(2 * degree + 1)]
        self.register_buffer("signs", torch.tensor(signs), persistent=False)  # under inversion

    @staticmethod
    def _raise(last: Tensor, directions: Tensor, coefficients: Tensor) -> Tensor:
        return (last.unsqueeze(2) * directions.unsqueeze(1)).flatten(1) @ coefficients

    def forward(self, directions: Tensor) -> Tensor:
        """Evaluate at unit vectors, [E, 3]."""
        parts = [torch.ones_like(directions[:, :1])]
        if self.lmax:
            parts.append(math.sqrt(3.0) * directions)
        for step in self.steps:
            parts.append(self._raise(parts[-1], directions, step()))
        return torch.cat(parts, dim=1)


class EdgeGeometry(NamedTuple):
    """Edges, their lengths and spherical harmonics.

    Attributes:
        sender, receiver: [E] int64.
        distances: [E], or [E/2] if edge k + E/2 is the reverse of edge k: what depends on distances alone is then made once.
        harmonics: [E, (lmax + 1)^2] of the vectors from receiver to sender.
    """

    sender: Tensor
    receiver: Tensor
    distances: Tensor
    harmonics: Tensor


def edge_geometry(edge_index: Tensor, vectors: Tensor, harmonics: SphericalHarmonics) -> EdgeGeometry:
    """Return what convolutions need of the edges.

    Args:
        edge_index: [2, E], every pair both ways. vectors: [E, 3] from receiver to sender.
    """
    # On a GPU the selection would make the host wait for the device.
    if vectors.device.type == "cpu":
        chosen = one_direction(edge_index, vectors)
        edge_index, vectors = edge_index.index_select(1, chosen), vectors.index_select(0, chosen)
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    distances = torch.sqrt(vectors.square().sum(dim=1))
    values = harmonics(vectors / distances.unsqueeze(1))
    if edge_index.shape[1] != vectors.shape[0]:
        values = torch.cat([values, values * harmonics.signs])
    return EdgeGeometry(edge_index[0], edge_index[1], distances, values)
