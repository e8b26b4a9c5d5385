"""Integration methods on a block of samples, [2D, lanes]; the equations are those of `simkit.surrogates.methods`.

Each advances the state in place by a number of steps of equal length. The functions of `simkit.surrogates.compiled.fields` are arguments.
"""

from __future__ import annotations

import math

import numpy as np

from simkit.kernels.elementary import vectorizable
from simkit.kernels.rows import add, copy, fill, set_sum

FIXED_POINT_ITERATIONS = 100
TOLERANCE = 100.0
"""Machine epsilons of the largest entry of a state to which the implicit midpoint is solved, as in `simkit.surrogates.methods.midpoint`."""


@vectorizable(cache=True)
def runge_kutta(derivative, motion, y, h, steps, stages, work):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """The classical method of fourth order; ``stages`` are three more blocks."""
    middle, rate, total = stages[0], stages[1], stages[2]
    for _ in range(steps):
        derivative(motion, y, total, work)
        set_sum(y, h / 2, total, middle)
        derivative(motion, middle, rate, work)
        add(rate, 2.0, total)
        set_sum(y, h / 2, rate, middle)
        derivative(motion, middle, rate, work)
        add(rate, 2.0, total)
        set_sum(y, h, rate, middle)
        derivative(motion, middle, rate, work)
        add(rate, 1.0, total)
        add(total, h / 6, y)


@vectorizable(cache=True)
def splitting(drift, kick, motion, drifts, coefficients, y, h, steps, stages, fresh, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """A scheme of `simkit.integrators`, of operators that are drifts or kicks.

    The rate of the last kick stays in the first block of ``stages``; ``fresh`` says whether it belongs to the present coordinates, and so
    does the return value.
    """
    d = motion.dof
    q, other = y[:d], y[d:]
    slope, rate = stages[0][:d], stages[1][:d]
    for _ in range(steps):
        for k in range(coefficients.size):
            if drifts[k]:
                drift(motion, q, other, rate, work)
                add(rate, coefficients[k] * h, q)
                fresh = False
            else:
                if not fresh:
                    kick(motion, q, slope, work)
                    fresh = True
                add(slope, coefficients[k] * h, other)
    return fresh


@vectorizable(cache=True)
def implicit_midpoint(derivative, motion, y, h, steps, stages, waiting, allowed, epsilon, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The implicit midpoint rule; return whether all steps could be solved by fixed-point iteration.

    A sample whose equation is solved rests while the others of its block go on, so that no sample depends on its neighbours.
    """
    middle, rate = stages[0], stages[1]
    lanes = np.uintp(y.shape[1])
    for _ in range(steps):
        fill(waiting, True)
        for lane in range(lanes):
            largest = 1.0
            for i in range(y.shape[0]):
                largest = max(largest, abs(y[i, lane]))
            allowed[lane] = TOLERANCE * epsilon * largest
        copy(y, middle)
        for _ in range(FIXED_POINT_ITERATIONS):
            derivative(motion, middle, rate, work)
            solved = True
            for lane in range(lanes):
                if waiting[lane]:
                    change = 0.0
                    for i in range(y.shape[0]):
                        following = y[i, lane] + h / 2 * rate[i, lane]
                        change += abs(following - middle[i, lane])  # a sum, as max() would let NaN through
                        middle[i, lane] = following
                    waiting[lane] = not change <= allowed[lane]
                    solved = solved and not waiting[lane]
            if solved:
                break
        if not solved:
            return False
        for i in range(y.shape[0]):
            for lane in range(lanes):
                y[i, lane] = 2 * middle[i, lane] - y[i, lane]
    return True


@vectorizable(cache=True)
def tao(derivative, motion, weights, binding, first, second, h, steps, stages, fresh, work):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Tao's method; ``first`` holds (q, y) and ``second`` (x, p).

    The flow of A adds the rate at ``first`` to ``second``, that of B the rate at ``second`` to ``first``. The rate at ``first`` stays in
    the first block of ``stages`` from one step to the next, where ``fresh``.
    """
    d = motion.dof
    rate, other = stages[0], stages[1]
    for _ in range(steps):
        for weight in weights:
            length = weight * h
            if not fresh:
                derivative(motion, first, rate, work)
            add(rate, length / 2, second)
            derivative(motion, second, other, work)
            add(other, length / 2, first)
            _rotate(first, second, d, math.cos(2 * binding * length), math.sin(2 * binding * length))
            derivative(motion, second, other, work)
            add(other, length / 2, first)
            derivative(motion, first, rate, work)
            add(rate, length / 2, second)
            fresh = True


@vectorizable(cache=True)
def _rotate(first, second, d, cosine, sine):  # type: ignore[no-untyped-def]  # pragma: no cover
    lanes = np.uintp(first.shape[1])
    for i in range(d):
        q, y, x, p = first[i], first[d + i], second[i], second[d + i]
        for lane in range(lanes):
            dq, dp = q[lane] - x[lane], p[lane] - y[lane]
            sum_q, sum_p = q[lane] + x[lane], p[lane] + y[lane]
            turned_q, turned_p = cosine * dq + sine * dp, cosine * dp - sine * dq
            q[lane], p[lane] = (sum_q + turned_q) / 2, (sum_p + turned_p) / 2
            x[lane], y[lane] = (sum_q - turned_q) / 2, (sum_p - turned_p) / 2
