"""`simkit surrogate`: from data to trained, compared and rolled-out models, and what users see when something is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simkit import cli
from simkit.surrogates import systems
from simkit.surrogates.evaluation import evaluate
from simkit.surrogates.files import load
from simkit.surrogates.loaders import load_csv
from simkit.surrogates.trajectories import Trajectories

FAST = ["--set", "training.epochs=3", "--set", "training.device=cpu", "--set", "model.width=8"]


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of a command."""
    result = CliRunner().invoke(cli.app, ["surrogate", *(str(argument) for argument in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surrogate") / "training"
    status, out, _ = run("train", "--system", "pendulum", *FAST, "-o", folder)
    assert status == 0
    assert f"simkit surrogate rollout {folder / 'model.safetensors'}" in out
    return folder


def test_the_list_names_systems_protocols_and_models() -> None:
    status, out, _ = run("list")
    assert status == 0
    for name in (
        "three_body",
        "reaction_diffusion",
        "finzi: train 800, validation 100, test 100",
        "hnn",
        "neural-ode-2",
    ):
        assert name in out


def test_data_of_a_system(tmp_path: Path) -> None:
    path = tmp_path / "chain.npz"
    arguments = ("make-data", "double_pendulum", "--protocol", "lnn-figure", "--set", "gravity=1.0", "--out", path)
    assert run(*arguments)[0] == 0
    data = Trajectories.load(path)
    expected = systems.build("double_pendulum", {"gravity": 1.0}).generate("lnn-figure", 0)
    assert np.array_equal(data.q, expected.q)
    status, _, error = run(*arguments)
    assert status == 1
    assert "add --overwrite" in error


def test_a_training_leaves_a_model_with_its_figures(trained: Path) -> None:
    written = json.loads((trained / "metrics.json").read_text())
    model = load(trained / "model.safetensors")
    system = systems.build("pendulum")
    data = system.generate("hnn", 0).split({"train": 25, "test": 25})
    again = evaluate(model, data["test"], system).figures
    assert written["test"]["derivative_mse"] == pytest.approx(again["derivative_mse"], rel=1e-5)
    assert written["test"]["energy_mse"]["mean"] == pytest.approx(again["energy_mse"]["mean"], rel=1e-4)
    assert written["epochs"] == 3
    assert model.info["metrics"]["test"] == written["test"]
    for name in ("learning_curve", "phase_portrait", "rollout_error", "energy", "energy_landscape"):
        assert (trained / f"{name}.png").stat().st_size > 5000
    status, _, error = run("train", "--system", "pendulum", *FAST, "-o", trained)
    assert status == 1
    assert "add --resume" in error


def test_a_rollout_beside_the_truth(trained: Path, tmp_path: Path) -> None:
    model, folder = trained / "model.safetensors", tmp_path / "rollout"
    status, out, _ = run("rollout", model, "--count", 3, "--duration", 1, "--points", 11, "-o", folder)
    assert status == 0
    assert "3 trajectories over 1" in out
    data = Trajectories.load(folder / "rollout.npz")
    assert data.q.shape == (3, 11, 1)
    assert data.times[-1] == pytest.approx(1.0)
    start = systems.build("pendulum").sample(3, 1)
    assert np.allclose(data.state("qp")[:, 0], start, atol=1e-6)
    assert (folder / "motion.gif").read_bytes().startswith(b"GIF89a")
    assert json.loads((folder / "rollout.json").read_text())["trajectories"] == 3
    assert "add --overwrite" in run("rollout", model, "-o", folder)[2]


def test_particles_that_explode_are_counted(tmp_path: Path) -> None:
    """An untrained potential does not hold them apart."""
    options = ("--model", "graph-network", "--set", "training.epochs=1", "--set", "training.device=cpu")
    small = ("--set", "data.trajectories=1")
    status, out, _ = run("train", "--system", "lennard_jones", *options, *small, "-o", tmp_path)
    assert status == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert found["blown_up"] > 0
    assert f"{found['blown_up']} of {found['trajectories']} blown up" in out
    assert load(tmp_path / "model.safetensors").info["metrics"]["test"] == found


def test_trajectories_of_ones_own(tmp_path: Path) -> None:
    times = np.linspace(0, 3, 31)
    rows = [f"{k},{t},{np.cos(t + k)},{-np.sin(t + k)}" for k in range(10) for t in times]
    path = tmp_path / "measured.csv"
    path.write_text("\n".join(["trajectory,t,q,p", *rows]))
    status, out, _ = run("train", "--data", path, *FAST, "-o", tmp_path / "training")
    assert status == 0
    assert "7 x 31 states for training, 1 x 31 states for validation, 2 x 31 states for test" in out
    model = tmp_path / "training" / "model.safetensors"
    assert "--initial YOUR_DATA" in out
    assert run("rollout", model, "--initial", path, "-o", tmp_path / "rollout")[0] == 0
    found = Trajectories.load(tmp_path / "rollout" / "rollout.npz")
    assert np.allclose(found.state("qp")[:, 0], load_csv(path).state("qp")[:, 0], atol=1e-6)
    status, _, error = run("rollout", model, "-o", tmp_path / "other")
    assert status == 1
    assert "--initial FILE" in error


def test_polishing_takes_the_error_further_down(tmp_path: Path) -> None:
    settings = ["--set", "data.protocol_noise=false", "--set", "training.precision=float64", *FAST]
    errors = []
    for iterations in (0, 100):
        folder = tmp_path / str(iterations)
        assert run("train", "--system", "spring", *settings, "--set", f"polish={iterations}", "-o", folder)[0] == 0
        errors.append(json.loads((folder / "metrics.json").read_text())["test"]["derivative_mse"])
    assert errors[1] < 1e-2 * errors[0]


def test_a_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = ["compare", "--system", "spring", *FAST, "--models", "hnn,neural-ode", "-o", tmp_path]
    assert run(*arguments, "--seeds", 1)[0] == 0
    first = (tmp_path / "hnn" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    status, out, _ = run(*arguments, "--seeds", 2)
    assert status == 0
    assert (tmp_path / "hnn" / "seed-0" / "model.safetensors").stat().st_mtime_ns == first
    found = json.loads((tmp_path / "comparison.json").read_text())["models"]
    errors = [found["hnn"][seed]["test"]["derivative_mse"] for seed in ("0", "1")]
    assert errors[0] != errors[1]
    assert f"{(errors[0] + errors[1]) / 2:.2g} ({min(errors):.2g} to {max(errors):.2g})" in out
    assert (tmp_path / "comparison.png").stat().st_size > 5000
    assert "| neural-ode | 2 |" in (tmp_path / "comparison.md").read_text()
    status, _, error = run(*arguments, "--set", "training.learning_rate=0.01")
    assert status == 1
    assert "another recipe" in error


def test_one_model_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    arguments = ["compare", "--system", "spring", *FAST, "--models", "chnn,hnn", "--seeds", 1, "-o", tmp_path]
    status, out, error = run(*arguments, "--set", "model.links=[[0, 7]]", "--set", "model.lengths=[1.0]")
    assert status == 1
    assert "2 trainings failed" in error or "1 trainings failed" in error
    assert "chnn, seed 0: failed" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--system", "sprin"], "did you mean 'spring'?"),
        (["train"], "give --system NAME or --data FILE"),
        (["train", "--system", "spring", "--data", "x.csv"], "not both"),
        (["train", "--system", "spring", "--model", "hn"], "did you mean 'hnn'?"),
        (["train", "--system", "spring", "--set", "model.widht=3"], "did you mean 'width'?"),
        (["train", "--system", "spring", "--set", "objective.windo=3"], "did you mean 'window'?"),
        (["train", "--system", "spring", "--set", "data.protocol=hn"], "did you mean 'hnn'?"),
        (["train", "--data", "missing.csv"], "cannot read"),
        (["compare", "--system", "spring"], "no models to compare"),
        (["rollout", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    status, _, error = run(*arguments, "-o", tmp_path / "out")
    assert status == 1
    assert len(error.strip().splitlines()) == 1
    assert message in error
