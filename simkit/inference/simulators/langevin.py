"""`LangevinParticle`: Brownian motion in a harmonic well, whose likelihood is known."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from simkit import integrators
from simkit.errors import ConfigError
from simkit.inference.priors import LOG_2PI, Array, Prior
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.quantities import Quantities, Quantity, increasing, positive
from simkit.inference.simulators.streams import INITIAL, key_of, last_words, standard_normals
from simkit.integrators.philox import four_normals
from simkit.integrators.program import DRIFT, KICK, NOISE
from simkit.integrators.scheme import Operator
from simkit.kernels.threads import run_tasks, task_count
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

FS_PER_PS = 1000.0
TASK = 16  # simulations that are worth a thread
_CODES = {Operator.KICK: KICK, Operator.DRIFT: DRIFT, Operator.NOISE: NOISE}
KNOWN = {
    "friction": Quantity("1/ps", 1.0, 0.0),
    "temperature": Quantity("K", 300.0, 0.0),
    "stiffness": Quantity("eV/angstrom^2", 0.01, 0.0),
    "noise": Quantity("angstrom", 0.0, 0.0),
}
PRIOR = {"friction": {"log_uniform": [0.1, 10.0]}, "temperature": {"uniform": [100.0, 500.0]}}


class LangevinParticle(Simulator):
    """One coordinate of a particle in the potential k x^2 / 2 under friction and noise, observed at given times.

    M dv = -k x dt - gamma M v dt + sqrt(2 gamma M kT) dW, dx = v dt. Velocities begin with Maxwell's distribution; the position with
    Boltzmann's, or where ``start`` says. Motion is integrated by a splitting scheme of `simkit.integrators`, whose random numbers are
    functions of the simulation's seed and the step: those of `simkit.integrators.cpu.Integrator` for this seed, atom 0 of replica 0.

    | Quantity | Unit | Default |
    | --- | --- | --- |
    | friction gamma | 1/ps | 1 |
    | temperature T | K | 300 |
    | stiffness k; 0 is a free particle | eV/angstrom^2 | 0.01 |
    | noise, standard deviation of the measured positions | angstrom | 0 |

    The equation is linear, so that the positions are a Gaussian process: `mean_and_covariance` and `log_likelihood` are those of the
    equation itself (G. E. Uhlenbeck, L. S. Ornstein, Phys. Rev. 36, 823 (1930)), from which a scheme of second order is off by
    the square of its timestep.

    Args:
        prior: of those quantities that are free, a `Prior` or what `prior_from` takes; by default of friction and temperature.
        times: of the observations, ps, increasing from above 0; by default 0.2, 0.4, ..., 20.
        fixed: values of quantities that are not free.
        start: the position at time 0, angstrom; None for thermal equilibrium.
        mass: M, amu.
        timestep: the longest, ps.
        scheme: a splitting scheme with noise.

    Raises:
        ConfigError: if a setting is not usable, or a free particle is to start from equilibrium, which it has none of.
    """

    name = "langevin"

    def __init__(
        self,
        prior: Prior | Mapping[str, Any] | None = None,
        *,
        times: Sequence[float] | None = None,
        fixed: Mapping[str, float] | None = None,
        start: float | None = None,
        mass: float = 39.948,
        timestep: float = 0.02,
        scheme: str = "baoab",
    ) -> None:
        self._quantities = Quantities(self.name, KNOWN, PRIOR if prior is None else prior, fixed)
        self.prior = self._quantities.prior
        positive(self.name, mass=mass, timestep=timestep)
        self.times = increasing(self.name, "times", np.arange(1, 101) * 0.2 if times is None else times, exclusive=True)
        self._scheme = integrators.get(scheme)
        if not self._scheme.stochastic:
            raise ConfigError(f"{self.name} needs a scheme with noise, such as 'baoab'; found {scheme!r}")
        self._free_particle = not self._quantities.is_free("stiffness") and self._quantities.fixed["stiffness"] == 0.0
        if start is None and self._free_particle:
            raise ConfigError(f"{self.name}: a free particle has no equilibrium; give the position that it starts from")
        self.start, self.mass, self.timestep = start, float(mass), float(timestep)
        self._inertia = self.mass / FORCE_TO_ACCELERATION
        axis = "time / ps"
        self.observables = (Observable("position", (len(self.times),), "angstrom", "series", self.times, axis),)

    def settings(self) -> dict[str, Any]:
        return self._quantities.describe() | {
            "start": self.start, "mass": self.mass, "timestep": self.timestep, "scheme": self._scheme.name,
        }  # fmt: skip

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        columns = {name: self._quantities.column(theta, name) for name in KNOWN}
        friction, kt = columns["friction"] / FS_PER_PS, columns["temperature"] * BOLTZMANN
        spans = np.diff(np.array(self.times), prepend=0.0) * FS_PER_PS
        counts = np.maximum(np.ceil(spans / (self.timestep * FS_PER_PS) * (1 - 1e-9)), 1).astype(np.int64)
        codes = np.array([_CODES[s.operator] for s in self._scheme.substeps])
        coefficients = np.array([s.coefficient for s in self._scheme.substeps])
        out = np.empty((len(theta), len(spans)))
        start = np.nan if self.start is None else self.start
        arrays = (codes, coefficients, spans, counts, friction, kt, columns["stiffness"], self._inertia, start)
        keys = np.ascontiguousarray(seeds, dtype=np.uint64)
        tasks = task_count(max(1, len(theta) // TASK))
        bounds = np.linspace(0, len(theta), tasks + 1).astype(np.int64)
        run_tasks(lambda task: _run(bounds[task], bounds[task + 1], *arrays, keys, out), tasks)
        out += columns["noise"][:, None] * standard_normals(seeds, len(spans))
        out[~self._quantities.possible(theta)] = np.nan
        return out

    def mean_and_covariance(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean [..., T] and the covariance [..., T, T] of the observations, angstrom and angstrom^2, differentiable.

        With phi(t) the answer of the position to a displacement, phi'' = -gamma phi' - k/M phi, phi(0) = 1, phi'(0) = 0:
        from equilibrium C(t, s) = kT/k phi(t - s), from x0 the mean is x0 phi(t) and C(t, s) = kT/k (phi(t - s) - phi(t) phi(s)).
        A free particle has C(t, s) = (m(t) + m(s) - m(t - s)) / 2 with m(t) = 2 kT / (M gamma^2) (gamma t - 1 + exp(-gamma t)).
        """
        values = {name: self._quantities.tensor(theta, name) for name in KNOWN}
        friction, kt = values["friction"] / FS_PER_PS, values["temperature"] * BOLTZMANN
        t = torch.tensor(self.times, dtype=theta.dtype, device=theta.device) * FS_PER_PS
        lags = (t[:, None] - t[None, :]).abs()
        batch = theta.shape[:-1]
        mean = torch.zeros((*batch, len(t)), dtype=theta.dtype, device=theta.device)
        if self._free_particle:
            at, between = (_spread(friction, kt / self._inertia, s) for s in (t, lags))
            covariance = 0.5 * (at[..., :, None] + at[..., None, :] - between)
            mean = mean + float(self.start or 0.0)
        else:
            unique, place = torch.unique(torch.cat([lags.flatten(), t]), return_inverse=True)
            answer = _response(friction, values["stiffness"] / self._inertia, unique)[..., place]
            between, at = answer[..., : lags.numel()].unflatten(-1, lags.shape), answer[..., lags.numel() :]
            variance = (kt / values["stiffness"])[..., None, None]
            covariance = variance * between
            if self.start is not None:
                mean = mean + self.start * at
                covariance = covariance - variance * at[..., :, None] * at[..., None, :]
        error = values["noise"].square()[..., None, None] * torch.eye(len(t), dtype=theta.dtype, device=theta.device)
        return mean, (covariance + error).expand(*batch, len(t), len(t))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the log density, [...], of an observation [T] given parameters [..., D]; differentiable, best in float64."""
        mean, covariance = self.mean_and_covariance(theta)
        factor = torch.linalg.cholesky(covariance)
        scaled = torch.linalg.solve_triangular(factor, (x - mean).unsqueeze(-1), upper=False).squeeze(-1)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (scaled.square().sum(-1) + x.shape[-1] * LOG_2PI) - half_log_det


def _response(friction: Tensor, square: Tensor, times: Tensor) -> Tensor:
    """Return phi [..., L] of a damped oscillator at times [L]; an exponential of matrices has no trouble at critical damping."""
    friction, square = torch.broadcast_tensors(friction, square)
    one = torch.ones_like(friction)
    rate = torch.stack([torch.stack([0 * one, one], -1), torch.stack([-square, -friction], -1)], -2)
    return torch.linalg.matrix_exp(rate[..., None, :, :] * times[:, None, None])[..., 0, 0]


def _spread(friction: Tensor, kt_over_mass: Tensor, times: Tensor) -> Tensor:
    """Return the mean squared displacement of a free particle."""
    shape = friction.shape + (1,) * times.dim()
    g, q = friction.reshape(shape), kt_over_mass.expand_as(friction).reshape(shape)
    return 2 * q / g.square() * (g * times + torch.expm1(-g * times))


@functools.partial(njit, nogil=True, error_model="numpy", cache=True)
def _run(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    first, last, codes, coefficients, spans, counts, friction, kt, stiffness, inertia, start, keys, out
):
    """Positions of the simulations ``first`` to ``last``; times in fs."""
    decay, spread = np.empty(len(codes)), np.empty(len(codes))
    for i in range(first, last):
        key_0, key_1 = key_of(keys[i])
        low, high = last_words(0, INITIAL)
        a, b, _, _ = four_normals(np.uint64(0), np.uint64(0), low, high, key_0, key_1)
        x = start if start == start else np.sqrt(kt[i] / stiffness[i]) * a
        v, square, step = np.sqrt(kt[i] / inertia) * b, stiffness[i] / inertia, 0
        for j in range(len(spans)):
            h = spans[j] / counts[j]
            for k in range(len(codes)):
                exponent = coefficients[k] * h * friction[i]
                decay[k], spread[k] = np.exp(-exponent), np.sqrt(-np.expm1(-2 * exponent) * kt[i] / inertia)
            for _ in range(counts[j]):
                stream = 0
                for k in range(len(codes)):
                    if codes[k] == KICK:
                        v -= coefficients[k] * h * square * x
                    elif codes[k] == DRIFT:
                        x += coefficients[k] * h * v
                    else:
                        low, high = last_words(step, stream)
                        four = four_normals(np.uint64(0), np.uint64(0), low, high, key_0, key_1)
                        v = decay[k] * v + spread[k] * four[0]
                        stream += 1
                step += 1
            out[i, j] = x
