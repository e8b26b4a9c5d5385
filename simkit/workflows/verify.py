"""Numerical checks of a potential: symmetry, smoothness at the cutoff, and forces against its own energy."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from simkit.calculator import DTYPES
from simkit.errors import ConfigError, DataError
from simkit.graph import AtomGraph

if TYPE_CHECKING:
    from simkit.potential import Potential

Array = NDArray[np.float64]

ROTATIONS = 4  # as many reflections come on top
MAX_DISPLACED = 12  # atoms per structure whose forces are compared with finite differences
DISPLACEMENT = 3e-5  # angstrom: of fourth order with four points, and some architectures have features as sharp as 1e-4
RATTLE = 0.03  # angstrom
BATCH_ATOMS = 256
# Distances from the cutoff, angstrom: some spacings of the numbers there. Farther away, what happens beside the cutoff would count.
OFFSETS = {"float64": 2.0**-27, "float32": 2.0**-16}
# Beyond these a model is not what it claims to be: symmetry; jumps of the energy, its first and its second derivative; forces. Rounding
# stays below; second derivatives in float32 are noisy.
BOUNDS = {"float64": (1e-9, (1e-6, 1e-6, 1e-6), 1e-6), "float32": (1e-3, (1e-3, 1e-3, 1e-2), 1e-3)}


@dataclass(frozen=True)
class NumericalChecks:
    """Deviations of a potential from what holds exactly; all of them relative, 0 for a perfect model in exact arithmetic.

    Attributes:
        dtype: of the network.
        rotation_energy: largest change of the energy under a rotation or reflection of the structure, over the sum of the
            absolute atomic energies, reference energies left out.
        rotation_forces: largest deviation of a force component from the rotated forces, over the largest component.
        energy_jump: largest jump of the energy of a pair or a triple while an atom crosses the cutoff of another one, over the
            sum of the absolute atomic energies.
        force_jump, curvature_jump: the same for the first and second derivative, over their largest values inside the cutoff.
        force_error: largest deviation of a force component from the central differences of the energy in float64, over the
            largest component.
    """

    dtype: str
    rotation_energy: float
    rotation_forces: float
    energy_jump: float
    force_jump: float
    curvature_jump: float
    force_error: float

    @property
    def equivariance(self) -> float:
        """The worse of the two deviations under rotations and reflections."""
        return max(self.rotation_energy, self.rotation_forces)

    @property
    def smoothness(self) -> float:
        """The worst of the jumps at the cutoff."""
        return max(self.energy_jump, self.force_jump, self.curvature_jump)

    def problems(self) -> list[str]:
        """Say what is beyond rounding, one line each; empty for a sound model."""
        symmetry, bounds, force = BOUNDS[self.dtype]
        found = []
        if not self.equivariance <= symmetry:
            found.append(
                f"energy or forces do not rotate with the structure (relative deviation {self.equivariance:.2g})"
            )
        names = ("the energy jumps", "the forces jump", "the second derivatives of the energy jump")
        jumps = (self.energy_jump, self.force_jump, self.curvature_jump)
        for name, value, bound in zip(names, jumps, bounds, strict=True):
            if not value <= bound:
                found.append(f"{name} at the cutoff (relative to what is inside: {value:.2g})")
        if not self.force_error <= force:
            found.append(f"the forces are not the gradient of the energy (relative deviation {self.force_error:.2g})")
        return [f"{self.dtype}: {text}" for text in found]


def check_potential(
    potential: Potential, structures: Sequence[Atoms], dtype: str = "float64", seed: int = 0
) -> NumericalChecks:
    """Check that a potential is invariant, smooth at its cutoff and conservative.

    Args:
        potential: any model that gives energies and forces; it stays as it is.
        structures: where symmetry and forces are checked, after moving the atoms a little, so that no force vanishes by symmetry.
            The cutoff is checked on pairs and triples of their elements.
        dtype: of the network, "float64" or "float32".
        seed: of displacements and rotations, and of the choice of atoms.

    Raises:
        ConfigError: if the dtype is unknown or the model gives no energy.
        DataError: if there is no structure with two atoms.
        ElementError: if the model does not know an element.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be float32 or float64, found {dtype!r}")
    if "energy" not in potential.outputs:
        raise ConfigError(f"only models of the energy can be checked; this one gives {', '.join(potential.outputs)}")
    frames = [atoms for atoms in structures if len(atoms) > 1]
    if not frames:
        raise DataError("the checks need a structure of at least two atoms; found none")
    elements = sorted({int(z) for atoms in frames for z in atoms.numbers})
    potential.check_elements(elements)
    exact = copy.deepcopy(potential).to("cpu").cast(torch.float64).eval().requires_grad_(False)
    # Beside reference energies of thousands of eV, errors would look small, and small differences would drown in rounding.
    exact.set_references(dict.fromkeys(exact.elements, 0.0))
    exact.shift.zero_()
    model = copy.deepcopy(exact).cast(DTYPES[dtype])
    rng = np.random.default_rng(seed)
    frames = [_rattled(atoms, rng) for atoms in frames]
    rotation_energy, rotation_forces = _rotation_errors(model, frames, rng)
    jumps = [_jumps(model, _probes(elements, cutoff), cutoff, OFFSETS[dtype]) for cutoff in _cutoffs(potential)]
    energy_jump, force_jump, curvature_jump = np.max(jumps, axis=0).tolist()
    return NumericalChecks(
        dtype=dtype,
        rotation_energy=rotation_energy,
        rotation_forces=rotation_forces,
        energy_jump=energy_jump,
        force_jump=force_jump,
        curvature_jump=curvature_jump,
        force_error=_force_error(model, exact, frames, rng),
    )


