"""PaiNN without autograd: messages by row kernels, linear layers by matrix products into memory that is kept."""

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


class PaiNNModules(Protocol):
    """What `FusedPaiNN` takes from `simkit.potentials.painn.PaiNN`."""

    channels: int
    embedding: nn.Embedding
    basis: Any
    cutoff_function: Any
    filters: Any
    messages: Any
    updates: Any


class FusedPaiNN:
    """The scalars of a `PaiNN`, and what edges contribute to derivatives of what is made from them.

    Args:
        model: the representation, whose weights are read once. cutoff: angstrom.
        workspace: for all intermediate arrays.
    """

    def __init__(self, model: PaiNNModules, cutoff: float, workspace: Workspace) -> None:
        self.channels, self.workspace = model.channels, workspace
        self.embedding = model.embedding.weight.detach().clone()
        self.dtype, self.real = self.embedding.dtype, REALS[self.embedding.dtype]
        exact: Any = copy.deepcopy(model)
        exact.double().cpu()
        filters = [partial(_filters, exact, k) for k in range(len(exact.filters))]
        self.tables = HermiteTables(filters, cutoff, self.dtype, self.embedding.device)
        self.messages, self.updates, self.mixes = [], [], []
        for k, (message, update) in enumerate(zip(model.messages, model.updates, strict=True)):
            self.messages.append(Perceptron(message.net, workspace, f"message-{k}"))
            self.updates.append(Perceptron(update.net, workspace, f"update-{k}"))
            weight = update.mix.weight.detach().clone()
            self.mixes.append((weight, weight.t().contiguous()))

    def _get(self, name: str, atoms: int, sections: int) -> Buffer:
        return self.workspace.get(name, (atoms, sections * self.channels), self.real)

    def _table(self, layer: int) -> Any:
        return self.workspace.view(f"table-{layer}", self.tables.values[layer])

    def forward(self, species: Tensor, rows: EdgeRows) -> Tensor:
        """Return scalars [N, C], which hold until the next call."""
        n, c, kernels = species.shape[0], self.channels, rows.vector_kernels
        s = self._get("scalars", n, 1)
        torch.index_select(self.embedding, 0, species, out=s.tensor)
        edges = (rows.ptr, rows.sender, rows.knot, rows.basis.flat, rows.unit.flat)
        before: Buffer | None = None
        for k, (message, update, mix) in enumerate(zip(self.messages, self.updates, self.mixes, strict=True)):
            phi, v = self._get(f"phi-{k}", n, 3), self._get(f"vectors-{k}", n, 3)
            message.forward(s.tensor, phi.tensor)
            old = phi if before is None else before
            flat = phi.flat, old.flat, before is not None, s.flat, v.flat
            kernels.gather(rows.bounds, c, *edges, self._table(k), *flat)
            mixed, x = self._get(f"mixed-{k}", n, 6), self._get(f"invariants-{k}", n, 2)
            product, gates = self._get(f"product-{k}", n, 1), self._get(f"gates-{k}", n, 3)
            torch.mm(v.tensor.view(3 * n, c), mix[1], out=mixed.tensor.view(3 * n, 2 * c))
            kernels.invariants(rows.bounds, c, s.flat, mixed.flat, x.flat, product.flat)
            update.forward(x.tensor, gates.tensor)
            kernels.gate(rows.bounds, c, gates.flat, mixed.flat, product.flat, s.flat, v.flat)
            before = v
        return s.tensor

    def backward(self, g: Buffer, rows: EdgeRows) -> None:
        """Add the derivatives with respect to edges to ``rows.gradient``, given those with respect to scalars, which are lost."""
        n, c, kernels = g.tensor.shape[0], self.channels, rows.vector_kernels
        gv, other = self._get("vectors-gradient-0", n, 3), self._get("vectors-gradient-1", n, 3)
        gv.tensor.zero_()
        edges = (rows.ptr, rows.sender, rows.knot, rows.basis.flat, rows.unit.flat)
        dphi, dx, dmixed = (
            self._get("phi-gradient", n, 3),
            self._get("x-gradient", n, 2),
            self._get("mixed-gradient", n, 6),
        )
        for k in reversed(range(len(self.messages))):
            mixed, x = self._get(f"mixed-{k}", n, 6), self._get(f"invariants-{k}", n, 2)
            product, gates = self._get(f"product-{k}", n, 1), self._get(f"gates-{k}", n, 3)
            kernels.gates_backward(rows.bounds, c, mixed.flat, product.flat, g.flat, gv.flat, dphi.flat)
            self.updates[k].backward(dphi.tensor, dx.tensor)
            kernels.mixed_backward(
                rows.bounds, c, mixed.flat, x.flat, gates.flat, dx.flat, g.flat, gv.flat, dmixed.flat
            )
            flat = gv.tensor.view(3 * n, c)
            torch.addmm(flat, dmixed.tensor.view(3 * n, 2 * c), self.mixes[k][0], out=flat)
            phi, has_v = self._get(f"phi-{k}", n, 3), k > 0
            v = self._get(f"vectors-{k - 1}", n, 3) if has_v else phi
            kernels.derive(
                rows.bounds, c, *edges, self._table(k), phi.flat, v.flat, has_v, g.flat, gv.flat, dphi.flat, other.flat,
                rows.gradient.flat,
            )  # fmt: skip
            if has_v:  # before the first layer nothing depends on positions
                self.messages[k].backward(dphi.tensor, g.tensor, add=True)
                gv, other = other, gv


def _filters(model: PaiNNModules, layer: int, r: Tensor) -> Tensor:
    """The filters of a layer, [K, 3C]."""
    with torch.no_grad():
        weight = model.cutoff_function(r).unsqueeze(1)
        filters: Tensor = model.filters[layer](torch.cat([model.basis(r) * weight, weight], 1))
    return filters
