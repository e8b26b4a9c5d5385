"""Molecular dynamics, relaxation, and what trajectories tell.

`Simulation` moves one structure or a batch of replicas; `simkit.md.run.run_md` makes a whole run in a folder of it. Equations of motion are
in `simkit.md.ensembles`, files and conditions to stop in `simkit.md.observers`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simkit.md.run import run_md
    from simkit.md.simulation import Simulation

__all__ = ["Simulation", "run_md"]

# On first use: most modules of this package need neither.
_LAZY = {"Simulation": "simkit.md.simulation", "run_md": "simkit.md.run"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'simkit.md' has no attribute {name!r}")
