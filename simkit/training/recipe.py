"""The recipe: everything that determines a training, strict and typed, from YAML and flags."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from simkit.config import Options, nearest, parse_options
from simkit.errors import ConfigError
from simkit.training.options import LossTerm, TrainingOptions
from simkit.training.targets import TRAINABLE, default_loss, default_term, expand_targets


class SourceOptions(Options):
    """A data set by name and the options of its source: ``{name: rmd17, molecule: ethanol, split: train_01}``.

    The options are checked when the data set is opened (see `simkit.datasets.load`).
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the source's function."""
        return dict(self.model_extra or {})


class SplitOptions(Options):
    """Which structures train, validate and test; counts are integers, fractions are below one.

    "random" draws with the seed, "group" keeps groups together (``key``: "formula" or "group"), "time" cuts contiguous blocks,
    "published" takes the split that comes with the data set, "file" reads ``file``, written by an earlier training. A download of QM9 comes
    with none: "published" then draws 110,000 to train and 10,000 to validate with the seed, and tests on the rest.
    """

    method: Literal["random", "group", "time", "published", "file"] = "random"
    train: int | float | None = Field(None, description="all that is left where not given")
    valid: int | float = 0.1
    test: int | float = 0.0
    seed: int = 0
    key: Literal["formula", "group"] = "formula"
    gap: int = Field(0, ge=0)
    file: str | None = None


class ModelOptions(Options):
    """The architecture, its cutoff and its own options: ``{name: painn, cutoff: 5.0, channels: 64}``."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    name: str = "painn"
    cutoff: float = Field(5.0, gt=0)
    seed: int = Field(0, ge=0, description="of the initial weights")
    anchored: bool = Field(False, description="an isolated atom has exactly its reference energy")
    references: Literal["auto", "least_squares"] | dict[str, float] = Field(
        "auto", description="eV per element symbol; auto: isolated atoms of the data set, else least squares"
    )
    scale: Literal["auto"] | float = Field(
        "auto",
        description="energy of a network output of 1, eV; auto: root mean square of the forces; less makes features learn more",
    )
    pooling: Literal["mean", "set2set"] = Field("mean", description="of homo, lumo and gap")

    @field_validator("scale")
    @classmethod
    def _positive(cls, value: str | float) -> str | float:
        if isinstance(value, float) and not 0 < value < math.inf:
            raise ValueError("expected auto or a positive energy in eV")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the architecture's options class."""
        return dict(self.model_extra or {})


class ReplayOptions(Options):
    """Structures of an earlier data set that are trained on beside the new ones, so that the model does not forget them.

    Their labels must be of the level of theory of the new data.
    """

    data: SourceOptions
    fraction: float = Field(0.5, gt=0, lt=1, description="of the training structures; they are drawn with split.seed")


class StartOptions(Options):
    """Start from a trained model: its architecture, cutoff, options and heads are taken over, and new elements are added.

    "full" trains all weights; "frozen" the heads and what belongs to new elements; "low_rank" besides these a low-rank update of the
    other weights. Reference energies are fitted to what the model leaves of the new energies ("refit"), kept ("keep", which fits only
    those of new elements), or given in eV per element symbol.
    """

    model: str = Field(description="model file")
    mode: Literal["full", "frozen", "low_rank"] = "full"
    rank: int | None = Field(None, ge=1, description="of the updates of low_rank; 8 where not given")
    layers: list[str] | None = Field(
        None,
        description='patterns of weights, such as "*.updates.2.*": they train, too (frozen), or only they (low_rank)',
    )
    references: Literal["refit", "keep"] | dict[str, float] = "refit"
    replay: ReplayOptions | None = None

    @model_validator(mode="after")
    def _check(self) -> StartOptions:
        if self.rank is not None and self.mode != "low_rank":
            raise ValueError(f"rank belongs to mode low_rank, but mode is {self.mode}")
        if self.layers is not None and self.mode == "full":
            raise ValueError("layers belong to the modes frozen and low_rank, but mode is full")
        return self


