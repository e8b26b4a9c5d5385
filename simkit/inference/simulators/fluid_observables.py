"""What is measured in a simulated fluid, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.inference.priors import Array
from simkit.inference.simulator import Observable
from simkit.inference.simulators.quantities import increasing, positive
from simkit.inference.simulators.small_box import count_distances
from simkit.units import GPA

FS_PER_PS = 1000.0
BAR = GPA / 1e4
MILLIPASCAL_SECOND = GPA * 1e-12 * 1e15
"""In eV fs/angstrom^3."""
HASIMOTO = 2.837297
"""Of a cubic periodic cell."""


@dataclass(frozen=True)
class Motion:
    """What was seen of one simulation.

    Attributes:
        positions, velocities: [T, N, 3] angstrom and angstrom/fs, unwrapped. interval: between two frames, fs.
        energies: potential, of all atoms, [T] eV. pressures: [T] eV/angstrom^3.
        length: of the cube, angstrom. kT: eV.
    """

    positions: Array
    velocities: Array
    interval: float
    energies: Array
    pressures: Array
    length: float
    kT: float


@dataclass(frozen=True)
class Measurement:
    """Which observables, and their settings; `MEASURED` says what they are.

    Attributes:
        names: in the order of the output.
        rdf_range: of g(r), angstrom. rdf_bins: of one width.
        lags: of msd and vacf, ps.
        diffusion_lags: between which the mean squared displacement is fitted by a line, ps.
        viscosity: mPa s; where given, diffusion is corrected for the periodic cell by kT 2.837297 / (6 pi viscosity L) (I.-C. Yeh,
            G. Hummer, J. Phys. Chem. B 108, 15873 (2004)).

    Raises:
        ConfigError: if a value is not usable.
    """

    names: tuple[str, ...]
    rdf_range: tuple[float, float]
    rdf_bins: int
    lags: tuple[float, ...]
    diffusion_lags: tuple[float, float]
    viscosity: float | None

    def check(self, owner: str, length: float, interval: float, frames: int) -> None:
        """Check that all of it can be measured in ``frames`` frames, ``interval`` ps apart, of a cube of that length."""
        for name in self.names:
            if name not in MEASURED:
                raise ConfigError(f"{owner} has no observable {name!r}{nearest(name, MEASURED)}")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"{owner}: expected observables, each once; found {list(self.names)}")
        if not 0 <= self.rdf_range[0] < self.rdf_range[1] <= 0.5 * length or self.rdf_bins < 1:
            raise ConfigError(
                f"{owner}: rdf_range must rise from 0 at least to half of the cube, {0.5 * length:.3f} angstrom, at most, in 1 bin at "
                f"least; found {self.rdf_range} in {self.rdf_bins} bins"
            )
        longest = (frames - 1) * interval / 2
        for name, lags in (("lags", self.lags), ("diffusion_lags", self.diffusion_lags)):
            increasing(owner, name, lags, exclusive=True)
            steps = np.array(lags) / interval
            if not np.allclose(steps, np.rint(steps), atol=1e-6) or lags[-1] > longest + 1e-9:
                raise ConfigError(
                    f"{owner}: {name} must be multiples of the time between two frames, {interval:g} ps, up to half of what is seen, "
                    f"{longest:g} ps; found {list(lags)}"
                )
        if round((self.diffusion_lags[1] - self.diffusion_lags[0]) / interval) < 1:
            raise ConfigError(f"{owner}: a line needs two lags at least; found diffusion_lags {self.diffusion_lags}")
        if self.viscosity is not None:
            positive(owner, viscosity=self.viscosity)

    def observables(self) -> tuple[Observable, ...]:
        """Return their descriptions."""
        edges = np.linspace(*self.rdf_range, self.rdf_bins + 1)
        axes = {
            "rdf": (tuple(0.5 * (edges[1:] + edges[:-1])), "r / angstrom"),
            "msd": (self.lags, "time / ps"), "vacf": (self.lags, "time / ps"),
        }  # fmt: skip
        found = []
        for name in self.names:
            axis, label = axes.get(name, ((), ""))
            shape, kind = ((len(axis),), "series") if axis else ((), "vector")
            found.append(Observable(name, shape, MEASURED[name][0], kind, tuple(map(float, axis)), label))  # type: ignore[arg-type]
        return tuple(found)

    def needs_velocities(self) -> bool:
        """Whether velocities must be kept."""
        return "vacf" in self.names

    def __call__(self, motion: Motion) -> Array:
        """Return the observables end to end, [K]."""
        return np.concatenate([np.atleast_1d(MEASURED[name][1](motion, self)) for name in self.names])


def _rdf(motion: Motion, settings: Measurement) -> Array:
    low, high = settings.rdf_range
    width, atoms = (high - low) / settings.rdf_bins, motion.positions.shape[1]
    counts = np.zeros(settings.rdf_bins + 1, dtype=np.int64)  # and what lies outside
    count_distances(motion.positions, motion.length, low, width, counts)
    shells = 4 * np.pi / 3 * np.diff(np.linspace(low, high, settings.rdf_bins + 1) ** 3)
    return 2 * counts[:-1] / len(motion.positions) * motion.length**3 / (atoms**2 * shells)


def _displacements(motion: Motion, lags: Sequence[float]) -> Array:
    """Mean squared displacements at some lags, over all origins; `simkit.md.transport` has them at all lags, for more work."""
    found = []
    for k in _frames(motion, lags):
        moved = motion.positions[k:] - motion.positions[:-k]
        found.append(np.vdot(moved, moved) / (moved.shape[0] * moved.shape[1]))
    return np.array(found)


def _frames(motion: Motion, lags: Sequence[float]) -> list[int]:
    return [round(lag * FS_PER_PS / motion.interval) for lag in lags]


def _msd(motion: Motion, settings: Measurement) -> Array:
    return _displacements(motion, settings.lags)


def _vacf(motion: Motion, settings: Measurement) -> Array:
    v = motion.velocities
    products = [np.vdot(v[k:], v[:-k]) / (len(v) - k) for k in _frames(motion, settings.lags)]
    return np.array(products) * len(v) / np.vdot(v, v)


def _diffusion(motion: Motion, settings: Measurement) -> Array:
    first, last = _frames(motion, settings.diffusion_lags)
    lags = np.arange(first, last + 1) * (motion.interval / FS_PER_PS)
    found = np.polyfit(lags, _displacements(motion, lags.tolist()), 1)[0] / 6
    if settings.viscosity is not None:
        drag = 6 * np.pi * settings.viscosity * MILLIPASCAL_SECOND * motion.length
        found += FS_PER_PS * motion.kT * HASIMOTO / drag
    return np.array(found)


def _pressure(motion: Motion, settings: Measurement) -> Array:
    return np.array(motion.pressures.mean() / BAR)


def _energy(motion: Motion, settings: Measurement) -> Array:
    return np.array(1e3 * motion.energies.mean() / motion.positions.shape[1])


MEASURED: Mapping[str, tuple[str, Callable[[Motion, Measurement], Array]]] = MappingProxyType(
    {
        "rdf": ("", _rdf),
        "pressure": ("bar", _pressure),
        "diffusion": ("angstrom^2/ps", _diffusion),
        "energy": ("meV", _energy),
        "msd": ("angstrom^2", _msd),
        "vacf": ("", _vacf),
    }
)
"""Name -> (unit, function): g(r) as `simkit.md.rdf` has it, mean pressure, self-diffusion (1 angstrom^2/ps is 1e-4 cm^2/s), mean
potential energy per atom, mean squared displacement, and autocorrelation of the velocities divided by its value at time 0."""
