"""Equations of motion of compiled models on a block of samples, [units, lanes].

The equations are those of the models (`simkit.surrogates.models`), with derivatives of networks by `push_forward` and `pull_back`. For
M = L L^T, with u = L^-1 p and velocity v = L^-T u, a kinetic energy |u|^2/2 changes by -v_i u_j dL_ij at constant p; with w = L^T v, one
|w|^2/2 by v_i w_j dL_ij at constant v.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simkit.kernels.elementary import sigmoid, softplus, vectorizable
from simkit.kernels.rows import add, add_product, copy, divide, fill, multiply
from simkit.surrogates.compiled.motion import ENERGY, FIRST_ORDER, SECOND_ORDER, SEPARABLE
from simkit.surrogates.compiled.networks import add_gradient, evaluate, load, load_tangent, pull_back, push_forward

# What is cached on disk is compiled again when this file changes, but not when those of the functions that it calls do: save it, too.


class Work(NamedTuple):
    """Memory of one thread.

    Attributes:
        values, slopes, tangents: of the largest network, [rows, lanes] each; see `simkit.surrogates.compiled.networks.evaluate`.
        factor, rates: entries of a triangular matrix and their time derivatives, [D^2, lanes].
        bends: derivative of the diagonal with respect to what goes into its softplus, [D, lanes].
        inner: a vector, [D, lanes].
    """

    values: NDArray[np.floating]
    slopes: NDArray[np.floating]
    tangents: NDArray[np.floating]
    factor: NDArray[np.floating]
    rates: NDArray[np.floating]
    bends: NDArray[np.floating]
    inner: NDArray[np.floating]


@vectorizable(cache=True)
def workspace(motion, rows, states, lanes):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Return memory for the largest network of ``rows`` units, in the type of the states."""
    one, d = states.dtype, motion.dof
    return Work(
        np.empty((rows, lanes), one), np.empty((rows, lanes), one), np.empty((rows, lanes), one),
        np.empty((d * d, lanes), one), np.empty((d * d, lanes), one), np.empty((d, lanes), one), np.empty((d, lanes), one),
    )  # fmt: skip


