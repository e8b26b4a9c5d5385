"""Predictions of a potential over a store, and their errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simkit.datasets.store import Store
from simkit.graph import LABELS
from simkit.potential import Potential
from simkit.progress import track
from simkit.properties import isolated_only

Metrics = dict[str, float]


def predict(
    potential: Potential, store: Store, outputs: Sequence[str], batch_size: int = 100, description: str = "predicting"
) -> dict[str, Tensor]:
    """Return the outputs for every structure, in the store's order, as float64 on the CPU.

    Args:
        store: structures with neighbors for the potential's cutoff.
        outputs: names of outputs of the potential.
        batch_size: structures per batch; fewer where they are large.

    Raises:
        ConfigError: if the potential cannot give an output.
        ElementError: if a structure holds an unknown element.
    """
    store = store.to(potential.device)
    potential.check_elements(store.elements)
    parts: dict[str, list[Tensor]] = {name: [] for name in outputs}
    for indices in track(store.batches(batch_size), description):
        with torch.no_grad():
            result = potential(store.batch(indices), tuple(outputs))
        for name in outputs:
            parts[name].append(result[name].double().cpu())
    return {name: torch.cat(values) for name, values in parts.items()}


def labels_to_evaluate(potential: Potential, store: Store) -> tuple[str, ...]:
    """Return the labels that the store has and the potential can give, as far as they are defined for the structures.

    How an energy is shared between atoms is no prediction, unless it was trained as a property of its own.
    """
    hidden = {"energies"} - set(potential.heads)
    if store.pbc is not None and bool(store.pbc.any()):
        hidden |= isolated_only(potential.heads)
    return tuple(name for name in LABELS if name in store.labels and name in potential.outputs and name not in hidden)


def error_metrics(store: Store, predicted: dict[str, Tensor]) -> Metrics:
    """Return MAE and RMSE of each predicted label, over components, in simkit's units (see `simkit.graph.LABELS`).

    Energy also per atom. Names: ``energy_mae`` (eV), ``energy_mae_per_atom``, ``forces_mae`` (eV/angstrom), ``mu_mae`` (e*angstrom),
    ..., and the same with ``rmse``; `literature_errors` has them in the units that papers use.
    """
    metrics: Metrics = {}
    for name, values in predicted.items():
        error = values - store.labels[name].double().cpu()
        metrics[f"{name}_mae"] = float(error.abs().mean())
        metrics[f"{name}_rmse"] = float(error.square().mean().sqrt())
        if name == "energy":
            per_atom = error / store.n_atoms.cpu()
            metrics["energy_mae_per_atom"] = float(per_atom.abs().mean())
            metrics["energy_rmse_per_atom"] = float(per_atom.square().mean().sqrt())
    return metrics


def literature_errors(metrics: Metrics) -> dict[str, dict[str, float | str]]:
    """Return ``{label: {"mae", "rmse", "unit"}}`` for metrics of `error_metrics`, in the units of the literature (meV, D, bohr³, ...)."""
    table: dict[str, dict[str, float | str]] = {}
    for name, spec in LABELS.items():
        if f"{name}_mae" in metrics:
            mae, unit = spec.in_error_unit(metrics[f"{name}_mae"])
            table[name] = {"mae": mae, "rmse": spec.in_error_unit(metrics[f"{name}_rmse"])[0], "unit": unit}
    return table


def errors_per_element(store: Store, predicted: dict[str, Tensor]) -> dict[int, Metrics]:
    """Return MAE and RMSE of the per-atom labels for each element."""
    z = store.z.cpu()
    table: dict[int, Metrics] = {element: {} for element in store.elements}
    for name, values in predicted.items():
        if LABELS[name].per != "atom":
            continue
        error = values - store.labels[name].double().cpu()
        for element, metrics in table.items():
            chosen = error[z == element]
            metrics[f"{name}_mae"] = float(chosen.abs().mean())
            metrics[f"{name}_rmse"] = float(chosen.square().mean().sqrt())
    return {element: metrics for element, metrics in table.items() if metrics}


def errors_per_group(store: Store, predicted: dict[str, Tensor]) -> dict[str, Metrics]:
    """Return the error metrics of every group of structures; empty where the store knows no groups."""
    if store.groups is None:
        return {}
    table = {}
    for group in sorted(set(store.groups.tolist())):
        frames = torch.from_numpy(store.groups == group).nonzero().squeeze(1)
        atoms = (
            (torch.repeat_interleave(torch.from_numpy(store.groups == group), store.n_atoms.cpu())).nonzero().squeeze(1)
        )
        part = {
            name: values.index_select(0, frames if LABELS[name].per == "graph" else atoms)
            for name, values in predicted.items()
        }
        table[str(group)] = {"count": float(len(frames)), **error_metrics(store.select(frames).to("cpu"), part)}
    return table
