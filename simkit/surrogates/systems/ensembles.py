"""Ensembles of trajectories by steps of a fixed length: many initial states, each of which need not be exact.

| Method | Here |
| --- | --- |
| "rk4": the equations of `simkit.surrogates.methods.runge_kutta` | ``runge_kutta`` |
| the schemes of `simkit.integrators` without noise, for T(p) + V(q) | ``splitting`` |

A block of trajectories advances together, component by component: a vector field of plain arithmetic, square roots and the functions of
`simkit.kernels.elementary` becomes vector instructions across trajectories. What becomes of a trajectory depends neither on the number of
threads nor on the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit import integrators
from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.integrators.scheme import Operator
from simkit.kernels.elementary import vectorizable
from simkit.kernels.rows import add, set_sum
from simkit.kernels.threads import run_tasks, task_count

Array = NDArray[np.float64]
SCHEMES = tuple(name for name in integrators.available() if not integrators.get(name).stochastic)
METHODS = ("rk4", *SCHEMES)
LANES, LANES_OF_MANY, MANY = 512, 16, 16
"""Trajectories of a block, where the state has up to 16 components and where it has more; many share the cost of starting a loop."""


@functools.lru_cache(maxsize=32)
def _compiled(function: Callable[..., None], lanes: int, shared: bool) -> Any:
    """Return the loop over a task's share of the blocks for a vector field written as a plain function.

    Parameters are a vector that is shared by all trajectories, or [S, P].
    """
    field = vectorizable(forceinline=True)(function)

    @vectorizable
    def rates_shared(t, y, parameters, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
        # Shapes that are known, and rows instead of slices: else a compiler cannot tell that no two lanes share memory.
        states, derivatives = y.reshape((y.shape[0], lanes)).T, out.reshape((y.shape[0], lanes)).T
        for lane in range(np.uintp(lanes)):
            field(t, states[lane], parameters, derivatives[lane])

    @vectorizable
    def rates_each(t, y, parameters, out):  # type: ignore[no-untyped-def]  # pragma: no cover
        states, derivatives = y.reshape((y.shape[0], lanes)).T, out.reshape((y.shape[0], lanes)).T
        rows = parameters.reshape((parameters.shape[0], lanes)).T
        for lane in range(np.uintp(lanes)):
            field(t, states[lane], rows[lane], derivatives[lane])

    @vectorizable
    def all_of_them(parameters, first, inside):  # type: ignore[no-untyped-def]  # pragma: no cover
        return parameters

    @vectorizable
    def of_block(parameters, first, inside):  # type: ignore[no-untyped-def]  # pragma: no cover
        own = np.empty((parameters.shape[1], lanes))
        for lane in range(lanes):
            for i in range(parameters.shape[1]):
                own[i, lane] = parameters[first + min(lane, inside - 1), i]
        return own

    take, rates = (all_of_them, rates_shared) if shared else (of_block, rates_each)

    @vectorizable
    def runge_kutta(t, y, h, parameters, middle, rate, total):  # type: ignore[no-untyped-def]  # pragma: no cover
        rates(t, y, parameters, total)
        set_sum(y, h / 2, total, middle)
        rates(t + h / 2, middle, parameters, rate)
        add(rate, 2.0, total)
        set_sum(y, h / 2, rate, middle)
        rates(t + h / 2, middle, parameters, rate)
        add(rate, 2.0, total)
        set_sum(y, h, rate, middle)
        rates(t + h, middle, parameters, rate)
        add(rate, 1.0, total)
        add(total, h / 6, y)

    @vectorizable
    def splitting(t, y, h, parameters, drifts, coefficients, rate):  # type: ignore[no-untyped-def]  # pragma: no cover
        d = y.shape[0] // 2
        for k in range(coefficients.size):
            if drifts[k] or k == 0 or drifts[k - 1]:  # a drift leaves the velocities as they are, a kick the forces
                rates(t, y, parameters, rate)
            if drifts[k]:
                add(rate[:d], coefficients[k] * h, y[:d])
            else:
                add(rate[d:], coefficients[k] * h, y[d:])

    @vectorizable
    def block_of(block, states, times, counts, parameters, drifts, coefficients, out):  # type: ignore[no-untyped-def]  # pragma: no cover
        samples, size = states.shape
        y, middle, rate, total = (
            np.empty((size, lanes)), np.empty((size, lanes)), np.empty((size, lanes)), np.empty((size, lanes))
        )  # fmt: skip
        first = block * lanes
        inside = min(lanes, samples - first)
        own = take(parameters, first, inside)
        for lane in range(lanes):
            for i in range(size):
                y[i, lane] = states[first + min(lane, inside - 1), i]
        for point in range(times.size - 1):
            h = (times[point + 1] - times[point]) / counts[point]
            for step in range(counts[point]):
                t = times[point] + step * h
                if coefficients.size == 0:
                    runge_kutta(t, y, h, own, middle, rate, total)
                else:
                    splitting(t, y, h, own, drifts, coefficients, rate)
            for lane in range(inside):
                for i in range(size):
                    out[first + lane, point + 1, i] = y[i, lane]

    @vectorizable
    def loop(task, tasks, states, times, counts, parameters, drifts, coefficients, out):  # type: ignore[no-untyped-def]  # pragma: no cover
        blocks = (len(states) + lanes - 1) // lanes
        for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
            block_of(block, states, times, counts, parameters, drifts, coefficients, out)

    return loop


def fixed_steps(
    field: Callable[..., None],
    parameters: Array,
    states: Array,
    times: Array,
    *,
    method: str = "rk4",
    timestep: float | None = None,
) -> Array:
    """Integrate many trajectories by steps of a fixed length, in as many threads as PyTorch's.

    Args:
        field: a vector field as `simkit.surrogates.systems.integration.FIELD` has it, not compiled.
        parameters: its parameters, a vector [P], or one for each trajectory, [S, P].
        states: initial states [S, N].
        times: [T], increasing or decreasing; the states are those at ``times[0]``.
        method: one of `METHODS`. The splitting schemes take it for granted that the first half of the rate depends on the second half of
            the state alone, and the second on the first.
        timestep: the longest step; each interval is cut into equal ones. One step each where not given.

    Returns:
        [S, T, N].

    Raises:
        ConfigError: if the method is unknown, the timestep is not positive, or the parameters are not [P] or [S, P].
    """
    if parameters.ndim != 1 and parameters.shape[:-1] != states.shape[:1]:
        raise ConfigError(
            f"parameters must be [P] or [{len(states)}, P], one row per trajectory; found {parameters.shape}"
        )
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{nearest(method, METHODS)}")
    if timestep is not None and not 0 < timestep < np.inf:
        raise ConfigError(f"the timestep must be a positive number; found {timestep}")
    spans = np.abs(np.diff(times))
    shares = np.ones_like(spans) if timestep is None else np.ceil(spans / timestep * (1 - 1e-9))
    counts = np.maximum(shares, 1).astype(np.int64)  # 0.3/0.1 is three steps, whatever rounding says
    substeps = () if method == "rk4" else integrators.get(method).substeps
    drifts = np.array([substep.operator is Operator.DRIFT for substep in substeps], dtype=np.bool_)
    coefficients = np.array([substep.coefficient for substep in substeps], dtype=np.float64)
    arrays = [np.ascontiguousarray(array, dtype=np.float64) for array in (states, times, parameters)]
    out = np.empty((states.shape[0], times.size, states.shape[1]))
    out[:, 0] = states
    lanes = LANES if states.shape[1] <= MANY else LANES_OF_MANY
    tasks, loop = task_count(max(1, -(-len(states) // lanes))), _compiled(field, lanes, parameters.ndim == 1)
    arguments = arrays[0], arrays[1], counts, arrays[2], drifts, coefficients, out
    run_tasks(lambda task: loop(task, tasks, *arguments), tasks)
    return out
