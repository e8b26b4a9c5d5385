"""What a training is for: the labels that are trained on and the loss that each has by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simkit.config import names_in, nearest
from simkit.properties import DERIVED, KINDS
from simkit.training.options import LossTerm

ALL = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
"""What "all" stands for: the twelve properties of QM9 that the literature trains on."""

DEFAULT_LOSS = {
    "energy": LossTerm(weight=0.1),
    "forces": LossTerm(weight=1.0),
    "stress": LossTerm(weight=100.0),
    "dipole": LossTerm(weight=1.0),
}
"""Used for the labels that the data have (energy, forces and stress) when a recipe names neither target nor loss."""

TARGET_LOSS = LossTerm(kind="mae", standardised=True)
"""Of every other label, and of a dipole that is a target: the error that is reported, in units of what there is to learn."""

TRAINABLE = tuple(dict.fromkeys([*KINDS, *DERIVED["energy"]]))
"""Every label that a loss may name."""


def expand_targets(given: Any) -> list[str]:
    """Return the names of targets, each once, from a name, several behind commas, or a list of these.

    Raises:
        ValueError: if one is unknown or there is none.
    """
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"expected names such as U0 or [mu, gap], found {given!r}")
    names = [name for word in words for name in names_in(word)]
    names = list(dict.fromkeys(known for name in names for known in (ALL if name == "all" else (name,))))
    for name in names:
        if name not in KINDS:
            raise ValueError(f"unknown target {name!r}{nearest(name, [*KINDS, 'all'])}")
    if not names:
        raise ValueError("expected at least one target, found none")
    return names


def default_term(name: str, targets: Iterable[str] = ()) -> LossTerm:
    """Return the loss term that a label has where the recipe leaves it open."""
    if name in ("energy", "forces", "stress") or (name == "dipole" and name not in targets):
        return DEFAULT_LOSS[name]
    return TARGET_LOSS


def default_loss(targets: Sequence[str] | None, labels: Sequence[str]) -> dict[str, LossTerm]:
    """Return the terms for some targets or, without any, for energy, forces and stress; these three as far as they are labelled."""
    energy = {name: DEFAULT_LOSS[name] for name in ("energy", "forces", "stress") if name in labels}
    if targets is None:
        return energy
    terms: dict[str, LossTerm] = {}
    for name in targets:
        terms |= energy if name == "energy" else {name: default_term(name, targets)}
    return terms


def heads_for(loss: Iterable[str]) -> list[str]:
    """Return the outputs that a model needs for the labels of a loss; forces and stress come with the energy."""
    return list(dict.fromkeys("energy" if name in ("forces", "stress") else name for name in loss))
