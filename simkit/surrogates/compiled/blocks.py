"""The loop over blocks of samples of a compiled rollout, one block after the other in each thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import typeof, types
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

from simkit.kernels.elementary import vectorizable
from simkit.kernels.rows import copy
from simkit.kernels.threads import run_tasks
from simkit.surrogates.compiled.fields import Work, derivative, drift, kick, workspace
from simkit.surrogates.compiled.methods import implicit_midpoint, runge_kutta, splitting, tao
from simkit.surrogates.compiled.motion import Motion

Array = NDArray[Any]
RUNGE_KUTTA, SPLITTING, MIDPOINT, TAO = range(4)


class Plan(NamedTuple):
    """What to do with every block.

    Attributes:
        method: one of the constants above.
        coefficients: of the substeps of a splitting scheme, or of the steps of Tao's method.
        drifts: which substeps are drifts.
        binding: of Tao's method.
        lengths, counts: length and number of the steps between two times, [T - 1].
        lanes: samples of a block.
        rows: units of the largest network.
        tasks: threads that share the blocks.
    """

    method: int
    coefficients: NDArray[np.float64]
    drifts: NDArray[np.bool_]
    binding: float
    lengths: NDArray[np.float64]
    counts: NDArray[np.int64]
    lanes: int
    rows: int
    tasks: int


@vectorizable(cache=True)
def _store(block, lanes, state, target):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Write the samples of a block to their rows of the target [S, 2D]."""
    for lane in range(min(lanes, target.shape[0] - block * lanes)):
        for i in range(state.shape[0]):
            target[block * lanes + lane, i] = state[i, lane]


@vectorizable(cache=True)
def _load(block, lanes, source, state):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Read a block; the last one is filled up with its first sample."""
    for lane in range(lanes):
        sample = block * lanes + lane
        sample = sample if sample < source.shape[0] else block * lanes
        for i in range(state.shape[0]):
            state[i, lane] = source[sample, i]


def _roll(derivative, drift, kick, task, tasks, motion, plan, epsilon, states, out, failed):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the frames after the first, ``out`` [T, S, 2D], of a task's share of the blocks, and where a block failed."""
    lanes, size = plan.lanes, states.shape[1]
    blocks = (states.shape[0] + lanes - 1) // lanes
    work = workspace(motion, plan.rows, states, lanes)
    y, second = np.empty((size, lanes), states.dtype), np.empty((size, lanes), states.dtype)
    stages = np.empty((3, size, lanes), states.dtype)
    waiting, allowed = np.empty(lanes, np.bool_), np.empty(lanes)
    shown = np.empty((size, lanes), states.dtype)
    d = motion.dof
    for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
        _load(block, lanes, states, y)
        copy(y, second)
        fresh = False
        for frame in range(plan.counts.size):
            h, steps = plan.lengths[frame], plan.counts[frame]
            if plan.method == RUNGE_KUTTA:
                runge_kutta(derivative, motion, y, h, steps, stages, work)
            elif plan.method == SPLITTING:
                fresh = splitting(drift, kick, motion, plan.drifts, plan.coefficients, y, h, steps, stages, fresh, work)
            elif plan.method == MIDPOINT:
                if not implicit_midpoint(derivative, motion, y, h, steps, stages, waiting, allowed, epsilon, work):
                    failed[block] = frame
                    break
            else:
                tao(derivative, motion, plan.coefficients, plan.binding, y, second, h, steps, stages, frame > 0, work)
            if plan.method == TAO:
                copy(y[:d], shown[:d])
                copy(second[d:], shown[d:])
                _store(block, lanes, shown, out[frame + 1])
            else:
                _store(block, lanes, y, out[frame + 1])


def _differentiate(derivative, motion, plan, states, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write d state/dt of all samples, [S, 2D]."""
    lanes, size = plan.lanes, states.shape[1]
    work = workspace(motion, plan.rows, states, lanes)
    y, rate = np.empty((size, lanes), states.dtype), np.empty((size, lanes), states.dtype)
    for block in range((states.shape[0] + lanes - 1) // lanes):
        _load(block, lanes, states, y)
        derivative(motion, y, rate, work)
        _store(block, lanes, rate, out)


@functools.cache
def _field(function: Dispatcher, blocks: int, motion: types.Type, number: types.Type) -> tuple[types.Type, Dispatcher]:
    """Return a function of `simkit.surrogates.compiled.fields` as others take it, and its type.

    It is called by its address. A caller into which it were linked would compile it once more, and so would the callers of that.
    """
    block = types.Array(number, 2, "C")
    work = types.NamedUniTuple(block, len(Work._fields), Work)
    signature = types.void(motion, *[block] * blocks, work)
    return types.FunctionType(signature), vectorizable(signature, cache=True)(function.py_func)


def differentiate(motion: Motion, plan: Plan, states: Array, out: Array) -> None:
    """Write d state/dt of all samples [S, 2D] in one thread."""
    _compiled("differentiate", typeof(motion), typeof(plan), typeof(states))(motion, plan, states, out)


def roll(motion: Motion, plan: Plan, states: Array, out: Array, failed: NDArray[np.int64]) -> None:
    """Write the frames after the first, ``out`` [T, S, 2D], and the interval in which a block could not go on, if any, [blocks]."""
    compiled = _compiled("roll", typeof(motion), typeof(plan), typeof(states))
    arguments = plan.tasks, motion, plan, float(np.finfo(states.dtype).eps), states, out, failed
    run_tasks(lambda task: compiled(task, *arguments), plan.tasks)


@functools.cache
def _compiled(name: str, motion: types.Type, plan: types.Type, states: types.Type) -> Callable[..., None]:
    number = states.dtype
    fields = [_field(derivative, 2, motion, number), _field(drift, 3, motion, number), _field(kick, 2, motion, number)]
    rest: tuple[types.Type, ...] = (motion, plan, states, states)
    function: Callable[..., None] = _differentiate
    if name == "differentiate":
        fields = fields[:1]
    else:
        frames, failed = types.Array(number, 3, "C"), types.Array(types.int64, 1, "C")
        rest = (types.int64, types.int64, motion, plan, types.float64, states, frames, failed)
        function = _roll
    signature = types.void(*(kind for kind, _ in fields), *rest)
    compiled = vectorizable(signature, cache=True)(function)
    return functools.partial(compiled, *(field for _, field in fields))
