"""`Committee`: several potentials trained apart; their mean is what they agree on, their spread where they know nothing.

Query by committee for potentials: Smith et al., J. Chem. Phys. 148, 241733 (2018); Schran, Brezina & Marsalek, J. Chem. Phys. 153,
104105 (2020).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, cast

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import all_changes
from torch import Tensor, nn

from simkit.errors import ConfigError, DataError, ElementError
from simkit.fast.potential import FastPotential
from simkit.graph import AtomGraph
from simkit.md.forces import PotentialForces
from simkit.md.state import State
from simkit.potential import Potential
from simkit.potentials import load

MEANS = ("energy", "forces", "stress")
SPREADS = {"energy_disagreement": "energy", "disagreement": "forces"}
"""What a committee gives besides means, and what it is the spread of."""


def force_disagreement(forces: Tensor) -> Tensor:
    """Return sqrt(<|F - <F>|^2>) over the members for each atom, [N] in eV/angstrom.

    The model deviation of Zhang et al., Phys. Rev. Mater. 3, 023804 (2019), before its maximum over the atoms is taken: averages <...>
    are over the M members, divided by M.

    Args:
        forces: [M, N, 3] eV/angstrom.
    """
    return (forces - forces.mean(0)).square().sum(2).mean(0).sqrt()


class Committee(nn.Module):
    """M potentials that are evaluated on one graph with one neighbor list.

    It answers to what is asked of a `Potential` in dynamics and in evaluations. Its energy, forces and stress are the means over the
    members, so that forces are the derivative of the energy. ``disagreement`` [N] is that of the forces, see `force_disagreement`;
    ``energy_disagreement`` [B] the standard deviation of the energies in eV (divided by M, likewise).

    Args:
        members: potentials for the same elements and of one dtype, at least two.

    Raises:
        ConfigError: if there are fewer than two, one gives no energies, or dtypes differ.
        ElementError: if they know different elements.
    """

    def __init__(self, members: Sequence[Potential]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"a committee needs at least two members to disagree, found {len(members)}")
        for k, member in enumerate(members):
            if "energy" not in member.outputs:
                raise ConfigError(
                    f"member {k} of the committee gives no energies; it gives {', '.join(member.outputs)}"
                )
            if member.elements != members[0].elements:
                raise ElementError(
                    f"expected members for the same elements, found {members[0].elements} and {member.elements} (member {k})"
                )
            if member.dtype != members[0].dtype:
                raise ConfigError(
                    f"member {k} of the committee is of {member.dtype}, member 0 of {members[0].dtype}; cast one of them"
                )
        self.members = nn.ModuleList(members)
        self.cutoff = max(member.cutoff for member in members)
        self.elements = list(members[0].elements)
        self.outputs = (*MEANS, *SPREADS)

    @classmethod
    def load(cls, paths: Sequence[str | os.PathLike[str]]) -> Self:
        """Return the committee of several model files.

        Raises:
            ModelFileError: if one of them is no model.
        """
        return cls([load(path) for path in paths])

    def __len__(self) -> int:
        return len(self.members)

    @property
    def dtype(self) -> torch.dtype:
        """That of the members' weights."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return self._first.device

    @property
    def _first(self) -> Potential:
        return cast(Potential, self.members[0])

    def cast(self, dtype: torch.dtype) -> Committee:
        """Cast the networks of all members in place."""
        for member in self.members:
            cast(Potential, member).cast(dtype)
        return self

    def check_elements(self, numbers: Sequence[int]) -> None:
        """Raise ElementError, naming them, if any of the atomic numbers is unknown to the members."""
        self._first.check_elements(numbers)

    def header(self) -> dict[str, Any]:
        """What the members are, besides their weights."""
        headers = [cast(Potential, member).header() for member in self.members]
        return {"committee": [{key: value for key, value in h.items() if key != "info"} for h in headers]}

    def forward(self, graph: AtomGraph, outputs: Sequence[str] = ("energy", "forces")) -> dict[str, Tensor]:
        """Return what is asked for: any of ``self.outputs``, in the shapes and units of `Potential.forward`.

        Raises:
            ConfigError: if an output is unknown.
            ElementError, GeometryError: as `Potential.forward`.
        """
        return self._joined([cast(Potential, member) for member in self.members], graph, outputs)

    def fast(self) -> Callable[[AtomGraph, Sequence[str]], dict[str, Tensor]]:
        """Return the same as a function of graph and outputs, by the members' fast paths as they are now."""
        return partial(self._joined, [cast(Potential, member).fast() for member in self.members])

    def _joined(
        self, members: Sequence[Potential | FastPotential], graph: AtomGraph, outputs: Sequence[str]
    ) -> dict[str, Tensor]:
        unknown = [name for name in outputs if name not in self.outputs]
        if unknown:
            raise ConfigError(f"a committee cannot give {', '.join(unknown)}; it gives {', '.join(self.outputs)}")
        needed = tuple(dict.fromkeys(SPREADS.get(name, name) for name in outputs))
        found = [member(graph, needed) for member in members]
        stacked = {name: torch.stack([values[name] for values in found]) for name in needed}
        result = {name: stacked[name].mean(0) for name in needed if name in outputs}
        if "disagreement" in outputs:
            result["disagreement"] = force_disagreement(stacked["forces"])
        if "energy_disagreement" in outputs:
            result["energy_disagreement"] = stacked["energy"].std(0, correction=0)
        return result


