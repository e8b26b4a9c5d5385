"""Distorted molecules to label, and what the tests of labelling need to be installed."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule


def installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


needs_xtb = pytest.mark.skipif(not installed("tblite.interface"), reason="tblite is not installed (extra xtb)")
needs_dft = pytest.mark.skipif(not installed("pyscf"), reason="PySCF is not installed (extra dft)")


def shaken(name: str, seed: int = 0, size: float = 0.05) -> Atoms:
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(size=(len(atoms), 3)) * size
    return atoms


def shaken_frames(count: int) -> list[Atoms]:
    return [shaken("H2O", seed) for seed in range(count)]
