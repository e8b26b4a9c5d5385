"""`Prior`: named parameters with units, their distribution, and a map to standard normal variables in which everything is inferred.

Every prior here is the image of D independent standard normal variables z under a smooth, monotone map theta(z). Estimators and samplers
work in z: the prior is the same for every problem, nothing has bounds, so no posterior leaks out of them, and a positive parameter
stays positive.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simkit.config import nearest
from simkit.errors import ConfigError, DataError

Array = NDArray[np.float64]
LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(z: Tensor) -> Tensor:
    """Return the log density, [...], of D standard normal variables, [..., D]."""
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


class Marginal(ABC):
    """The distribution of one parameter, as the image of a standard normal variable. Subclasses are frozen dataclasses of numbers."""

    positive: ClassVar[str] = ""
    """Which of the numbers must be positive, if any."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise ConfigError(
                    f"{name} of a prior must be a finite number, or it cannot be drawn from (improper); found {value}"
                )
            if name == self.positive and not value > 0:
                raise ConfigError(f"{name} of a prior must be positive; found {value}")

    @abstractmethod
    def from_normal(self, z: Tensor) -> Tensor:
        """Return theta, [...], for standard normal z, [...]."""

    @abstractmethod
    def to_normal(self, theta: Tensor) -> Tensor:
        """Return z, [...]; not finite where theta lies outside the support."""

    @abstractmethod
    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log density of theta, [...]; minus infinity outside the support."""

    @property
    def support(self) -> tuple[float, float]:
        """The lowest and highest possible value."""
        return -math.inf, math.inf


@dataclass(frozen=True)
class Uniform(Marginal):
    """Uniform between two bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"a uniform prior needs low < high; found {self.low} and {self.high}")

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def from_normal(self, z: Tensor) -> Tensor:
        # From the nearer end, so that values close to the upper bound keep their digits.
        share = torch.special.ndtr(-z.abs()) * (self.high - self.low)
        return torch.where(z < 0, self.low + share, self.high - share)

    def to_normal(self, theta: Tensor) -> Tensor:
        width = self.high - self.low
        below, above = (theta - self.low) / width, (self.high - theta) / width
        return torch.where(below < above, torch.special.ndtri(below), -torch.special.ndtri(above))

    def log_prob(self, theta: Tensor) -> Tensor:
        inside = (theta >= self.low) & (theta <= self.high)
        return torch.where(inside, torch.full_like(theta, -math.log(self.high - self.low)), -math.inf)