def _rattled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.normal(0.0, RATTLE, moved.positions.shape)
    return moved


def _relative(deviation: float, scale: float) -> float:
    if deviation == 0.0:
        return 0.0
    return deviation / scale if scale > 0 else math.inf


# ------------------------------------------------------------------------------------------------------------- symmetry


def _rotation_errors(model: Potential, frames: Sequence[Atoms], rng: np.random.Generator) -> tuple[float, float]:
    """Relative deviations of energy and forces under random rotations and reflections."""
    worst = [0.0, 0.0]
    matrices = [_random_rotation(rng, improper) for improper in (False, True) for _ in range(ROTATIONS)]
    for atoms in frames:
        energies, forces = _atomic_energies_and_forces(model, [atoms, *(_rotated(atoms, q) for q in matrices)])
        back = np.stack([forces[0] @ q.T for q in matrices])
        total = energies.sum(axis=1)
        energy = _relative(float(np.abs(total[1:] - total[0]).max()), float(np.abs(energies[0]).sum()))
        force = _relative(float(np.abs(forces[1:] - back).max()), float(np.abs(forces).max()))
        worst = [max(worst[0], energy), max(worst[1], force)]
    return worst[0], worst[1]


def _random_rotation(rng: np.random.Generator, improper: bool) -> Array:
    """An orthogonal matrix of determinant 1, or -1, from the uniform distribution."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q * np.linalg.det(q) * (-1.0 if improper else 1.0))


def _rotated(atoms: Atoms, rotation: Array) -> Atoms:
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    return turned


def _atomic_energies_and_forces(model: Potential, frames: Sequence[Atoms]) -> tuple[Array, Array]:
    """Atomic energies [F, N] and forces [F, N, 3] of copies of one structure."""
    energies, forces = [], []
    for part in _chunks(frames):
        graph = AtomGraph.from_ase(part, model.cutoff)
        results = model(graph, ("energies", "forces"))
        energies.append(results["energies"].reshape(len(part), -1))
        forces.append(results["forces"].double().reshape(len(part), -1, 3))
    return torch.cat(energies).numpy(), torch.cat(forces).numpy()


def _chunks(frames: Sequence[Atoms]) -> list[Sequence[Atoms]]:
    size = max(1, BATCH_ATOMS // len(frames[0]))
    return [frames[start : start + size] for start in range(0, len(frames), size)]


# ----------------------------------------------------------------------------------------------------------- the cutoff


def _cutoffs(potential: Potential) -> list[float]:
    """The distances at which something ends: the model's cutoff, and shorter ones among the architecture's own options."""
    own = {name: value for name, value in potential.options.items() if name.endswith("cutoff")}
    shorter = [float(v) for v in own.values() if isinstance(v, float) and 0 < v < potential.cutoff]
    return [potential.cutoff, *sorted(set(shorter))]


def _probes(elements: Sequence[int], cutoff: float) -> list[Atoms]:
    """Structures whose last atom will move along x, away from the first one at the origin.

    In a pair it loses its only neighbor; in a triple it stays within the reach of the atom between.
    """
    few = elements[:3]
    pairs = [Atoms([a, b], positions=np.zeros((2, 3))) for a, b in itertools.product(few, few)]
    between = [0.3 * cutoff, 0.1 * cutoff, 0.0]
    triples = [
        Atoms([few[k], few[(k + 1) % len(few)], few[(k + 2) % len(few)]], positions=[[0, 0, 0], between, [0, 0, 0]])
        for k in range(len(few))
    ]
    return pairs + triples


def _jumps(model: Potential, probes: Sequence[Atoms], cutoff: float, offset: float) -> tuple[float, float, float]:
    """Relative jumps of the energy and of its first two derivatives as the last atom of each probe crosses the cutoff.

    The change between both sides is extrapolated to the cutoff from two distances, so that slopes do not count as jumps.
    """
    near = [cutoff + step * offset for step in (-2.0, -1.0, 1.0, 2.0)]
    inside = [cutoff * x for x in (0.5, 0.6, 0.7, 0.8, 0.9)]
    worst = np.zeros(3)
    for size in sorted({len(probe) for probe in probes}):
        group = [probe for probe in probes if len(probe) == size]
        frames = []
        for probe, distance in itertools.product(group, [*near, *inside]):
            moved = probe.copy()
            moved.positions[-1] = [distance, 0.0, 0.0]
            frames.append(moved)
        values = _along_x(model, frames).reshape(4, len(group), -1)
        energy, *derivatives, size_of_energy = values
        jump = [_change_across(v) for v in (energy, *derivatives)]
        scale = [np.abs(v[:, len(near) :]).max(axis=1) for v in (size_of_energy, *derivatives)]
        found = [[_relative(j, s) for j, s in zip(*rows, strict=True)] for rows in zip(jump, scale, strict=True)]
        worst = np.maximum(worst, np.max(found, axis=1))
    return float(worst[0]), float(worst[1]), float(worst[2])


def _change_across(values: Array) -> Array:
    """The jump between the second and the third column [G, 4 + ...] of values at -2, -1, 1 and 2 offsets from the cutoff."""
    return np.asarray(np.abs(2 * (values[:, 2] - values[:, 1]) - (values[:, 3] - values[:, 0])))


def _along_x(model: Potential, frames: Sequence[Atoms]) -> Array:
    """Energy, its first and second derivative by x of each structure's last atom, and the sum of absolute energies, [4, F]."""
    found = []
    for part in _chunks(frames):
        graph = AtomGraph.from_ase(part, model.cutoff)
        graph.pos.requires_grad_(True)
        last = graph.ptr[1:] - 1
        results = model(graph, ("energies", "forces"), differentiable=True)
        energies = results["energies"].detach()
        slope = -results["forces"].index_select(0, last)[:, 0]
        if slope.requires_grad:
            (gradient,) = torch.autograd.grad(slope.sum(), graph.pos, materialize_grads=True)
        else:  # no edge in any of the structures
            gradient = torch.zeros_like(graph.pos)
        curvature = gradient.index_select(0, last)[:, 0]
        zero = energies.new_zeros(len(part))
        energy, size = (zero.index_add(0, graph.batch, e) for e in (energies, energies.abs()))
        found.append(torch.stack([energy, slope.detach().double(), curvature.double(), size]).numpy())
    return np.concatenate(found, axis=1)


