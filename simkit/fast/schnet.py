"""SchNet without autograd: convolutions by row kernels, linear layers by matrix products into memory that is kept."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simkit.fast.dense import Perceptron
from simkit.fast.rows import EdgeRows
from simkit.fast.tables import HermiteTables
from simkit.fast.workspace import REALS, Buffer, Workspace


class SchNetModules(Protocol):
    """What `FusedSchNet` takes from `simkit.potentials.schnet.SchNet`."""

    embedding: nn.Embedding
    basis: Any
    cutoff_function: Any
    interactions: Any


class FusedSchNet:
    """The scalars of a `SchNet`, and what edges contribute to derivatives of what is made from them.

    Args:
        model: the representation, whose weights are read once. cutoff: angstrom.
        workspace: for all intermediate arrays.
    """

    def __init__(self, model: SchNetModules, cutoff: float, workspace: Workspace) -> None:
        self.workspace = workspace
        self.embedding = model.embedding.weight.detach().clone()
        self.dtype, self.real = self.embedding.dtype, REALS[self.embedding.dtype]
        exact: Any = copy.deepcopy(model)
        exact.double().cpu()
        filters = [partial(_filters, exact, k) for k in range(len(exact.interactions))]
        self.tables = HermiteTables(filters, cutoff, self.dtype, self.embedding.device)
        self.first, self.rest = [], []
        for k, interaction in enumerate(model.interactions):
            weight = interaction.dense_in.weight.detach().clone()
            self.first.append((weight, weight.t().contiguous()))
            self.rest.append(Perceptron(interaction.dense_out, workspace, f"dense-{k}"))
        self.channels = len(self.first[0][0])

    def _get(self, name: str, atoms: int) -> Buffer:
        return self.workspace.get(name, (atoms, self.channels), self.real)

    def _table(self, layer: int) -> Any:
        return self.workspace.view(f"table-{layer}", self.tables.values[layer])

    def forward(self, species: Tensor, rows: EdgeRows) -> Tensor:
        """Return scalars [N, C], which hold until the next call."""
        n = species.shape[0]
        x = self.workspace.get("scalars", (n, self.embedding.shape[1]), self.real).tensor
        torch.index_select(self.embedding, 0, species, out=x)
        edges, m = (rows.ptr, rows.sender, rows.knot, rows.basis.flat), self._get("sums", n)
        for k, (first, rest) in enumerate(zip(self.first, self.rest, strict=True)):
            y = self._get(f"sent-{k}", n)
            torch.mm(x, first[1], out=y.tensor)
            rows.scalar_kernels.convolve(rows.bounds, self.channels, *edges, self._table(k), y.flat, m.flat)
            rest.forward(m.tensor, x, add=True)
        return x

    def backward(self, g: Buffer, rows: EdgeRows) -> None:
        """Add the derivatives with respect to edges to ``rows.gradient``, given those with respect to scalars, which are lost."""
        n = g.tensor.shape[0]
        edges = (rows.ptr, rows.sender, rows.knot, rows.basis.flat)
        gm, dy = self._get("sums-gradient", n), self._get("sent-gradient", n)
        for k in reversed(range(len(self.first))):
            self.rest[k].backward(g.tensor, gm.tensor)
            sent, further = self._get(f"sent-{k}", n).flat, k > 0  # before the first layer nothing depends on positions
            rows.scalar_kernels.derive(
                rows.bounds, self.channels, *edges, self._table(k), sent, further, gm.flat, dy.flat, rows.gradient.flat
            )  # fmt: skip
            if further:
                torch.addmm(g.tensor, dy.tensor, self.first[k][0], out=g.tensor)


def _filters(model: SchNetModules, layer: int, r: Tensor) -> Tensor:
    """The filters of a layer times the cutoff function, [K, F]."""
    with torch.no_grad():
        network = model.interactions[layer].filter_net
        filters: Tensor = network(model.basis(r)) * model.cutoff_function(r).unsqueeze(1)
    return filters
