"""The terms that a `ClassicalPotential` is a sum of: their parameters, checked and turned into tables for the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.classical.kernels import (
    COLUMNS,
    COULOMB,
    FORCE_SHIFTED,
    LENNARD_JONES,
    MORSE,
    PLAIN,
    SHIFT,
    SLOPE,
    SWITCHED,
    TWO_OVER_ROOT_PI,
)
from simkit.errors import ConfigError
from simkit.units import BOHR, HARTREE

Array = NDArray[Any]
Form = Literal["cut", "shifted", "force-shifted", "switched"]
COULOMB_CONSTANT = HARTREE * BOHR
_FORMS = {"cut": PLAIN, "shifted": PLAIN, "force-shifted": FORCE_SHIFTED, "switched": SWITCHED}


class PairTerm:
    """A sum over pairs within a cutoff.

    ``form`` says how it ends: "cut" is E, "shifted" E - E(rc), "force-shifted" E - E(rc) - (r - rc) E'(rc), and "switched" E f(x) with
    f = 1 - 10 x^3 + 15 x^4 - 6 x^5 and x = (r - inner) / (rc - inner) beyond ``inner``, which is 0.8 rc by default.
    """

    kind: ClassVar[int]
    cutoff: float
    form: Form = "cut"
    inner: float | None = None

    def kernel(self) -> tuple[int, int, float, float]:
        """Codes of the potential and of its form, inner radius and cutoff."""
        return self.kind, _FORMS[self.form], self.switch_from, self.cutoff

    @property
    def switch_from(self) -> float:
        """Where the switch begins."""
        return 0.8 * self.cutoff if self.inner is None else self.inner

    def table(self, count: int) -> Array:
        """Parameters of each pair of species, [count, count, COLUMNS]. Raises ConfigError if they are given for fewer species."""
        table = np.zeros((count, count, COLUMNS))
        for column, values in enumerate(self.parameters(count)):
            table[:, :, column] = values
        energy, slope = self.at_cutoff(table)
        if self.form in ("shifted", "force-shifted"):
            table[:, :, SHIFT] = energy
        if self.form == "force-shifted":
            table[:, :, SLOPE] = slope
        return table

    def parameters(self, count: int) -> tuple[Array, ...]:
        """The potential's own columns, each [count, count]."""
        raise NotImplementedError

    def at_cutoff(self, table: Array) -> tuple[Array, Array]:
        """E and E' at the cutoff, each [count, count]."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ConfigError if the cutoff or the form is not usable."""
        if not (math.isfinite(self.cutoff) and self.cutoff > 0):
            raise ConfigError(f"cutoff: expected a positive, finite length, found {self.cutoff}")
        if self.form not in _FORMS:
            raise ConfigError(f"form: expected one of {', '.join(get_args(Form))}, found {self.form!r}")
        if self.inner is not None and (self.form != "switched" or not 0 < self.inner < self.cutoff):
            raise ConfigError(
                f"inner: expected a length below the cutoff {self.cutoff}, and form 'switched'; found {self.inner}"
            )


@dataclass(frozen=True)
class LennardJones(PairTerm):
    """4 epsilon ((sigma/r)^12 - (sigma/r)^6).

    Args:
        epsilon, sigma: one number for all; or [S], one for each species, mixed by the rules of Lorentz (arithmetic mean of sigma) and
            Berthelot (geometric mean of epsilon); or a symmetric table [S, S].
        cutoff, form, inner: see `PairTerm`.
        tail: add energy and pressure of what lies beyond the cutoff, where the fluid is taken as uniform (Allen & Tildesley, Computer
            Simulation of Liquids, 2nd ed., section 2.8). For form "cut" in a box periodic in all directions only.
    """

    epsilon: ArrayLike
    sigma: ArrayLike
    cutoff: float
    form: Form = "cut"
    inner: float | None = None
    tail: bool = False
    kind: ClassVar[int] = LENNARD_JONES

    def __post_init__(self) -> None:
        self.check()
        if self.tail and self.form != "cut":
            raise ConfigError(f"tail: corrections belong to form 'cut', found form {self.form!r}")

    def parameters(self, count: int) -> tuple[Array, ...]:
        epsilon = _pair_table("epsilon", self.epsilon, count, geometric=True)
        sixth = _pair_table("sigma", self.sigma, count, geometric=False) ** 6
        return 4.0 * epsilon * sixth**2, 4.0 * epsilon * sixth

    def at_cutoff(self, table: Array) -> tuple[Array, Array]:
        a, b, r = table[:, :, 0], table[:, :, 1], self.cutoff
        return a / r**12 - b / r**6, -12.0 * a / r**13 + 6.0 * b / r**7

    def tail_correction(self, table: Array, counts: Array) -> tuple[float, float]:
        """Energy times volume and pressure times volume squared, for ``counts`` [S] atoms of each species."""
        a, b, r = table[:, :, 0], table[:, :, 1], self.cutoff
        integral = a / (9.0 * r**9) - b / (3.0 * r**3)  # of E r^2 beyond the cutoff
        moment = r**3 * self.at_cutoff(table)[0] + 3.0 * integral  # minus that of E' r^3
        pairs = np.outer(counts, counts)
        return 2.0 * math.pi * float((pairs * integral).sum()), 2.0 * math.pi / 3.0 * float((pairs * moment).sum())


