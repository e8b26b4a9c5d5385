"""The frames that active learning begins with."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from simkit.datasets import load as load_dataset
from simkit.errors import ConfigError, DataError
from simkit.labeling.base import Method
from simkit.labeling.sample import sample_normal_modes, sample_thermal
from simkit.workflows.active_recipe import LOSS_LABELS, ActiveRecipe
from simkit.workflows.structures import read_structure

SAMPLES = 20
"""Frames drawn around a structure where the recipe does not say how many."""


def first_frames(recipe: ActiveRecipe, method: Method) -> list[Atoms]:
    """Return the labelled frames that a recipe begins with; none where they are drawn around a structure, which is checked.

    Raises:
        DataError: if there are too few, or a label is missing, or there is no such structure.
        ConfigError: if they are of another level of theory than the labels to come.
    """
    options = recipe.initial
    if options.data is None:
        read_structure(str(options.structure))
        return []
    store = load_dataset(options.data.name, **options.data.options)
    if missing := [name for name in recipe.loss if name not in store.labels]:
        raise DataError(
            f"initial.data: the loss names {', '.join(missing)}, but {store.name} has {', '.join(store.labels)}"
        )
    theory = method.level_of_theory
    if store.info.get("level_of_theory") not in (None, theory):
        raise ConfigError(
            f"initial.data is of the level of theory {store.info['level_of_theory']}, but method gives {theory}; label both alike"
        )
    count = options.frames or len(store)
    if count > len(store):
        raise DataError(f"initial.frames is {count}, but {store.name} holds {len(store)}")
    chosen = np.sort(np.random.default_rng(recipe.seed_for()).choice(len(store), count, replace=False))
    frames = store.to_atoms(chosen)
    for atoms in frames:
        results = {name: value for name, value in atoms.calc.results.items() if name in LOSS_LABELS}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["charge"] = round(float(atoms.info.get("charge", 0.0)))
        atoms.info["level_of_theory"] = theory
    return frames


def drawn_frames(recipe: ActiveRecipe) -> list[Atoms]:
    """Return frames drawn around the structure of a recipe, to be labelled.

    Raises:
        GeometryError, LabelError: as `simkit.labeling.sample`.
    """
    options = recipe.initial
    draw = sample_normal_modes if options.kind == "modes" else sample_thermal
    return draw(
        read_structure(str(options.structure)),
        recipe.method,
        temperatures=[options.temperature],
        frames=options.frames or SAMPLES,
        seed=recipe.seed_for(),
        charge=recipe.charge,
        multiplicity=recipe.multiplicity,
        jobs=recipe.jobs,
    )
