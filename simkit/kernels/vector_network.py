"""PaiNN as one operator for training on energies and forces: the passes of `simkit.kernels.force_training` over its layers.

Letters before a name: g for gradients of S, h for tangents, a for adjoints, d for derivatives of the loss with respect to weights.
Notation of the rest as in `vector_message` and `vector_update` (Schuett et al. 2021, equations 7 to 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simkit.kernels.force_training import features_of
from simkit.kernels.perceptron import Perceptron
from simkit.kernels.vector_message import Message
from simkit.kernels.vector_update import Invariants, Update


class Weights(NamedTuple):
    """Weights of one layer with C channels.

    filters: [K, 3C], from the basis. message, update: W1, b1, W2, b2 of a perceptron (C to 3C, 2C to 3C). mix: [2C, C].
    """

    filters: Tensor
    message: tuple[Tensor, Tensor, Tensor, Tensor]
    mix: Tensor
    update: tuple[Tensor, Tensor, Tensor, Tensor]

    def flat(self) -> tuple[Tensor, ...]:
        """Return all in a row."""
        return (self.filters, *self.message, self.mix, *self.update)


@dataclass(frozen=True)
class Geometry:
    """Edges, each of which stands for its reverse as well, and what is a function of their vectors.

    basis, slopes: [E, K], values and derivatives with respect to distance, cutoff included. directions: [E, 3]. r: [E].
    sender, receiver: [E] int64.
    """

    basis: Tensor
    slopes: Tensor
    directions: Tensor
    r: Tensor
    sender: Tensor
    receiver: Tensor

    def backward(self, g_basis: Tensor, g_directions: Tensor) -> Tensor:
        """Return the gradient of the edge vectors, [E, 3]."""
        u = self.directions
        along = (self.slopes * g_basis).sum(1) - (u * g_directions).sum(1) / self.r
        return u * along.unsqueeze(1) + g_directions / self.r.unsqueeze(1)

    def tangent(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changes of basis and directions along one of the edge vectors, [E, 3]."""
        u = self.directions
        along = (u * h).sum(1, keepdim=True)
        return self.slopes * along, (h - u * along) / self.r.unsqueeze(1)