# ----------------------------------------------------------------------------------------------------------- the forces


def _force_error(model: Potential, exact: Potential, frames: Sequence[Atoms], rng: np.random.Generator) -> float:
    """Relative deviation of the forces from central differences, of fourth order, of the energy in float64."""
    worst = 0.0
    for atoms in frames:
        chosen = np.sort(rng.permutation(len(atoms))[:MAX_DISPLACED])
        displaced = []
        for atom, axis, step in itertools.product(chosen, range(3), (-2, -1, 1, 2)):
            moved = atoms.copy()
            moved.positions[atom, axis] += step * DISPLACEMENT
            displaced.append(moved)
        e = _energies(exact, displaced).reshape(len(chosen), 3, 4)
        slope = (e[..., 0] - 8 * e[..., 1] + 8 * e[..., 2] - e[..., 3]) / (12 * DISPLACEMENT)
        forces = _atomic_energies_and_forces(model, [atoms])[1][0]
        deviation = float(np.abs(forces[chosen] + slope).max())
        worst = max(worst, _relative(deviation, float(np.abs(forces).max())))
    return worst


def _energies(model: Potential, frames: Sequence[Atoms]) -> Array:
    parts = [model(AtomGraph.from_ase(part, model.cutoff), ("energy",))["energy"] for part in _chunks(frames)]
    return torch.cat(parts).numpy()
