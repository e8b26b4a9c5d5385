"""Fine-tuning: a training that starts from a model file instead of random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from simkit.config import nearest
from simkit.datasets.store import Store
from simkit.errors import ConfigError, LabelError
from simkit.files import sha256_file
from simkit.potential import Potential
from simkit.potentials import from_header, load, read_header
from simkit.properties import KINDS
from simkit.training.elements import add_elements
from simkit.training.evaluation import predict
from simkit.training.fit import FitResult
from simkit.training.low_rank import FreshEntries, LowRankUpdate, add_update, largest_rank, merge_updates
from simkit.training.recipe import ModelOptions, Recipe, StartOptions

DEFAULT_RANK = 8
# What the model section may say beside a start.
OWN = {"seed", "references"}
# What a model's info says of its own training, which its descendants hand down.
LINEAGE = ("data", "data_hash", "split_hash", "level_of_theory", "training_structures", "started_from")


def inherited(recipe: Recipe) -> Recipe:
    """Return a recipe whose model section is that of the file it starts from; a recipe without a start stays as it is.

    Raises:
        ModelFileError: if the file is no model.
        ConfigError: if the recipe's own model section says anything else, or its precision is not that of the weights.
    """
    if recipe.start is None:
        return recipe
    path, given = recipe.start.model, recipe.model
    header = read_header(path)
    defaults = {key: value for key, value in ModelOptions().model_dump().items() if key not in OWN}
    shared = {key: header.get(key, value) for key, value in defaults.items()}
    facts = {**shared, "name": header["architecture"], **header["options"]}
    if given.references != "auto":
        raise ConfigError("model.references has no place beside a start from a model file; use start.references")
    stated = given.model_dump(mode="json", include=given.model_fields_set - OWN)
    for key, value in stated.items():
        if key not in facts:
            raise ConfigError(f"model.{key} is no option of the {facts['name']} in {path}{nearest(key, facts)}")
        if value != facts[key]:
            raise ConfigError(
                f"model.{key} is {value!r} in the recipe, but {facts[key]!r} in {path}, which fixes the model; leave it out, or train "
                "without start"
            )
    expected = "float64" if recipe.training.precision == "float64" else "float32"
    if header["dtype"] != expected:
        raise ConfigError(
            f"training.precision {recipe.training.precision} trains {expected} weights, but those of {path} are {header['dtype']}; "
            f"set training.precision={header['dtype']}"
        )
    return recipe.model_copy(update={"model": ModelOptions(seed=given.seed, **facts)})


def start_from(options: StartOptions, elements: Sequence[int], seed: int) -> Potential:
    """Return the potential of a model file, ready for further training; its ``info`` says what it started from.

    Args:
        elements: atomic numbers that the data hold; new ones are added.
        seed: of fresh weights.

    Raises:
        ModelFileError: if the file is no model.
        ConfigError: if elements cannot be added, or nothing is left to train.
    """
    parent = load(options.model)
    if not parent.num_parameters:
        raise ConfigError(f"the {parent.architecture} in {options.model} has no weights to train")
    potential, fresh = add_elements(parent, elements, seed)
    own = {key: parent.info[key] for key in LINEAGE if key in parent.info}
    potential.info = {
        "started_from": {
            "file": Path(options.model).name,
            "sha256": sha256_file(options.model),
            "elements": parent.elements,
            "mode": options.mode,
            **own,
        }
    }
    if options.mode != "full":
        _train_in_part(potential, options, fresh, seed)
    potential.info["started_from"]["trained"] = what_trains(potential)
    return potential


def _train_in_part(potential: Potential, options: StartOptions, fresh: Mapping[str, Tensor], seed: int) -> None:
    """Freeze what does not train and add the updates."""
    weights = {name: p for name, p in potential.named_parameters() if p.requires_grad}
    heads = [name for name in weights if name.startswith("heads.")]
    others = [name for name in weights if name not in heads]
    layers = _matching(options.layers, others) if options.layers is not None else None
    rank = options.rank or DEFAULT_RANK
    whole = heads + (layers or []) if options.mode == "frozen" else heads
    updated = [] if options.mode == "frozen" else _adaptable(weights, others if layers is None else layers, rank)
    for name, p in weights.items():
        p.requires_grad_(name in whole)
    for name in fresh:
        if name not in whole:
            add_update(potential, name, FreshEntries(weights[name], fresh[name]))
    generator = torch.Generator().manual_seed(seed)
    for name in updated:
        add_update(potential, name, LowRankUpdate(weights[name], rank, generator))
    if not potential.num_parameters:
        raise ConfigError(
            f"start.mode frozen leaves nothing to train: the heads of {options.model} have no weights; use start.layers or another mode"
        )


def what_trains(potential: Potential) -> str:
    """Say how many numbers of a potential train, and where."""
    updates = {LowRankUpdate: "low-rank updates", FreshEntries: "entries of new elements"}
    counts: Counter[str] = Counter()
    total = 0
    for name, p in potential.named_parameters():
        place = updates.get(type(potential.get_submodule(name.rpartition(".")[0])))
        if place is None:
            total += p.numel()
            place = "heads" if name.startswith("heads.") else "representation"
        counts[place] += p.numel() if p.requires_grad else 0
    parts = ", ".join(f"{count:,} in {place}" for place, count in counts.items() if count)
    return f"{counts.total():,} numbers train ({parts}) in a model of {total:,}"


def lineage(start: Mapping[str, Any]) -> str:
    """Return in words what ``info["started_from"]`` of a model says."""
    theory = start.get("level_of_theory") or "level of theory not stated"
    text = f"{start['file']} (SHA-256 {start['sha256'][:16]}; {start.get('data', 'data not stated')}, {theory})"
    return text + (f", which started from {lineage(start['started_from'])}" if start.get("started_from") else "")


def start_messages(potential: Potential, data_hash: str, split_hash: str) -> list[str]:
    """Return what there is to tell before a training that started from a model file; nothing for any other."""
    start = potential.info.get("started_from")
    if start is None:
        return []
    added = [chemical_symbols[z] for z in potential.elements if z not in start["elements"]]
    messages = [f"started from {lineage(start)}", f"{start['mode']}: {start['trained']}"]
    if added:
        messages.append(f"new elements with fresh weights: {', '.join(added)}")
    if start.get("data_hash") == data_hash and start.get("split_hash") != split_hash:
        messages.append(
            f"warning: {start['file']} was trained on these data with another split; errors may be of structures that it has seen"
        )
    return messages


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the names that one of the patterns matches.

    Raises:
        ConfigError: if a pattern matches none.
    """
    matched = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    for pattern, found in matched.items():
        if not found:
            raise ConfigError(
                f"start.layers: no weight outside the heads is called {pattern!r}{nearest(pattern, names)}"
            )
    return [name for name in names if any(name in found for found in matched.values())]


