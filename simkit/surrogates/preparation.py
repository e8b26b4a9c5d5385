"""From a recipe to what training starts with: trajectories, a model of random weights, and samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from simkit.errors import ConfigError, DataError
from simkit.surrogates import models, systems
from simkit.surrogates.loaders import load, load_real_pendulum, real_pendulum_split, with_derivatives
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.objectives import ObjectiveOptions
from simkit.surrogates.recipe import MotionData, SurrogateRecipe
from simkit.surrogates.samples import Samples, pieces, single_states
from simkit.surrogates.systems.base import System
from simkit.surrogates.systems.lennard_jones import LennardJonesParticles
from simkit.surrogates.trajectories import Trajectories, concatenate

# Names that papers give to the parts of their data.
_VALIDATION = ("validation", "valid")


@dataclass(frozen=True)
class MotionParts:
    """The trajectories of a training, and the mechanical system that they come from where it is known."""

    train: Trajectories
    valid: Trajectories | None
    test: Trajectories | None
    system: System | None = None


def open_data(options: MotionData) -> MotionParts:
    """Generate or read the trajectories that a recipe names; noise and thinning are for the training part alone.

    Raises:
        ConfigError: if the system, a parameter or the protocol is unknown.
        DataError: if files are missing or malformed, or there are too few trajectories.
    """
    if options.system is not None:
        parts = _from_system(options)
    elif options.real_pendulum is not None:
        split = real_pendulum_split(load_real_pendulum(options.real_pendulum))
        # Greydanus et al. (2019) judge by p^2 + 2.4 (1 - cos q), the energy of this pendulum; the measured one has friction besides.
        parts = MotionParts(split["train"], None, split["test"], systems.build("pendulum", {"gravity": 4.8}))
    else:
        parts = _from_files(options)
    return replace(parts, train=_as_measured(parts.train, options))


def _from_system(options: MotionData) -> MotionParts:
    system = systems.build_any(str(options.system), options.parameters)
    plan = system.resolve(options.protocol)
    if not options.protocol_noise:
        plan = replace(plan, noise=0.0)
    if isinstance(system, System):
        whole = system.generate(plan, options.seed, coordinates=options.coordinates)
    else:
        whole = system.generate(plan, options.seed)
    data = whole.split(plan.parts)
    valid = next((data[name] for name in _VALIDATION if name in data), None)
    if "train" not in data:
        raise DataError(f"this protocol of {system.name} has no training part; it has {', '.join(data)}")
    return MotionParts(data["train"], valid, data.get("test"), system if isinstance(system, System) else None)


def _from_files(options: MotionData) -> MotionParts:
    data = concatenate([load(name) for name in options.files or []])
    if len(data) == 1:
        return _split_in_time(data, options)
    count = len(data)
    valid, test = round(options.valid * count), round(options.test * count)
    wanted = {"train": count - valid - test, "valid": valid, "test": test}
    split = data.split({name: n for name, n in wanted.items() if n}, options.seed)
    return MotionParts(split["train"], split.get("valid"), split.get("test"))


def _split_in_time(data: Trajectories, options: MotionData) -> MotionParts:
    points = data.q.shape[1]
    valid, test = int(options.valid * points), int(options.test * points)
    train = points - valid - test
    return MotionParts(
        data.between(0, train),
        data.between(train, train + valid) if valid else None,
        data.between(train + valid, points) if test else None,
    )


def _as_measured(data: Trajectories, options: MotionData) -> Trajectories:
    """The training data as the recipe spoils them: fewer trajectories, fewer points, noise, derivatives that are not known."""
    if options.trajectories is not None:
        if options.trajectories > len(data):
            raise ConfigError(
                f"data.trajectories asks for {options.trajectories}, but there are {len(data)} to train on"
            )
        data = data.take(slice(options.trajectories))
    if options.every > 1:
        data = data.thinned(options.every)
    if options.noise:
        data = data.add_noise(options.noise, options.seed + 1, relative=True)
    if options.derivatives == "estimated":
        known = replace(data, dq=None, dp=None, dv=None)
        # Velocities were measured with noise, so they are not the derivatives of the coordinates that were.
        data = with_derivatives(known)
    return data


def build_model(recipe: SurrogateRecipe, parts: MotionParts) -> DynamicsModel:
    """Build the model of a recipe with random weights; angles, constraints and inputs that the data have are filled in.

    Raises:
        ConfigError: if an option is unknown, or does not suit the data.
    """
    name, given = recipe.model.name, recipe.model.options
    known = models.model_class(name)[1].model_fields
    filled = {key: value for key, value in _facts(recipe.data, parts).items() if key in known}
    dtype = "float64" if recipe.training.precision == "float64" else "float32"
    return models.build(
        name, parts.train.dof, dtype=dtype, seed=recipe.model.seed, info=_info(parts.train), **{**filled, **given}
    )


def _facts(options: MotionData, parts: MotionParts) -> dict[str, Any]:
    """What a model may want to know about the data."""
    found: dict[str, Any] = {}
    if parts.train.controls is not None:
        found["controls"] = parts.train.controls.shape[2]
    if parts.system is None:
        return found
    if options.coordinates == "canonical" and parts.system.angular:
        found["angles"] = tuple(range(parts.system.dof))
    if isinstance(parts.system, LennardJonesParticles):
        found |= parts.system.surroundings()
    if options.coordinates == "cartesian":
        embedding = parts.system.embedding()
        if embedding is not None and embedding.rods is not None:
            found |= {"links": embedding.rods.links, "lengths": embedding.rods.lengths}
    return found


def _info(data: Trajectories) -> dict[str, Any]:
    return {key: value for key, value in data.info.items() if key in ("system", "parameters", "coordinates", "source")}


def make_samples(data: Trajectories, model: DynamicsModel, options: ObjectiveOptions, seed: int = 0) -> Samples:
    """Return the trajectories as the objective takes them.

    Args:
        seed: of the windows, where one is drawn from each trajectory.

    Raises:
        DataError: if the data lack what the model or the objective needs.
    """
    if options.match == "derivative":
        return single_states(data, model.coordinates, model.dtype)
    cut = data.windows(options.window) if options.windows == "all" else data.random_windows(options.window, seed)
    if options.segment is not None:
        cut = cut.segments(options.segment)
    return pieces(cut, model.coordinates, model.dtype)
