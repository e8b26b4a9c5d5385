"""`State`: a batch of structures with velocities and forces, the arrays that integrators, ensembles and models work on in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError, DataError
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

if TYPE_CHECKING:
    from ase import Atoms


@dataclass
class State:
    """B structures, called replicas even where they differ, with N atoms in all, end to end.

    Floating-point tensors are float64 and lie on one device. They are changed in place and never replaced: kernels hold their addresses.

    Attributes:
        numbers: [N] int64, atomic numbers. structure: [N] int64, the replica of each atom.
        offsets: [B + 1] int64, where the atoms of each replica begin, and N; on the host.
        masses: [N] amu. mobile: [N] bool, False for frozen atoms.
        positions: [N, 3] angstrom, never wrapped. velocities: [N, 3] angstrom/fs. forces: [N, 3] eV/angstrom.
        cells: [B, 3, 3] angstrom, one vector per row. pbc: [B, 3] bool, on the host.
        charges: [B] total charges, e.
        energy: [B] eV, of the positions; nan where it is not known. stress: [B, 3, 3] eV/angstrom^3 in ASE's sign, likewise.
        replicas: [B] uint32, on the host: the name of each replica, which its random numbers depend on.
        degrees: [B] degrees of freedom that carry kinetic energy.
        step: number of steps done.
        extra: the variables of the ensemble, by name: everything that a restart needs besides the above. Float64 tensors.
    """

    numbers: Tensor
    structure: Tensor
    offsets: NDArray[np.int64]
    masses: Tensor
    mobile: Tensor
    positions: Tensor
    velocities: Tensor
    forces: Tensor
    cells: Tensor
    pbc: NDArray[np.bool_]
    charges: Tensor
    energy: Tensor
    stress: Tensor
    replicas: NDArray[np.uint32]
    degrees: Tensor
    step: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.positions.device

    @property
    def size(self) -> int:
        """The number of replicas."""
        return len(self.offsets) - 1

    @functools.cached_property
    def _segments(self) -> Tensor:
        """The offsets, on the device."""
        return torch.from_numpy(self.offsets).to(self.device)

    @property
    def inertia(self) -> Tensor:
        """Masses in eV fs^2/angstrom^2, so that velocities change by time * force / inertia; infinite for frozen atoms. [N]."""
        return torch.where(self.mobile, self.masses / FORCE_TO_ACCELERATION, torch.inf)

    def total(self, values: Tensor) -> Tensor:
        """Sum values of atoms [N, ...] over each replica, [B, ...]; always in the same order."""
        return torch.segment_reduce(values, "sum", offsets=self._segments, axis=0)

    def kinetic_energy(self) -> Tensor:
        """Kinetic energy of each replica, [B] eV."""
        return self.total((self.velocities**2).sum(1) * (self.masses * self.mobile)) * (0.5 / FORCE_TO_ACCELERATION)

    def kinetic_tensor(self) -> Tensor:
        """Sum over atoms of m v (x) v, [B, 3, 3] eV; half its trace is the kinetic energy."""
        momenta = self.velocities * (self.masses * self.mobile / FORCE_TO_ACCELERATION)[:, None]
        return self.total(momenta[:, :, None] * self.velocities[:, None, :])

    def temperature(self) -> Tensor:
        """2 K / (degrees k_B), [B] kelvin."""
        return 2 * self.kinetic_energy() / (self.degrees * BOLTZMANN)

    def volume(self) -> Tensor:
        """[B] angstrom^3; of use for replicas that are periodic in all directions only."""
        return torch.linalg.det(self.cells).abs()

    def pressure(self) -> Tensor:
        """Instantaneous pressure tensor, (sum m v (x) v) / V - stress, [B, 3, 3] eV/angstrom^3; positive under compression."""
        return self.kinetic_tensor() / self.volume()[:, None, None] - self.stress

    @classmethod
    def from_atoms(cls, structures: Sequence[Atoms], device: torch.device | str = "cpu") -> State:
        """Lay structures end to end: positions, cells, masses, charges, velocities (zero where there are none) and frozen atoms.

        Raises:
            DataError: if there is no structure, or an empty one, or a mass that is not positive.
            ConfigError: if a structure has constraints other than ASE's ``FixAtoms``.
        """
        from ase.constraints import FixAtoms
        from ase.units import fs

        if not structures:
            raise DataError("expected at least one structure, found none")
        for k, atoms in enumerate(structures):
            if len(atoms) == 0:
                raise DataError(f"structure {k} has no atoms; expected at least one")
            other = [type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)]
            if other:
                raise ConfigError(f"structure {k} has the constraint {other[0]}; only FixAtoms (frozen atoms) is known")
            if not (atoms.get_masses() > 0).all():
                raise DataError(f"structure {k} has masses that are not positive: {atoms.get_masses().min()} amu")
        offsets = np.concatenate([[0], np.cumsum([len(atoms) for atoms in structures])]).astype(np.int64)
        mobile = np.ones(offsets[-1], dtype=bool)
        for start, atoms in zip(offsets, structures, strict=False):
            for constraint in atoms.constraints:
                mobile[start + constraint.get_indices()] = False

        def stack(arrays: list[NDArray[np.float64]]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays).astype(np.float64)).to(device)

        positions = stack([atoms.positions for atoms in structures])
        velocities = stack([atoms.get_velocities() * fs for atoms in structures])
        b, on = len(structures), torch.from_numpy(mobile).to(device)
        velocities *= on[:, None]
        nothing = torch.full((b, 3, 3), torch.nan, dtype=torch.float64, device=device)
        sizes = torch.from_numpy(np.diff(offsets))
        return cls(
            numbers=torch.from_numpy(np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64)).to(
                device
            ),
            structure=torch.repeat_interleave(torch.arange(b), sizes).to(device),
            offsets=offsets,
            masses=stack([atoms.get_masses() for atoms in structures]),
            mobile=on,
            positions=positions,
            velocities=velocities,
            forces=torch.zeros_like(positions),
            cells=stack([atoms.cell.array[None] for atoms in structures]),
            pbc=np.array([atoms.pbc for atoms in structures]),
            charges=stack([np.array([float(atoms.info.get("charge", 0.0))]) for atoms in structures]),
            energy=nothing[:, 0, 0].clone(),
            stress=nothing,
            replicas=np.arange(b, dtype=np.uint32),
            degrees=3.0 * torch.segment_reduce(on.double(), "sum", offsets=torch.from_numpy(offsets).to(device)),
        )

    def to_atoms(self) -> list[Atoms]:
        """Return the replicas as structures of ASE with velocities, wherever the tensors are."""
        from ase import Atoms
        from ase.constraints import FixAtoms
        from ase.units import fs

        host = {name: getattr(self, name).cpu().numpy() for name in ("numbers", "masses", "positions", "velocities")}
        cells, mobile, charges = self.cells.cpu().numpy(), self.mobile.cpu().numpy(), self.charges.cpu().numpy()
        found = []
        for k in range(self.size):
            part = slice(self.offsets[k], self.offsets[k + 1])
            atoms = Atoms(
                numbers=host["numbers"][part], positions=host["positions"][part], masses=host["masses"][part],
                velocities=host["velocities"][part] / fs, cell=cells[k], pbc=self.pbc[k],
            )  # fmt: skip
            if not mobile[part].all():
                atoms.set_constraint(FixAtoms(mask=~mobile[part]))
            if charges[k]:
                atoms.info["charge"] = float(charges[k])
            found.append(atoms)
        return found


def begin_stress(state: State, wanted: bool) -> None:
    """Mark the stress as unknown where it is not wanted.

    Raises:
        ConfigError: if it is wanted, naming a replica that is not periodic in all directions, so that it has none.
    """
    if not wanted:
        state.stress.fill_(torch.nan)
        return
    open_ = np.flatnonzero(~state.pbc.all(axis=1))
    if len(open_):
        raise ConfigError(
            f"stress and pressure need structures that are periodic in all three directions; pbc of replica {open_[0]} is "
            f"{state.pbc[open_[0]].tolist()}"
        )