class CommitteeForces(PotentialForces):
    """The mean forces of a committee for `simkit.md.Simulation`; how much its members disagree comes with every evaluation.

    Args:
        committee: copied, and stays as it is. device, dtype, skin, fast: as for `PotentialForces`.

    Attributes:
        disagreement: [N] eV/angstrom, of the last evaluation: after each step of an ensemble, of the state's positions.
    """

    def __init__(
        self,
        committee: Committee,
        device: str = "cpu",
        dtype: str = "float32",
        skin: float = 0.5,
        fast: bool = True,
    ) -> None:
        # It has all that is asked of a potential there.
        super().__init__(cast(Potential, committee), device, dtype, skin, fast)
        self.disagreement = torch.empty(0, dtype=torch.float64, device=self.device)

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        """Fill forces, energies and, where asked for, stress; see `PotentialForces.compute`."""
        if len(self.disagreement) != len(state.positions):
            self.disagreement = state.positions.new_empty(len(state.positions))
        super().compute(state, energy=energy, stress=stress)

    def _evaluate(self, chunk: Any, outputs: tuple[str, ...]) -> dict[str, Tensor]:
        found = super()._evaluate(chunk, (*outputs, "disagreement"))
        self.disagreement[chunk.atoms] = found["disagreement"].to(self.disagreement)
        return found


class CommitteeCalculator(ASECalculator):
    """A committee as an ASE calculator: energy, forces and, for structures periodic in all directions, stress are means of the members.

    ``results["disagreement"]``, or ``calculator.get_property("disagreement", atoms)``, is that of the forces, [N] eV/angstrom.

    Args:
        committee: a `Committee`, or paths of the model files of its members.
        device, dtype, skin, fast: as for `simkit.Calculator`.
    """

    name = "simkit-committee"
    implemented_properties = ("energy", "free_energy", "forces", "stress", "disagreement")

    def __init__(
        self,
        committee: Committee | Sequence[str | os.PathLike[str]],
        device: str = "cpu",
        dtype: str = "float32",
        skin: float = 0.5,
        fast: bool = True,
    ) -> None:
        super().__init__()
        members = committee if isinstance(committee, Committee) else Committee.load(committee)
        self.forces = CommitteeForces(members, device, dtype, skin, fast)
        self._state: State | None = None
        self._system: tuple[Any, ...] = ()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Evaluate the committee; called by ASE when something is not known yet."""
        super().calculate(atoms, properties, system_changes)
        structure: Atoms | None = self.atoms
        if structure is None:
            raise DataError("no structure to calculate: set atoms.calc, or pass the atoms")
        state = self._update(structure)
        periodic = bool(structure.pbc.all())
        self.forces.compute(state, stress=periodic)
        energy = float(state.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": state.forces.cpu().numpy().copy(),
            "disagreement": self.forces.disagreement.cpu().numpy().copy(),
        }
        if periodic:
            self.results["stress"] = state.stress[0].cpu().numpy().flat[[0, 4, 8, 5, 2, 1]]

    def _update(self, atoms: Atoms) -> State:
        """The state of a structure; that of the last one, with its neighbor list, where only positions and cell are new."""
        system = (atoms.numbers.tobytes(), atoms.pbc.tobytes(), atoms.info.get("charge"))
        if self._state is None or system != self._system:
            free = atoms.copy()
            free.set_constraint()
            self._state, self._system = State.from_atoms([free], self.forces.device), system
        self._state.positions.copy_(torch.from_numpy(atoms.positions))
        self._state.cells.copy_(torch.from_numpy(atoms.cell.array)[None])
        return self._state
