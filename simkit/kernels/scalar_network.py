"""SchNet as one operator for training on energies and forces: the passes of `simkit.kernels.force_training` over its layers.

    x += P(sum_j (W x_j) * filter(r_ij))        (Schuett et al. 2017, figure 2, with a perceptron P)

Letters before a name: g for gradients of S, h for tangents, a for adjoints, d for derivatives of the loss with respect to weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from simkit.kernels.force_training import features_of
from simkit.kernels.perceptron import Perceptron


class Filters(Protocol):
    """The filters of one layer, `simkit.kernels.slope_message.SlopeFilters` or `simkit.kernels.table_message.TableFilters`."""

    @property
    def values(self) -> Tensor:
        """Filters of edges, or at knots."""

    @property
    def slopes(self) -> Tensor:
        """Their derivatives with respect to r."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum over neighbors m [N, F] for x [N, F]."""

    def forces(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of <g, m> with respect to x and r."""

    def backward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the derivatives of <g, m> with respect to x, r, values and slopes."""

    def second(self, x: Tensor, g: Tensor, hx: Tensor | None, hr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the derivatives with respect to x, values, slopes and g of what `forces` returns, along (hx, hr)."""


class Weights(NamedTuple):
    """Weights of one layer: W [F, C], and those of the perceptron, [C, F], [C], [C, C] and [C]."""

    dense: Tensor
    perceptron: tuple[Tensor, Tensor, Tensor, Tensor]


class Layer:
    """One evaluation of a layer."""

    def __init__(self, weights: Weights, filters: Filters) -> None:
        self.dense, self.filters = weights.dense, filters
        self.perceptron = Perceptron(weights.perceptron, softplus=True)
        self.sources: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, [N, C]."""
        self.x, self.y = x, x @ self.dense.t()
        return x + self.perceptron.forward(self.filters.forward(self.y))

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and r."""
        self.g_sum = self.perceptron.backward(g)
        self.g_y, g_r = self.filters.forces(self.y, self.g_sum)
        return torch.addmm(g, self.g_y, self.dense), g_r

    def tangent(self, hx: Tensor | None, hr: Tensor) -> Tensor:
        """Return the change of the features; keep what adjoints gain from the gradients' dependence on the same values."""
        self.hx, hy = hx, None if hx is None else hx @ self.dense.t()
        *sources, h_sum = self.filters.second(self.y, self.g_sum, hy, hr)
        self.sources = sources[0], sources[1], sources[2]
        change = self.perceptron.tangent(h_sum)
        return change if hx is None else change + hx

    def adjoint(self, a: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, Tensor | None]]:
        """Return the adjoint of x, the derivatives with respect to the weights in a row, and to the filters and their slopes."""
        a_sum, d_perceptron = self.perceptron.adjoint(a)
        ay, _, values, slopes = self.filters.backward(self.y, a_sum)
        if self.sources is not None:
            y, more_values, more_slopes = self.sources
            ay += y
            values += more_values
            slopes = more_slopes if slopes is None else slopes + more_slopes
        d_dense = ay.t() @ self.x
        if self.sources is not None and self.hx is not None:
            d_dense.addmm_(self.g_y.t(), self.hx)
        self.sources = None
        return torch.addmm(a, ay, self.dense), (d_dense, *d_perceptron), (values, slopes)


class ScalarNetwork:
    """One evaluation of all layers, as `simkit.kernels.force_training` takes it; its edges are given by their lengths r [E].

    Args:
        weights, filters: of each layer, at least one.
    """

    def __init__(self, weights: Sequence[Weights], filters: Sequence[Filters]) -> None:
        self.layers = [Layer(*parts) for parts in zip(weights, filters, strict=True)]

    def forward(self, s: Tensor) -> tuple[Tensor]:
        """Return the features [N, C] from the embedding."""
        for layer in self.layers:
            s = layer.forward(s)
        return (s,)

    def backward(self, g: Sequence[Tensor]) -> Tensor:
        """Return the gradients of the lengths, [E]."""
        (gs,) = g
        found = []
        for layer in reversed(self.layers):
            gs, g_r = layer.backward(gs)
            found.append(g_r)
        return torch.stack(found).sum(dim=0)

    def tangent(self, h: Tensor) -> tuple[Tensor]:
        """Return the change of the features along one of the lengths, [E]."""
        hs = self.layers[0].tangent(None, h)
        for layer in self.layers[1:]:
            hs = layer.tangent(hs, h)
        return (hs,)

    def adjoint(self, a: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the adjoint of the embedding, and the derivatives with respect to weights, filters and slopes."""
        (s,) = a
        weights: list[Tensor] = []
        filters: list[tuple[Tensor, Tensor | None]] = []
        for layer in reversed(self.layers):
            s, d_weights, d_filters = layer.adjoint(s)
            weights = [*d_weights, *weights]
            filters.insert(0, d_filters)
        return s, [*weights, *(values for values, _ in filters), *(slopes for _, slopes in filters)]


def scalar_network(r: Tensor, s: Tensor, weights: Sequence[Weights], filters: Sequence[Filters]) -> Tensor:
    """Return the features [N, C] after all layers, on a CPU in float32 or float64.

    Args:
        r: [E], the lengths that the filters were made for. s: [N, C], the embedding of the atoms.
        weights, filters: of each layer, at least one.
    """
    rows = [weight for part in weights for weight in (part.dense, *part.perceptron)]
    rows += [*(part.values for part in filters), *(part.slopes for part in filters)]
    (features,) = features_of(ScalarNetwork(weights, filters), r, s, rows)
    return features
