"""How a named parameter changes a neural potential: the smallest set of changes that a chemist asks for."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from ase.data import atomic_numbers

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.potential import Potential
from simkit.potentials import from_header, load

OPERATIONS = ("set", "add", "scale", "towards")
_OPTION = "options."


@dataclass(frozen=True)
class Change:
    """What the value of a parameter does.

    | Operation | Effect of the value c |
    | --- | --- |
    | set | w = c |
    | add | w = w0 + c |
    | scale | w = c w0 |
    | towards | w = w0 + c (w1 - w0), all weights, with those of another model of the same architecture as w1 |

    Attributes:
        operation: one of these.
        target: names of weights or buffers, which may hold ``*``, such as "reference" (the elements' energies, eV), "scale" (of the
            network's energy) or "heads.energy.*"; "options." and the name of an option of the architecture, such as
            "options.epsilon", for set and scale; the other model for towards.
        index: an entry along the first dimension; None for all.
    """

    operation: str
    target: str | Potential
    index: int | None

    def tensors(self, potential: Potential) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return the tensors that change, and beside each that of the other model."""
        state = potential.state_dict()  # shares memory
        if isinstance(self.target, Potential):
            other = self.target.state_dict()
            return [(w, other[name]) for name, w in state.items() if w.is_floating_point()]
        return [(w, None) for name, w in state.items() if fnmatchcase(name, self.target) and w.is_floating_point()]

    def apply(self, potential: Potential, value: float) -> None:
        """Change a potential in place."""
        with torch.no_grad():
            for whole, other in self.tensors(potential):
                part = whole if self.index is None else whole[self.index]
                if self.operation == "set":
                    part.fill_(value)
                elif self.operation == "add":
                    part.add_(value)
                elif self.operation == "scale":
                    part.mul_(value)
                elif other is not None:
                    part.lerp_(other.to(part), value)


def read_change(name: str, entry: Mapping[str, Any], potential: Potential) -> Change:
    """Read {"add": "reference", "element": "C"}, {"scale": "scale"}, {"set": "options.epsilon"}, {"towards": "other.model"} or the like.

    ``element`` names an entry of a tensor that has one for each element of the model, ``index`` any entry.

    Raises:
        ConfigError: if there is no such operation, tensor, option or entry, or the other model is a different one.
    """
    kinds = [key for key in entry if key not in ("index", "element")]
    if len(kinds) != 1 or kinds[0] not in OPERATIONS or {"index", "element"} <= set(entry):
        raise ConfigError(
            f"{name}: expected one of {', '.join(OPERATIONS)}, and at most one of index and element; found {dict(entry)}"
        )
    operation, target = kinds[0], entry[kinds[0]]
    if operation == "towards":
        return Change(operation, _other(name, target, potential), None)
    if not isinstance(target, str):
        raise ConfigError(f"{name}: expected the name of a weight, buffer or option; found {target!r}")
    if target.startswith(_OPTION):
        _check_option(name, operation, target, entry, potential)
        return Change(operation, target, None)
    index = _index(name, entry, potential)
    change = Change(operation, target, index)
    found = change.tensors(potential)
    if not found:
        raise ConfigError(
            f"{name}: the model has no weight or buffer {target!r}{nearest(target, potential.state_dict())}"
        )
    for tensor, _ in found:
        if index is not None and not (tensor.dim() and 0 <= index < len(tensor)):
            raise ConfigError(f"{name}: {target} has the shape {list(tensor.shape)}, and no entry {index}")
        if "element" in entry and len(tensor) != len(potential.elements):
            raise ConfigError(
                f"{name}: {target} has {len(tensor)} entries, not one for each element; give an index instead"
            )
    return change


def changed(potential: Potential, changes: Sequence[Change], values: Sequence[float]) -> Potential:
    """Return a copy of a potential with the changes made for these values, in their order."""
    options = dict(potential.options)
    for change, value in zip(changes, values, strict=True):
        if _is_option(change):
            key = str(change.target).removeprefix(_OPTION)
            options[key] = value if change.operation == "set" else options[key] * value
    if options == potential.options:
        found = copy.deepcopy(potential)
    else:
        found = from_header(potential.header() | {"options": options})
        found.load_state_dict(potential.state_dict())
    for change, value in zip(changes, values, strict=True):
        if not _is_option(change):
            change.apply(found, value)
    return found.eval()


def _is_option(change: Change) -> bool:
    return isinstance(change.target, str) and change.target.startswith(_OPTION)


def _check_option(name: str, operation: str, target: str, entry: Mapping[str, Any], potential: Potential) -> None:
    key = target.removeprefix(_OPTION)
    numbers = [k for k, v in potential.options.items() if isinstance(v, float)]
    if key not in numbers:
        raise ConfigError(
            f"{name}: {potential.architecture} has no number {key!r} among its options{nearest(key, numbers)}"
        )
    if operation not in ("set", "scale") or len(entry) > 1:
        raise ConfigError(f"{name}: an option can be set or scaled as a whole; found {dict(entry)}")


def _index(name: str, entry: Mapping[str, Any], potential: Potential) -> int | None:
    if "element" in entry:
        number = atomic_numbers.get(entry["element"], 0)
        if number not in potential.elements:
            raise ConfigError(f"{name}: {entry['element']!r} is none of the model's elements")
        return potential.elements.index(number)
    index = entry.get("index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int)):
        raise ConfigError(f"{name}: expected a whole number as index; found {index!r}")
    return index


def _other(name: str, target: Any, potential: Potential) -> Potential:
    other = load(target) if isinstance(target, str | os.PathLike) else target
    if not isinstance(other, Potential):
        raise ConfigError(f"{name}: expected another model or the path of one; found {target!r}")
    shapes = {key: tuple(w.shape) for key, w in potential.state_dict().items()}
    if {key: tuple(w.shape) for key, w in other.state_dict().items()} != shapes or other.elements != potential.elements:
        raise ConfigError(
            f"{name}: the other model has other weights or elements; both must be of one architecture and size"
        )
    return other
