"""Models beside each other: the figures of their evaluations over seeds, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simkit.errors import DataError


def collected(runs: Mapping[str, Sequence[Mapping[str, Any]]], figure: str) -> dict[str, list[float | None]]:
    """Return one figure of every run, as `simkit.surrogates.plots.comparison` draws it.

    Args:
        runs: name of a model -> the ``figures`` of `simkit.surrogates.evaluation.evaluate` for each seed.
        figure: its name, with dots between levels: "relative_error.geometric_mean".

    Raises:
        DataError: if a run does not have it.
    """
    return {name: [_figure(figures, figure) for figures in seeds] for name, seeds in runs.items()}


def comparison_table(runs: Mapping[str, Sequence[Mapping[str, Any]]], columns: Mapping[str, str]) -> str:
    """Return a table in Markdown: a row for each model, with the median over its seeds and the range in brackets.

    Values that are None count as infinite, or as unknown ("–") where no seed has one.

    Args:
        runs: as for `collected`.
        columns: heading -> name of a figure.

    Raises:
        DataError: if a run lacks a figure.
    """
    values = [collected(runs, figure) for figure in columns.values()]
    lines = [["model", "seeds", *columns], ["---"] * (2 + len(columns))]
    lines += [[name, str(len(seeds)), *(_cell(column[name]) for column in values)] for name, seeds in runs.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def median(values: Sequence[float | None]) -> float:
    """Return the median; values that are None count as infinite."""
    return float(np.median([math.inf if value is None else value for value in values]))


def _figure(figures: Mapping[str, Any], name: str) -> float | None:
    value: Any = figures
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"an evaluation has no figure {name!r}; it has {', '.join(figures)}")
        value = value[part]
    return None if value is None else float(value)


def _cell(values: Sequence[float | None]) -> str:
    if all(value is None for value in values):
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2g}"
    finite = [math.inf if value is None else value for value in values]
    return f"{median(values):.2g} ({min(finite):.2g} to {max(finite):.2g})"
