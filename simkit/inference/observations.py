"""Observations in files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simkit.errors import DataError
from simkit.inference.priors import Array
from simkit.inference.simulator import Simulator

SUFFIXES = (".csv", ".txt", ".dat", ".json", ".yaml", ".yml", ".npy", ".npz")


def read_observation(path: str | os.PathLike[str], simulator: Simulator) -> Array:
    """Read an observation of a simulator, [K].

    JSON, YAML and npz files hold one entry per observable, or a list of all values; CSV, text and npy files hold all values in order, with
    or without a header line.

    Raises:
        DataError: if the file is missing or unreadable, or does not hold what the simulator gives.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no observation at {file}")
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(f"observations are read from {', '.join(SUFFIXES)}; found {file.name}")
    try:
        values = _read(file)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{file} does not hold numbers: {' '.join(str(error).split())}") from error
    return simulator.observation(values)


def _read(file: Path) -> Any:
    suffix = file.suffix.lower()
    if suffix == ".npy":
        return np.load(file, allow_pickle=False).ravel()
    if suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    text = file.read_text(encoding="utf-8")
    if suffix in (".json", ".yaml", ".yml"):
        values = json.loads(text) if suffix == ".json" else yaml.safe_load(text)
        if isinstance(values, dict):
            return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
        return np.asarray(values, dtype=np.float64)
    lines = [line.replace(",", " ").split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if lines and not _are_numbers(lines[0]):
        lines = lines[1:]
    return np.array([float(word) for line in lines for word in line])


def _are_numbers(words: list[str]) -> bool:
    try:
        return bool([float(word) for word in words])
    except ValueError:
        return False
