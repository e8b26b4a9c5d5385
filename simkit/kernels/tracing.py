"""What networks are told of atoms and edges while they are traced, when no shape and no branch may depend on values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Arrangement:
    """Atoms sorted by species and edges sorted by receiver; edge k + E/2 is the reverse of edge k in whatever is traced.

    Attributes:
        species: those that there are, ascending. members: their atoms, [n] int64 each.
        place: [N] int64, where each atom is in the members put end to end.
        edge: [R, slots] int64, the edges of rows that have one receiver each; E in an empty slot.
        sender: [R, slots] int64, of those edges; 0 in an empty slot. receiver: [R] int64.
        own: what `Representation.arrange` returns.
    """

    species: tuple[int, ...]
    members: tuple[Tensor, ...]
    place: Tensor
    edge: Tensor
    sender: Tensor
    receiver: Tensor
    own: tuple[Tensor, ...] = ()


_GIVEN: ContextVar[Arrangement | None] = ContextVar("arrangement", default=None)


@contextmanager
def tracing(given: Arrangement) -> Iterator[None]:
    """Trace what is computed inside with this arrangement."""
    token = _GIVEN.set(given)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def arrangement() -> Arrangement | None:
    """Return what was given; None where nothing is traced."""
    return _GIVEN.get()
