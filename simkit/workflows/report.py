"""What a training leaves to look at: metrics, plots, a short NVE run and a report in words."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from ase.data import chemical_symbols
from torch import Tensor

from simkit import plotting
from simkit.datasets.checks import unit_warnings
from simkit.datasets.splits import Splits
from simkit.datasets.store import Store
from simkit.errors import SimkitError
from simkit.files import write_json, write_text
from simkit.graph import LABELS, AtomGraph
from simkit.md.ensembles import NVE
from simkit.md.run import run_md
from simkit.potential import Potential
from simkit.properties import ELECTRONS, KINDS, Standard
from simkit.training.domain import extrapolation_warnings, graph_distances
from simkit.training.evaluation import (
    Metrics,
    error_metrics,
    errors_per_element,
    errors_per_group,
    literature_errors,
)
from simkit.training.finetune import lineage
from simkit.training.fit import FitResult
from simkit.training.recipe import Recipe
from simkit.training.references import label_spread, reference_sums
from simkit.units import unit_text

if TYPE_CHECKING:
    from ase import Atoms

# A short run is enough to see an energy that is not conserved; long ones are the user's.
NVE_STEPS, NVE_TIMESTEP, NVE_TEMPERATURE = 1000, 0.5, 300.0
NVE_MAX_ATOMS = 200


@dataclass(frozen=True)
class NveCheck:
    """A short NVE run of the trained model: drift in meV/atom/ps, seconds per step, and whatever went wrong."""

    drift: float
    picoseconds: float
    seconds_per_step: float
    atoms: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingReport:
    """The outcome of a training: where it is, errors per part (see `error_metrics`), cost, energy drift and warnings."""

    folder: Path
    metrics: dict[str, Metrics]
    seconds: float
    epochs: int
    parameters: int
    drift: float | None
    warnings: list[str]
    outputs: tuple[str, ...] = ()


def write_report(
    folder: Path,
    recipe: Recipe,
    potential: Potential,
    parts: Mapping[str, Store],
    predictions: Mapping[str, dict[str, Tensor]],
    result: FitResult,
    splits: Splits,
    warnings: list[str],
    origins: Mapping[str, str],
    duplicates: int | None,
) -> TrainingReport:
    """Write ``metrics.json``, ``learning_curve.png``, ``parity.png`` and ``report.md`` and return their content.

    ``metrics.json`` has the errors of every part in simkit's units, which it names under "units", and once more under "literature" in the
    units of papers.

    Args:
        parts: name -> store; predictions: name -> output name -> values in the store's order.
        warnings: what is already known to be doubtful.
        origins: output -> where its reference values came from; duplicates: geometries in two parts, None where not looked for.
    """
    metrics = {name: error_metrics(parts[name], predicted) for name, predicted in predictions.items()}
    judged = "test" if "test" in parts else "valid" if "valid" in parts else "train"
    warnings = [*warnings, *(f"{name}: {text}" for name, store in parts.items() for text in unit_warnings(store))]
    nve = nve_check(potential, parts[judged].to_atoms([0])[0], folder / "nve")
    if nve is not None:
        warnings += nve.warnings
    report = TrainingReport(
        folder=folder,
        metrics=metrics,
        seconds=result.seconds,
        epochs=result.epochs,
        parameters=potential.num_parameters,
        drift=nve.drift if nve is not None else None,
        warnings=warnings,
        outputs=potential.outputs,
    )
    cost = {"train_seconds": result.seconds, "epochs": result.epochs, "parameters": potential.num_parameters}
    write_json(folder / "metrics.json", _metrics_content(metrics, cost, list(predictions[judged])))
    if result.rows:
        plotting.save(plotting.learning_curve(result.rows, _curve_units())[0], folder / "learning_curve.png")
    save_parity(potential, parts[judged], predictions[judged], folder / "parity.png")
    sections = [
        _data_section(recipe, parts, splits, potential, origins, duplicates),
        _error_section(metrics, parts[judged], predictions[judged], judged),
        _model_section(recipe, potential, result, nve),
        "## Warnings\n\n" + ("\n".join(f"- {text}" for text in warnings) or "None."),
        "![learning curve](learning_curve.png)\n\n![parity](parity.png)",
    ]
    write_text(
        folder / "report.md",
        f"# {recipe.model.name}{_parent(potential)} on {parts['train'].name}\n\n" + "\n\n".join(sections) + "\n",
    )
    return report


def _metrics_content(
    metrics: Mapping[str, Metrics], cost: Mapping[str, float], labels: Sequence[str]
) -> dict[str, Any]:
    return {
        **{name: {**values, **cost} for name, values in metrics.items()},
        **cost,
        "units": {name: LABELS[name].unit for name in labels},
        "literature": {name: literature_errors(values) for name, values in metrics.items()},
    }


def save_parity(potential: Potential, store: Store, predicted: Mapping[str, Tensor], path: Path) -> None:
    """Save parity plots of everything that was predicted: energies per atom, other extensive properties without the values of atoms."""
    panels = []
    for name, values in predicted.items():
        spec, title = LABELS[name], name
        reference = store.labels[name].double().cpu()
        # The unit that errors are told in, but for those told in thousandths.
        factor, unit = (1.0, unit_text(spec.unit)) if spec.error_unit.startswith("m") else spec.in_error_unit(1.0)
        if name == "energy":
            atoms = store.n_atoms.cpu()
            reference, values, unit = reference / atoms, values / atoms, "eV/atom"
        elif KINDS.get(name) == "extensive" and name in potential.standards:
            of_atoms = reference_sums(potential, store, name)
            reference, values, title = reference - of_atoms, values - of_atoms, f"{name} − atoms"
        panels.append((factor * reference.numpy(), factor * values.numpy(), unit, title))
    if panels:
        plotting.save(plotting.parity_panels(panels)[0], path)


def _curve_units() -> dict[str, tuple[str, float]]:
    """What learning curves call the errors of each label, and the factor from simkit's unit."""
    units = {}
    for name, spec in LABELS.items():
        factor, unit = spec.in_error_unit(1.0)
        units[name] = (unit, factor)
    return units


