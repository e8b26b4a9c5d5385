"""Reference posteriors of the sbibm benchmark: observations, the parameters behind them, and samples of the exact posterior.

The files are those of the benchmark (Lueckmann et al., AISTATS 2021, arXiv:2101.04653): ``sbibm/tasks/TASK/files`` of its repository, here
``FOLDER/TASK/num_observation_K`` with ``observation.csv``, ``true_parameters.csv`` and ``reference_posterior_samples.csv.bz2``.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simkit.errors import DataError
from simkit.files import data_dir
from simkit.inference.priors import Array

_FILES = ("observation.csv", "true_parameters.csv", "reference_posterior_samples.csv.bz2")


@dataclass(frozen=True)
class Reference:
    """A task of the benchmark with its answer.

    Attributes:
        observation: [K].
        parameters: that it was simulated with, [D].
        samples: of the posterior, [M, D].
    """

    observation: Array
    parameters: Array
    samples: Array


def load_reference(task: str, k: int, folder: str | os.PathLike[str] | None = None) -> Reference:
    """Return the reference posterior of a task for observation ``k``, counted from 1.

    Args:
        task: name, which is that of the ready simulator.
        folder: that holds a folder for each task; ``SIMKIT_DATA_DIR/sbibm`` where not given.

    Raises:
        DataError: if there is no such folder or file, or a file does not hold what it should.
    """
    root = Path(folder) if folder is not None else data_dir()
    if root is None:
        raise DataError(
            "reference posteriors need a folder: set SIMKIT_DATA_DIR to one that holds sbibm, or give folder="
        )
    place = (root if folder is not None else root / "sbibm") / task / f"num_observation_{k}"
    observation, parameters, samples = (_read(place / name) for name in _FILES)
    if len(observation) != 1 or parameters.shape != (1, samples.shape[1]):
        raise DataError(
            f"{place} should hold one observation, one set of parameters and samples of as many parameters; found arrays of shape "
            f"{observation.shape}, {parameters.shape} and {samples.shape}"
        )
    return Reference(observation[0], parameters[0], samples)


def _read(path: Path) -> Array:
    if not path.is_file():
        raise DataError(
            f"{path} is missing; it comes with the sbibm benchmark, from sbibm/tasks/TASK/files of its repository"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of files without rows, which are refused below
            values = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
    if values.size == 0 or not np.isfinite(values).all():
        raise DataError(f"{path} should hold rows of finite numbers below a header")
    return values
