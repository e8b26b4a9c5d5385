"""The ready simulators: list them, build one with options.

>>> simulator = build("lotka_volterra", noise=0.2)
>>> simulator.prior.names
('alpha', 'beta', 'gamma', 'delta')
"""

from __future__ import annotations

from importlib import import_module
from inspect import Parameter, signature
from typing import Any, get_type_hints

from pydantic import ConfigDict, create_model

from simkit.config import Options, nearest, parse_options
from simkit.errors import ConfigError
from simkit.inference.simulator import Simulator

__all__ = ["REGISTRY", "available", "build", "describe", "simulator_class"]

_HERE = "simkit.inference.simulators"

REGISTRY: dict[str, tuple[str, str]] = {
    "bernoulli_glm": (f"{_HERE}.generalised_linear", "BernoulliGLM"),
    "gaussian_linear": (f"{_HERE}.gaussians", "GaussianLinear"),
    "gaussian_linear_uniform": (f"{_HERE}.gaussians", "GaussianLinearUniform"),
    "gaussian_mixture": (f"{_HERE}.gaussians", "GaussianMixture"),
    "langevin": (f"{_HERE}.langevin", "LangevinParticle"),
    "lennard_jones": (f"{_HERE}.fluids", "LennardJonesFluid"),
    "lotka_volterra": (f"{_HERE}.populations", "LotkaVolterra"),
    "lotka_volterra_jump": (f"{_HERE}.jumps", "LotkaVolterraJump"),
    "morse": (f"{_HERE}.fluids", "MorseFluid"),
    "potential": (f"{_HERE}.potentials", "PotentialSimulator"),
    "sir": (f"{_HERE}.populations", "SIR"),
    "sir_jump": (f"{_HERE}.jumps", "SIRJump"),
    "slcp": (f"{_HERE}.slcp", "SLCP"),
    "slcp_distractors": (f"{_HERE}.slcp", "SLCPDistractors"),
    "system": (f"{_HERE}.systems", "SystemSimulator"),
    "two_moons": (f"{_HERE}.two_moons", "TwoMoons"),
}
"""Registered name -> (module, class). The options of a simulator are the named arguments of its class, with their types."""


class _Arguments(Options):
    """Base of the options that are made from the arguments of a class, which may be of any type."""

    model_config = ConfigDict(arbitrary_types_allowed=True)


def available() -> list[str]:
    """Return the names of the ready simulators."""
    return sorted(REGISTRY)


def simulator_class(name: str) -> type[Simulator]:
    """Return the class of a ready simulator.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown simulator {name!r}{nearest(name, REGISTRY)}")
    module, cls = REGISTRY[name]
    found: type[Simulator] = getattr(import_module(module), cls)
    return found


def describe(name: str) -> str:
    """Return what a ready simulator is, in one line: the first of its documentation.

    Raises:
        ConfigError: if the name is unknown.
    """
    return (simulator_class(name).__doc__ or "").strip().split("\n")[0]


def build(name: str, **options: Any) -> Simulator:
    """Return a ready simulator.

    Args:
        name: one of `available`.
        options: arguments of its class (such as those of `simkit.inference.simulators.populations.LotkaVolterra`), which may be of
            plain types, as recipes hold them.

    Raises:
        ConfigError: if the name or an option is unknown, an option is missing, or a value is not usable.
    """
    cls = simulator_class(name)
    return cls(**vars(parse_options(_options_of(cls), options, f"options of {name}")))


def _options_of(cls: type[Simulator]) -> type[_Arguments]:
    """Return a class of options with the named arguments of a simulator's class, their types and defaults."""
    types = get_type_hints(cls.__init__)
    fields: dict[str, Any] = {
        key: (types.get(key, Any), ... if argument.default is Parameter.empty else argument.default)
        for key, argument in signature(cls).parameters.items()
    }
    return create_model(f"{cls.__name__}Options", __base__=_Arguments, **fields)
