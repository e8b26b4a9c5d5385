"""Perceptrons as arrays, and what compiled loops do with them on a block of samples at once.

Values lie unit by unit, [units, lanes], so that every loop over the samples ("lanes") of a block is one of vector instructions, and a
weight that was read serves all of them. Layers are padded with zeros to multiples of `TILE` units.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from simkit.kernels.elementary import cos, sigmoid, sin, softplus, tanh, vectorizable
from simkit.kernels.rows import add, copy, fill, multiply
from simkit.surrogates.models.network import CoordinateNetwork

TILE = 4
TANH, SOFTPLUS, SILU = range(3)
_CODES: dict[type[nn.Module], int] = {nn.Tanh: TANH, nn.Softplus: SOFTPLUS, nn.SiLU: SILU}
_LINEAR_FROM = 20.0  # where PyTorch's softplus becomes the identity


class Network(NamedTuple):
    """A perceptron of coordinate features and further inputs.

    Attributes:
        sizes: padded units of each layer, the inputs first, [layers + 1]; one size of 0 for no network at all.
        weights: the matrix [out, in] and the bias [out] of each layer, one after the other.
        skip: a linear map of the inputs that is added to the outputs, [out, in]; [0, 0] for none.
        activation: one of `TANH`, `SOFTPLUS`, `SILU`.
        straight, angular: coordinates that are seen as they are, and those seen as cos and sin.
    """

    sizes: NDArray[np.int64]
    weights: NDArray[np.floating]
    skip: NDArray[np.floating]
    activation: int
    straight: NDArray[np.int64]
    angular: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Units of all layers, inputs and outputs included."""
        return int(self.sizes.sum())


def no_network(dtype: np.dtype) -> Network:
    """Return what stands for a network that a model does not have."""
    none = np.empty(0, dtype=np.int64)
    return Network(np.zeros(1, dtype=np.int64), np.empty(0, dtype), np.empty((0, 0), dtype), TANH, none, none)