@vectorizable(cache=True)
def _add_energy_gradient(network, q, more, sign, to_q, to_more, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the gradients of a network with one output: ``sign`` times that with respect to q, and that with respect to the rest."""
    load(network, q, more, work.values)
    last = network.sizes.size - 2
    row = evaluate(network, work.values, work.slopes, last) + network.sizes[last]
    outputs = work.values[row : row + network.sizes[last + 1]]
    fill(outputs, 0.0)
    fill(outputs[0], 1.0)
    pull_back(network, work.values, work.slopes)
    add_gradient(network, q, work.values, sign, to_q, to_more)


@vectorizable(cache=True)
def _output_row(network):  # type: ignore[no-untyped-def]  # pragma: no cover
    return network.sizes.sum() - network.sizes[-1]


@vectorizable(cache=True)
def _set_factor(factor, q, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the entries of L at q, and the derivative of its diagonal."""
    d, lanes = q.shape[0], np.uintp(q.shape[1])
    network = factor.network
    row, varies = 0, network.sizes.size > 1
    if varies:
        load(network, q, q[:0], work.values)
        evaluate(network, work.values, work.slopes, network.sizes.size - 1)
        row = _output_row(network)
    entry = 0
    for i in range(d):
        target, bend = work.factor[i * d + i], work.bends[i]
        fill(target, factor.constant[i])
        if varies:
            add(work.values[row + i], 1.0, target)
        for lane in range(lanes):
            x = np.float64(target[lane])
            target[lane] = softplus(x) + factor.floor
            bend[lane] = sigmoid(x)
    for i in range(d):
        for j in range(i):
            fill(work.factor[i * d + j], factor.constant[d + entry])
            if varies:
                add(work.values[row + d + entry], 1.0, work.factor[i * d + j])
            entry += 1


@vectorizable(cache=True)
def _set_rates(factor, q, velocity, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write dL/dt along the motion; `_set_factor` went before. Return whether it can be other than zero."""
    d, network = q.shape[0], factor.network
    if network.sizes.size == 1:
        return False
    load_tangent(network, q, velocity, work.tangents)
    push_forward(network, work.tangents, work.slopes)
    row = _output_row(network)
    entry = 0
    for i in range(d):
        copy(work.tangents[row + i], work.rates[i * d + i])
        multiply(work.bends[i], work.rates[i * d + i])
        for j in range(i):
            copy(work.tangents[row + d + entry], work.rates[i * d + j])
            entry += 1
    return True


@vectorizable(cache=True)
def _add_factor_gradient(factor, q, left, right, sign, to_q, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add ``sign`` times the gradient with respect to q of left_i right_j L_ij(q) at constant left and right."""
    d, network = q.shape[0], factor.network
    if network.sizes.size == 1:
        return
    row = _output_row(network)
    outputs = work.values[row : row + network.sizes[-1]]
    fill(outputs, 0.0)
    entry = 0
    for i in range(d):
        add_product(left[i], right[i], 1.0, outputs[i])
        multiply(work.bends[i], outputs[i])
        for j in range(i):
            add_product(left[i], right[j], 1.0, outputs[d + entry])
            entry += 1
    pull_back(network, work.values, work.slopes)
    add_gradient(network, q, work.values, sign, to_q, to_q[:0])


@vectorizable(cache=True)
def _solve(factor, x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """x <- L^-1 x."""
    d = x.shape[0]
    for i in range(d):
        for j in range(i):
            add_product(factor[i * d + j], x[j], -1.0, x[i])
        divide(factor[i * d + i], x[i])


@vectorizable(cache=True)
def _solve_transposed(factor, x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """x <- L^-T x."""
    d = x.shape[0]
    for i in range(d - 1, -1, -1):
        for j in range(i + 1, d):
            add_product(factor[j * d + i], x[j], -1.0, x[i])
        divide(factor[i * d + i], x[i])


@vectorizable(cache=True)
def _add_times(factor, x, sign, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y += sign L x."""
    d = x.shape[0]
    for i in range(d):
        for j in range(i + 1):
            add_product(factor[i * d + j], x[j], sign, y[i])


@vectorizable(cache=True)
def _set_transposed_times(factor, x, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y = L^T x."""
    d = x.shape[0]
    fill(y, 0.0)
    for i in range(d):
        for j in range(i, d):
            add_product(factor[j * d + i], x[j], 1.0, y[i])


@vectorizable(cache=True)
def velocity_of(motion, other, out, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write dq/dt from the second half of the state; of a mechanical model, `_set_factor` went before. ``inner`` is L^-1 p."""
    if motion.kind == SEPARABLE:
        fill(out, 0.0)
        _add_energy_gradient(motion.kinetic, other, other[:0], 1.0, out, other[:0], work)
        return
    copy(other, out)
    if not motion.velocities:
        _solve(work.factor, out)
        copy(out, work.inner)
        _solve_transposed(work.factor, out)


@vectorizable(cache=True)
def drift(motion, q, other, out, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write dq/dt of a separable model."""
    if motion.kind != SEPARABLE:
        _set_factor(motion.mass, q, work)
    velocity_of(motion, other, out, work)


@vectorizable(cache=True)
def kick(motion, q, out, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the time derivative of the second half of the state of a separable model."""
    fill(out, 0.0)
    _add_energy_gradient(motion.network, q, q[:0], -1.0, out, q[:0], work)
    if motion.velocities:
        _set_factor(motion.mass, q, work)
        _solve(work.factor, out)
        _solve_transposed(work.factor, out)


@vectorizable(cache=True)
def _mechanical(motion, q, other, dq, rate, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    fill(rate, 0.0)
    _set_factor(motion.mass, q, work)
    velocity_of(motion, other, dq, work)
    if motion.velocities:
        _set_transposed_times(work.factor, dq, work.inner)
        if _set_rates(motion.mass, q, dq, work):
            # (dM/dt) v = (dL/dt) w + L (dL/dt)^T v
            _add_times(work.rates, work.inner, -1.0, rate)
            turned = np.empty_like(dq)
            _set_transposed_times(work.rates, dq, turned)
            _add_times(work.factor, turned, -1.0, rate)
    _add_factor_gradient(motion.mass, q, dq, work.inner, 1.0, rate, work)
    _add_energy_gradient(motion.network, q, q[:0], -1.0, rate, q[:0], work)
    if motion.friction.constant.size > 0:
        _set_factor(motion.friction, q, work)
        _set_transposed_times(work.factor, dq, work.inner)
        _add_times(work.factor, work.inner, -1.0, rate)
    if motion.velocities:
        if motion.friction.constant.size > 0:
            _set_factor(motion.mass, q, work)
        _solve(work.factor, rate)
        _solve_transposed(work.factor, rate)


@vectorizable(cache=True)
def derivative(motion, state, rate, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write d state/dt [2D, lanes]."""
    d = motion.dof
    q, other, dq, second = state[:d], state[d:], rate[:d], rate[d:]
    if motion.kind == FIRST_ORDER or motion.kind == SECOND_ORDER:
        network = motion.network
        load(network, q, other, work.values)
        evaluate(network, work.values, work.slopes, network.sizes.size - 1)
        row = _output_row(network)
        if motion.kind == FIRST_ORDER:
            copy(work.values[row : row + 2 * d], rate)
        else:
            copy(other, dq)
            copy(work.values[row : row + d], second)
    elif motion.kind == ENERGY:
        fill(rate, 0.0)
        _add_energy_gradient(motion.network, q, other, -1.0, second, dq, work)
    elif motion.kind == SEPARABLE:
        velocity_of(motion, other, dq, work)
        kick(motion, q, second, work)
    else:
        _mechanical(motion, q, other, dq, second, work)
