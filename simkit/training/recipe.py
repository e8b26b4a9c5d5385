"""The recipe: everything that determines a training, strict and typed, from YAML and flags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, model_validator

from simkit.config import Options, parse_options
from simkit.errors import ConfigError
from simkit.training.options import LossTerm, TrainingOptions


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
    "published" takes the split that comes with the data set, "file" reads ``file``, written by an earlier training.
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

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the architecture's options class."""
        return dict(self.model_extra or {})


DEFAULT_LOSS = {
    "energy": LossTerm(weight=0.1),
    "forces": LossTerm(weight=1.0),
    "stress": LossTerm(weight=100.0),
    "dipole": LossTerm(weight=1.0),
}
"""Used for the labels that the data have (energy, forces and stress) when a recipe names no loss."""


class Recipe(Options):
    """A training from data to model."""

    data: SourceOptions
    test: SourceOptions | None = Field(None, description="a separate test set; otherwise the split's")
    split: SplitOptions = SplitOptions()
    model: ModelOptions = ModelOptions()
    loss: dict[Literal["energy", "forces", "stress", "dipole"], LossTerm] | None = None
    training: TrainingOptions = TrainingOptions()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_terms(cls, values: Any) -> Any:
        """Let a term such as ``loss.energy: {kind: mae}`` keep the default weight of its label."""
        if isinstance(values, Mapping) and isinstance(values.get("loss"), Mapping):
            loss = {
                name: {"weight": DEFAULT_LOSS[name].weight, **term}
                if name in DEFAULT_LOSS and isinstance(term, Mapping)
                else term
                for name, term in values["loss"].items()
            }
            return {**values, "loss": loss}
        return values

    def resolved_loss(self, labels: Sequence[str]) -> dict[str, LossTerm]:
        """The loss terms of the recipe or, without any, the defaults for energy, forces and stress as far as they are labelled."""
        if self.loss is not None:
            return {str(name): term for name, term in self.loss.items()}
        return {name: DEFAULT_LOSS[name] for name in ("energy", "forces", "stress") if name in labels}

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


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
    where = f"recipe {path}" if path else "options"
    values = _read_yaml(Path(path)) if path else {}
    other = (overrides or {}).get("data", {}).get("name")
    if other is not None and other != (values.get("data") or {}).get("name"):
        # Another source has other options, and the recipe's test set does not belong to it.
        values.pop("data", None)
        values.pop("test", None)
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise ConfigError(f"expected --set section.key=value, found {setting!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: the value is not valid YAML") from None
        _merge(values, _nested(key.split("."), _number(value)))
    _merge(values, overrides or {})
    if "data" not in values:
        raise ConfigError(
            f"{where}: no data named; give --data PATH, or a section data with a name, such as {{name: qm9}}"
        )
    return parse_options(Recipe, values, where)


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


def _merge(target: dict[str, Any], extra: Mapping[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
