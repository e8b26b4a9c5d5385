"""The recipe of active learning: what the first labels are, how members train, what is explored, what is labelled, when it ends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from simkit.config import Options, parse_options
from simkit.inference.frame_selection import Strategy
from simkit.md.ensembles.options import KNOWN, EnsembleName, EnsembleOptions, ensemble_from_options
from simkit.md.protocols import Ensemble
from simkit.training.options import LossTerm, TrainingOptions
from simkit.training.recipe import ModelOptions, SourceOptions, read_nested, recipe_title
from simkit.training.targets import DEFAULT_LOSS

LOSS_LABELS = ("energy", "forces", "stress")


class InitialOptions(Options):
    """The first frames: so many of data that are labelled, or drawn around a structure and labelled."""

    data: SourceOptions | None = Field(None, description="labelled frames, as in the recipe of a training")
    structure: str | None = Field(None, description="file of one structure, which is relaxed for kind modes")
    frames: int | None = Field(None, ge=2, description="drawn with the seed; all of data, or 20, where not given")
    kind: Literal["modes", "thermal"] = Field("modes", description="of a structure; see simkit sample")
    temperature: float = Field(300.0, gt=0, description="of a structure's frames, K")

    @model_validator(mode="after")
    def _one_source(self) -> InitialOptions:
        if (self.data is None) == (self.structure is None):
            raise ValueError("expected one of data and structure")
        return self


class UpdateOptions(Options):
    """How members train when labels have been added: on from those of the round before, or anew; with all frames so far in any case."""

    start: Literal["warm", "scratch"] = "warm"
    epochs: int | None = Field(None, ge=1, description="those of training where not given")
    learning_rate: float | None = Field(None, gt=0, description="that of training where not given")


class DynamicsOptions(Options):
    """The dynamics of a round: several trajectories, each from a frame of the initial data, with the temperatures in turn."""

    trajectories: int = Field(4, ge=1)
    temperatures: list[float] = Field([300.0], min_length=1, description="K")
    steps: int = Field(2000, ge=1)
    interval: int = Field(20, ge=1, description="steps between two frames that may be chosen")
    ensemble: EnsembleName = "nvt"
    timestep: float = Field(0.5, gt=0, description="fs")
    settings: dict[str, Any] = Field({}, description="further ones of the ensemble, such as friction; see simkit md")
    upper: float = Field(
        3.0, gt=0, description="largest disagreement of an atom, eV/angstrom; beyond it a trajectory ends"
    )
    watch_bonds: bool = Field(True, description="end a molecule's trajectory when bonds are broken or formed")

    @field_validator("temperatures")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if not all(value > 0 for value in values):
            raise ValueError("expected temperatures above 0 K")
        return values

    @model_validator(mode="after")
    def _usable(self) -> DynamicsOptions:
        self.make_ensemble(self.temperatures[0], 0)
        return self

    def make_ensemble(self, temperature: float, seed: int) -> Ensemble:
        """Return the ensemble of one trajectory.

        Raises:
            ConfigError: if a setting is unknown to it.
        """
        known = KNOWN[self.ensemble]
        own = {name: value for name, value in (("temperature", temperature), ("seed", seed)) if name in known}
        values = {"ensemble": self.ensemble, "timestep": self.timestep, **self.settings, **own}
        return ensemble_from_options(parse_options(EnsembleOptions, values, "dynamics.settings"))


class SelectionOptions(Options):
    """Which frames of a round are labelled; see `simkit.inference.frame_selection.select_frames`."""

    frames: int = Field(20, ge=1, description="in each round")
    strategy: Strategy = Field("disagreement", description="random is the control")
    quantile: float = Field(0.5, ge=0, lt=1, description="of the frames' largest disagreements; those below are left")
    lower: float = Field(0.0, ge=0, description="eV/angstrom; those below are left, too")
    largest_force: float = Field(
        20.0, gt=0, description="eV/angstrom; frames whose label has more are not trained on, but reported"
    )


class StopOptions(Options):
    """When the loop ends: at whatever comes first. The members are trained on all labels then."""

    rounds: int = Field(5, ge=0, description="of exploration and labelling")
    calculations: int | None = Field(None, ge=1, description="that may be spent on labels, failed ones included")
    tolerance: float | None = Field(
        None, gt=0, description="eV/angstrom; 95 % of the frames visited are below it, and no trajectory ended early"
    )
    patience: int = Field(1, ge=1, description="rounds in a row within the tolerance")


class ActiveRecipe(Options):
    """Active learning of a potential by the disagreement of a committee."""

    initial: InitialOptions
    method: str = Field("gfn2-xtb", description="of the labels; see simkit label")
    charge: int | None = None
    multiplicity: int | None = None
    jobs: int = Field(1, ge=1, description="processes that label")
    members: int = Field(3, ge=2)
    model: ModelOptions = ModelOptions()
    loss: dict[str, LossTerm] = Field({name: DEFAULT_LOSS[name] for name in ("energy", "forces")})
    valid: float = Field(
        0.1, ge=0, lt=1, description="share of the frames that each member validates on, others for each"
    )
    training: TrainingOptions = TrainingOptions()
    update: UpdateOptions = UpdateOptions()
    dynamics: DynamicsOptions = DynamicsOptions()
    selection: SelectionOptions = SelectionOptions()
    stop: StopOptions = StopOptions()
    test: SourceOptions | None = Field(None, description="labelled frames that the committee is judged by")
    seed: int = Field(0, ge=0, description="of all random numbers")

    @field_validator("loss")
    @classmethod
    def _known_labels(cls, loss: dict[str, LossTerm]) -> dict[str, LossTerm]:
        if "forces" not in loss or not set(loss) <= set(LOSS_LABELS):
            raise ValueError(f"expected forces, and of the labels {', '.join(LOSS_LABELS)}")
        return loss

    def seed_for(self, *parts: int) -> int:
        """Return a seed for one purpose, which a few numbers name."""
        return int(np.random.SeedSequence((self.seed, *parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def read_active_recipe(
    path: str | os.PathLike[str] | None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> ActiveRecipe:
    """Read a recipe of active learning and apply settings.

    Args:
        path: a YAML file; None starts from nothing. settings: "section.key=value" strings. overrides: nested values applied last.

    Raises:
        ConfigError: if the file is missing or malformed, a key is unknown or a value unusable.
    """
    return parse_options(ActiveRecipe, read_nested(path, settings, overrides), recipe_title(path))
