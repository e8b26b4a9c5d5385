"""`CompiledNetwork`: energies and forces from the compiled graph of `simkit.fast.trace`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from simkit.equivariant.convolution import ROW, neighborhoods
from simkit.equivariant.harmonics import EdgeGeometry
from simkit.fast.trace import Inputs, both_ways, needs_rows, weights_of
from simkit.graph import AtomGraph, check_distances, one_direction

if TYPE_CHECKING:
    from simkit.potential import Potential

LEAST = 2
"""Atoms of each species, and pairs: compiled code may take 0 and 1 for constants. Atoms without edges are added where there are fewer."""


class TooFewEdgesError(Exception):
    """A graph has fewer than two pairs of neighbors, or of whatever else the network reads."""


class Raw(NamedTuple):
    """Neither scaled nor shifted.

    Attributes:
        energies: [N] float64. forces: [N, 3], minus their derivatives by positions.
        gradient: [E/2, 3], by the ``vectors`` [E/2, 3] of one edge of each pair. receiver: [E/2] int64, of these edges.
    """

    energies: Tensor
    forces: Tensor
    gradient: Tensor
    vectors: Tensor
    receiver: Tensor


class CompiledNetwork:
    """The network of a potential, compiled for the species that there are, and the potential's weights as they are now.

    Args:
        path: of the file, as `simkit.fast.build.build` writes it. present: the species that it was compiled for, see `simkit.fast.trace`.

    Raises:
        RuntimeError: if the file cannot be loaded.
    """

    def __init__(self, potential: Potential, path: Path, present: tuple[int, ...]) -> None:
        self.path, self.present = path, present
        self.representation = potential.representation
        self.dtype, self.rows = potential.dtype, needs_rows(potential)
        self.weights = [weight.detach().clone() for weight in weights_of(potential)]
        self._arranged: tuple[Tensor, Tensor, Tensor, list[Tensor]] | None = None
        self._load()

    def _load(self) -> None:
        self._run = torch._C._aoti.AOTIModelPackageLoader(str(self.path), "model", False, 1, -1).run

    def __call__(self, graph: AtomGraph, species: Tensor) -> Raw:
        """Return what follows from the head's energies, for ``species`` [N] int64.

        Raises:
            GeometryError: if atoms coincide.
            TooFewEdgesError: if there are fewer than two pairs of neighbors, or of whatever else the network reads.
        """
        vectors = graph.edge_vectors().detach()
        check_distances(graph, vectors)
        chosen = one_direction(graph.edge_index, vectors)
        if len(chosen) < LEAST:
            raise TooFewEdgesError
        pairs = graph.edge_index.index_select(1, chosen)
        vectors = vectors.index_select(0, chosen).to(self.dtype)
        padded, place, members = self._of_species(species)
        own = self.representation.arrange(*both_ways(pairs, vectors), len(padded))
        if any(size < LEAST for tensor in own for size in tensor.shape):
            raise TooFewEdgesError
        inputs = Inputs(pairs, vectors, padded, (place, *self._rows(pairs, len(padded)), *members, *own))
        energies, forces, gradient = self._run([*self.weights, *inputs[:3], *inputs.arranged])
        atoms = len(species)
        return Raw(energies[:atoms], forces[:atoms], gradient, vectors, pairs[1])

    def _of_species(self, species: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Species with the atoms that are added, where each of them is among the members, and these; kept for the same species."""
        known = self._arranged
        if known is None or known[0] is not species:
            counts = torch.bincount(species, minlength=max(self.present, default=0) + 1).tolist()
            wanted = [k for k in self.present for _ in range(LEAST - counts[k])]
            if len(species) + len(wanted) < LEAST:
                wanted += species[:1].tolist()
            padded = torch.cat([species, species.new_tensor(wanted)])
            members = [(padded == k).nonzero().squeeze(1) for k in self.present]
            place = torch.cat(members).argsort() if members else torch.arange(len(padded))
            known = self._arranged = species, padded, place, members
        return known[1], known[2], known[3]

    def _rows(self, pairs: Tensor, atoms: int) -> tuple[Tensor, Tensor, Tensor]:
        if not self.rows:
            empty = pairs.new_zeros(LEAST, ROW)
            return empty, empty, empty[:, 0]
        sender, receiver = torch.cat([pairs, pairs.flip(0)], dim=1)
        # Of the edges it reads the indices alone.
        near = neighborhoods(EdgeGeometry(sender, receiver, pairs, pairs), atoms, ROW)
        return near.edge.view(-1, ROW), near.sender.view(-1, ROW), near.receiver

    def __getstate__(self) -> dict[str, object]:
        """Copies load the file again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_run", "_arranged")}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Load the file again."""
        self.__dict__.update(state)
        self._arranged = None
        self._load()
