"""Tables of posteriors and netCDF files, read back by other means."""

import math
import sys
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest
from exact_posterior import PRIOR, GaussianPosterior, LinearSimulator

from simkit import __version__
from simkit.errors import DataError, MissingDependencyError, OutputError
from simkit.inference.export import write_netcdf
from simkit.inference.priors import IndependentPrior, Normal
from simkit.inference.simulations import simulate
from simkit.inference.simulator import Observable
from simkit.inference.summary import Estimate, Summary, summarise
from simkit.workflows.text import table

SIMULATOR = LinearSimulator()
OBSERVED = np.array([0.1, 0.2, -0.3, 0.4])
ONE = IndependentPrior({"a": Normal(0, 1)}, {"a": "K"})


def test_a_summary_holds_moments_and_quantiles() -> None:
    samples = GaussianPosterior().sample(999, OBSERVED, seed=1)
    summary = summarise(samples, PRIOR)
    stiffness = summary.parameters[0]
    ordered = np.sort(samples[:, 0])
    assert (summary.count, summary.distinct) == (999, 999)
    assert (stiffness.name, stiffness.unit) == ("stiffness", "eV/Å²")
    assert stiffness.mean.value == pytest.approx(ordered.sum() / 999)
    assert stiffness.sd.value == pytest.approx(math.sqrt(((ordered - ordered.mean()) ** 2).sum() / 998))
    assert stiffness.median.value == ordered[499]
    for name, share in (("low_95", 0.025), ("low_68", 0.16), ("high_68", 0.84), ("high_95", 0.975)):
        below = (ordered < getattr(stiffness, name).value).mean()
        assert abs(below - share) < 1 / 999


def test_monte_carlo_errors_are_those_of_repeated_samples() -> None:
    rng = np.random.default_rng(3)
    runs = [summarise(rng.gamma(2.0, size=(400, 1)), ONE).parameters[0] for _ in range(300)]
    for name in ("mean", "sd", "median", "low_68", "high_68", "low_95", "high_95"):
        found = np.std([getattr(run, name).value for run in runs])
        said = np.mean([getattr(run, name).error for run in runs])
        # Standard deviations of 300 values are known to 4 %; errors from spacings are rough.
        assert 0.75 < said / found < 1.3, name


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.02, "1.23"),
        (1.23456, 0.06, "1.2"),
        (1.23456, 0.004, "1.235"),
        (-0.00012345, 2e-6, "-0.000123"),
        (123456.0, 200.0, "123500"),
        (1.2345e-9, 1e-11, "1.23e-09"),
        (6.022e23, 1e21, "6.02e+23"),
        (0.0, 0.01, "0.00"),
        (2.5, 0.0, "2.5"),
    ],
)
def test_only_known_digits_are_shown(value: float, error: float, text: str) -> None:
    assert str(Estimate(value, error)) == text


def test_repeated_samples_count_once() -> None:
    few = np.random.default_rng(0).normal(size=(100, 1))
    once, often = summarise(few, ONE), summarise(np.repeat(few, 50, axis=0), ONE)
    assert (often.count, often.distinct) == (5000, 100)
    assert often.parameters[0].mean.error == pytest.approx(once.parameters[0].mean.error, rel=0.02)
    constant = summarise(np.ones((5, 1)), ONE).parameters[0]
    assert str(constant.sd) == "0"


def test_the_table_has_a_row_for_each_parameter_and_its_unit() -> None:
    summary = summarise(GaussianPosterior().sample(500, OBSERVED, seed=1), PRIOR)
    lines = table(Summary.HEADER, summary.rows()).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["stiffness", "offset"]
    assert lines[2].endswith("eV/Å²")
    content = summary.to_dict()
    assert content["stiffness"]["low_95"] == summary.parameters[0].low_95.value
    assert content["offset"]["unit"] == "Å"
    with pytest.raises(DataError, match=r"finite samples \[N, 2\]"):
        summarise(np.ones((4, 3)), PRIOR)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    samples = GaussianPosterior().sample(600, OBSERVED, seed=1).reshape(3, 200, 2)
    drawn = simulate(SIMULATOR, 50, seed=2)
    statistics = {"lp": np.arange(600.0).reshape(3, 200)}
    path = tmp_path / "posterior.nc"
    write_netcdf(
        path,
        samples,
        PRIOR,
        SIMULATOR.observables,
        observation=OBSERVED,
        predictive=drawn.x,
        prior_samples=drawn.theta,
        prior_predictive=drawn.x,
        statistics=statistics,
        attributes={"method": "npe", "simulations": 1000},
    )
    return path, {"samples": samples, "drawn": drawn, "statistics": statistics}