@dataclass(frozen=True)
class LogUniform(Marginal):
    """The logarithm is uniform between those of two positive bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low < self.high:
            raise ConfigError(f"a log-uniform prior needs 0 < low < high; found {self.low} and {self.high}")

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def _log(self) -> Uniform:
        return Uniform(math.log(self.low), math.log(self.high))

    def from_normal(self, z: Tensor) -> Tensor:
        return self._log.from_normal(z).exp().clamp(self.low, self.high)  # rounding must not lead out of the bounds

    def to_normal(self, theta: Tensor) -> Tensor:
        return self._log.to_normal(theta.log())

    def log_prob(self, theta: Tensor) -> Tensor:
        inside = (theta >= self.low) & (theta <= self.high)
        value = -theta.clamp(min=self.low).log() - math.log(math.log(self.high / self.low))
        return torch.where(inside, value, -math.inf)


@dataclass(frozen=True)
class Normal(Marginal):
    """Normal of a given mean and standard deviation."""

    mean: float
    sd: float
    positive = "sd"

    def from_normal(self, z: Tensor) -> Tensor:
        return self.mean + self.sd * z

    def to_normal(self, theta: Tensor) -> Tensor:
        return (theta - self.mean) / self.sd

    def log_prob(self, theta: Tensor) -> Tensor:
        return -0.5 * (self.to_normal(theta).square() + LOG_2PI) - math.log(self.sd)


@dataclass(frozen=True)
class LogNormal(Marginal):
    """The logarithm is normal.

    Attributes:
        log_mean: mean of the logarithm.
        log_sd: standard deviation of the logarithm.
    """

    log_mean: float
    log_sd: float
    positive = "log_sd"

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    def from_normal(self, z: Tensor) -> Tensor:
        return (self.log_mean + self.log_sd * z).exp()

    def to_normal(self, theta: Tensor) -> Tensor:
        return (theta.log() - self.log_mean) / self.log_sd

    def log_prob(self, theta: Tensor) -> Tensor:
        logs = theta.clamp(min=torch.finfo(theta.dtype).tiny).log()
        value = Normal(self.log_mean, self.log_sd).log_prob(logs) - logs
        return torch.where(theta > 0, value, -math.inf)


MARGINALS: dict[str, type[Marginal]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "normal": Normal,
    "log_normal": LogNormal,
}


class Prior(ABC):
    """The joint distribution of D named parameters.

    Attributes:
        names: of the parameters.
        units: their units, "" for pure numbers.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def dim(self) -> int:
        """The number of parameters D."""
        return len(self.names)

    @abstractmethod
    def from_normal(self, z: Tensor) -> Tensor:
        """Return parameters, [..., D], for standard normal variables, [..., D]; differentiable."""

    @abstractmethod
    def to_normal(self, theta: Tensor) -> Tensor:
        """Return standard normal variables, [..., D]; not finite outside the support."""

    @abstractmethod
    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log density of parameters, [...]; minus infinity outside the support."""

    def support(self) -> tuple[Array, Array]:
        """Return the lowest and highest values, [D] each; infinite unless a subclass has others."""
        return np.full(self.dim, -np.inf), np.full(self.dim, np.inf)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `prior_from` takes to make the same prior, of plain types."""

    @property
    def bounded(self) -> tuple[bool, ...]:
        """Which parameters lie between two bounds."""
        low, high = self.support()
        return tuple((np.isfinite(low) & np.isfinite(high)).tolist())

    def log_jacobian(self, z: Tensor) -> Tensor:
        """Return log |d theta / d z|, [...]: what turns a density of z into one of theta."""
        return normal_log_prob(z) - self.log_prob(self.from_normal(z))

    def sample(self, count: int, seed: int) -> Array:
        """Return parameters drawn from the prior, [count, D] float64; the first ones do not depend on ``count``."""
        z = np.random.default_rng(seed).standard_normal((count, self.dim))
        return self.from_normal(torch.from_numpy(z)).numpy()

    def check(self, theta: ArrayLike) -> Array:
        """Return parameters as an array [N, D] float64.

        Raises:
            DataError: if they are not of that shape, not finite or outside the support.
        """
        values = np.atleast_2d(np.asarray(theta, dtype=np.float64))
        if values.ndim != 2 or values.shape[1] != self.dim:
            raise DataError(
                f"expected parameters [N, {self.dim}] ({', '.join(self.names)}); found an array of shape {np.shape(theta)}"
            )
        possible = torch.isfinite(self.log_prob(torch.from_numpy(values))).numpy() & np.isfinite(values).all(1)
        if not possible.all():
            row = int(np.flatnonzero(~possible)[0])
            low, high = self.support()
            found = ", ".join(
                f"{n} = {v:.6g} (from {a:g} to {b:g})"
                for n, v, a, b in zip(self.names, values[row], low, high, strict=True)
            )
            raise DataError(
                f"{int((~possible).sum())} of {len(values)} parameters lie outside the prior; the first: {found}"
            )
        return values


class IndependentPrior(Prior):
    """Parameters that are independent of each other.

    Args:
        marginals: name -> distribution.
        units: name -> unit, for those that have one.

    Raises:
        ConfigError: if there is no parameter, or a unit of one that does not exist.
    """

    def __init__(self, marginals: Mapping[str, Marginal], units: Mapping[str, str] | None = None) -> None:
        if not marginals:
            raise ConfigError("a prior needs at least one parameter")
        unknown = set(units or {}) - set(marginals)
        if unknown:
            raise ConfigError(
                f"units of {', '.join(sorted(unknown))}, which are not among the parameters {', '.join(marginals)}"
            )
        self.marginals = dict(marginals)
        self.names = tuple(marginals)
        self.units = tuple((units or {}).get(name, "") for name in self.names)

    def _columns(self, method: str, values: Tensor) -> list[Tensor]:
        parts = values.unbind(-1)
        return [getattr(m, method)(part) for m, part in zip(self.marginals.values(), parts, strict=True)]

    def from_normal(self, z: Tensor) -> Tensor:
        return torch.stack(self._columns("from_normal", z), -1)

    def to_normal(self, theta: Tensor) -> Tensor:
        return torch.stack(self._columns("to_normal", theta), -1)

    def log_prob(self, theta: Tensor) -> Tensor:
        return torch.stack(self._columns("log_prob", theta), -1).sum(-1)

    def support(self) -> tuple[Array, Array]:
        low, high = zip(*(m.support for m in self.marginals.values()), strict=True)
        return np.array(low), np.array(high)

    def describe(self) -> dict[str, Any]:
        kinds = {kind: name for name, kind in MARGINALS.items()}
        return {
            name: {kinds[type(m)]: list(vars(m).values()), "unit": unit}
            for (name, m), unit in zip(self.marginals.items(), self.units, strict=True)
        }


