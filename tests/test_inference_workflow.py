"""`simkit infer` from recipe and observation to a folder, and how it refuses bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simkit.cli import app
from simkit.errors import ConfigError, DataError
from simkit.inference import files
from simkit.inference.observations import read_observation
from simkit.inference.recipe import InferenceRecipe, build_simulator, read_inference_recipe
from simkit.inference.simulators import available, build

pytest.importorskip("sbi", reason="needs sbi (pip install 'simkit[inference]')")

OWN = """
import numpy as np
from simkit.inference.priors import IndependentPrior, Uniform
from simkit.inference.simulator import FunctionSimulator, Observable

def decay(theta, rng):
    times = np.arange(5)
    return theta[0] * np.exp(-theta[1] * times) + 0.05 * rng.standard_normal(5)

prior = IndependentPrior({"height": Uniform(0.5, 2.0), "rate": Uniform(0.1, 1.0)}, {"rate": "1/s"})
simulator = FunctionSimulator(decay, prior, [Observable("signal", (5,), "V", "series", (0.0, 1.0, 2.0, 3.0, 4.0), "time (s)")])
number = 3
"""
RECIPE = """
simulator: {python: own.py}
budget: 300
samples: 400
workers: 1
options: {learning: {members: 1, max_epochs: 8, network: {hidden: 16, transforms: 2}}}
calibration: {count: 40, samples: 30, predictive: 40, seconds: 20}
"""
SIGNAL = [1.0, 0.6, 0.37, 0.22, 0.13]

Shell = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A simulator of one's own, a recipe for it and an observation."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "seen.json").write_text(json.dumps({"signal": SIGNAL}))
    return tmp_path


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run simkit in the folder; return what it prints, on failure one line."""
    monkeypatch.chdir(folder)

    def run(*arguments: object, fails: bool = False) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == (1 if fails else 0), result.output
        assert "Traceback" not in result.output
        return result.output

    return run


def test_a_simulator_of_ones_own(folder: Path, shell: Shell) -> None:
    text = shell("infer", "recipe.yaml", "--observe", "seen.json", "--out", "out")
    assert "decay: parameters height, rate (1/s); observables signal [5]" in text
    assert "95 % interval" in text
    written = {path.name for path in (folder / "out").iterdir()}
    pictures = {"corner.png", "ranks.png", "coverage.png", "intervals.png", "predictive.png", "prior_check.png"}
    assert pictures | {"posterior.nc", "posterior.safetensors", "samples.npz", "report.json", "recipe.yaml"} <= written
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["simulations"] == 300
    assert report["calibration"]["simulated"] == 40
    with np.load(folder / "out" / "samples.npz") as samples:
        theta, names = samples["theta"], samples["names"].tolist()
    assert theta.shape == (400, 2)
    assert names == ["height", "rate"]
    assert (theta > [0.5, 0.1]).all()


def test_a_posterior_is_reused_and_nothing_is_overwritten(folder: Path, shell: Shell) -> None:
    shell("infer", "recipe.yaml", "--out", "first")
    assert not (folder / "first" / "corner.png").exists()  # no observation, no samples
    (folder / "other.csv").write_text("signal\n1.5\n0.9\n0.6\n0.3\n0.2\n")
    posterior = folder / "first" / "posterior.safetensors"
    text = shell("infer", "recipe.yaml", "--observe", "other.csv", "--out", "second", "--posterior", posterior)
    assert "learning" not in text
    report = json.loads((folder / "second" / "report.json").read_text())
    assert report["simulations"] == 0
    first, second = files.load(posterior), files.load(folder / "second" / "posterior.safetensors")
    seen = np.array(SIGNAL)
    np.testing.assert_array_equal(first.sample(20, seen, seed=1), second.sample(20, seen, seed=1))
    assert "add --resume" in shell("infer", "recipe.yaml", "--out", "first", fails=True)
    before = (folder / "first" / "posterior.safetensors").read_bytes()
    shell("infer", "recipe.yaml", "--out", "first", "--resume")
    assert (folder / "first" / "posterior.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.yaml", "--out", "o"), "there is no recipe"),
        (("recipe.yaml", "--out", "o", "--set", "method=npee"), "npe"),
        (("recipe.yaml", "--out", "o", "--set", "budgt=3"), "budget"),
        (("recipe.yaml", "--out", "o", "--observe", "none.csv"), "there is no observation"),
        (("recipe.yaml", "--out", "o", "--observe", "short.csv"), "has 5 values"),
        (("recipe.yaml", "--out", "o", "--observe", "nan.csv"), "not finite"),
        (("recipe.yaml", "--out", "o", "--observe", "text.csv"), "does not hold numbers"),
        (("recipe.yaml", "--out", "o", "--observe", "recipe.pdf"), "there is no observation"),
        (("recipe.yaml", "--out", "o", "--set", "method=snle"), "simulates for one observation"),
        (("recipe.yaml", "--out", "o", "--set", "method=hmc"), "no log_likelihood"),
        (("recipe.yaml", "--out", "o", "--set", "budget=10"), "at least 20"),
        (("recipe.yaml", "--out", "o", "--set", "simulator.object=number"), "should define number"),
        (("recipe.yaml", "--out", "o", "--set", "simulator.python=none.py"), "there is no simulator"),
        (("recipe.yaml", "--out", "o", "--set", "simulator.name=sir"), "needs a name"),
        (("recipe.yaml", "--out", "o", "--posterior", "own.py"), "own.py"),
    ],
)
def test_errors_are_one_line(folder: Path, shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    (folder / "short.csv").write_text("1, 2, 3\n")
    (folder / "nan.csv").write_text("1, 2, 3, nan, 5\n")
    (folder / "text.csv").write_text("time\n1, two, 3\n")
    text = shell("infer", *arguments, fails=True)
    assert text.startswith("error: ") or "\nerror: " in text
    assert message in text
    assert len(text.strip().splitlines()[-1]) < 400


def test_the_ready_simulators_are_listed(shell: Shell) -> None:
    lines = shell("simulators").splitlines()
    assert [line.split()[0] for line in lines] == available()


def test_observations_of_every_format_are_equal(tmp_path: Path) -> None:
    simulator = build("lotka_volterra")
    values = np.linspace(1.0, 20.0, 20)
    parts = {"prey": values[:10], "predators": values[10:]}
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", prey=parts["prey"], predators=parts["predators"])
    (tmp_path / "c.json").write_text(json.dumps({name: part.tolist() for name, part in parts.items()}))
    (tmp_path / "d.yaml").write_text("[" + ", ".join(map(str, values)) + "]")
    (tmp_path / "e.csv").write_text(",".join(simulator.labels()) + "\n" + ",".join(map(str, values)) + "\n")
    (tmp_path / "f.txt").write_text("# counts\n" + "\n".join(map(str, values)) + "\n")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_observation(path, simulator), values, err_msg=path.name)
    with pytest.raises(DataError, match=r"observations are read from \.csv"):
        (tmp_path / "g.pdf").write_text("")
        read_observation(tmp_path / "g.pdf", simulator)


def test_recipes_are_strict() -> None:
    with pytest.raises(ConfigError, match="simulator"):
        read_inference_recipe(None, ["method=npe"])
    recipe = InferenceRecipe(simulator={"name": "two_moon"})
    with pytest.raises(ConfigError, match="two_moons"):
        build_simulator(recipe.simulator)
