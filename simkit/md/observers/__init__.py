"""Observers: what looks at a simulation while it runs, and keeps or judges what it sees."""

from simkit.md.observers.ase_trajectory import ASETrajectory
from simkit.md.observers.h5md import H5MDTrajectory
from simkit.md.observers.progress import Progress
from simkit.md.observers.stop import StopNotFinite, StopOutsideDomain, StopRunaway
from simkit.md.observers.thermo_table import ThermoTable

__all__ = [
    "ASETrajectory",
    "H5MDTrajectory",
    "Progress",
    "StopNotFinite",
    "StopOutsideDomain",
    "StopRunaway",
    "ThermoTable",
]
