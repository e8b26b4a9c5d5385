"""Atomic energies and their derivatives by edge vectors as one graph of tensor operations, for any number of atoms and edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, fx, nn

from simkit.equivariant.convolution import ROW, NeighborConvolution
from simkit.equivariant.linear import SpeciesLinear
from simkit.heads import Features
from simkit.kernels.tracing import Arrangement, tracing

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from simkit.potential import Potential


class Inputs(NamedTuple):
    """What the graph is given besides the weights.

    Attributes:
        pairs: [2, E/2] int64, one edge of each pair. vectors: [E/2, 3] of these edges, angstrom.
        species: [N] int64. arranged: ``place``, ``edge``, ``sender``, ``receiver``, all ``members`` and all ``own`` of an
            `Arrangement`.
    """

    pairs: Tensor
    vectors: Tensor
    species: Tensor
    arranged: tuple[Tensor, ...]

    def arrangement(self, present: tuple[int, ...]) -> Arrangement:
        """Return the arrangement, for the species that there are."""
        place, edge, sender, receiver, *others = self.arranged
        members, own = others[: len(present)], others[len(present) :]
        return Arrangement(present, tuple(members), place, edge, sender, receiver, tuple(own))


def weights_of(potential: Potential) -> list[nn.Parameter]:
    """Return the weights that energies depend on, in the order in which the graph takes them."""
    return [*potential.representation.parameters(), *potential.heads["energy"].parameters()]


def needs_species(potential: Potential) -> bool:
    """Whether the graph depends on which species there are."""
    kinds = SpeciesLinear
    return potential.representation.has_members or any(isinstance(m, kinds) for m in potential.representation.modules())


def needs_rows(potential: Potential) -> bool:
    """Whether the graph reads the rows of edges."""
    kinds = NeighborConvolution
    return potential.representation.has_rows or any(isinstance(m, kinds) for m in potential.representation.modules())


def trace(potential: Potential, present: tuple[int, ...]) -> ExportedProgram:
    """Return the graph: weights and `Inputs`, flat, to raw atomic energies [N] float64, their forces [N, 3] and gradient [E/2, 3].

    Energies are those of the head: neither scaled nor shifted. The potential's weights must not require gradients.

    Args:
        present: the species that there are, ascending; empty unless `needs_species`.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = _example(potential, present)
    flat = (*inputs[:3], *inputs.arranged)

    def evaluate(*flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _evaluate(potential, Inputs(flat[0], flat[1], flat[2], flat[3:]), present)

    table = {torch.ops.aten.index_add.default: _index_add}
    traced = make_fx(evaluate, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*flat)
    weights = weights_of(potential)
    _weights_as_inputs(traced, weights)
    # The dimensions that may differ from call to call; all others are as they are here.
    shared, own = inputs.arranged[: 4 + len(present)], inputs.arranged[4 + len(present) :]
    free: list[Sequence[int]] = [[1], [0], [0], *[[0] for _ in shared], *[range(tensor.dim()) for tensor in own]]
    dynamic = (*[{}] * len(weights), *(dict.fromkeys(which, torch.export.Dim.AUTO) for which in free))
    return torch.export.export(_Flat(traced), (*weights, *flat), dynamic_shapes=(dynamic,), strict=False)


class _Flat(nn.Module):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.traced(*inputs)
        return found


def _evaluate(potential: Potential, inputs: Inputs, present: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    vectors, species = inputs.vectors.detach().requires_grad_(True), inputs.species
    with torch.enable_grad(), tracing(inputs.arrangement(present)):
        scalars, features = potential.representation(species, *both_ways(inputs.pairs, vectors))
        energies = potential.heads["energy"](Features(scalars, features, species, torch.zeros_like(species), 1))
        (gradient,) = torch.autograd.grad(energies.sum(), vectors)
    forces = gradient.new_zeros(species.shape[0], 3)
    forces = forces.index_add(0, inputs.pairs[1], gradient).index_add(0, inputs.pairs[0], -gradient)
    return energies.detach().double(), forces.detach(), gradient.detach()


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """What is traced in place of `Tensor.index_add`, of which inductor makes one atomic addition for each element."""
    if alpha != 1:
        source = alpha * source
    if dim == 0:
        flat = source.reshape(index.shape[0], -1)
        places = index.unsqueeze(1).expand(-1, flat.shape[1])
        return torch.scatter_add(x.reshape(x.shape[0], -1), 0, places, flat).view(x.shape)
    shape = [1] * source.dim()
    shape[dim] = -1
    return torch.scatter_add(x, dim, index.view(shape).expand(source.shape), source)


def _example(potential: Potential, present: tuple[int, ...]) -> Inputs:
    """Inputs whose numbers of atoms, edges and rows differ from each other: equal ones would be taken to be equal always."""
    atoms, count, rows = 47, 101, 59
    random = torch.Generator().manual_seed(0)
    pairs = torch.randint(atoms, (2, count), generator=random)
    vectors = torch.rand(count, 3, generator=random, dtype=potential.dtype)
    own = potential.representation.arrange(*both_ways(pairs, vectors), atoms)
    members = [torch.zeros(5 + 2 * k, dtype=torch.int64) for k in range(len(present))]
    integers = [torch.zeros(shape, dtype=torch.int64) for shape in ((atoms,), (rows, ROW), (rows, ROW), (rows,))]
    return Inputs(pairs, vectors, torch.zeros(atoms, dtype=torch.int64), (*integers, *members, *own))


def both_ways(pairs: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return all edges [2, E] and their vectors [E, 3], of one edge of each pair; edge k + E/2 is the reverse of edge k."""
    return torch.cat([pairs, pairs.flip(0)], dim=1), torch.cat([vectors, -vectors])


def _weights_as_inputs(traced: fx.GraphModule, weights: list[nn.Parameter]) -> None:
    """Turn the weights, which tracing has taken for constants, into the first inputs of the graph."""
    graph = traced.graph
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        places = {id(weight): graph.placeholder(f"weight_{k}") for k, weight in enumerate(weights)}
    for node in list(graph.nodes):
        if node.op == "get_attr" and (place := places.get(id(getattr(traced, node.target, None)))) is not None:
            node.replace_all_uses_with(place)
            graph.erase_node(node)
    graph.lint()
    traced.recompile()
