"""What a splitting integrator is: a sequence of exact flows of parts of the equation of motion.

The equation is Newton's, or Langevin's where the scheme has a noise operator:

    dx = v dt,    dv = F(x)/m dt - friction v dt + sqrt(2 friction kT/m) dW

| Operator | Solved exactly for the time c h | Effect |
| --- | --- | --- |
| kick B | dv = F(x)/m dt | v += c h F(x)/m |
| drift A | dx = v dt | x += c h v |
| noise O | dv = -friction v dt + sqrt(2 friction kT/m) dW | v = a v + sqrt((1 - a^2) kT/m) R, with a = exp(-friction c h) |

R is a standard normal number for each component.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum

from simkit.errors import ConfigError


class Operator(Enum):
    """The operators, by the letters of Leimkuhler and Matthews (2013)."""

    KICK = "B"
    DRIFT = "A"
    NOISE = "O"


@dataclass(frozen=True)
class Substep:
    """One operator, and the fraction of the time step that it lasts."""

    operator: Operator
    coefficient: float


@dataclass(frozen=True)
class Scheme:
    """A splitting integrator.

    Attributes:
        name: the name it is found by.
        substeps: what one step does, in order.
        order: of convergence: of trajectories, or with a noise operator of averages. A scheme may need for it that the kinetic energy
            is quadratic, as it is here.
        symmetric: whether the substeps read the same backwards. Without noise, a step with -h then undoes one with h.
        reference: where the scheme was published.

    Raises:
        ConfigError: if the coefficients of an operator do not add up to 1, if kick or drift is missing, if two substeps could be one,
            or if ``symmetric`` is wrong.
    """

    name: str
    substeps: tuple[Substep, ...]
    order: int
    symmetric: bool
    reference: str

    def __post_init__(self) -> None:
        for operator in Operator:
            parts = [s.coefficient for s in self.substeps if s.operator is operator]
            if not parts and operator is not Operator.NOISE:
                raise ConfigError(
                    f"{self.name}: an integrator needs kicks and drifts; found no {operator.name.lower()}"
                )
            allowed = 4 * sys.float_info.epsilon * sum(map(abs, parts))
            if parts and not abs(sum(parts) - 1) <= allowed:
                raise ConfigError(
                    f"{self.name}: the coefficients of {operator.name.lower()} must add up to 1; found {sum(parts)!r}"
                )
        for first, second in zip(self.substeps, self.substeps[1:], strict=False):
            if first.operator is second.operator:
                raise ConfigError(
                    f"{self.name}: two successive substeps are both {first.operator.name.lower()}; make them one"
                )
        if self.symmetric != (self.substeps == self.substeps[::-1]):
            raise ConfigError(f"{self.name}: declared symmetric={self.symmetric}, but the substeps say otherwise")
        if self.order < 1:
            raise ConfigError(f"{self.name}: the order must be at least 1; found {self.order}")

    @property
    def letters(self) -> str:
        """The operators as letters, such as "BAOAB"."""
        return "".join(substep.operator.value for substep in self.substeps)

    @property
    def stochastic(self) -> bool:
        """Whether it has noise, and so needs a `Bath`."""
        return Operator.NOISE.value in self.letters

    @property
    def starts_with_forces(self) -> bool:
        """Whether the first kick comes before any drift, and so uses the forces of the positions that the step starts from."""
        return self.letters.index(Operator.KICK.value) < self.letters.index(Operator.DRIFT.value)

    @property
    def segments(self) -> tuple[tuple[Substep, ...], ...]:
        """The substeps of one step, cut wherever the forces must be evaluated: that many evaluations plus one segments.

        A kick after a drift needs new forces. A scheme that starts with forces leaves those of the last positions behind for the next
        step; if it ends with a drift, the last segment is empty.
        """
        parts: list[list[Substep]] = [[]]
        moved = not self.starts_with_forces
        for substep in self.substeps:
            if substep.operator is Operator.KICK and moved:
                parts.append([])
                moved = False
            moved = moved or substep.operator is Operator.DRIFT
            parts[-1].append(substep)
        if moved and self.starts_with_forces:
            parts.append([])
        return tuple(map(tuple, parts))

    @property
    def evaluations(self) -> int:
        """Evaluations of the forces per step."""
        return len(self.segments) - 1