def test_the_file_has_the_groups_and_dimensions_of_arviz(written: tuple[Path, dict[str, Any]]) -> None:
    path, given = written
    with h5netcdf.File(path) as file:
        groups = {"posterior", "posterior_predictive", "observed_data", "prior", "prior_predictive", "sample_stats"}
        assert set(file.groups) == groups
        posterior = file["posterior"]
        assert posterior["offset"].dimensions == ("chain", "draw")
        np.testing.assert_array_equal(posterior["offset"][...], given["samples"][:, :, 1])
        assert posterior["chain"][...].tolist() == [0, 1, 2]
        assert posterior["stiffness"].attrs["units"] == "eV/Å²"
        assert (posterior.attrs["inference_library"], posterior.attrs["inference_library_version"]) == (
            "simkit",
            __version__,
        )
        assert (posterior.attrs["method"], posterior.attrs["simulations"]) == ("npe", 1000)
        predictive = file["posterior_predictive"]
        assert predictive["signal"].dimensions == ("chain", "draw", "signal_dim_0")
        np.testing.assert_array_equal(predictive["signal"][0], given["drawn"].x[:, 1:])
        np.testing.assert_array_equal(predictive["energy"][0], given["drawn"].x[:, 0])
        assert predictive["signal_dim_0"][...].tolist() == [0.0, 0.5, 1.0]
        assert predictive["signal_dim_0"].attrs["long_name"] == "time (ps)"
        assert predictive["signal"].attrs["units"] == "mV"
        observed = file["observed_data"]
        assert observed["signal"].dimensions == ("signal_dim_0",)
        assert float(observed["energy"][...]) == 0.1
        np.testing.assert_array_equal(file["prior"]["stiffness"][0], given["drawn"].theta[:, 0])
        np.testing.assert_array_equal(file["sample_stats"]["lp"][...], given["statistics"]["lp"])


def test_other_programs_find_plain_netcdf(written: tuple[Path, dict[str, Any]]) -> None:
    """NetCDF-4 is HDF5 whose dimensions are scales that the variables are attached to."""
    with h5py.File(written[0]) as file:
        variable = file["posterior/stiffness"]
        assert [variable.dims[k].keys() for k in range(2)] == [["chain"], ["draw"]]
        assert "_NCProperties" in file.attrs


def test_little_is_enough(tmp_path: Path) -> None:
    slashed = IndependentPrior({"epsilon/k_B": Normal(0, 1)}, {"epsilon/k_B": "K"})
    path = tmp_path / "little.nc"
    matrix = (Observable("grid", (2, 3)),)
    write_netcdf(path, np.arange(4.0)[:, None], slashed, matrix, observation=np.arange(6.0))
    with h5netcdf.File(path) as file:
        assert set(file.groups) == {"posterior", "observed_data"}
        assert file["posterior"]["epsilon_per_k_B"].shape == (1, 4)
        assert file["posterior"]["epsilon_per_k_B"].attrs["long_name"] == "epsilon/k_B"
        assert file["observed_data"]["grid"].dimensions == ("grid_dim_0", "grid_dim_1")
        assert file["observed_data"]["grid"].attrs["units"] == "1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": np.ones((5, 3))}, r"posterior should be an array \[draws, 2\]"),
        ({"observation": np.ones(3)}, r"observed_data should be an array \[4\]"),
        ({"predictive": np.ones((5, 3))}, "posterior_predictive"),
        ({"statistics": {"lp": np.ones(5), "energy": np.ones(4)}}, "statistics"),
    ],
)
def test_shapes_that_do_not_fit_leave_no_file(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"samples": np.ones((5, 2)), "prior": PRIOR, "observables": SIMULATOR.observables}
    with pytest.raises(DataError, match=words):
        write_netcdf(tmp_path / "x.nc", **(arguments | change))
    assert not list(tmp_path.iterdir())


def test_missing_folders_and_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_netcdf(tmp_path / "none" / "x.nc", np.ones((5, 2)), PRIOR, SIMULATOR.observables)
    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    with pytest.raises(MissingDependencyError, match=r"simkit\[inference\]"):
        write_netcdf(tmp_path / "x.nc", np.ones((5, 2)), PRIOR, SIMULATOR.observables)
