"""`InferenceRecipe`: simulator, method and checks of an inference, as typed options."""

from __future__ import annotations

import os
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from simkit.config import Options, parse_options
from simkit.errors import ConfigError
from simkit.inference.infer import METHODS, InferenceOptions
from simkit.inference.simulator import Simulator
from simkit.inference.simulators import build
from simkit.training.recipe import read_nested, recipe_title


class CalibrationOptions(Options):
    """How much is checked; see `simkit.inference.calibration.calibrate`."""

    count: int = Field(300, ge=1, description="simulated observations")
    samples: int = Field(200, ge=10, description="of the posterior given each")
    predictive: int = Field(300, ge=1, description="simulations with parameters from the posterior")
    seconds: float = Field(120.0, gt=0, description="to stop after")
    level: float = Field(0.05, gt=0, lt=1, description="probability of a false alarm")


class InferenceRecipe(Options):
    """What `simkit infer` does.

    ``simulator`` names a ready one with its options, ``{name: lotka_volterra, noise: 0.2}``, or an object of a Python file of your own,
    ``{python: my_simulator.py, object: simulator}``: a `Simulator`, or a function that returns one.
    """

    simulator: dict[str, Any]
    method: Literal[tuple(METHODS)] = "npe"  # type: ignore[valid-type]
    budget: int = Field(2000, ge=1, description="simulations in all")
    samples: int = Field(10_000, ge=100, description="of the posterior")
    seed: int = Field(0, ge=0)
    workers: int | None = Field(
        None, ge=1, description="processes for a simulator that is not vectorised; all cores where not given"
    )
    options: InferenceOptions = Field(default_factory=InferenceOptions)
    calibration: CalibrationOptions = Field(default_factory=CalibrationOptions)

    @model_validator(mode="after")
    def _check(self) -> InferenceRecipe:
        if ("name" in self.simulator) == ("python" in self.simulator):
            raise ValueError(
                "simulator needs a name (of a ready one; see simkit simulators) or python (a file of your own)"
            )
        return self


def read_inference_recipe(
    path: str | os.PathLike[str] | None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> InferenceRecipe:
    """Read a recipe (YAML) and apply "section.key=value" settings, then nested overrides.

    Raises:
        ConfigError: if the file is missing or malformed, a key is unknown or a value unusable.
    """
    return parse_options(InferenceRecipe, read_nested(path, settings, overrides), recipe_title(path))


def build_simulator(description: Mapping[str, Any], folder: str | os.PathLike[str] = ".") -> Simulator:
    """Return the simulator that a recipe names.

    Args:
        folder: where a relative path to a Python file starts.

    Raises:
        ConfigError: if it is unknown, its options are unusable, or the Python file holds no such simulator.
    """
    values = dict(description)
    if "python" not in values:
        name = values.pop("name")
        return build(name, **values)
    file, name = Path(folder) / values.pop("python"), values.pop("object", "simulator")
    if values:
        raise ConfigError(
            f"a simulator of a Python file has the entries python and object; found {', '.join(values)} besides"
        )
    if not file.is_file():
        raise ConfigError(f"there is no simulator at {file}")
    namespace = runpy.run_path(str(file))
    found = namespace.get(name)
    if not isinstance(found, Simulator) and callable(found):
        found = found()
    if not isinstance(found, Simulator):
        raise ConfigError(
            f"{file} should define {name}, a simkit Simulator or a function that returns one; found {type(found).__name__}"
        )
    return found
