"""What a comparison leaves to look at: a table, the plots of error against cost, and everything as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from simkit import plotting
from simkit.files import write_json, write_text
from simkit.training.evaluation import Metrics
from simkit.workflows.cost import StepCost, TrainingCost
from simkit.workflows.report import format_metrics
from simkit.workflows.text import table
from simkit.workflows.verify import NumericalChecks

JSON, MARKDOWN = "comparison.json", "comparison.md"
COST_PLOT, SIZE_PLOT = "error_against_cost.png", "error_against_size.png"


@dataclass(frozen=True)
class ModelResult:
    """What a comparison found out about one model.

    Attributes:
        name: in the comparison; architecture: the registered name; options: all options of the architecture.
        epochs: trained; planned_epochs: what the measured speed allowed for; seconds: of training, validation included.
        errors: on the test set, see `error_metrics`.
        drift: of the total energy in a short NVE run, meV/atom/ps; None where there was none.
        training, step: what a training step and an ASE step cost.
        checks: by dtype; empty for models without an energy.
        warnings: what is doubtful.
    """

    name: str
    architecture: str
    options: dict[str, Any]
    parameters: int
    epochs: int
    planned_epochs: int
    seconds: float
    errors: Metrics
    drift: float | None
    training: TrainingCost
    step: StepCost
    checks: dict[str, NumericalChecks]
    warnings: list[str]

    @property
    def structures_per_second(self) -> float:
        """Training structures per second of training, validation included."""
        return self.epochs * self.training.structures / self.seconds

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelResult:
        """Rebuild from what `dataclasses.asdict` returned."""
        nested = {
            "training": TrainingCost(**values["training"]),
            "step": StepCost(**values["step"]),
            "checks": {dtype: NumericalChecks(**checks) for dtype, checks in values["checks"].items()},
        }
        return cls(**{**values, **nested})


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    Attributes:
        folder: where everything is.
        minutes: the budget of each model.
        data: in words, what was trained on and tested with, and their hash.
        results: of the models that are done, in the order in which they were asked for.
        failures: name -> what went wrong.
    """

    folder: Path
    minutes: float
    data: dict[str, str]
    results: list[ModelResult]
    failures: dict[str, str]

    def __str__(self) -> str:
        """The table for the terminal."""
        header, rows = _columns(self.results, wide=False)
        return table(header, rows)


def summary(result: ModelResult) -> str:
    """Return errors and cost of a model on one line."""
    errors = ", ".join(f"{title} {value:.4g} {unit}" for title, (value, unit) in errors_of(result).items())
    time = f"{_digits(result.step.microseconds_per_atom)} us per atom and step"
    return f"{errors}; {result.epochs} epochs in {result.seconds / 60:.1f} min; {time}"


def errors_of(result: ModelResult) -> dict[str, tuple[float, str]]:
    """Return quantity -> (MAE on the test set, unit), in the literature's units, forces first."""
    found = {}
    for title, mae, _ in format_metrics(result.errors):
        value, unit = mae.split(" ", 1)
        found[title] = float(value), unit
    order = sorted(found, key=lambda title: ("forces", "energy").index(title) if title in ("forces", "energy") else 2)
    return {title: found[title] for title in order if not title.endswith(" per atom")}


def write_comparison(comparison: Comparison) -> None:
    """Write ``comparison.json``, ``comparison.md`` and the plots into the comparison's folder.

    Raises:
        OutputError: if they cannot be written.
    """
    folder = comparison.folder
    content = {
        "minutes": comparison.minutes,
        "data": comparison.data,
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "models": [
            {
                **asdict(r),
                "microseconds_per_atom": r.step.microseconds_per_atom,
                "structures_per_second": r.structures_per_second,
            }
            for r in comparison.results
        ],
        "failures": comparison.failures,
    }
    write_json(folder / JSON, content)
    pictures = _plots(comparison)
    write_text(folder / MARKDOWN, _markdown(comparison, pictures))


