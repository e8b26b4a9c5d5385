"""The registered models of motion: list them, build one with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simkit.config import find_registered, parse_options
from simkit.errors import ConfigError

if TYPE_CHECKING:
    from simkit.config import Options
    from simkit.surrogates.models.base import DynamicsModel

__all__ = ["REGISTRY", "available", "build", "model_class"]

_MODELS = "simkit.surrogates.models"

REGISTRY: dict[str, tuple[str, str]] = {
    "aphynity": (f"{_MODELS}.aphynity", "APHYNITY"),
    "chnn": (f"{_MODELS}.constrained", "ConstrainedHamiltonianNetwork"),
    "clnn": (f"{_MODELS}.constrained", "ConstrainedLagrangianNetwork"),
    "delan": (f"{_MODELS}.delan", "DeepLagrangianNetwork"),
    "graph-network": (f"{_MODELS}.graph_network", "HamiltonianGraphNetwork"),
    "graph-network-simulator": (f"{_MODELS}.graph_network", "GraphNetworkSimulator"),
    "hnn": (f"{_MODELS}.hamiltonian", "HamiltonianNetwork"),
    "lnn": (f"{_MODELS}.lagrangian", "LagrangianNetwork"),
    "neural-ode": (f"{_MODELS}.neural_ode", "NeuralODE"),
    "neural-ode-2": (f"{_MODELS}.neural_ode", "SecondOrderNeuralODE"),
    "symoden": (f"{_MODELS}.symoden", "SymODEN"),
}
"""Registered name -> (module, class); the options class of X is XOptions in the same module."""


def available() -> list[str]:
    """Return the names of the registered models."""
    return sorted(REGISTRY)


def model_class(name: str) -> tuple[type[DynamicsModel], type[Options]]:
    """Return the class of a registered model and that of its options.

    Raises:
        ConfigError: if the name is unknown.
    """
    return find_registered(name, REGISTRY, "model")


def build(
    name: str,
    dof: int,
    *,
    dtype: str = "float32",
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
    **options: Any,
) -> DynamicsModel:
    """Build a model with random weights.

    Args:
        name: one of `available`.
        dof: D, half the size of the state, or all of it for models of first order.
        dtype: of the weights and states, "float32" or "float64".
        seed: of the random weights; the global random state is left alone.
        info: free-form description kept in the model file.
        options: the model's own options, validated against its options class (such as `HamiltonianNetworkOptions`).

    Raises:
        ConfigError: if a name or value is unknown or out of range.
    """
    import torch

    cls, options_class = model_class(name)
    if isinstance(dof, bool) or not isinstance(dof, int) or dof < 1:
        raise ConfigError(f"dof must be a positive integer; found {dof!r}")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype must be float32 or float64; found {dtype!r}")
    parsed = parse_options(options_class, options, f"options of {name}")
    constructor: Any = cls  # every registered class takes its options and dof
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of the GPUs
        model: DynamicsModel = constructor(parsed, dof)
    model.name, model.options, model.info = name, parsed, dict(info or {})
    return model.to(getattr(torch, dtype))
