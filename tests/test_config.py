"""Strict options: unknown keys, wrong types, nested sections."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from simkit.config import Options, nearest, parse_options
from simkit.errors import ConfigError


class Model(Options):
    channels: int = Field(default=128, ge=2)
    cutoff: float = Field(default=5.0, gt=0)
    activation: Literal["silu", "tanh"] = "silu"
    width: int | None = None


class Term(Options):
    weight: float = 1.0
    per_atom: bool = False


class Recipe(Options):
    name: str
    model: Model = Model()
    loss: dict[str, Term] = Field(default_factory=dict)
    stages: tuple[Model, ...] = ()
    model_config_path: str | None = None  # pydantic keeps names that start with model_ for itself unless told otherwise

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.name == "bad":
            raise ValueError("the name bad is taken")
        return self


def refusal(values: dict[str, Any], cls: type[Options] = Recipe) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_options(cls, values, "recipe r.yaml")
    message = str(caught.value)
    assert message.startswith("recipe r.yaml: ")
    assert "\n" not in message
    assert "pydantic" not in message
    return message


def test_good_values() -> None:
    recipe = parse_options(
        Recipe,
        {"name": "x", "model": {"channels": 64}, "loss": {"forces": {"weight": 10}}, "stages": [{}, {"width": 3}]},
        "r",
    )
    assert recipe.model == Model(channels=64)
    assert recipe.loss == {"forces": Term(weight=10.0)}
    assert [stage.width for stage in recipe.stages] == [None, 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"nam": "x"}, ["unknown key 'nam'; did you mean 'name'?", "'name' is missing"]),
        ({"name": "x", "model": {"chanels": 3}}, ["unknown key 'model.chanels'; did you mean 'channels'?"]),
        ({"name": "x", "model": {"zzz": 3}}, ["unknown key 'model.zzz'; known: activation, channels, cutoff, width"]),
        ({"name": "x", "loss": {"forces": {"wieght": 1}}}, ["'loss.forces.wieght'; did you mean 'weight'?"]),
        ({"name": "x", "stages": [{}, {"with": 1}]}, ["'stages.1.with'; did you mean 'width'?"]),
        ({}, ["'name' is missing"]),
    ],
)
def test_unknown_and_missing_keys(values: dict[str, Any], expected: list[str]) -> None:
    message = refusal(values)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"channels": "many"}, "channels: Input should be a valid integer"),
        ({"channels": "many"}, "(found 'many')"),
        ({"channels": 64.5}, "(found 64.5)"),
        ({"channels": 1}, "channels: Input should be greater than or equal to 2 (found 1)"),
        ({"channels": None}, "channels"),
        ({"channels": [64]}, "channels"),
        ({"channels": True}, "channels: expected a number (found True)"),
        ({"width": True}, "width: expected a number (found True)"),
        ({"cutoff": False}, "cutoff: expected a number (found False)"),
        ({"cutoff": -1}, "cutoff: Input should be greater than 0 (found -1)"),
        ({"cutoff": "5 angstrom"}, "cutoff: Input should be a valid number"),
        ({"activation": "relu"}, "activation: Input should be 'silu' or 'tanh' (found 'relu')"),
    ],
)
def test_wrong_types_and_values(values: dict[str, Any], expected: str) -> None:
    assert expected in refusal(values, Model)


def test_every_problem_is_named() -> None:
    message = refusal({"name": "x", "model": {"channels": 0, "cutoff": "a", "activaton": "silu"}})
    assert "model.channels" in message
    assert "model.cutoff" in message
    assert "model.activaton" in message


def test_section_of_the_wrong_kind() -> None:
    assert "model" in refusal({"name": "x", "model": 3})
    assert "recipe r.yaml: the name bad is taken" in refusal({"name": "bad"})


@given(value=st.floats(1e-12, 1e12))
def test_numbers_as_yaml_reads_them(value: float) -> None:
    """YAML takes 1e-3 for text."""
    assert parse_options(Model, {"cutoff": f"{value:.17g}"}, "r").cutoff == value
    assert parse_options(Model, {"cutoff": value}, "r").cutoff == value


def test_options_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Model().channels = 3


def test_nearest() -> None:
    assert nearest("panin", ["painn", "schnet"]) == "; did you mean 'painn'?"
    assert nearest("xyz", ["painn", "schnet"]) == "; known: painn, schnet"
