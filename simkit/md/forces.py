"""`PotentialForces`: a `Potential` as the forces of a batch of replicas; `as_forces`: the forces of whatever stands for a model."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols
from torch import Tensor

from simkit.calculator import DTYPES, Calculator
from simkit.classical import ClassicalCalculator, ClassicalPotential
from simkit.device import resolve_device
from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.fast.potential import FastPotential
from simkit.graph import AtomGraph
from simkit.md.edges import Edges
from simkit.md.forces_ase import CalculatorForces
from simkit.md.forces_classical import ClassicalForces
from simkit.md.protocols import Forces
from simkit.md.state import State, begin_stress
from simkit.md.system import potential_hash
from simkit.memory import keep_freed_memory
from simkit.potential import Potential
from simkit.potentials import load

ForceModel: TypeAlias = Forces | Potential | ClassicalPotential | BaseCalculator | str | os.PathLike[str]
"""What `as_forces` takes."""

# Replicas are evaluated together up to this many atoms, which bounds the memory; larger ones alone.
CHUNK_ATOMS = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True)
class _Chunk:
    """Replicas that are evaluated together: the graph's positions and cells are views of the state's; ``store`` holds its tensors."""

    graph: AtomGraph
    store: MutableMapping[str, Tensor]
    edges: Edges
    atoms: slice
    replicas: slice


class PotentialForces:
    """Energy, forces and stress of a `Potential`, for all replicas of a state at once.

    The graph is made once for a state; in each call, edges are brought up to date and the network runs, all on one device. Numbers are
    those of `simkit.Calculator`: the same to the bit for one replica, and to the rounding of the network's dtype for several, because
    matrix products of other sizes round differently. Positions, cells and sums of energies are float64.

    Args:
        potential: the model, which is copied and stays as it is.
        device: "cpu", "cuda" or "cuda:1". dtype: of the network, "float32" or "float64".
        skin: of neighbor lists, angstrom, see `Edges`.
        fast: take the model's fast path where it has one, see `simkit.fast.potential.FastPotential`.

    Attributes:
        potential: the model. model: what is evaluated, its fast path or itself. evaluations: how many times it was.

    Raises:
        ConfigError: if an argument has an unusable value.
        DeviceError: if the device is not there.
    """

    def __init__(
        self,
        potential: Potential,
        device: str = "cpu",
        dtype: str = "float32",
        skin: float = 0.5,
        fast: bool = True,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be float32 or float64, found {dtype!r}")
        if "energy" not in potential.outputs:
            raise ConfigError(f"a simulation needs an energy; the model gives {', '.join(potential.outputs)} only")
        self.device = resolve_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        model = copy.deepcopy(potential).cast(DTYPES[dtype])
        # Without gradients of the weights, autograd follows nothing but the edge vectors.
        self.potential = model.to(self.device).eval().requires_grad_(False)
        self.model = self.potential.fast() if fast else self.potential
        self.evaluations = 0
        self._skin = skin
        self._bound: Tensor | None = None
        self._chunks: list[_Chunk] = []

    @property
    def neighbor_builds(self) -> int:
        """Neighbor lists built so far for the present state, all replicas together."""
        return int(sum(chunk.edges.builds.sum() for chunk in self._chunks))

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        """Fill forces, energies (which cost nothing more) and, where asked for, stress.

        Raises:
            ConfigError: if the state is on another device, or a stress is asked for where not all is periodic.
            ElementError: if a replica holds an element that the model does not know.
            GeometryError: if the model cannot take a replica.
        """
        if state.positions is not self._bound:
            self._bind(state)
        begin_stress(state, stress)
        outputs = ("energy", "forces", "stress") if stress else ("energy", "forces")
        for chunk in self._chunks:
            try:
                found = self._evaluate(chunk, outputs)
            except GeometryError as error:
                if chunk.replicas.start == 0:
                    raise
                raise GeometryError(f"{error} (counted from replica {chunk.replicas.start} on)") from error
            state.forces[chunk.atoms] = found["forces"]
            state.energy[chunk.replicas] = found["energy"]
            if stress:
                state.stress[chunk.replicas] = found["stress"]

    @property
    def compiled(self) -> bool:
        """Whether the model's network is a compiled one, whose rounding is another."""
        return isinstance(self.model, FastPotential) and self.model.uses_compiled

    def identity(self) -> str:
        """A hash of architecture, weights and dtype."""
        return potential_hash(self.potential)

    def forget(self) -> None:
        """Drop graphs and neighbor lists."""
        self._bound, self._chunks = None, []

    def _evaluate(self, chunk: _Chunk, outputs: tuple[str, ...]) -> dict[str, Tensor]:
        edge_index, edge_shift = chunk.edges.update()
        chunk.store["edge_index"] = edge_index
        if edge_shift is not None:
            chunk.store["edge_shift"] = edge_shift
        self.evaluations += 1
        return self.model(chunk.graph, outputs)

    def _bind(self, state: State) -> None:
        """Make the graphs of a state."""
        if state.device != self.device:
            raise ConfigError(
                f"the state is on {state.device}, the model on {self.device}; they must be on the same device"
            )
        self._check_elements(state)
        charges = state.charges if bool((state.charges != 0).any()) else None
        self._chunks = []
        for first, last in _chunks(np.diff(state.offsets), CHUNK_ATOMS[self.device.type]):
            offsets = state.offsets[first : last + 1] - state.offsets[first]
            atoms, replicas = slice(*state.offsets[[first, last]].tolist()), slice(first, last)
            positions, cells, pbc = state.positions[atoms], state.cells[replicas], state.pbc[replicas]
            graph = AtomGraph(
                z=state.numbers[atoms],
                pos=positions,
                cell=cells,
                pbc=torch.from_numpy(pbc).to(self.device),
                batch=state.structure[atoms] - first,
                ptr=torch.from_numpy(offsets).to(self.device),
                **({} if charges is None else {"charge": charges[replicas]}),
            )
            edges = Edges(positions, cells, pbc, offsets, self.potential.cutoff, self._skin)
            self._chunks.append(_Chunk(graph, graph._store, edges, atoms, replicas))
        self._bound = state.positions

    def _check_elements(self, state: State) -> None:
        unknown = ~np.isin(state.numbers.cpu().numpy(), self.potential.elements)
        if unknown.any():
            atom = int(np.flatnonzero(unknown)[0])
            replica = int(np.searchsorted(state.offsets, atom, side="right")) - 1
            raise ElementError(
                f"the model knows {', '.join(chemical_symbols[z] for z in self.potential.elements)} only, but replica {replica} holds "
                f"{chemical_symbols[int(state.numbers[atom])]}; use a model that was trained on these elements"
            )