def _plots(comparison: Comparison) -> list[str]:
    """Draw error against time per step, and against parameters and memory; return the names of the files."""
    results = comparison.results
    if not results:
        return []
    titles = list(errors_of(results[0]))
    panels = {
        COST_PLOT: [
            _panel(results, title, "time per atom and ASE step (µs)", [r.step.microseconds_per_atom for r in results])
            for title in titles
        ],
        SIZE_PLOT: [
            _panel(results, titles[0], "parameters (thousands)", [r.parameters / 1000 for r in results]),
            _panel(results, titles[0], "peak memory of training (MB)", [r.training.memory_mb for r in results]),
        ],
    }
    for name, content in panels.items():
        plotting.save(plotting.error_against_cost(content)[0], comparison.folder / name)
    return list(panels)


def _panel(results: Sequence[ModelResult], title: str, label: str, costs: Sequence[float]) -> plotting.CostPanel:
    values = [errors_of(r)[title] for r in results]
    return plotting.CostPanel(
        title=title,
        cost_label=label,
        error_label=f"{title} MAE ({values[0][1]})",
        points={r.name: (cost, value) for r, cost, (value, _) in zip(results, costs, values, strict=True)},
    )


def _columns(results: Sequence[ModelResult], *, wide: bool) -> tuple[list[str], list[list[str]]]:
    """Header and rows, the smallest error first; ``wide`` for all columns."""
    ordered = sorted(results, key=lambda r: next(iter(errors_of(r).values()))[0])
    quantities = {title: unit for r in ordered for title, (_, unit) in errors_of(r).items()}
    header = ["model", "parameters", *(f"{title}, {unit}" for title, unit in quantities.items()), "µs/atom/step"]
    header += ["ms/step", "memory, MB", "training memory, MB", "structures/s"] if wide else ["memory, MB"]
    header += [
        "epochs",
        "minutes",
        *(("equivariance error", "cutoff jump", "force error") if wide else ("equivariance error",)),
    ]
    rows = []
    for r in ordered:
        errors = errors_of(r)
        row = [r.name, f"{r.parameters:,}", *(f"{errors[t][0]:.4g}" if t in errors else "" for t in quantities)]
        row += [_digits(r.step.microseconds_per_atom)]
        row += [_digits(r.step.milliseconds)] if wide else []
        row += [f"{r.step.memory_mb:.0f}"]
        row += [f"{r.training.memory_mb:.0f}", _digits(r.structures_per_second)] if wide else []
        row += [str(r.epochs), f"{r.seconds / 60:.1f}"]
        names = ("equivariance", "smoothness", "force_error") if wide else ("equivariance",)
        row += [" / ".join(f"{getattr(c, name):.0e}" for c in r.checks.values()) for name in names]
        rows.append(row)
    return header, rows


def _digits(value: float) -> str:
    """Three significant digits, and never an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _markdown(comparison: Comparison, pictures: Sequence[str]) -> str:
    data, results = comparison.data, comparison.results
    threads = torch.get_num_threads()
    how = (
        f"Trained on {data['training']}; tested on {data['test']}; the same split for all. Each had {comparison.minutes:g} min of "
        f"wall-clock time on {threads} thread{'s' * (threads > 1)}. The number of epochs, and with it the course of the learning rate, was "
        "chosen from the time per step, measured before, so that it ends at 95% of that time; the limit itself is a guard."
    )
    parts = [f"# Models on {data['training'].split(':')[0]}", how]
    if results:
        header, rows = _columns(results, wide=True)
        lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
        parts += ["\n".join(lines), COLUMNS]
        parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]
    notes = [f"- {r.name}: {text}" for r in results for text in r.warnings]
    if notes:
        parts.append("## Warnings\n\n" + "\n".join(notes))
    if comparison.failures:
        parts.append("## Failed\n\n" + "\n".join(f"- {name}: {text}" for name, text in comparison.failures.items()))
    return "\n\n".join(parts) + "\n"


COLUMNS = """\
Errors are mean absolute errors on the test set. A step is one ASE step: energy and forces of the first test structure after its atoms \
have moved, median wall time. Memory is the peak of a fresh process, that of PyTorch itself included (on a GPU: what PyTorch allocated). \
The last three columns are relative deviations, in float64 / float32: of energy and forces under rotations and reflections; the largest \
jump of the energy or of its first two derivatives as an atom crosses the cutoff; and of the forces from central differences of the \
energy."""