def _adaptable(weights: Mapping[str, Tensor], names: Sequence[str], rank: int) -> list[str]:
    """Return which of the weights ``names`` a low-rank update makes smaller.

    Raises:
        ConfigError: if there are none.
    """
    best = max((largest_rank(weights[name]) for name in names), default=0)
    if best == 0:
        raise ConfigError("start.mode low_rank finds no matrix to update; use mode full, or leave out start.layers")
    if rank > best:
        raise ConfigError(f"start.rank {rank} saves nothing: for the model's matrices the largest that does is {best}")
    return [name for name in names if largest_rank(weights[name]) >= rank]


def merged(potential: Potential, result: FitResult) -> FitResult:
    """Turn a trained potential into an ordinary one with the same energies, and the last weights of the result into its weights."""
    last = merge_updates(potential, result.last_weights)
    usual = dict(from_header(potential.header()).named_parameters())
    for name, p in potential.named_parameters():
        p.requires_grad_(usual[name].requires_grad)
    return replace(result, last_weights=last)


def start_references(potential: Potential, store: Store, options: StartOptions) -> dict[str, str]:
    """Set the references of a model at the start of its further training, as far as there are labels; scales stay as they are.

    "refit" adds to the reference of each element what least squares find in the labels minus the model's predictions, so that the
    model starts with the smallest errors that references alone can give; of several solutions (all frames of one molecule) the smallest
    change. This holds for the energy and for other extensive properties; intensive ones get the mean of the difference. A model that is
    anchored to its isolated atoms takes their energies from the data set, if it has them. "keep" fits new elements only. Elements that
    the data lack keep their references.

    Args:
        potential: made by `start_from`.
        store: training data.

    Returns:
        Property -> where its references came from, in words.

    Raises:
        LabelError: if reference energies are to be fitted and the data have no energies.
        ConfigError: if given energies name what is no element.
        ElementError: if given energies lack an element.
    """
    known = potential.info["started_from"]["elements"]
    fitted = [z for z in store.elements if options.references != "keep" or z not in known]
    origins = {}
    if "energy" in potential.heads and (origin := _given_energies(potential, store, options)):
        origins["energy"] = origin
    elif "energy" in potential.heads and fitted and "energy" not in store.labels:
        raise LabelError(
            "reference energies are fitted to energies, but the training data have none; give them as start.references"
            + (", or set it to keep" if options.references == "refit" else "")
        )
    for name in potential.heads:
        if name not in origins and name in store.labels and KINDS[name] in ("energy", "extensive", "intensive"):
            origins[name] = _refit(potential, name, store, fitted, shift=options.references != "keep")
    return origins


def _refit(potential: Potential, name: str, store: Store, fitted: Sequence[int], *, shift: bool) -> str:
    """Fit the references of one property for the elements ``fitted``, or the shift of an intensive one; say what was done."""
    own = "those of the model that it starts from"
    intensive = KINDS[name] == "intensive"
    if not fitted or (intensive and not shift):
        return own
    predicted = predict(potential, store.with_neighbors(potential.cutoff), (name,))[name]
    residual = store.labels[name].double().cpu() - predicted
    if intensive:
        potential.get_buffer(f"standards.{name}.shift").add_(float(residual.mean()))
        return f"{own}, shifted by the mean of what it leaves of the training data"
    counts = store.composition().cpu()[:, [store.elements.index(z) for z in fitted]]
    change = torch.linalg.lstsq(counts, residual.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    reference = potential.get_buffer("reference" if name == "energy" else f"standards.{name}.reference")
    reference[[potential.elements.index(z) for z in fitted]] += change.to(reference)
    return f"{own}, with {', '.join(chemical_symbols[z] for z in fitted)} fitted to what it leaves of the training data"


def _given_energies(potential: Potential, store: Store, options: StartOptions) -> str | None:
    """Set reference energies that need no fit; say where they came from, None where a fit is needed."""
    if isinstance(options.references, dict):
        unknown = [symbol for symbol in options.references if symbol not in atomic_numbers]
        if unknown:
            raise ConfigError(f"start.references: {', '.join(unknown)} are not element symbols")
        potential.set_references({atomic_numbers[symbol]: energy for symbol, energy in options.references.items()})
        return "given"
    isolated = {int(z): float(e) for z, e in store.info.get("references", {}).get("energy", {}).items()}
    if options.references == "refit" and potential.anchored and set(potential.elements) <= set(isolated):
        potential.set_references(isolated)
        return "isolated atoms of the data set"
    return None
