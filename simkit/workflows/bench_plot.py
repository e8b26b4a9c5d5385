"""The plot of `simkit bench`: numbers in, matplotlib Axes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simkit.plotting import BLUE, GREY, VERMILION, new_panels, plain_log_ticks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {"fast": (BLUE, "o"), "reference": (VERMILION, "s")}


@dataclass(frozen=True)
class Curve:
    """What one path costs for each number of atoms.

    Attributes:
        milliseconds: of a call. memory: bytes, None where it is not known.
        line: slope and start of a line through the memory, bytes.
    """

    atoms: Sequence[int]
    milliseconds: Sequence[float]
    memory: Sequence[int | None]
    line: tuple[float, float] | None


@styled
def cost_against_size(curves: Mapping[str, Curve]) -> list[Axes]:
    """Plot time per call and memory against the number of atoms on logarithmic axes; the names of the curves are keys of `LOOKS`."""
    with_memory = any(any(curve.memory) for curve in curves.values())
    panels = new_panels(2 if with_memory else 1, 4.6, 3.6)
    for name, curve in curves.items():
        colour, marker = LOOKS[name]
        panels[0].plot(curve.atoms, curve.milliseconds, marker=marker, markersize=4, color=colour, label=name)
        if any(curve.memory):
            _draw_memory(panels[1], name, curve)
    largest = max(curves.values(), key=lambda curve: curve.atoms[-1])
    ends = np.array([largest.atoms[0], largest.atoms[-1]], dtype=float)
    proportional = largest.milliseconds[-1] * ends / ends[1]
    panels[0].plot(
        ends, proportional, color=GREY, linewidth=0.8, linestyle=":", zorder=0, label="in proportion to atoms"
    )
    panels[0].set(ylabel="ms per call", title="Time of energy and forces")
    if with_memory:
        panels[1].set(ylabel="MB", title="Memory at the peak")
    for ax in panels:
        ax.set(xlabel="atoms", xscale="log", yscale="log")
        plain_log_ticks(ax)
        plain_log_ticks(ax, "x")
        ax.legend()
    return panels


def _draw_memory(ax: Axes, name: str, curve: Curve) -> None:
    colour, marker = LOOKS[name]
    atoms, memory = np.array(curve.atoms, dtype=float), np.array(curve.memory, dtype=float) / 1e6
    seen = memory > 0  # a logarithm shows nothing else
    label = name
    if curve.line is not None:
        slope, start = curve.line
        label = f"{name}, {slope / 1e3:.3g} kB per atom"
        line = (start + slope * atoms) / 1e6
        ax.plot(atoms[line > 0], line[line > 0], color=colour, linewidth=0.8)
    ax.plot(atoms[seen], memory[seen], marker, markersize=4, color=colour, label=label)
