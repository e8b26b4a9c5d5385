"""How far a model is from reference data: the whole of `simkit evaluate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

from simkit.datasets import load as load_dataset
from simkit.datasets.checks import unit_warnings
from simkit.errors import ConfigError, LabelError, OutputError
from simkit.files import ensure_output_dir, write_json
from simkit.graph import LABELS
from simkit.training.domain import closest_distances, extrapolation_warnings
from simkit.training.evaluation import (
    Metrics,
    error_metrics,
    errors_per_element,
    errors_per_group,
    labels_to_evaluate,
    literature_errors,
    predict,
)
from simkit.workflows.report import error_rows, format_metrics, save_parity
from simkit.workflows.structures import labels_present, open_potential, with_labels
from simkit.workflows.text import table

if TYPE_CHECKING:
    from simkit.datasets.store import Store
    from simkit.potential import Potential

METRICS, PARITY = "metrics.json", "parity.png"


@dataclass(frozen=True)
class Evaluation:
    """Errors of a model on a data set, in eV and angstrom (see `error_metrics`).

    Attributes:
        metrics: over everything; elements: per element symbol; groups: per group of structures, empty where there are none.
        spread: label -> mean absolute deviation from its mean, the error of a model that knows nothing else.
        warnings: what is doubtful about the data or about using the model on them.
        folder: where the files are, if they were asked for.
    """

    metrics: Metrics
    elements: dict[str, Metrics]
    groups: dict[str, Metrics]
    spread: dict[str, float]
    warnings: list[str]
    folder: Path | None

    def __str__(self) -> str:
        """Tables for the terminal."""
        parts = [errors_table(self.metrics, self.spread)]
        if len(self.elements) > 1:
            parts.append(table(["element", "quantity", "MAE", "RMSE"], error_rows(self.elements)))
        if self.groups:
            parts.append(table(["group", "structures", "quantity", "MAE", "RMSE"], error_rows(self.groups)))
        parts += [f"warning: {text}" for text in self.warnings]
        return "\n\n".join(parts)


def evaluate(
    model: str | os.PathLike[str],
    data: Mapping[str, Any],
    *,
    out: str | os.PathLike[str] | None = None,
    batch_size: int = 100,
    device: str = "auto",
    dtype: str | None = None,
    overwrite: bool = False,
    echo: Callable[[str], None] = print,
) -> Evaluation:
    """Compare a model's predictions with labelled structures.

    Args:
        model: path of a model file.
        data: ``name`` and options of the data, as for `simkit.datasets.load`.
        out: folder for ``metrics.json`` and ``parity.png``.
        device, dtype: see `open_potential`.
        overwrite: replace these files.
        echo: takes the description of the data.

    Raises:
        LabelError: if the data have no label that the model can give.
        OutputError: if the folder cannot be written or holds such files already.
        SimkitError: if model, data or options are unusable.
    """
    if batch_size < 1:
        raise ConfigError(f"the batch size must be 1 or more, found {batch_size}")
    folder = None if out is None else _open_folder(out, overwrite)
    potential = open_potential(model, device, dtype)
    store = _open_data(data, potential)
    echo(store.describe())
    labels = labels_to_evaluate(potential, store)
    if not labels:
        raise LabelError(
            f"nothing to compare: {store.name} has the labels {', '.join(store.labels) or 'none'}, the model gives "
            f"{', '.join(potential.outputs)}; if labels lie under other names, give these names"
        )
    potential.check_elements(store.elements)
    store = store.with_neighbors(potential.cutoff)
    predicted = predict(potential, store, labels, batch_size, "evaluating")
    result = Evaluation(
        metrics=error_metrics(store, predicted),
        elements={chemical_symbols[z]: values for z, values in errors_per_element(store, predicted).items()},
        groups=errors_per_group(store, predicted),
        spread=label_spread(store, labels),
        warnings=[*unit_warnings(store), *domain_warnings(potential, store)],
        folder=folder,
    )
    if folder is not None:
        content = {
            "evaluated": {**result.metrics, "parameters": potential.num_parameters},
            "units": {name: LABELS[name].unit for name in labels},
            "literature": literature_errors(result.metrics),
            "elements": result.elements,
            "groups": result.groups,
            "model": os.fspath(model),
            "data": store.name,
            "data_hash": store.hash(),
            "structures": len(store),
            "warnings": result.warnings,
        }
        write_json(folder / METRICS, content)
        save_parity(potential, store, predicted, folder / PARITY)
    return result


def errors_table(metrics: Metrics, spread: Mapping[str, float]) -> str:
    """Return the table of errors, each beside what a model that always answers with the mean would get."""
    rows = []
    for name, mae, rmse in format_metrics(metrics):
        known = spread.get(name)
        value, unit = (0.0, "") if known is None else LABELS[name].in_error_unit(known)
        rows.append([name, mae, rmse, "" if known is None else f"{value:.4g} {unit}"])
    return table(["", "MAE", "RMSE", "MAE of the mean"], rows)


def label_spread(store: Store, labels: tuple[str, ...]) -> dict[str, float]:
    """Return the mean absolute deviation of each label from its mean over the store."""
    spread = {}
    for name in labels:
        values = store.labels[name].double().cpu()
        spread[name] = float((values - values.mean(dim=0)).abs().mean())
    return spread


def domain_warnings(potential: Potential, store: Store) -> list[str]:
    """Say where the data lie outside what the model was trained on, or are the very data that it was trained on."""
    info = potential.info
    messages = []
    theory, other = info.get("level_of_theory"), store.info.get("level_of_theory")
    if theory and other and theory != other:
        messages.append(
            f"the model was trained on {theory}, these labels are {other}: their energies differ by more than errors"
        )
    if info.get("data_hash") == store.hash():
        messages.append("the model was trained on structures of these data: the errors say little about new ones")
    if "domain" in info:
        messages += extrapolation_warnings(info["domain"], closest_distances(store), store.name)
    return messages


def _open_data(data: Mapping[str, Any], potential: Potential) -> Store:
    """Open the data with the labels that the model gives."""
    options = {key: value for key, value in data.items() if key != "name"}
    if data["name"] == "frames":
        # Not charges and energies of atoms that come along with others: programs that label frames mean something else by these.
        own = [name for name in potential.outputs if name in potential.heads or name in ("mu", "alpha")]
        options = with_labels("frames", options, labels_present(options, own))
    return load_dataset(data["name"], **options)


def _open_folder(out: str | os.PathLike[str], overwrite: bool) -> Path:
    folder = ensure_output_dir(out)
    present = [name for name in (METRICS, PARITY) if (folder / name).exists()]
    if present and not overwrite:
        raise OutputError(f"{folder} holds {' and '.join(present)} already; add --overwrite, or choose another folder")
    return folder
