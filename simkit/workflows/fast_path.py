"""Whether the fast path of a model holds for the structures at hand: the whole of `simkit verify`."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError, SimkitError
from simkit.fast.potential import Comparison
from simkit.graph import AtomGraph
from simkit.progress import track
from simkit.workflows.structures import open_potential, read_structures
from simkit.workflows.text import table

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.potential import Potential

FRAMES = 100
"""Structures of a file that are looked at, unless told otherwise."""
PAIRS = (("fast", "float64"), ("fast", "reference"), ("reference", "float64"))
"""Ways to compute that are compared: fast path and reference path in the same dtype, and the reference path in float64, with the same
weights. The first pair that there is decides whether the fast path holds."""
COMPILING = "compiling the network, which takes a minute or more unless it was done before"


@dataclass(frozen=True)
class Difference:
    """What differs between two ways to compute the same structures.

    Attributes:
        force, force_rms: of components of forces, the largest and the root mean square, eV/angstrom.
        energy: the largest of an energy, eV per atom.
        stress: the largest of a component of the stress, eV/angstrom^3; None where no structure has one.
    """

    force: float
    force_rms: float
    energy: float
    stress: float | None


@dataclass(frozen=True)
class FastPathCheck:
    """What the fast path of a model gives, beside the reference path, and that beside float64.

    Attributes:
        structures: how many were looked at. largest_force: eV/angstrom, of the reference.
        reason: why there is no fast path, empty where there is one.
        intervals, table_error: of the tables of filters, see `simkit.fast.tables.HermiteTables`; None where there are none.
        differences: by those of `PAIRS` that there are.
        comparisons: of the fast path with float64, one for each structure, empty without a fast path.
    """

    structures: int
    largest_force: float
    reason: str
    intervals: int | None
    table_error: float | None
    differences: Mapping[tuple[str, str], Difference]
    comparisons: Sequence[Comparison]

    @property
    def used(self) -> list[float]:
        """For each structure the largest difference of the fast path from float64 as a part of what is allowed."""
        return [comparison.used for comparison in self.comparisons]

    @property
    def disagreeing(self) -> list[int]:
        """The structures for which the fast path is beyond what is allowed."""
        return [k for k, comparison in enumerate(self.comparisons) if not comparison.agrees]

    def __str__(self) -> str:
        """Show the differences as a table."""
        limits: list[float | None] = []
        if self.comparisons:
            force = min(c.force_limit for c in self.comparisons)
            energy = min(c.energy_limit for c in self.comparisons)
            stress = min((c.stress_limit for c in self.comparisons if c.stress_limit is not None), default=None)
            limits = [force, None, energy, stress]
        titles = (
            "largest force (eV/angstrom)",
            "root mean square of forces",
            "energy (eV/atom)",
            "stress (eV/angstrom^3)",
        )
        rows = []
        for k, title in enumerate(titles):
            values = [(d.force, d.force_rms, d.energy, d.stress)[k] for d in self.differences.values()]
            if self.comparisons:
                values.insert(1, limits[k])
            if values[0] is not None:
                rows.append([title, *("" if value is None else f"{value:.2g}" for value in values)])
        header = ["difference", *(f"{a} - {b}" for a, b in self.differences)]
        if self.comparisons:
            header.insert(2, "least allowed")
        return table(header, rows)


def verify_model(
    model: str | os.PathLike[str],
    structures: str | os.PathLike[str],
    *,
    frames: int = FRAMES,
    device: str = "auto",
    dtype: str | None = None,
    compile_first: bool = False,
    echo: Callable[[str], None],
) -> FastPathCheck:
    """Compare the fast path of a model with the reference path, and with that in float64, on structures of a file, and tell.

    Args:
        frames: at most so many structures, spread over the file. device, dtype: see `open_potential`.
        compile_first: compile the network, if that is its fast path and it has not been done before.

    Raises:
        ConfigError: if the model gives no energy, or ``frames`` is not positive.
        SimkitError: also if the fast path differs by more than is allowed.
    """
    if frames < 1:
        raise ConfigError(f"the number of frames must be 1 or more, found {frames}")
    potential = open_potential(model, device, dtype)
    given = read_structures(structures)
    chosen = np.unique(np.linspace(0, len(given) - 1, min(frames, len(given))).round().astype(int)).tolist()
    if compile_first:
        echo(COMPILING)
    check = check_fast_path(potential, [given[k] for k in chosen], compile_first)
    sizes = sorted({len(given[k]) for k in chosen})
    atoms = f"{sizes[0]} atoms" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} atoms"
    name = str(potential.dtype).removeprefix("torch.")
    echo(
        f"{potential.architecture} in {name}; {len(chosen)} of {len(given)} structures of {structures}, {atoms}, "
        f"forces up to {check.largest_force:.3g} eV/angstrom"
    )
    if check.reason:
        echo(f"no fast path: {check.reason}; the reference path in float32 beside float64:")
    elif check.intervals is None:
        echo("its network is compiled")
    else:
        echo(f"tables of {check.intervals} intervals, their slopes within {check.table_error:.1e} of the largest slope")
    echo(str(check))
    if wrong := check.disagreeing:
        worst = int(np.argmax(np.nan_to_num(check.used, nan=np.inf)))
        raise SimkitError(
            f"the fast path does not hold for {len(wrong)} of {len(chosen)} structures; for number {chosen[worst]}, the worst, "
            f"{check.comparisons[worst]}; use the reference path (simkit md --no-fast, fast=False in Python) and report this"
        )
    if check.comparisons:
        echo(f"the fast path holds: no difference is beyond {100 * max(check.used):.2g}% of what is allowed")
    return check


def check_fast_path(potential: Potential, structures: Sequence[Atoms], compile_first: bool = False) -> FastPathCheck:
    """Compute energies, forces and, where there is one, stress on the fast path, on the reference path, and in float64.

    Without a fast path the reference path is run in float32 and in float64. What is allowed is said by
    `simkit.fast.potential.FastPotential`.

    Args:
        potential: a model of the energy; it stays as it is. structures: at least one. compile_first: see `verify_model`.

    Raises:
        ConfigError: if the model gives no energy.
        ElementError, GeometryError: if a structure is unusable.
    """
    if "energy" not in potential.outputs:
        raise ConfigError(f"only models of the energy can be verified; this one gives {', '.join(potential.outputs)}")
    fast = potential.fast()
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    potential.check_elements(elements)
    if compile_first:
        fast.compile(torch.tensor(elements))
    ready = fast.is_ready(torch.tensor(elements))
    models = {"reference": potential}
    if not ready:
        models = {"reference": copy.deepcopy(potential).cast(torch.float32)}
    if models["reference"].dtype != torch.float64:
        models["float64"] = copy.deepcopy(potential).cast(torch.float64)
    ways = {*models, *(("fast",) if ready else ())}
    found: dict[tuple[str, str], list[_Sums]] = {p: [] for p in PAIRS if ways >= {*p}}
    comparisons, largest = [], 0.0
    for atoms in track(structures, "verifying"):
        graph = AtomGraph.from_ase(atoms, potential.cutoff).to(potential.device)
        periodic = bool(atoms.pbc.all()) and atoms.cell.rank == 3
        names = ("energy", "energies", "forces", *(("stress",) if periodic else ()))
        results = {way: model(graph, names) for way, model in models.items()}
        if ready:
            # Calling it would compare both paths at first, and give the reference in place of what is to be judged here.
            results["fast"] = fast.evaluate(graph, names)
            comparisons.append(fast.judge(graph, results["fast"], results.get("float64", results["reference"])))
        largest = max(largest, float(results["reference"]["forces"].abs().max()))
        for pair, sums in found.items():
            sums.append(_subtract(results[pair[0]], results[pair[1]], len(atoms)))
    tables = None if fast.engine is None else fast.engine.tables
    return FastPathCheck(
        structures=len(structures),
        largest_force=largest,
        reason=fast.reason,
        intervals=None if tables is None else tables.intervals,
        table_error=None if tables is None else tables.error,
        differences={pair: _total(sums) for pair, sums in found.items()},
        comparisons=comparisons,
    )


@dataclass(frozen=True)
class _Sums:
    """Differences for one structure; see `Difference`."""

    force: float
    force_squares: float
    components: int
    energy: float
    stress: float | None


def _subtract(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atoms: int) -> _Sums:
    difference = {name: (one[name].double() - other[name].double()).abs() for name in one}
    forces = difference["forces"]
    stress = float(difference["stress"].max()) if "stress" in difference else None
    return _Sums(
        float(forces.max()),
        float(forces.square().sum()),
        forces.numel(),
        float(difference["energy"].max()) / atoms,
        stress,
    )


def _total(sums: Sequence[_Sums]) -> Difference:
    stresses = [s.stress for s in sums if s.stress is not None]
    squares, components = sum(s.force_squares for s in sums), sum(s.components for s in sums)
    return Difference(
        force=float(np.max([s.force for s in sums])),
        force_rms=float((squares / components) ** 0.5),
        energy=float(np.max([s.energy for s in sums])),
        stress=float(np.max(stresses)) if stresses else None,
    )