class NormalPrior(Prior):
    """Parameters of a joint normal distribution.

    Args:
        mean: [D].
        covariance: [D, D], symmetric and positive definite.
        names: of the parameters; theta_1, ... where not given.

    Raises:
        ConfigError: if the shapes do not fit or the covariance is not positive definite.
    """

    def __init__(
        self, mean: ArrayLike, covariance: ArrayLike, names: Sequence[str] = (), units: Sequence[str] = ()
    ) -> None:
        self.mean = np.array(mean, dtype=np.float64)
        self.covariance = np.array(covariance, dtype=np.float64)
        size = self.mean.size
        if self.mean.shape != (size,) or self.covariance.shape != (size, size) or size == 0:
            raise ConfigError(
                f"a normal prior needs a mean [D] and a covariance [D, D]; found {self.mean.shape} and {self.covariance.shape}"
            )
        self.names = tuple(names) or tuple(f"theta_{i + 1}" for i in range(size))
        self.units = tuple(units) or ("",) * size
        if not len(set(self.names)) == len(self.names) == len(self.units) == size:
            raise ConfigError(
                f"a normal prior of {size} parameters needs {size} different names, and units; found {self.names} and {self.units}"
            )
        try:
            factor = np.linalg.cholesky(self.covariance)
        except np.linalg.LinAlgError as error:
            raise ConfigError("the covariance of a normal prior must be positive definite") from error
        finite = np.isfinite(self.mean).all() and np.isfinite(factor).all()
        if not (finite and np.allclose(self.covariance, self.covariance.T)):
            raise ConfigError("a normal prior needs a finite mean and a finite, symmetric covariance")
        self._factor = factor

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.mean).to(like), torch.from_numpy(self._factor).to(like)

    def from_normal(self, z: Tensor) -> Tensor:
        mean, factor = self._tensors(z)
        return mean + z @ factor.T

    def to_normal(self, theta: Tensor) -> Tensor:
        mean, factor = self._tensors(theta)
        return torch.linalg.solve_triangular(factor, (theta - mean).unsqueeze(-1), upper=False).squeeze(-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        return normal_log_prob(self.to_normal(theta)) - float(np.log(np.diag(self._factor)).sum())

    def describe(self) -> dict[str, Any]:
        values = {"mean": self.mean.tolist(), "covariance": self.covariance.tolist()}
        return {"joint_normal": values | {"names": list(self.names), "units": list(self.units)}}


def prior_from(description: Mapping[str, Any]) -> Prior:
    """Make a prior from plain types, as recipes and files hold it.

    ``{"epsilon": {"uniform": [80, 160], "unit": "K"}, "friction": {"log_uniform": [0.01, 10], "unit": "1/ps"}}``

    Raises:
        ConfigError: if a distribution is unknown, has the wrong numbers or is improper.
    """
    if set(description) == {"joint_normal"}:
        values = description["joint_normal"]
        try:
            return NormalPrior(values["mean"], values["covariance"], values.get("names", ()), values.get("units", ()))
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"a joint normal prior must read like {{mean: [0, 0], covariance: [[1, 0], [0, 1]]}}; found {values!r}"
            ) from error
    marginals, units = {}, {}
    for name, entry in description.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(f"the prior of {name} must read like {{uniform: [0, 1], unit: K}}; found {entry!r}")
        kinds = [key for key in entry if key != "unit"]
        if len(kinds) != 1 or kinds[0] not in MARGINALS:
            hint = nearest(kinds[0], MARGINALS) if len(kinds) == 1 else ""
            raise ConfigError(
                f"the prior of {name} needs one distribution of {', '.join(MARGINALS)}; found {', '.join(map(str, kinds)) or 'none'}{hint}"
            )
        kind, numbers = MARGINALS[kinds[0]], entry[kinds[0]]
        wanted = list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != len(wanted):
            raise ConfigError(f"the {kinds[0]} prior of {name} takes [{', '.join(wanted)}]; found {numbers!r}")
        try:
            marginals[name] = kind(*map(float, numbers))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the prior of {name}: {error}") from error
        units[name] = str(entry.get("unit", ""))
    return IndependentPrior(marginals, units)
