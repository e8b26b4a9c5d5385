"""`CompiledModel`: a learned model of motion without PyTorch, for rollouts of many trajectories on a CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from simkit import integrators
from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.integrators.scheme import Operator
from simkit.kernels.threads import task_count
from simkit.surrogates.compiled.blocks import (
    MIDPOINT,
    RUNGE_KUTTA,
    SPLITTING,
    TAO,
    Plan,
    differentiate,
    roll,
)
from simkit.surrogates.compiled.motion import motion_of
from simkit.surrogates.methods.adaptive import METHODS as ADAPTIVE
from simkit.surrogates.methods.tao import WEIGHTS
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.rollout import methods_of, moments_of, step_count

Array = NDArray[Any]
LANES = (16, 32, 64)
"""Samples of a block: the first number that is enough, or the last. 64 values of 200 units are 100 kB, which the second cache holds."""


class CompiledModel:
    """A model with the weights that it had when it was compiled. It cannot be trained.

    Blocks of up to 64 trajectories pass through the network together, so that a weight that was read from memory serves all of them, and
    every operation is a vector instruction across trajectories. The threads, as many as PyTorch's, take blocks in turn. What becomes of
    a trajectory depends neither on the number of threads nor on the others.

    Attributes:
        dof: D.
        coordinates: "canonical" for states (q, p), "velocity" for (q, v).
        dtype: of states and weights, float32 or float64.
        methods: names of the methods that can run it, of those in `simkit.surrogates.rollout`; adaptive ones are not among them.
        default_method: the one that is taken where none is named.
    """

    def __init__(self, model: DynamicsModel) -> None:
        self._motion = motion_of(model)
        self.dof = model.dof
        self.coordinates = model.coordinates
        self.dtype = np.dtype(str(model.dtype).removeprefix("torch."))
        self.methods = tuple(name for name in methods_of(model) if name not in ADAPTIVE)
        self.default_method = model.default_method

    def derivative(self, states: ArrayLike) -> Array:
        """Return d state/dt of states [..., 2D], in one thread.

        Raises:
            ConfigError: if the states do not fit the model.
        """
        given = self._states(states)
        flat = given.reshape(-1, 2 * self.dof)
        out = np.empty_like(flat)
        differentiate(self._motion, self._plan("rk4", [0.0], None, 0.0, len(flat)), flat, out)
        return out.reshape(given.shape)

    def rollout(
        self,
        states: ArrayLike,
        times: ArrayLike,
        *,
        method: str | None = None,
        timestep: float | None = None,
        binding: float = 20.0,
    ) -> Array:
        """Return the states at the times, [T, ..., 2D], as `DynamicsModel.rollout` does up to rounding; the first are the given ones.

        Args:
            states: at the first time, [..., 2D], in the model's dtype: an array, or a tensor on the CPU without gradients.
            times: [T], rising or falling.
            method: one of ``methods``; ``default_method`` where not given.
            timestep: the longest step; each interval is cut into equal ones. One step each where not given.
            binding: omega of `simkit.surrogates.methods.tao`.

        Raises:
            ConfigError: if an argument does not suit the model, or an implicit step cannot be solved by fixed-point iteration.
        """
        name = self.default_method if method is None else method
        if name not in self.methods:
            raise ConfigError(
                f"{name} cannot run this compiled model{nearest(name, self.methods)}; methods: {self.methods}"
            )
        given = self._states(states)
        moments = moments_of(torch.as_tensor(np.asarray(times, dtype=np.float64)))
        flat = given.reshape(-1, 2 * self.dof)
        plan = self._plan(name, moments, timestep, binding, len(flat))
        out = np.empty((len(moments), *flat.shape), dtype=self.dtype)
        out[0] = flat
        failed = np.full(-(-len(flat) // plan.lanes), -1)
        roll(self._motion, plan, flat, out, failed)
        if (failed >= 0).any():
            frame = int(failed[failed >= 0].min())
            raise ConfigError(
                f"the implicit midpoint rule did not converge between t = {moments[frame]:g} and {moments[frame + 1]:g} with steps of "
                f"{abs(plan.lengths[frame]):g}; set a smaller timestep, or take the model's own rollout(), which has Newton's method"
            )
        return out.reshape(len(moments), *given.shape)

    def _states(self, states: ArrayLike) -> Array:
        given = np.ascontiguousarray(states)
        if given.ndim < 1 or given.shape[-1] != 2 * self.dof or given.dtype != self.dtype:
            raise ConfigError(
                f"states must be [..., {2 * self.dof}] in {self.dtype}; found {list(given.shape)} in {given.dtype}"
            )
        return given

    def _plan(self, method: str, moments: list[float], timestep: float | None, binding: float, samples: int) -> Plan:
        intervals = [after - before for before, after in zip(moments, moments[1:], strict=False)]
        counts = np.array([1 if timestep is None else step_count(span, timestep) for span in intervals], dtype=np.int64)
        lengths = np.array(intervals, dtype=np.float64) / counts
        code, coefficients, drifts = RUNGE_KUTTA, np.empty(0), np.empty(0, dtype=np.bool_)
        if method == "implicit-midpoint":
            code = MIDPOINT
        elif method.startswith("tao"):
            code, coefficients = TAO, np.array(WEIGHTS[int(method[-1])])
        elif method != "rk4":
            substeps = integrators.get(method).substeps
            code, coefficients = SPLITTING, np.array([substep.coefficient for substep in substeps])
            drifts = np.array([substep.operator is Operator.DRIFT for substep in substeps])
        lanes = next((lanes for lanes in LANES if lanes >= samples), LANES[-1])
        tasks = task_count(max(1, -(-samples // lanes)))
        return Plan(code, coefficients, drifts, float(binding), lengths, counts, lanes, self._motion.rows, tasks)


def compile_model(model: DynamicsModel) -> CompiledModel:
    """Return a compiled copy of a model: hnn, symoden without controls, delan, neural-ode and neural-ode-2.

    The machine code is the same for all of them. It is made once for each dtype, in about 20 seconds, and kept on disk. Wide networks gain
    least: there PyTorch, too, spends its time on multiplications.

    Raises:
        ConfigError: if the model is of another kind or parts of it were replaced.
    """
    if not math.isfinite(sum(float(p.detach().abs().sum()) for p in model.parameters())):
        raise ConfigError("the weights of this model are not finite, and it cannot move")
    return CompiledModel(model)
