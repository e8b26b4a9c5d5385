"""`ParticleCalculator`: a Hamiltonian graph network as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.surrogates.derivatives import enabled
from simkit.surrogates.models.graph_network import HamiltonianGraphNetwork
from simkit.units import unit_factor


class ParticleCalculator(Calculator):
    """Energy (and free_energy, the same) in eV and forces in eV/angstrom, in the precision of the model.

    Number of particles, box and periodicity are those of the structure, whose box must have its vectors along the axes. A model of two
    dimensions sees x and y only. ASE's dynamics take masses from the structure; `structure` makes one with those of the model.

    A model whose ``info`` has ``"units": {"length": "angstrom", "energy": "kcal/mol"}`` is converted. For all others it must be said what
    their units are: with ``length=1, energy=1``, reduced units are taken for angstrom and eV, and ASE's unit of time for theirs.

    Args:
        model: the model, which is left as it is.
        length: of the model's unit of length, angstrom. energy: of its unit of energy, eV.
        elements: chemical symbol of each species. Not needed with a single species, which then stands for any element.

    Raises:
        ConfigError: if units are neither named nor given, or elements and species do not fit.
    """

    implemented_properties = ("energy", "free_energy", "forces")
    results: dict[str, Any]
    atoms: Atoms

    def __init__(
        self,
        model: HamiltonianGraphNetwork,
        *,
        length: float | None = None,
        energy: float | None = None,
        elements: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.length, self.energy = _unit(model, "length", length), _unit(model, "energy", energy)
        species = len(model.kinetic.masses.known)
        if len(set(elements)) != len(elements) or len(elements) not in ({0, 1} if species == 1 else {species}):
            raise ConfigError(f"expected different elements, one for each of {species} species; found {list(elements)}")
        self.elements = tuple(elements)
        self._model = model
        self._system: tuple[Any, ...] = ()

    def structure(self, state: Tensor) -> Atoms:
        """Return particles with their box, masses (the model's, in amu) and momenta, and this calculator.

        Args:
            state: [2 N d], of the model that this calculator was made with.

        Raises:
            ConfigError: if the state does not fit the model.
        """
        model = self._model
        q, p = model.split(state.detach())
        if state.dim() != 1:
            raise ConfigError(f"one state [{2 * model.dof}] makes a structure; found {list(state.shape)}")
        masses = model.kinetic.masses().detach().reshape(-1, model.dimensions)[:, 0]
        symbols = self.elements or ("X",)
        atoms = Atoms(
            [symbols[k] for k in model.species.tolist()],
            positions=self._in_space(model.points(q)[0]) * self.length,
            cell=[*(side * self.length for side in model.box), *[0.0] * (3 - model.dimensions)],
            pbc=[side > 0 for side in model.box] + [False] * (3 - model.dimensions),
            masses=masses.double().cpu().numpy(),
        )
        # Momenta are in units of sqrt(amu eV), whatever the unit of length.
        atoms.set_momenta(self._in_space(model.points(p)[0]) * self.energy**0.5)
        atoms.calc = self
        return atoms

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything.

        Raises:
            ElementError: if the structure holds an element that is none of the species.
            GeometryError: if the box is not along the axes, or coordinates are not finite.
        """
        super().calculate(atoms, properties, system_changes)
        model = self._for_structure()
        places = self.atoms.positions[:, : model.dimensions] / self.length
        with enabled():
            q = torch.from_numpy(places).reshape(-1).to(model.unit).requires_grad_(True)
            value = model.potential(q)
            (slope,) = torch.autograd.grad(value, q)
        energy = float(value.detach()) * self.energy
        forces = -self._in_space(slope.reshape(-1, model.dimensions)) * (self.energy / self.length)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

    def _for_structure(self) -> HamiltonianGraphNetwork:
        """The model for the number of particles, the species and the box of the structure."""
        d = self._model.dimensions
        pbc, cell = self.atoms.pbc[:d], self.atoms.cell.array[:d]
        skewed = (np.abs(cell - np.diag(self.atoms.cell.array.diagonal())[:d])[pbc] > 1e-8).any()
        if skewed or (cell.diagonal()[pbc] <= 0).any() or self.atoms.pbc[d:].any():
            raise GeometryError(
                f"expected a box along the axes, periodic in at most {d} dimensions; found {self.atoms.cell.array.tolist()}, "
                f"pbc {self.atoms.pbc.tolist()}"
            )
        box = tuple(np.where(pbc, cell.diagonal() / self.length, 0.0).tolist())
        system = (len(self.atoms), box, self._species())
        if system != self._system:
            self._fitting = self._model.with_particles(system[0], box=box, species=system[2])
            self._system = system
        return self._fitting

    def _species(self) -> tuple[int, ...]:
        if not self.elements:
            return (0,) * len(self.atoms)
        symbols = self.atoms.get_chemical_symbols()
        unknown = set(symbols) - set(self.elements)
        if unknown:
            raise ElementError(
                f"the calculator was made for {', '.join(self.elements)}; found {', '.join(sorted(unknown))}"
            )
        return tuple(map(self.elements.index, symbols))

    def _in_space(self, vectors: Tensor) -> np.ndarray:
        """Vectors [N, d] as float64 [N, 3]."""
        found = np.zeros((len(vectors), 3))
        found[:, : vectors.shape[1]] = vectors.double().cpu().numpy()
        return found


def _unit(model: HamiltonianGraphNetwork, quantity: str, given: float | None) -> float:
    """What a unit of the model is in angstrom or eV: given, or as the model names it."""
    named = model.info.get("units", {}).get(quantity)
    value = unit_factor(named) if given is None and named is not None else given
    if value is None or not 0 < value < float("inf"):
        raise ConfigError(
            f"expected what the model's unit of {quantity} is in angstrom or eV; found {value}, and a model that names "
            f"{named or 'none'}. ParticleCalculator(model, length=1, energy=1) takes reduced units for angstrom and eV"
        )
    return value