def as_forces(
    model: ForceModel,
    *,
    device: str | None = None,
    dtype: str | None = None,
    skin: float | None = None,
    fast: bool | None = None,
) -> Forces:
    """Return the forces of a model in the fastest way there is for it.

    Args:
        model: a `Potential`, the path of one or a `simkit.Calculator` of one: `PotentialForces`. A `ClassicalPotential` or
            `ClassicalCalculator`: `ClassicalForces`. Any other ASE calculator: `CalculatorForces`, one structure after the other.
            Forces are returned as they are.
        device, dtype, skin, fast: as for `PotentialForces`, whose defaults are taken, or what a `simkit.Calculator` was made with.
            Only there do they mean something.

    Raises:
        ConfigError: if the model is none of these, or an argument is unusable or means nothing for it.
        ModelFileError: if the file is not a valid model.
    """
    if isinstance(model, Calculator):
        device = str(model.device) if device is None else device
        dtype = str(model.potential.dtype).removeprefix("torch.") if dtype is None else dtype
        skin = model.skin if skin is None else skin
        fast = model.fast if fast is None else fast
        model = model.potential
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if isinstance(model, Potential):
        return PotentialForces(
            model, device or "cpu", dtype or "float32", 0.5 if skin is None else skin, True if fast is None else fast
        )
    meaningless = (("device", device, "cpu"), ("dtype", dtype, "float64"), ("skin", skin, None), ("fast", fast, None))
    for name, value, only in meaningless:
        if value not in (None, only):
            raise ConfigError(f"{name}={value!r} is for neural potentials; the model is {type(model).__name__}")
    if isinstance(model, ClassicalPotential | ClassicalCalculator):
        return ClassicalForces(model)
    if all(hasattr(model, name) for name in ("compute", "identity", "forget", "device")):
        return model
    if hasattr(model, "get_potential_energy"):
        return CalculatorForces(model)
    raise ConfigError(
        f"model: expected a Potential, the path of one, a ClassicalPotential or an ASE calculator, found {type(model).__name__}"
    )


def _chunks(sizes: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of runs of replicas of at most ``limit`` atoms, or a single larger one."""
    first, atoms = 0, 0
    for k, size in enumerate(sizes):
        if k > first and atoms + size > limit:
            yield first, k
            first, atoms = k, 0
        atoms += int(size)
    yield first, len(sizes)
