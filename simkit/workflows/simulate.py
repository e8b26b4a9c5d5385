"""Dynamics, relaxation and equation of state with a model file: `simkit md`, `simkit relax` and `simkit eos`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from simkit import plotting
from simkit.config import parse_options
from simkit.errors import ConfigError, OutputError, SimkitError
from simkit.files import ensure_output_dir, write_json, write_text
from simkit.md.ensembles.options import KNOWN, EnsembleOptions, ensemble_from_options
from simkit.md.eos import equation_of_state
from simkit.md.observers import StopOutsideDomain
from simkit.md.relax import STRUCTURE, relax
from simkit.md.run import TRAJECTORY, MDResult, TrajectoryFormat, run_md
from simkit.training.recipe import parse_setting
from simkit.workflows.predict import visited_warnings
from simkit.workflows.structures import open_calculator, read_structure, read_structures

if TYPE_CHECKING:
    from ase import Atoms

PathLike = str | os.PathLike[str]
Echo = Callable[[str], None]

FORMATS = get_args(TrajectoryFormat)
CHECKED_FRAMES = 50
"""Frames of a trajectory whose distances are compared with the training data."""


def simulate(
    model: PathLike,
    structures: PathLike,
    given: Mapping[str, Any],
    settings: Sequence[str],
    *,
    out: PathLike,
    steps: int,
    keep_velocities: bool,
    seed: int,
    replicas: int,
    interval: int,
    trajectory: str,
    stop_outside: bool,
    restart: bool,
    device: str,
    dtype: str | None,
    skin: float,
    fast: bool,
    echo: Echo,
) -> MDResult:
    """Run molecular dynamics and tell how it went; see `simkit.md.run.run_md` and `open_calculator`.

    Args:
        structures: all that the file holds, as one batch.
        given: `EnsembleOptions` by name, None for those that were not given; ``seed`` is added where the ensemble has random numbers,
            and the temperature is that of the starting velocities, too.
        settings: more of them, as "key=value".
        stop_outside: end where two atoms come closer than in the training data, see `StopOutsideDomain`.

    Raises:
        ConfigError: if a setting is unknown to the ensemble or unusable.
    """
    if trajectory not in FORMATS:
        raise ConfigError(f"trajectory must be one of {', '.join(FORMATS)}, found {trajectory!r}")
    values = {name: value for name, value in given.items() if value is not None}
    for setting in settings:
        values |= parse_setting(setting)
    start = None if keep_velocities else values["temperature"]
    if values["ensemble"] == "nve":  # which has a temperature at the start only
        del values["temperature"]
    if "seed" in KNOWN.get(values["ensemble"], ()):
        values.setdefault("seed", seed)
    ensemble = ensemble_from_options(parse_options(EnsembleOptions, values, "settings of the run"))
    calculator = open_calculator(model, device, dtype, skin, fast)
    closest = calculator.potential.info.get("domain", {}).get("closest", {})
    result = run_md(
        calculator,
        read_structures(structures),
        ensemble,
        out=out,
        steps=steps,
        temperature=start,
        seed=seed,
        replicas=replicas,
        interval=interval,
        trajectory=cast(TrajectoryFormat, trajectory),
        restart=restart,
        observers=[StopOutsideDomain(interval, closest)] if stop_outside else [],
    )
    echo(summary(result))
    frames = _some_frames(result)
    for message in visited_warnings(calculator.potential, frames, "trajectory"):
        echo(f"warning: {message}")
    return result


def _some_frames(result: MDResult) -> list[Atoms]:
    """Frames from all over the trajectory of the first replica, or the last structures where there is none in ASE's format."""
    first = min(result.folder.glob(f"{Path(TRAJECTORY).stem}*{Path(TRAJECTORY).suffix}"), default=None)
    if first is None:
        return result.atoms
    frames = read_structures(first)
    return [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, CHECKED_FRAMES).astype(int))]


