"""The recipe of a surrogate: data, model, objective and training, strictly typed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from simkit.config import Options, parse_options
from simkit.surrogates.objectives import ObjectiveOptions
from simkit.training.options import TrainingOptions
from simkit.training.recipe import read_nested, recipe_title


class MotionData(Options):
    """Where trajectories come from: a known system, or files of one's own.

    A system's protocol says how many trajectories are for training, validation and tests. Those of files are split by ``valid`` and
    ``test``: whole trajectories, shuffled with the seed; a single trajectory is cut in time.
    """

    system: str | None = Field(None, description="a known system; see simkit surrogate list")
    parameters: dict[str, Any] = Field({}, description="of the system, in place of its defaults")
    protocol: str = Field("", description="of the system; its first where not given")
    protocol_noise: bool = Field(True, description="whether the noise of the protocol, if it has any, is put on")
    coordinates: Literal["canonical", "cartesian"] = "canonical"
    files: list[str] | None = Field(None, description="CSV or npz files with trajectories")
    real_pendulum: str | None = Field(None, description="file of the measured pendulum of Schmidt & Lipson (2009)")
    seed: int = Field(0, ge=0, description="of initial states, noise and split")
    valid: float = Field(0.1, ge=0, lt=1, description="fraction of the trajectories of files")
    test: float = Field(0.2, ge=0, lt=1, description="fraction of the trajectories of files")
    trajectories: int | None = Field(None, ge=1, description="train on so many of the training trajectories only")
    every: int = Field(1, ge=1, description="train on every n-th point of the trajectories only")
    noise: float = Field(
        0.0, ge=0, description="noise on the training states, as a fraction of each coordinate's standard deviation"
    )
    derivatives: Literal["given", "estimated"] = Field(
        "given", description="estimated: from the (noisy) states, as for data without known equations"
    )

    @model_validator(mode="after")
    def _one_source(self) -> MotionData:
        given = [name for name in ("system", "files", "real_pendulum") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of system, files and real_pendulum, found {', '.join(given) or 'none'}")
        if self.system is None and (self.parameters or self.protocol or self.coordinates != "canonical"):
            raise ValueError("parameters, protocol and coordinates belong to a system")
        return self


class MotionModel(Options):
    """The model and its own options: ``{name: hnn, width: 200}``. Angles and constraints of a known system are filled in."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    name: str = "hnn"
    seed: int = Field(0, ge=0, description="of the initial weights")

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the model's options class."""
        return dict(self.model_extra or {})


class RolloutOptions(Options):
    """How the trained model is rolled out in its evaluation."""

    method: str | None = Field(None, description="of the rollouts; the model's own where not given")
    timestep: float | None = Field(
        None, gt=0, description="longest step; one step to each point of the test data where not given"
    )
    duration: float | None = Field(
        None, gt=0, description="of the rollouts, with points as far apart as in the test data; theirs where not given"
    )


class SurrogateRecipe(Options):
    """A training of a surrogate from data to model."""

    data: MotionData
    model: MotionModel = MotionModel()
    objective: ObjectiveOptions = ObjectiveOptions()
    training: TrainingOptions = TrainingOptions(epochs=1000, batch_size=200, evaluation_batch_size=10_000)
    polish: int = Field(
        0, ge=0, description="iterations of L-BFGS on all samples after the training; for noise-free data, in float64"
    )
    rollout: RolloutOptions = RolloutOptions()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Keep the surrogates' own defaults where a recipe names some options of the training only."""
        if isinstance(values, Mapping) and "data" not in values:
            raise ValueError(
                "no data named; give --system NAME or --data FILE, or a section data with one of system and files"
            )
        if not isinstance(values, Mapping) or not isinstance(values.get("training"), Mapping):
            return values
        return {
            **values,
            "training": {"epochs": 1000, "batch_size": 200, "evaluation_batch_size": 10_000, **values["training"]},
        }

    @model_validator(mode="after")
    def _check(self) -> SurrogateRecipe:
        if self.training.precision not in ("float32", "float64"):
            raise ValueError(
                f"surrogates are trained in float32 or float64, but training.precision is {self.training.precision}"
            )
        return self


def read_surrogate_recipe(
    path: str | os.PathLike[str] | None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> SurrogateRecipe:
    """Read a recipe (YAML) and apply "section.key=value" settings, then nested values.

    Raises:
        ConfigError: if the file is missing or malformed, a key is unknown or a value unusable.
    """
    return parse_options(SurrogateRecipe, read_nested(path, settings, overrides), recipe_title(path))
