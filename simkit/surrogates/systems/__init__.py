"""Mechanical systems with known equations, which make the data that surrogates learn from.

>>> system = build("pendulum")
>>> data = system.generate("hnn", seed=0)
>>> data.q.shape
(50, 45, 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from types import MappingProxyType
from typing import Any, TypeVar

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.surrogates.systems.base import System
from simkit.surrogates.systems.chain_pendulum import ChainPendulum, DoublePendulum
from simkit.surrogates.systems.charged_particle import ChargedParticle
from simkit.surrogates.systems.dynamics import Dynamics
from simkit.surrogates.systems.embedding import Embedding
from simkit.surrogates.systems.first_order import FirstOrder, LotkaVolterra, ReactionDiffusion
from simkit.surrogates.systems.gravity import ThreeBody, TwoBody
from simkit.surrogates.systems.gyroscope import Gyroscope
from simkit.surrogates.systems.henon_heiles import HenonHeiles
from simkit.surrogates.systems.lennard_jones import LennardJonesParticles
from simkit.surrogates.systems.oscillators import CoupledOscillators, FermiPastaUlam
from simkit.surrogates.systems.pendulum import DampedPendulum, DrivenPendulum, LaboratoryPendulum, Pendulum
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.systems.spring import Spring

__all__ = [
    "FIRST_ORDER",
    "REGISTRY",
    "Dynamics",
    "Embedding",
    "FirstOrder",
    "Protocol",
    "System",
    "available",
    "build",
    "build_any",
]

REGISTRY: Mapping[str, type[System]] = MappingProxyType(
    {
        system.name: system
        for system in (
            Spring,
            Pendulum,
            DampedPendulum,
            LaboratoryPendulum,
            DrivenPendulum,
            DoublePendulum,
            ChainPendulum,
            TwoBody,
            ThreeBody,
            CoupledOscillators,
            FermiPastaUlam,
            HenonHeiles,
            ChargedParticle,
            Gyroscope,
            LennardJonesParticles,
        )
    }
)


FIRST_ORDER: Mapping[str, type[FirstOrder]] = MappingProxyType(
    {system.name: system for system in (LotkaVolterra, ReactionDiffusion)}
)
"""Systems without momenta."""


def available() -> list[str]:
    """Return the names of the mechanical systems."""
    return sorted(REGISTRY)


def build(name: str, parameters: Mapping[str, Any] | None = None) -> System:
    """Return a mechanical system by name, with given parameters in place of its defaults.

    Raises:
        ConfigError: if the system or a parameter is unknown, or a value is not usable.
    """
    if name not in REGISTRY:
        raise ConfigError(f"unknown system {name!r}{nearest(name, REGISTRY)}")
    return _construct(REGISTRY[name], parameters or {})


def build_any(name: str, parameters: Mapping[str, Any] | None = None) -> Dynamics:
    """Return a mechanical system or one of `FIRST_ORDER`; arguments and errors as for `build`."""
    if name in FIRST_ORDER:
        return _construct(FIRST_ORDER[name], parameters or {})
    if name not in REGISTRY:
        raise ConfigError(f"unknown system {name!r}{nearest(name, [*REGISTRY, *FIRST_ORDER])}")
    return build(name, parameters)


_Built = TypeVar("_Built", bound=Dynamics)


def _construct(system: type[_Built], parameters: Mapping[str, Any]) -> _Built:
    known = list(signature(system).parameters)
    for key in parameters:
        if key not in known:
            raise ConfigError(f"{system.name} has no parameter {key!r}{nearest(key, known)}")
    return system(**parameters)