def summary(result: MDResult) -> str:
    """Return what a run was and where its files are."""
    thermo, count = result.thermo, len(result.atoms)
    temperature = thermo["temperature_K"]
    each = 1000 * result.seconds / max(result.steps, 1)
    system = f"{len(result.atoms[0])} atoms" if count == 1 else f"{count} replicas, {sum(map(len, result.atoms))} atoms"
    lines = [
        f"{system}, {float(thermo['time_fs'][-1]) / 1000:g} ps in all; {result.steps} steps now in {result.seconds:.1f} s"
        + (
            f" ({each:.2f} ms per step" + (f", {each / count:.2g} for each replica)" if count > 1 else ")")
            if result.steps
            else ""
        ),
        f"temperature: mean {temperature.mean():.0f} K, standard deviation {temperature.std():.0f} K",
    ]
    if "pressure_GPa" in thermo:
        lines.append(
            f"pressure: mean {thermo['pressure_GPa'].mean():.4g} GPa; volume: mean {thermo['volume_angstrom3'].mean():.6g} Å³"
        )
    if result.drift is not None:
        lines.append(f"drift of the conserved quantity: {result.drift:.3g} meV/atom/ps")
    lines.append(f"trajectory, thermo.csv and plots: {result.folder}")
    return "\n".join(lines)


def relax_structure(
    model: PathLike,
    structure: PathLike,
    *,
    out: PathLike,
    fmax: float,
    steps: int,
    optimizer: str,
    cell: bool,
    device: str,
    dtype: str | None,
    echo: Echo,
) -> None:
    """Relax a structure and tell how it went; see `simkit.md.relax.relax`.

    Raises:
        SimkitError: also if it did not converge; all files are written then, too.
    """
    calculator = open_calculator(model, device, dtype)
    result = relax(
        calculator, read_structure(structure), out=out, fmax=fmax, steps=steps, optimizer=optimizer, cell=cell
    )
    taken, force = len(result.energies) - 1, result.max_forces[-1]
    path = result.folder / STRUCTURE
    for message in visited_warnings(calculator.potential, [result.atoms], "relaxed structure"):
        echo(f"warning: {message}")
    if not result.converged:
        raise SimkitError(
            f"not converged: the largest force is {force:.3g} eV/angstrom after {taken} steps, asked for was {fmax:g}; the last "
            f"structure is in {path}: go on from it in a new folder, or allow more with --steps"
        )
    change = result.energies[-1] - result.energies[0]
    echo(f"converged in {taken} steps: largest force {force:.3g} eV/angstrom")
    echo(f"energy {result.energies[-1]:.6f} eV, {change:+.6f} eV from the start")
    echo(f"relaxed structure: {path}")


def fit_equation_of_state(
    model: PathLike,
    structure: PathLike,
    *,
    out: PathLike,
    strain: float,
    points: int,
    device: str,
    dtype: str | None,
    echo: Echo,
) -> None:
    """Fit an equation of state, write ``eos.csv``, ``eos.json`` and ``eos.png``; see `simkit.md.eos.equation_of_state`.

    Raises:
        OutputError: if the folder cannot be written or holds such files already.
    """
    folder = ensure_output_dir(out)
    if (folder / "eos.json").exists():
        raise OutputError(f"{folder} holds an equation of state already (eos.json); choose another folder")
    calculator = open_calculator(model, device, dtype)
    atoms = read_structure(structure)
    result = equation_of_state(calculator, atoms, strain=strain, points=points)
    rows = [f"{v!r},{e!r}" for v, e in zip(result.volumes.tolist(), result.energies.tolist(), strict=True)]
    write_text(folder / "eos.csv", "\n".join(["volume_angstrom3,energy_eV", *rows]) + "\n")
    axes = plotting.equation_of_state(
        result.volumes,
        result.energies,
        result.fit_volumes,
        result.fit_energies,
        volume=result.volume,
        bulk_modulus=result.bulk_modulus,
        n_atoms=len(atoms),
    )
    plotting.save(axes, folder / "eos.png")
    values = {"volume_angstrom3": result.volume, "energy_eV": result.energy, "bulk_modulus_GPa": result.bulk_modulus}
    write_json(folder / "eos.json", {"model": os.fspath(model), "atoms": len(atoms), **values})
    for message in visited_warnings(calculator.potential, [atoms], "structure"):
        echo(f"warning: {message}")
    n = len(atoms)
    echo(f"equilibrium volume {result.volume / n:.4f} angstrom^3/atom, energy {result.energy / n:.6f} eV/atom")
    echo(f"bulk modulus {result.bulk_modulus:.2f} GPa")
    echo(f"table and plot: {Path(folder)}")
