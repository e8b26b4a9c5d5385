"""The neighbors of particles in two or three dimensions, in lists with a skin that are kept while they are complete."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simkit.md.cell_list import batch_neighbor_list


class ParticleNeighbors:
    """Edges between the particles of R replicas of one kind of box, found again when particles have moved by half of the skin.

    What comes out depends on the present positions only: the edges shorter than the cutoff, sorted by receiver.

    Args:
        box: length along each axis; 0 for an axis that is not periodic. Boxes may be shorter than twice the cutoff.
        cutoff: longest edge.
        skin: how much further the lists reach.

    Attributes:
        builds: how many lists were made.
    """

    def __init__(self, box: tuple[float, ...], cutoff: float, skin: float) -> None:
        self.cutoff, self.skin = cutoff, skin
        self._lengths = torch.tensor(box, dtype=torch.float64)
        rest = (1.0,) * (3 - len(box))  # vectors of axes that are not periodic do not matter, but for not being zero
        self._cell = torch.diag(torch.tensor([*(length or 1.0 for length in box), *rest], dtype=torch.float64))
        self._pbc = np.array([length > 0 for length in box] + [False] * len(rest))
        self._reference: Tensor | None = None
        self._edges = self._steps = torch.empty(0)
        self.builds = 0

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return senders [E], receivers [E], and vectors [E, d] from receivers to senders, differentiable in the points.

        Args:
            points: [R, N, d]; particle i of replica r has the number r N + i.

        Raises:
            GeometryError: if a list must be made and coordinates are not finite.
        """
        now = points.detach().double()
        if self._stale(now):
            self._build(now)
        flat = points.reshape(-1, points.shape[-1])
        chosen = (_vectors(now.reshape_as(flat), self._edges, self._steps).square().sum(1) < self.cutoff**2).nonzero()
        edges = self._edges.index_select(1, chosen.squeeze(1))
        steps = self._steps.index_select(0, chosen.squeeze(1)).to(flat.dtype)
        return edges[0], edges[1], _vectors(flat, edges, steps)

    def _stale(self, now: Tensor) -> bool:
        reference = self._reference
        if reference is None or reference.shape != now.shape or reference.device != now.device:
            return True
        # Written so that it is also true of what is not a number.
        return not bool((now - reference).square().sum(-1).amax() <= (self.skin / 2) ** 2)

    def _build(self, now: Tensor) -> None:
        replicas, particles, dimensions = now.shape
        places = torch.nn.functional.pad(now, (0, 3 - dimensions)).reshape(-1, 3)
        cells = self._cell.to(now.device).expand(replicas, 3, 3).contiguous()
        pbc = np.broadcast_to(self._pbc, (replicas, 3)).copy()
        offsets = np.arange(replicas + 1) * particles
        self._edges, shift = batch_neighbor_list(places, cells, pbc, offsets, self.cutoff + self.skin)
        self._steps = shift[:, :dimensions] * self._lengths.to(now.device)
        self._reference = now.clone()
        self.builds += 1


def _vectors(flat: Tensor, edges: Tensor, steps: Tensor) -> Tensor:
    """Return the vectors [E, d] from receivers to senders, among positions [R N, d]."""
    return flat.index_select(0, edges[0]) - flat.index_select(0, edges[1]) + steps
