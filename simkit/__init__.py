"""simkit: train, run and invert neural interatomic potentials and physics surrogates.

Units everywhere: eV, angstrom, fs, amu, K, elementary charges.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simkit import datasets, md, potentials, training
    from simkit.calculator import Calculator
    from simkit.potentials import load

__version__ = "0.1.0"
__all__ = ["Calculator", "__version__", "datasets", "load", "md", "potentials", "training"]

# Heavy libraries are imported on first use, so that `import simkit` and `simkit --help` are immediate.
_LAZY = {"Calculator": "simkit.calculator", "load": "simkit.potentials"}
_SUBPACKAGES = ("datasets", "md", "potentials", "training")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _SUBPACKAGES:
        return import_module(f"simkit.{name}")
    raise AttributeError(f"module 'simkit' has no attribute {name!r}")
