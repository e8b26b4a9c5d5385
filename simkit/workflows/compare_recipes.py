"""The recipes of a comparison: one for each model, the same but for what belongs to the model."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simkit.config import parse_options
from simkit.errors import ConfigError
from simkit.potentials import architecture, available
from simkit.training.recipe import ModelOptions, Recipe, merge, read_values, recipe_title

SECTIONS = ("model", "loss", "training")
"""What may differ between the models of a comparison. Data, split and test set are the same for all."""


def comparison_recipes(
    path: str | os.PathLike[str] | None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> dict[str, Recipe]:
    """Return the recipe of every model, by its name in the comparison.

    A recipe may have a section ``models`` that says what is particular to each one, as parts of a recipe. A name is an
    architecture, unless its ``model.name`` says otherwise, so that one architecture can take part several times::

        models:
          painn: {}
          nequip: {training: {learning_rate: 0.005}}
          large-nequip: {model: {name: nequip, l_max: 3}}

    Architectures' options in the common section ``model`` go to all that know them or, where that section has a name, to this
    architecture only.

    Args:
        path, settings, overrides: see `simkit.training.recipe.read_recipe`.
        names: which ones; by default those of ``models`` or, without this section, all trainable architectures.

    Raises:
        ConfigError: if a recipe, a name or an option is unusable.
    """
    where = recipe_title(path)
    values = read_values(path, settings, overrides)
    particular = _particular(values.pop("models", None), where)
    chosen = list(dict.fromkeys(names)) or list(particular) or trainable()
    if "start" in values:
        raise ConfigError(f"{where}: models are compared from random weights on; remove the section start")
    named = overrides or {}
    if "test" not in values or ("data" in named and "test" not in named):  # a recipe's test set belongs to its own data
        test = matching_test(values["data"])
        values |= {} if test is None else {"test": test}
    recipes = {name: _recipe(values, name, particular.get(name, {}), where) for name in chosen}
    _check_options(values, recipes, where)
    return recipes


def trainable() -> list[str]:
    """Return the names of the architectures that have weights to train."""
    return [name for name in available() if not architecture(name)[0].is_classical]


def matching_test(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the test set that was published with a training set, or None.

    For rMD17 these are the splits of the same number; ``embedded`` has its own split (``--set split.method=published``).
    """
    split = str(data.get("split", "train_01"))
    if data.get("name") == "rmd17" and split.startswith("train_"):
        return {**data, "split": split.replace("train_", "test_")}
    return None


def _particular(models: Any, where: str) -> dict[str, dict[str, Any]]:
    """Check the section ``models``."""
    if models is None:
        return {}
    if not isinstance(models, Mapping):
        raise ConfigError(f"{where}: models must map names to parts of a recipe, found {models!r:.60}")
    found: dict[str, dict[str, Any]] = {}
    for name, part in models.items():
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"{where}: models.{name} must be a part of a recipe, such as {{model: {{channels: 64}}}}")
        other = [section for section in part or {} if section not in SECTIONS]
        if other:
            raise ConfigError(
                f"{where}: models.{name} may hold the sections {', '.join(SECTIONS)}; found {other[0]!r}"
                + (", which must be the same for all" if other[0] in Recipe.model_fields else "")
            )
        found[str(name)] = dict(part or {})
    return found


def _recipe(values: Mapping[str, Any], name: str, particular: Mapping[str, Any], where: str) -> Recipe:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise ConfigError(
            f"{name!r} cannot be the name of a model in a comparison: use letters, digits and . _ + -, because it names a folder"
        )
    merged = copy.deepcopy(dict(values))
    common = merged.pop("model", None) or {}
    own = (particular.get("model") or {}).get("name", name)
    options_class = architecture(own)[1]
    given = common.pop("name", own)
    model = {
        key: value
        for key, value in common.items()
        if key in ModelOptions.model_fields or (given == own and key in options_class.model_fields)
    }
    merged["model"] = {"name": own, **model}
    merge(merged, particular)
    recipe = parse_options(Recipe, merged, f"{where}, {name}")
    parse_options(options_class, recipe.model.options, f"{where}, options of {name}")
    return recipe


def _check_options(values: Mapping[str, Any], recipes: Mapping[str, Recipe], where: str) -> None:
    """Refuse common options that no model of the comparison knows: they would be dropped silently."""
    common = dict(values.get("model") or {})
    owner = common.pop("name", None)
    known = {r.model.name: architecture(r.model.name)[1] for r in recipes.values() if owner in (None, r.model.name)}
    for key in common:
        if known and key not in ModelOptions.model_fields and not any(key in c.model_fields for c in known.values()):
            raise ConfigError(f"{where}: model.{key} is an option of none of {', '.join(known)}")