def pack(network: CoordinateNetwork) -> Network:
    """Return a network with its present weights."""
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    sizes = [-(-units // TILE) * TILE for units in (linear[0].in_features, *(layer.out_features for layer in linear))]
    parts = []
    for layer, before, after in zip(linear, sizes, sizes[1:], strict=False):
        matrix = _padded(layer, after, before)
        bias = np.zeros(after, dtype=matrix.dtype)
        if layer.bias is not None:
            bias[: layer.out_features] = layer.bias.detach().cpu().numpy()
        parts += [matrix.reshape(-1), bias]
    skip = np.empty((0, 0), dtype=matrix.dtype) if network.skip is None else _padded(network.skip, sizes[-1], sizes[0])
    features = network.features
    places = (np.ascontiguousarray(index.cpu().numpy()) for index in (features.straight, features.angular))
    return Network(np.array(sizes), np.concatenate(parts), skip, _CODES[type(network.layers[1])], *places)


def _padded(layer: nn.Linear, outputs: int, inputs: int) -> NDArray[np.floating]:
    weight = layer.weight.detach().cpu().numpy()
    matrix = np.zeros((outputs, inputs), dtype=weight.dtype)
    matrix[: weight.shape[0], : weight.shape[1]] = weight
    return matrix


@vectorizable(cache=True)
def _add_product(w, x, y):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """y += w x, for w [n, m], x [m, lanes], y [n, lanes]; n and m are multiples of 4.

    A tile of 16 weights stays in registers while it passes over the lanes. Indices are unsigned: a signed one may count from the end, and
    no loop over it becomes vector instructions.
    """
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    lanes = np.uintp(x.shape[1])
    for i in range(np.uintp(0), np.uintp(w.shape[0]), four):
        i1, i2, i3 = i + one, i + two, i + three
        for k in range(np.uintp(0), np.uintp(w.shape[1]), four):
            k1, k2, k3 = k + one, k + two, k + three
            a, b, c, d = w[i, k], w[i, k1], w[i, k2], w[i, k3]
            a1, b1, c1, d1 = w[i1, k], w[i1, k1], w[i1, k2], w[i1, k3]
            a2, b2, c2, d2 = w[i2, k], w[i2, k1], w[i2, k2], w[i2, k3]
            a3, b3, c3, d3 = w[i3, k], w[i3, k1], w[i3, k2], w[i3, k3]
            for lane in range(lanes):
                e, f, g, h = x[k, lane], x[k1, lane], x[k2, lane], x[k3, lane]
                y[i, lane] += a * e + b * f + c * g + d * h
                y[i1, lane] += a1 * e + b1 * f + c1 * g + d1 * h
                y[i2, lane] += a2 * e + b2 * f + c2 * g + d2 * h
                y[i3, lane] += a3 * e + b3 * f + c3 * g + d3 * h


@vectorizable(cache=True)
def _activate(code, values, slopes):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Apply the activation in place, and write its derivative."""
    v, s = values.reshape(-1), slopes.reshape(-1)
    count = np.uintp(v.size)
    if code == TANH:
        for k in range(count):
            value = tanh(v[k])
            v[k] = value
            s[k] = 1.0 - value * value
    elif code == SOFTPLUS:
        for k in range(count):
            x = np.float64(v[k])
            v[k] = x if x > _LINEAR_FROM else softplus(x)
            s[k] = 1.0 if x > _LINEAR_FROM else sigmoid(x)
    else:
        for k in range(count):
            x = np.float64(v[k])
            logistic = sigmoid(x)
            v[k] = x * logistic
            s[k] = logistic * (1.0 + x * (1.0 - logistic))


@vectorizable(cache=True)
def load(network, q, more, values):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the inputs of a network, the features of q [D, lanes] and then ``more`` [..., lanes], into the first rows."""
    lanes = np.uintp(q.shape[1])
    row = 0
    for place in network.straight:
        copy(q[place], values[row])
        row += 1
    turned = network.angular.size
    for place in network.angular:
        angle, cosine, sine = q[place], values[row], values[row + turned]
        for lane in range(lanes):
            cosine[lane] = cos(np.float64(angle[lane]))
            sine[lane] = sin(np.float64(angle[lane]))
        row += 1
    row += turned
    for place in range(more.shape[0]):
        copy(more[place], values[row])
        row += 1
    fill(values[row : network.sizes[0]], 0.0)


@vectorizable(cache=True)
def load_tangent(network, q, rate, tangents):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the time derivatives of the features of q, whose own is ``rate``, into the first rows."""
    lanes = np.uintp(q.shape[1])
    row = 0
    for place in network.straight:
        copy(rate[place], tangents[row])
        row += 1
    turned = network.angular.size
    for place in network.angular:
        angle, speed, cosine, sine = q[place], rate[place], tangents[row], tangents[row + turned]
        for lane in range(lanes):
            cosine[lane] = -speed[lane] * sin(np.float64(angle[lane]))
            sine[lane] = speed[lane] * cos(np.float64(angle[lane]))
        row += 1
    fill(tangents[row + turned : network.sizes[0]], 0.0)


@vectorizable(cache=True)
def add_gradient(network, q, values, sign, to_q, to_more):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add ``sign`` times the gradient with respect to q to ``to_q``, and that with respect to the further inputs to ``to_more``.

    The first rows of ``values`` hold the gradient with respect to the inputs, from `pull_back`.
    """
    lanes = np.uintp(q.shape[1])
    row = 0
    for place in network.straight:
        add(values[row], sign, to_q[place])
        row += 1
    turned = network.angular.size
    for place in network.angular:
        angle, by_cosine, by_sine, target = q[place], values[row], values[row + turned], to_q[place]
        for lane in range(lanes):
            x = np.float64(angle[lane])
            target[lane] += sign * (by_sine[lane] * cos(x) - by_cosine[lane] * sin(x))
        row += 1
    row += turned
    for place in range(to_more.shape[0]):
        add(values[row], 1.0, to_more[place])
        row += 1


@vectorizable(cache=True)
def evaluate(network, values, slopes, layers):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Go through the first layers; return the row of ``values`` where the outputs of the last of them begin.

    The values of all layers follow those of the inputs; ``slopes`` takes the derivatives of the activations in the same rows.
    """
    row, at = 0, 0
    for layer in range(layers):
        m, n = network.sizes[layer], network.sizes[layer + 1]
        matrix = network.weights[at : at + n * m].reshape((n, m))
        bias = network.weights[at + n * m : at + n * m + n]
        at += n * m + n
        x, y = values[row : row + m], values[row + m : row + m + n]
        for i in range(n):
            fill(y[i], bias[i])
        _add_product(matrix, x, y)
        row += m
        if layer < network.sizes.size - 2:
            _activate(network.activation, y, slopes[row : row + n])
        else:
            _add_product(network.skip, values, y)
    return row


@vectorizable(cache=True)
def push_forward(network, tangents, slopes):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Follow the derivative with respect to time from the inputs on, as `evaluate` the values; return the row of the outputs."""
    row, at = 0, 0
    for layer in range(network.sizes.size - 1):
        m, n = network.sizes[layer], network.sizes[layer + 1]
        matrix = network.weights[at : at + n * m].reshape((n, m))
        at += n * m + n
        y = tangents[row + m : row + m + n]
        fill(y, 0.0)
        _add_product(matrix, tangents[row : row + m], y)
        row += m
        if layer < network.sizes.size - 2:
            multiply(slopes[row : row + n], y)
        else:
            _add_product(network.skip, tangents, y)
    return row


@vectorizable(cache=True)
def pull_back(network, values, slopes):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Turn the gradient with respect to the outputs, in their rows of ``values``, into that with respect to the inputs, in theirs."""
    at, outputs = network.weights.size, network.sizes.sum() - network.sizes[-1]
    row = outputs
    for layer in range(network.sizes.size - 2, -1, -1):
        m, n = network.sizes[layer], network.sizes[layer + 1]
        at -= n * m + n
        matrix = network.weights[at : at + n * m].reshape((n, m))
        x = values[row - m : row]
        fill(x, 0.0)
        _add_product(matrix.T, values[row : row + n], x)
        row -= m
        if layer > 0:
            multiply(slopes[row : row + m], x)
    _add_product(network.skip.T, values[outputs:], values)