class Recipe(Options):
    """A training from data to model.

    Without a target, what is trained on is the loss or, without that, energy, forces and stress as far as they are labelled. QM9 has its
    published split where no other is given.
    """

    data: SourceOptions
    target: list[str] | None = Field(
        None, description="properties to train on, such as U0 or [mu, gap]; all: the twelve of QM9"
    )
    test: SourceOptions | None = Field(None, description="a separate test set; otherwise the split's")
    split: SplitOptions = SplitOptions()
    model: ModelOptions = ModelOptions()
    start: StartOptions | None = None
    loss: dict[str, LossTerm] | None = Field(
        None, description="per label; targets that it does not name have their default"
    )
    loss_weights: Literal["given", "learned"] = Field(
        "given", description="learned: by the noise of each label (Kendall et al. 2018), besides the given ones"
    )
    training: TrainingOptions = TrainingOptions()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Write out targets; let a term such as ``loss.energy: {kind: mae}`` keep the rest of its label's default; split QM9."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if values.get("target") is not None:
            values["target"] = expand_targets(values["target"])
        if isinstance(values.get("loss"), Mapping):
            targets = values.get("target") or ()
            values["loss"] = {
                name: {**default_term(str(name), targets).model_dump(), **term} if isinstance(term, Mapping) else term
                for name, term in values["loss"].items()
            }
        data = values.get("data")
        if values.get("split") is None and (data.get("name") if isinstance(data, Mapping) else None) == "qm9":
            values["split"] = {"method": "published"}
        return values

    @field_validator("loss")
    @classmethod
    def _known_labels(cls, loss: dict[str, LossTerm] | None) -> dict[str, LossTerm] | None:
        for name in loss or ():
            if name not in TRAINABLE:
                raise ValueError(f"no label {name!r} can be trained on{nearest(name, TRAINABLE)}")
        return loss

    def resolved_loss(self, labels: Sequence[str]) -> dict[str, LossTerm]:
        """The loss terms of the recipe, and those that it leaves open, for data with these labels."""
        if self.loss is not None and self.target is None:
            return dict(self.loss)
        return {**default_loss(self.target, labels), **(self.loss or {})}


def read_recipe(
    path: str | os.PathLike[str] | None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe and apply settings.

    Args:
        path: a YAML file; None starts from nothing.
        settings: "section.key=value" strings, values in YAML.
        overrides: nested values applied last; another data set replaces the recipe's, test set included.

    Raises:
        ConfigError: if the file is missing or malformed, a key is unknown or a value unusable.
    """
    return parse_options(Recipe, read_values(path, settings, overrides), recipe_title(path))


def recipe_title(path: str | os.PathLike[str] | None) -> str:
    """Return what messages call a recipe."""
    return f"recipe {path}" if path else "options"


def read_values(
    path: str | os.PathLike[str] | None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a recipe and settings say, as nested values that are not checked yet; see `read_recipe`.

    Raises:
        ConfigError: if the file is missing or malformed, or no data are named.
    """
    values = _read_yaml(Path(path)) if path else {}
    other = (overrides or {}).get("data", {}).get("name")
    if other is not None and other != (values.get("data") or {}).get("name"):
        # Another source has other options, and the recipe's test set does not belong to it.
        values.pop("data", None)
        values.pop("test", None)
    merge_settings(values, settings, overrides)
    if "data" not in values:
        raise ConfigError(
            f"{recipe_title(path)}: no data named; give --data PATH, or a section data with a name, such as {{name: qm9}}"
        )
    return values


def read_nested(
    path: str | os.PathLike[str] | None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a recipe of any kind and settings say, as nested values that are not checked yet.

    Raises:
        ConfigError: if the file is missing or malformed.
    """
    values = _read_yaml(Path(path)) if path else {}
    merge_settings(values, settings, overrides)
    return values


def merge_settings(values: dict[str, Any], settings: Sequence[str], overrides: Mapping[str, Any] | None) -> None:
    """Put "section.key=value" strings and then nested values into others, in place."""
    for setting in settings:
        merge(values, parse_setting(setting))
    merge(values, overrides or {})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe at {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the recipe {path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"the recipe {path} must hold sections such as data, model and training; found {content!r:.60}"
        )
    return content


def parse_setting(setting: str) -> dict[str, Any]:
    """Return what "section.key=value" says as nested values; the value is YAML.

    Raises:
        ConfigError: if it is not of this form.
    """
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise ConfigError(f"expected --set key=value, such as training.epochs=30, found {setting!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {setting}: the value is not valid YAML") from None
    return _nested(key.split("."), _number(value))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a string; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def merge(target: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Put nested values into others, in place: sections are merged, everything else is replaced."""
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