def nve_check(potential: Potential, atoms: Atoms, folder: Path) -> NveCheck | None:
    """Run a short NVE trajectory and look at its drift and at the distances it visits; None for structures too large or too small, and
    for models without energies.

    The run's own files are kept in ``folder``. A breakdown becomes a warning.
    """
    if not 2 <= len(atoms) <= NVE_MAX_ATOMS or "energy" not in potential.heads:
        return None
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier report of the same training
    try:
        run = run_md(
            potential,
            atoms,
            NVE(NVE_TIMESTEP),
            out=folder,
            steps=NVE_STEPS,
            temperature=NVE_TEMPERATURE,
            dtype="float64",
        )
    except SimkitError as error:
        return NveCheck(math.nan, 0.0, math.nan, len(atoms), [f"the short NVE run broke down: {error}"])
    distances = graph_distances(AtomGraph.from_ase(run.atoms[0], potential.cutoff))
    messages = extrapolation_warnings(potential.info.get("domain", {}), distances, "last frame of the NVE run")
    drift = run.drift if run.drift is not None else math.nan
    return NveCheck(drift, NVE_STEPS * NVE_TIMESTEP / 1000, run.seconds / max(run.steps, 1), len(atoms), messages)


def format_metrics(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Return rows (quantity, MAE, RMSE) in the units that the literature uses: meV, meV/Å, D, bohr³, ..."""
    rows = []
    for name, spec in LABELS.items():
        for suffix, title, per in (("", "", ""), ("_per_atom", " per atom", "/atom")):
            if f"{name}_mae{suffix}" in metrics:
                mae, unit = spec.in_error_unit(metrics[f"{name}_mae{suffix}"])
                rmse, _ = spec.in_error_unit(metrics[f"{name}_rmse{suffix}"])
                rows.append((name + title, f"{mae:.4g} {unit}{per}", f"{rmse:.4g} {unit}{per}"))
    return rows


def reference_lines(potential: Potential, origins: Mapping[str, str]) -> list[str]:
    """Return a line per output on what its values count from: per element where there are references, else their mean."""

    def per_element(values: Tensor, unit: str) -> str:
        return (
            ", ".join(
                f"{chemical_symbols[z]} {value:.4f}"
                for z, value in zip(potential.elements, values.tolist(), strict=True)
            )
            + f" {unit}"
        )

    lines = []
    if "energy" in potential.heads:
        lines.append(_join("reference energies", origins.get("energy"), per_element(potential.reference, "eV")))
    for name, module in potential.standards.items():
        standard = cast(Standard, module)
        if name == ELECTRONS:
            lines.append(f"electrons per atom in r2: {per_element(standard.reference, '')}".rstrip())
            continue
        spec = LABELS[name]
        factor, unit = (1.0, unit_text(spec.unit)) if spec.error_unit.startswith("m") else spec.in_error_unit(1.0)
        intensive = KINDS[name] == "intensive"
        value = (
            f"{factor * float(standard.shift):.4f} {unit}"
            if intensive
            else per_element(factor * standard.reference, unit)
        )
        lines.append(_join(f"references of {name}", origins.get(name), value))
    return lines


def _join(title: str, origin: str | None, value: str) -> str:
    return ": ".join(part for part in (title, origin, value) if part)


def error_rows(table: Mapping[str, Metrics]) -> list[list[str]]:
    """Return the rows of `format_metrics` of every entry, behind its name and, where it has one, its count of structures."""
    return [
        [name, *([f"{values['count']:.0f}"] if "count" in values else []), *row]
        for name, values in table.items()
        for row in format_metrics(values)
    ]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _data_section(
    recipe: Recipe,
    parts: Mapping[str, Store],
    splits: Splits,
    potential: Potential,
    origins: Mapping[str, str],
    duplicates: int | None,
) -> str:
    info = potential.info
    checked = "not looked for (too many structures)" if duplicates is None else str(duplicates)
    counts = ", ".join(f"{name} {len(store)}" for name, store in parts.items())
    lines = [
        f"- source: {recipe.data.name} {recipe.data.options}",
        f"- level of theory: {info.get('level_of_theory') or 'not stated'}",
        f"- structures: {counts}; split {recipe.split.method}, seed {recipe.split.seed}",
        f"- data hash {info['data_hash'][:16]}, split hash {splits.hash[:16]}",
        f"- geometries in two parts of the split: {checked}",
        *(f"- {line}" for line in reference_lines(potential, origins)),
    ]
    return "## Data\n\n" + "\n".join(lines) + "\n\n```\n" + parts["train"].describe() + "\n```"


def _error_section(metrics: Mapping[str, Metrics], store: Store, predicted: dict[str, Tensor], judged: str) -> str:
    text = "## Errors\n\n" + _table(["part", "quantity", "MAE", "RMSE"], error_rows(metrics))
    # An error means something only beside the spread of what is predicted.
    spreads = []
    for name in predicted:
        spread, unit = LABELS[name].in_error_unit(label_spread(store, name))
        spreads.append(f"{name} {spread:.4g} {unit}")
    text += f"\n\nSpread (RMS) of the {judged} labels around the best sum over elements: {', '.join(spreads)}."
    elements = {chemical_symbols[z]: values for z, values in errors_per_element(store, predicted).items()}
    if elements:
        text += f"\n\nPer element ({judged}):\n\n"
        text += _table(["element", "quantity", "MAE", "RMSE"], error_rows(elements))
    groups = errors_per_group(store, predicted)
    if groups:
        text += f"\n\nPer group ({judged}):\n\n"
        text += _table(["group", "structures", "quantity", "MAE", "RMSE"], error_rows(groups))
    return text


def _parent(potential: Potential) -> str:
    start = potential.info.get("started_from")
    return f", started from {start['file']}," if start else ""


def noise_text(noise: Mapping[str, float]) -> str:
    """Return the noise of each label (see `simkit.training.losses.LearnedWeights`) in a line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in noise.items())


def _model_section(recipe: Recipe, potential: Potential, result: FitResult, nve: NveCheck | None) -> str:
    size = f"cutoff {potential.cutoff} Å, {potential.num_parameters:,} parameters, options {potential.options}"
    place = f"{torch.get_num_threads()} threads, device {recipe.training.device}"
    lines = [
        f"- {recipe.model.name}, {size}",
        f"- {result.epochs} epochs in {result.seconds:.0f} s ({place}); best epoch {result.best_epoch}",
    ]
    if start := potential.info.get("started_from"):
        lines.insert(1, f"- started from {lineage(start)}; {start['mode']}: {start['trained']}")
    if noise := potential.info.get("learned_noise"):
        lines.append(f"- noise that the loss learned, in the unit of its errors: {noise_text(noise)}")
    if nve is not None:
        run = f"NVE run of {nve.picoseconds:.2g} ps at {NVE_TEMPERATURE:.0f} K, {nve.atoms} atoms, float64"
        lines.append(f"- {run}: drift {nve.drift:.3g} meV/atom/ps, {1e3 * nve.seconds_per_step:.2f} ms per step")
    return "## Model and speed\n\n" + "\n".join(lines)
