"""Holonomic constraints: fixed distances between points, and between points and the origin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.errors import ConfigError

ORIGIN = -1
"""Stands for the origin in a link."""


class DistanceConstraints(nn.Module):
    """Phi_k(x) = |x_i - x_j|^2 - l_k^2 for links (i, j) of n points in d dimensions (Finzi et al. 2020, section 4).

    Args:
        points: n.
        dimension: d.
        links: pairs of points, numbered from 0; `ORIGIN` is the origin.
        lengths: l_k.

    Raises:
        ConfigError: if links or lengths are not usable.
    """

    incidence: Tensor
    squares: Tensor

    def __init__(
        self, points: int, dimension: int, links: tuple[tuple[int, int], ...], lengths: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.dimension = dimension
        if not links or any(len({*link}) < 2 or not all(ORIGIN <= i < points for i in link) for link in links):
            raise ConfigError(
                f"links must be pairs of different points from 0 to {points - 1}, {ORIGIN} being the origin, at least one; "
                f"found {links}"
            )
        if len(lengths) != len(links) or not all(length > 0 for length in lengths):
            raise ConfigError(f"there must be a positive length for each of the {len(links)} links; found {lengths}")
        incidence = torch.zeros(len(links), points)
        for row, (i, j) in zip(incidence, links, strict=True):
            for point, sign in ((i, 1.0), (j, -1.0)):
                if point != ORIGIN:
                    row[point] = sign
        self.register_buffer("incidence", incidence, persistent=False)
        self.register_buffer("squares", torch.tensor(lengths, dtype=torch.float64).square(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return Phi [..., C] of Cartesian coordinates [..., n d], point after point."""
        return self._differences(x).square().sum(-1) - self.squares.to(x.dtype)

    def jacobian(self, x: Tensor) -> Tensor:
        """Return dPhi/dx [..., C, n d]. It is linear in x, so that d(dPhi/dx v)/dx = jacobian(v)."""
        blocks = 2 * self.incidence.to(x.dtype).unsqueeze(-1) * self._differences(x).unsqueeze(-2)
        return blocks.flatten(-2)

    def _differences(self, x: Tensor) -> Tensor:
        return self.incidence.to(x.dtype) @ x.unflatten(-1, (-1, self.dimension))
