"""Plots: what is drawn is what was given, and nothing global is touched."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from simkit import plotting, run_plots
from simkit.errors import OutputError


def rows(count: int = 20) -> list[dict[str, float | None]]:
    decay = np.exp(-np.arange(count) / 10)
    return [
        {
            "epoch": k + 1,
            "lr": 1e-3,
            "train_loss": 2 * d,
            "valid_loss": 3 * d if k % 2 else None,
            "valid_energy_mae": 0.1 * d,
            "valid_forces_mae": 0.2 * d,
        }
        for k, d in enumerate(decay.tolist())
    ]


def every_plot() -> dict[str, Axes]:
    rng = np.random.default_rng(0)
    time = np.arange(0, 5000, 0.5)
    kinetic = 0.4 + 0.1 * np.sin(time / 20)
    energies = -4000 + 1 - kinetic
    volumes = np.linspace(130, 190, 9)
    return {
        "learning_curve": plotting.learning_curve(rows())[0],
        "parity_few": plotting.parity(energies[:100], energies[:100] + 0.01, "eV", "energy"),
        "parity_many": plotting.parity(rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3)), "eV/Å", "force"),
        "parity_constant": plotting.parity([1.0, 1.0], [1.0, 1.0], "eV", "energy"),
        "energy": run_plots.energy_trace(time, energies, kinetic, energies + kinetic),
        "temperature": run_plots.course(time, 300 * kinetic, "temperature", "K"),
        "drift": run_plots.drift_plot(time, energies + kinetic, 9, 0.0),
        "replicas": run_plots.course(time, np.stack([kinetic, 1.1 * kinetic], axis=1), "pressure", "GPa"),
        "relaxation": plotting.relaxation([1.0, 0.5, 0.2], [0.1, 0.01, 0.0], 0.01)[0],
        "eos": plotting.equation_of_state(
            volumes, (volumes - 160) ** 2, volumes, (volumes - 160) ** 2, volume=160.0, bulk_modulus=98.0, n_atoms=8
        ),
    }


def test_every_plot_is_written_and_labelled(tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    for name, ax in every_plot().items():
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        plotting.save(ax, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == settings
    plotting.save(ax.figure, tmp_path / "same.pdf")  # type: ignore[arg-type]
    assert (tmp_path / "same.pdf").read_bytes().startswith(b"%PDF")
    assert "matplotlib.pyplot" not in sys.modules or not matplotlib.pyplot.get_fignums()  # type: ignore[attr-defined]


def test_unwritable_path_is_an_output_error(tmp_path: Path) -> None:
    ax = plotting.relaxation([1.0, 0.5], [0.1, 0.01], 0.01)[0]
    with pytest.raises(OutputError):
        plotting.save(ax, tmp_path / "missing" / "plot.png")


def test_learning_curve_groups_and_scales() -> None:
    panels = plotting.learning_curve(rows())
    assert [panel.get_title() for panel in panels] == ["loss", "energy", "forces"]
    assert [panel.get_ylabel() for panel in panels] == ["loss", "MAE (meV)", "MAE (meV/Å)"]
    training, validation = panels[0].lines
    assert len(np.asarray(training.get_xdata())) == 20
    assert len(np.asarray(validation.get_xdata())) == 10  # the epochs that were validated
    assert np.asarray(panels[1].lines[0].get_ydata())[0] == pytest.approx(100.0)


def test_parity_tells_the_errors() -> None:
    ax = plotting.parity([0.0, 1.0, 2.0], [0.003, 1.0, 1.996], "eV/Å", "force")
    (text,) = ax.texts
    assert text.get_text() == "MAE 2.33 meV/Å\nRMSE 2.89 meV/Å"
    assert ax.get_xlim() == ax.get_ylim()
    assert "MAE 0.500 GPa" in plotting.parity([1.0, 2.0], [1.5, 2.5], "GPa", "modulus").texts[0].get_text()


def test_density_of_the_extremes_is_counted() -> None:
    values = np.concatenate([np.zeros(1500), [1.0]])
    colours = plotting.parity(values, values, "eV", "energy").collections[0].get_array()
    assert sorted(set(np.asarray(colours).tolist())) == [1.0, 1500.0]


def test_long_traces_keep_their_extremes() -> None:
    values = np.full(50_000, 300.0)
    values[12_345], values[31_000] = 900.0, 10.0
    line = run_plots.course(np.arange(50_000.0), values, "temperature", "K").lines[0]
    drawn = np.asarray(line.get_ydata())
    assert len(drawn) < 5000
    assert drawn.max() == 900.0
    assert drawn.min() == 10.0


def test_time_axis_turns_to_picoseconds() -> None:
    short = run_plots.course([0.0, 100.0], [300.0, 310.0], "temperature", "K")
    long = run_plots.course([0.0, 20000.0], [300.0, 310.0], "temperature", "K")
    assert short.get_xlabel() == "time (fs)"
    assert long.get_xlabel() == "time (ps)"
    assert np.asarray(long.lines[0].get_xdata())[-1] == 20.0


@pytest.mark.parametrize(
    ("value", "text"), [(12.345, "12.3"), (0.0123, "0.0123"), (1234.5, "1234"), (0.0, "0"), (3.21e-7, "3.21e-07")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert plotting.short_number(value) == text


def test_parity_panels_stand_side_by_side():
    x = np.linspace(-1.0, 1.0, 50)
    panels = plotting.parity_panels([(x, x + 0.1, "eV", "energy"), (x, x, "eV/Å", "forces")])
    assert [ax.get_xlabel() for ax in panels] == ["reference energy (eV)", "reference forces (eV/Å)"]
    assert panels[0].figure is panels[1].figure
    assert panels[0].texts[0].get_text().startswith("MAE 100")