class Layer:
    """One evaluation of a layer."""

    def __init__(self, weights: Weights, geometry: Geometry) -> None:
        self.filters, self.mix, self.geometry = weights.filters, weights.mix, geometry
        self.message, self.update = Perceptron(weights.message), Perceptron(weights.update)
        self.sources: tuple[Tensor, ...] | None = None

    def forward(self, s: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features, [N, C] and [N, 3C]; v is None where it vanishes."""
        geometry = self.geometry
        filters = geometry.basis @ self.filters
        self.sum = Message(
            self.message.forward(s), v, filters, geometry.directions, geometry.sender, geometry.receiver, both=True
        )
        ds, dv = self.sum.forward()
        s, self.v = s + ds, dv if v is None else v + dv
        self.invariants = Invariants(self._mixed(self.v))
        x, d, u = self.invariants.forward(s)
        self.gates = Update(self.update.forward(x), d, u)
        return self.gates.forward(s, self.v)

    def backward(self, gs: Tensor, gv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of s, v (of no meaning where there was none), the basis [E, K] and the directions [E, 3]."""
        self.g_gates = gs, gv
        ga, gd, gu = self.gates.backward(gs, gv)
        gx = self.update.backward(ga)
        self.g_invariants = gx, gd
        more, self.g_mixed = self.invariants.backward(gx, gd, gu)
        gs, gv = gs + more, gv + self._unmixed(self.g_mixed)
        self.g_sum = gs, gv
        g_phi, more_v, self.g_filters, g_directions = self.sum.backward(gs, gv)
        gs = gs + self.message.backward(g_phi)
        return gs, gv if more_v is None else gv + more_v, self.g_filters @ self.filters.t(), g_directions

    def tangent(
        self, hs: Tensor | None, hv: Tensor | None, h_basis: Tensor, h_directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the changes of the features; keep what adjoints gain from the gradients' dependence on the same values."""
        self.h_basis = h_basis
        h_phi = None if hs is None else self.message.tangent(hs)
        p, v, w, _, ds, dv = self.sum.second(*self.g_sum, h_phi, hv, h_basis @ self.filters, h_directions)
        hs, self.hv = ds if hs is None else ds + hs, dv if hv is None else dv + hv
        mixed, hx, hd, hu = self.invariants.second(*self.g_invariants, hs, self._mixed(self.hv))
        ha = self.update.tangent(hx)
        a, d, u, ds, dv = self.gates.second(*self.g_gates, ha, hd, hu)
        self.sources = a, d, u, mixed, p, w, *(() if v is None else (v,))
        return hs + ds, self.hv + dv

    def adjoint(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the adjoints of the features that came in, and the derivatives with respect to the weights in a row."""
        gates = list(self.gates.backward(s, v))
        if self.sources is not None:
            for adjoint, source in zip(gates, self.sources[:3], strict=True):
                adjoint += source
        ax, d_update = self.update.adjoint(gates[0])
        more, mixed = self.invariants.backward(ax, gates[1], gates[2])
        if self.sources is not None:
            mixed += self.sources[3]
        s, v = s + more, v + self._unmixed(mixed)
        phi, more_v, filters, _ = self.sum.backward(s, v)
        d_mix = self._rows(mixed).t() @ self._rows(self.v)
        if self.sources is not None:
            phi += self.sources[4]
            filters += self.sources[5]
            if more_v is not None:
                more_v += self.sources[6]
            d_mix.addmm_(self._rows(self.g_mixed).t(), self._rows(self.hv))
        d_filters = self.geometry.basis.t() @ filters
        if self.sources is not None:
            d_filters.addmm_(self.h_basis.t(), self.g_filters)
        more, d_message = self.message.adjoint(phi)
        self.sources = None
        return s + more, v if more_v is None else v + more_v, (d_filters, *d_message, d_mix, *d_update)

    def _rows(self, v: Tensor) -> Tensor:
        """Vectors as one row for each component, [3N, C] or, where mixed, [3N, 2C]."""
        return v.view(3 * len(v), -1)

    def _mixed(self, v: Tensor) -> Tensor:
        return (self._rows(v) @ self.mix.t()).view(len(v), 3, -1)

    def _unmixed(self, g: Tensor) -> Tensor:
        return (self._rows(g) @ self.mix).view(len(g), -1)


class VectorNetwork:
    """One evaluation of all layers, as `simkit.kernels.force_training` takes it; its edges are given by their vectors.

    Args:
        weights: of each layer, at least one.
    """

    def __init__(self, geometry: Geometry, weights: Sequence[Weights]) -> None:
        self.geometry = geometry
        self.layers = [Layer(part, geometry) for part in weights]

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features [N, C] and [N, 3C] from the embedding."""
        s, v = self.layers[0].forward(s, None)
        for layer in self.layers[1:]:
            s, v = layer.forward(s, v)
        return s, v

    def backward(self, g: Sequence[Tensor]) -> Tensor:
        """Return the gradients of the edge vectors, [E, 3]."""
        gs, gv = g
        basis, directions = torch.zeros_like(self.geometry.basis), torch.zeros_like(self.geometry.directions)
        for layer in reversed(self.layers):
            gs, gv, g_basis, g_directions = layer.backward(gs, gv)
            basis += g_basis
            directions += g_directions
        return self.geometry.backward(basis, directions)

    def tangent(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changes of the features along one of the edge vectors, [E, 3]."""
        basis, directions = self.geometry.tangent(h)
        hs, hv = self.layers[0].tangent(None, None, basis, directions)
        for layer in self.layers[1:]:
            hs, hv = layer.tangent(hs, hv, basis, directions)
        return hs, hv

    def adjoint(self, a: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the adjoint of the embedding, and the derivatives with respect to the weights of all layers in a row."""
        s, v = a
        found: list[Tensor] = []
        for layer in reversed(self.layers):
            s, v, weights = layer.adjoint(s, v)
            found = [*weights, *found]
        return s, found


def vector_network(vectors: Tensor, s: Tensor, geometry: Geometry, weights: Sequence[Weights]) -> tuple[Tensor, Tensor]:
    """Return the features s [N, C] and v [N, 3C] after all layers, on a CPU in float32 or float64.

    Args:
        vectors: [E, 3], the edge vectors that the geometry was made of. s: [N, C], the embedding of the atoms.
        weights: of each layer, at least one.
    """
    flat = [weight for part in weights for weight in part.flat()]
    s, v = features_of(VectorNetwork(geometry, weights), vectors, s, flat)
    return s, v