@dataclass(frozen=True)
class Morse(PairTerm):
    """depth (exp(-2 alpha (r - r0)) - 2 exp(-alpha (r - r0))).

    Args:
        depth, alpha, r0: one number for all, or symmetric tables [S, S].
        cutoff, form, inner: see `PairTerm`.
    """

    depth: ArrayLike
    alpha: ArrayLike
    r0: ArrayLike
    cutoff: float
    form: Form = "cut"
    inner: float | None = None
    kind: ClassVar[int] = MORSE

    def __post_init__(self) -> None:
        self.check()

    def parameters(self, count: int) -> tuple[Array, ...]:
        names = ("depth", "alpha", "r0")
        return tuple(_pair_table(name, getattr(self, name), count, geometric=None) for name in names)

    def at_cutoff(self, table: Array) -> tuple[Array, Array]:
        depth, alpha = table[:, :, 0], table[:, :, 1]
        well = np.exp(-alpha * (self.cutoff - table[:, :, 2]))
        return depth * well * (well - 2.0), -2.0 * alpha * depth * well * (well - 1.0)


@dataclass(frozen=True)
class DampedShiftedCoulomb(PairTerm):
    """Charges under the damped, shifted force of C. J. Fennell & J. D. Gezelter, J. Chem. Phys. 124, 234104 (2006), eq. 18.

    k q_i q_j (v(r) - v(rc) - (r - rc) v'(rc)) with v(r) = erfc(alpha r) / r, and for each charge -k q^2 (c/2 + alpha / sqrt(pi)) with
    c = v(rc) - rc v'(rc): its interaction with what neutralises it, which is what the pair's correction to 1/r becomes at r = 0.

    Args:
        charges: [N].
        cutoff: rc.
        alpha: damping, one over a length. 0 leaves the shifted force alone; alpha times the cutoff of 3 to 5 gives Madelung's constant
            of rock salt within 1e-6, while too large an alpha leaves charges screened too early and is off by parts in a thousand.
        constant: k, by default in eV angstrom for charges in e.
    """

    charges: ArrayLike
    cutoff: float
    alpha: float = 0.2
    constant: float = COULOMB_CONSTANT
    kind: ClassVar[int] = COULOMB
    form: ClassVar[Form] = "force-shifted"  # type: ignore[misc]

    def __post_init__(self) -> None:
        self.check()
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ConfigError(f"alpha: expected a finite number >= 0, found {self.alpha}")

    def parameters(self, count: int) -> tuple[Array, ...]:
        ones = np.ones((count, count))
        return self.constant * ones, self.alpha * ones

    def at_cutoff(self, table: Array) -> tuple[Array, Array]:
        r, alpha = self.cutoff, self.alpha
        energy = table[:, :, 0] * math.erfc(alpha * r) / r
        return energy, -energy / r - table[:, :, 0] * TWO_OVER_ROOT_PI * alpha * math.exp(-((alpha * r) ** 2)) / r

    def self_energy(self, charges: Array) -> float:
        """The energy of the charges by themselves."""
        energy, slope = (float(value[0, 0]) for value in self.at_cutoff(self.table(1)))
        own = 0.5 * (energy - self.cutoff * slope) + self.constant * self.alpha / math.sqrt(math.pi)
        return -own * float(charges @ charges)


@dataclass(frozen=True)
class Coulomb:
    """constant q_i q_j / r of all pairs of an open system; the time grows with the square of the atoms.

    Args:
        charges: [N].
        constant: by default in eV angstrom for charges in e.
    """

    charges: ArrayLike
    constant: float = COULOMB_CONSTANT


@dataclass(frozen=True)
class HarmonicBonds:
    """stiffness / 2 (r - length)^2 for given pairs, each with its image nearest along the lattice vectors.

    Args:
        pairs: [B, 2], atoms.
        stiffness, length: one number for all, or [B].
    """

    pairs: ArrayLike
    stiffness: ArrayLike
    length: ArrayLike


Term = LennardJones | Morse | DampedShiftedCoulomb | Coulomb | HarmonicBonds


def _pair_table(name: str, values: ArrayLike, count: int, geometric: bool | None) -> Array:
    """A table [count, count] of a number, of a symmetric table or, unless ``geometric`` is None, of one value for each species."""
    array = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ConfigError(f"{name}: expected finite numbers >= 0, found {array.tolist()}")
    if array.ndim == 0:
        return np.full((count, count), float(array))
    if array.ndim == 1 and geometric is not None and len(array) >= count:
        array = array[:count]
        return np.sqrt(np.outer(array, array)) if geometric else 0.5 * (array[:, None] + array[None, :])
    if array.ndim == 2 and array.shape[0] == array.shape[1] >= count and (array == array.T).all():
        return array[:count, :count]
    raise ConfigError(
        f"{name}: expected one number{'' if geometric is None else f', {count} for the species'} or a symmetric table "
        f"[{count}, {count}], found {array.tolist()}"
    )
