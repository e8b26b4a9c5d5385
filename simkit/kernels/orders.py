"""Which derivatives the caller of a network may ask for, which decides how little has to be kept and computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum


class Derivatives(Enum):
    """What may be differentiated of what is computed with edge vectors; each includes those below it."""

    ALL = "everything, twice with respect to edge vectors as well: Hessians"
    TRAINING = (
        "values and their first derivatives with respect to edge vectors, with respect to weights: training on forces"
    )
    FORCES = "values, once, with respect to edge vectors alone: dynamics"


_WANTED = ContextVar("wanted_derivatives", default=Derivatives.ALL)


@contextmanager
def promise(wanted: Derivatives) -> Iterator[None]:
    """Promise that no other derivatives are asked of what is computed inside; an architecture may leave the others out."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def wanted_derivatives() -> Derivatives:
    """Return what was promised; `Derivatives.ALL` where nothing was."""
    return _WANTED.get()
