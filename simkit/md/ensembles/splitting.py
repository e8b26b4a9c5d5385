"""A splitting scheme of `simkit.integrators` bound to a state and its forces."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simkit.integrators import Bath, Scheme
from simkit.md.protocols import Forces
from simkit.md.state import State


class BoundScheme:
    """Runs a scheme on a state, on the device where it is; the binding is kept until another state comes."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._bound: tuple[State, Forces, Any] | None = None
        self._evaluations_left = 0

    def run(
        self,
        state: State,
        forces: Forces,
        steps: int,
        timestep: float,
        bath: Bath | None = None,
        heat: Tensor | None = None,
    ) -> None:
        """Make steps, at the end of which forces and energy are those of the positions.

        Args:
            heat: [N, 3], see `simkit.integrators.cpu.Integrator`; the same tensor as long as the state is the same.
        """
        if steps == 0:
            return
        if self._bound is None or self._bound[0] is not state or self._bound[1] is not forces:
            self._bound = state, forces, self._integrator(state, forces, heat)
        closed = self._scheme.starts_with_forces  # the forces that a step leaves behind are those of its last positions
        self._evaluations_left = steps * self._scheme.evaluations if closed else -1
        self._bound[2].run(steps, timestep=timestep, first_step=state.step, bath=bath)
        if not closed:
            forces.compute(state)
        state.step += steps

    def _integrator(self, state: State, forces: Forces, heat: Tensor | None) -> Any:
        def force(positions: Tensor, target: Tensor) -> None:
            self._evaluations_left -= 1
            forces.compute(state, energy=self._evaluations_left == 0)

        if state.device.type == "cuda":
            from simkit.integrators.cuda import Integrator
        else:
            from simkit.integrators.cpu import Integrator  # type: ignore[assignment]
        arrays = (state.positions, state.velocities, state.forces)
        inertia = state.inertia.cpu().numpy()
        return Integrator(self._scheme, force, *arrays, inertia, offsets=state.offsets, heat=heat)
