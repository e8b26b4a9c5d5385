"""Two differential equations with the parameters of each trajectory, for very many trajectories: Runge-Kutta steps of fourth order.

`simkit.surrogates.systems.ensembles` does the same for any number of equations with common parameters. With two, all stages of a step stay
in registers, which is ten times as fast. A block of trajectories advances together, so that equations of plain arithmetic become vector
instructions. What becomes of a trajectory depends neither on the number of threads nor on the others.

| Runge and Kutta (Hairer, Norsett and Wanner 1993, II.1) | Here |
| --- | --- |
| k_1 to k_4 for x and y | ``x1`` to ``x4``, ``y1`` to ``y4`` |
| the same for their slopes dx/dtheta and dy/dtheta | ``u1`` to ``u4``, ``v1`` to ``v4`` |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from simkit.inference.priors import Array
from simkit.kernels.elementary import vectorizable
from simkit.kernels.threads import run_tasks, task_count

Equations = Callable[..., tuple[Any, ...]]
LANES = 64
"""Trajectories of a block."""


def _steps(function: Equations) -> Any:
    """Return the loop over steps of a block, state [2, lanes]."""
    field = vectorizable(forceinline=True)(function)

    @vectorizable
    def steps(h, count, theta, constants, state):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
        half, sixth, xs, ys = h / 2, h / 6, state[0], state[1]
        for _ in range(count):
            for n in range(np.uintp(LANES)):
                x, y = xs[n], ys[n]
                x1, y1 = field(x, y, theta, n, constants)
                x2, y2 = field(x + half * x1, y + half * y1, theta, n, constants)
                x3, y3 = field(x + half * x2, y + half * y2, theta, n, constants)
                x4, y4 = field(x + h * x3, y + h * y3, theta, n, constants)
                xs[n] = x + sixth * (x1 + 2 * x2 + 2 * x3 + x4)
                ys[n] = y + sixth * (y1 + 2 * y2 + 2 * y3 + y4)

    return steps


def _slope_steps(function: Equations) -> Any:
    """Return the loop over steps of a block with slopes, state [4, lanes]."""
    field = vectorizable(forceinline=True)(function)

    @vectorizable
    def steps(h, count, theta, constants, state):  # type: ignore[no-untyped-def]  # pragma: no cover
        half, sixth, xs, ys, us, vs = h / 2, h / 6, state[0], state[1], state[2], state[3]
        for _ in range(count):
            for n in range(np.uintp(LANES)):
                x, y, u, v = xs[n], ys[n], us[n], vs[n]
                x1, y1, u1, v1 = field(x, y, u, v, theta, n, constants)
                a, b, c, d = x + half * x1, y + half * y1, u + half * u1, v + half * v1
                x2, y2, u2, v2 = field(a, b, c, d, theta, n, constants)
                a, b, c, d = x + half * x2, y + half * y2, u + half * u2, v + half * v2
                x3, y3, u3, v3 = field(a, b, c, d, theta, n, constants)
                x4, y4, u4, v4 = field(x + h * x3, y + h * y3, u + h * u3, v + h * v3, theta, n, constants)
                xs[n] = x + sixth * (x1 + 2 * x2 + 2 * x3 + x4)
                ys[n] = y + sixth * (y1 + 2 * y2 + 2 * y3 + y4)
                us[n] = u + sixth * (u1 + 2 * u2 + 2 * u3 + u4)
                vs[n] = v + sixth * (v1 + 2 * v2 + 2 * v3 + v4)

    return steps


@functools.cache
def _compiled(function: Equations, size: int) -> Any:
    """Return the loop over a task's share of the blocks for states of 2 numbers, or of 4 with slopes."""
    steps = _steps(function) if size == 2 else _slope_steps(function)

    @vectorizable
    def loop(task, tasks, start, parameters, times, counts, constants, out):  # type: ignore[no-untyped-def]  # pragma: no cover
        samples, dim = parameters.shape
        blocks = (samples + LANES - 1) // LANES
        theta, state = np.empty((dim, LANES)), np.empty((start.size, LANES))
        for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
            lowest = block * LANES
            inside = min(LANES, samples - lowest)
            for n in range(LANES):
                for d in range(dim):
                    theta[d, n] = parameters[lowest + min(n, inside - 1), d]
                for c in range(start.size):
                    state[c, n] = start[c]
            for point in range(times.size):
                if point > 0:
                    h = (times[point] - times[point - 1]) / counts[point - 1]
                    steps(h, counts[point - 1], theta, constants, state)
                for n in range(inside):
                    for c in range(start.size):
                        out[lowest + n, point, c] = state[c, n]

    return loop


def _solve(function: Equations, theta: Array, start: Array, times: Array, timestep: float, constants: Array) -> Array:
    counts = np.ceil(np.diff(times) / timestep * (1 - 1e-9)).astype(
        np.int64
    )  # 0.3/0.1 is three steps, whatever rounding says
    out = np.empty((len(theta), times.size, start.size))
    arrays = [np.ascontiguousarray(array, dtype=np.float64) for array in (start, theta, times)]
    tasks, loop = task_count(max(1, -(-len(theta) // LANES))), _compiled(function, start.size)
    run_tasks(lambda task: loop(task, tasks, *arrays, counts, constants, out), tasks)
    return out


def solve(field: Equations, theta: Array, start: Array, times: Array, timestep: float, constants: Array) -> Array:
    """Return the states [N, T, 2] of N trajectories, in as many threads as PyTorch's.

    Args:
        field: the equations for Numba, a plain function ``field(x, y, theta, n, constants)`` that returns dx/dt and dy/dt for the
            parameters ``theta[:, n]``.
        theta: parameters [N, D].
        start: state at the first time, [2].
        times: [T], increasing.
        timestep: the longest step; each interval is cut into equal ones.
        constants: a vector.
    """
    return _solve(field, theta, start, times, timestep, constants)


def solve_with_slopes(
    field: Equations, theta: Array, start: Array, times: Array, timestep: float, constants: Array
) -> tuple[Array, Array]:
    """Return the states [N, T, 2] and their derivatives in the parameters, [N, T, D, 2].

    Args:
        field: the equations with slopes, ``field(x, y, u, v, theta, n, constants)``: u and v are the derivatives of x and y along the
            direction ``theta[D:, n]`` of the parameters; it returns dx/dt, dy/dt, du/dt and dv/dt.

    The others are those of `solve`; the state at the first time does not depend on the parameters.
    """
    count, dim = theta.shape
    along = np.concatenate([np.repeat(theta, dim, axis=0), np.tile(np.eye(dim), (count, 1))], axis=1)
    found = _solve(field, along, np.concatenate([start, np.zeros(2)]), times, timestep, constants)
    found = found.reshape(count, dim, times.size, 4)
    return found[:, 0, :, :2], found[..., 2:].transpose(0, 2, 1, 3)
