"""More elements for a trained potential: its own weights stay, those of the new elements are fresh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from simkit.errors import ConfigError
from simkit.potential import Potential
from simkit.potentials import from_header


def add_elements(potential: Potential, numbers: Sequence[int], seed: int = 0) -> tuple[Potential, dict[str, Tensor]]:
    """Return a potential that knows further elements and gives the old ones the energies that it gave them before.

    A second potential is built for all elements. A weight that has another size there is indexed by the species along that dimension
    (or as `Representation.element_axis` says): its entries move to where their elements are now. Entries of new elements, and weights
    that only the second potential has, keep their random start; the new elements' reference energies are zero.

    Args:
        numbers: atomic numbers to know; those that are known already change nothing.
        seed: of the fresh weights.

    Returns:
        The potential (the one given, if nothing is new) and, for each weight with fresh entries, which these are, as a bool tensor.

    Raises:
        ConfigError: if a weight of the architecture depends on the elements in any other way.
    """
    elements = sorted({*potential.elements, *numbers})
    if elements == potential.elements:
        return potential, {}
    grown = from_header(potential.header(), elements=elements, seed=seed)
    moves = _moves(potential, grown)
    old, new = potential.state_dict(), grown.state_dict()
    fresh = {name: torch.ones_like(p, dtype=torch.bool) for name, p in grown.named_parameters()}
    for name, source in old.items():
        places = _places(source, new[name], moves) if name in new else None
        if places is None:
            added = ", ".join(chemical_symbols[z] for z in elements if z not in potential.elements)
            raise ConfigError(
                f"{potential.architecture} cannot learn more elements ({added}): there is no telling which entries of its weight "
                f"{name} belong to which element; train a new model for all of them"
            )
        if source.is_floating_point():  # whole numbers are tables of the architecture, already right for all elements
            new[name][places] = source.to(new[name].device)
        if name in fresh:
            fresh[name][places] = False
    return grown.to(potential.device).train(potential.training), {
        n: mask for n, mask in fresh.items() if bool(mask.any())
    }


def _moves(old: Potential, new: Potential) -> dict[tuple[int, int], Tensor]:
    """Return (old size, new size) of a dimension -> where its old entries are in the new one."""
    places = torch.tensor([new.elements.index(z) for z in old.elements])
    moves = {(len(old.elements), len(new.elements)): places}
    before, after = old.representation.element_axis(), new.representation.element_axis()
    if before is not None and after is not None:
        species = before[:, :-1]
        moved = torch.where(species < 0, species, places[species.clamp(min=0)])
        row_of = {tuple(row): k for k, row in enumerate(after.tolist())}
        rows = torch.cat([moved, before[:, -1:]], dim=1).tolist()
        moves[len(before), len(after)] = torch.tensor([row_of[tuple(row)] for row in rows])
    return moves


def _places(old: Tensor, new: Tensor, moves: dict[tuple[int, int], Tensor]) -> tuple[Tensor, ...] | None:
    """Return the indices of the old tensor's entries in the new one; None where that cannot be told."""
    if old.dim() != new.dim():
        return None
    axes = []
    for before, after in zip(old.shape, new.shape, strict=True):
        if before != after and (before, after) not in moves:
            return None
        axes.append(torch.arange(after) if before == after else moves[before, after])
    return tuple(torch.meshgrid(*axes, indexing="ij")) if axes else ()
