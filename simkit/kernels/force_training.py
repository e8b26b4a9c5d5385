"""How a network whose derivatives are written out takes part in autograd: forces by one pass of it, the loss by two.

What autograd would record of a network are some five hundred operations for each step of training on forces, whose bookkeeping takes as
long as the arithmetic on small molecules. Four passes take their place, each once over the layers:

    forward    the features, from the edges
    backward   the gradients of a scalar S of the features with respect to the edges: forces
    tangent    the change of the features along a change of the edges, which is what a loss on forces hands to the gradients that came in
    adjoint    the derivatives of the loss with respect to the weights, from those of the features, and from gradients and tangents
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Network(Protocol):
    """One evaluation of all layers; passes come in the order in which they are listed."""

    def forward(self, s: Tensor) -> tuple[Tensor, ...]:
        """Return the features from the embedding of the atoms, [N, C]."""

    def backward(self, g: Sequence[Tensor]) -> Tensor:
        """Return the gradients of what the edges are given by, from those of the features."""

    def tangent(self, h: Tensor) -> tuple[Tensor, ...]:
        """Return the changes of the features along one of the edges."""

    def adjoint(self, a: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the adjoint of the embedding, and the derivatives with respect to the weights; those of S alone without a tangent."""


def features_of(network: Network, edges: Tensor, s: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the features after all layers.

    If ``edges`` has gradients, forces are made first, by one differentiation with respect to it under ``create_graph``; then the loss is
    differentiated with respect to s and the weights, as often as wanted. Second derivatives with respect to edges are not there
    (`simkit.kernels.orders`).

    Args:
        edges: what the network's edges are given by, their vectors or lengths. s: [N, C], the embedding of the atoms.
        weights: in the order of `Network.adjoint`.

    Raises:
        RuntimeError: in a backward pass that asks for other derivatives.
    """
    found: tuple[Tensor, ...] = _Features.apply(edges, s, network, *weights)
    return found


def features_for_forces(network: Network, edges: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """Return the features after all layers, differentiable once with respect to ``edges`` and nothing else, for dynamics."""
    found: tuple[Tensor, ...] = _FeaturesForForces.apply(edges, s, network)
    return found


class _FeaturesForForces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Tensor, s: Tensor, network: Network) -> tuple[Tensor, ...]:
        ctx.network = network
        return network.forward(s)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.network.backward(g), None, None


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, edges: Tensor, s: Tensor, network: Network, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.network, ctx.has_forces, ctx.weights = network, False, len(weights)
        features = network.forward(s)
        # The weights, too: PyTorch then notices if they were changed in place before the backward pass.
        ctx.save_for_backward(*features, *weights)
        return features

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        features = ctx.saved_tensors[: len(g)]
        given = [torch.zeros_like(x) if part is None else part for x, part in zip(features, g, strict=True)]
        if not torch.is_grad_enabled():
            if ctx.needs_input_grad[0] and not ctx.has_forces:
                raise RuntimeError("forces must be made with create_graph=True before a loss is differentiated")
            embedding, weights = ctx.network.adjoint(given)
            return None, embedding, None, *weights
        if ctx.has_forces or not ctx.needs_input_grad[0]:
            raise RuntimeError("there are no second derivatives with respect to weights; leave create_graph out")
        ctx.has_forces = True
        return (_Forces.apply(ctx.network, *given, *features), None, None) + (None,) * ctx.weights


class _Forces(torch.autograd.Function):
    """The gradients of the edges. The features are arguments only to make their backward pass wait for the one here."""

    @staticmethod
    def forward(ctx: Any, network: Network, *gradients_and_features: Tensor) -> Tensor:
        ctx.network, ctx.features = network, len(gradients_and_features) // 2
        # What the network keeps must not lead back to it, or only the garbage collector would free it.
        return network.backward([g.detach() for g in gradients_and_features[: ctx.features]])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.network.tangent(h), *(None,) * ctx.features)
