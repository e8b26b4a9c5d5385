"""APHYNITY: its physics against the known systems, its objective written out, and the least norm that it must find."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simkit.config import parse_options
from simkit.errors import ConfigError
from simkit.surrogates import systems
from simkit.surrogates.files import load
from simkit.surrogates.models import build
from simkit.surrogates.models.aphynity import APHYNITY
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.recipe import SurrogateRecipe
from simkit.surrogates.samples import Samples, pieces, single_states
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions
from simkit.workflows.surrogate_train import physics_figures, train_surrogate

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def make(dof: int, *, disturbed: bool = True, **options: Any) -> APHYNITY:
    model = build("aphynity", dof, dtype="float64", width=6, **options)
    if not isinstance(model, APHYNITY):
        raise TypeError("expected APHYNITY")
    if disturbed and model.residual_network is not None:
        with torch.no_grad():
            for seed, parameter in enumerate(model.residual_network.parameters()):
                parameter += 0.3 * random(*parameter.shape, seed=seed)
    return model


def set_physics(model: APHYNITY, **values: float) -> None:
    with torch.no_grad():
        for name, value in values.items():
            model.physics.raw[name].fill_(math.log(math.expm1(value)))


def test_the_complete_physics_are_the_known_systems() -> None:
    pendulum, damped = systems.build("damped_pendulum"), make(1, physics="damped-pendulum", residual=False)
    set_physics(damped, **pendulum.parameters)
    state = random(7, 2)
    torch.testing.assert_close(damped.derivative(0.0, state).detach(), pendulum.vector_field(0.0, state))
    reacting = systems.build_any("reaction_diffusion", {"size": 5, "a": 0.02, "b": 0.03, "k": 0.1})
    model = make(50, physics="reaction-diffusion", residual=False)
    set_physics(model, a=0.02, b=0.03, k=0.1)
    fields = random(3, 50)
    torch.testing.assert_close(model.derivative(0.0, fields).detach(), reacting.vector_field(0.0, fields))
    assert model.physics_parameters() == {name: pytest.approx(reacting.parameters[name]) for name in "abk"}
    assert physics_figures(model, reacting.parameters)["error"] == pytest.approx(0, abs=1e-6)
    assert physics_figures(model, {**reacting.parameters, "b": 0.04})["error"] == pytest.approx(0.25 / 3, abs=1e-6)
    assert physics_figures(model, {"a": 0.02})["error"] is None


def test_incomplete_physics_lack_friction_and_reaction() -> None:
    pendulum, state = make(1, residual=False), random(4, 2)
    set_physics(pendulum, frequency=0.8)
    expected = torch.stack([state[:, 1], -0.64 * state[:, 0].sin()], -1)
    torch.testing.assert_close(pendulum.derivative(0.0, state).detach(), expected)
    model, fields = make(32, physics="diffusion", residual=False), random(32)
    found = model.derivative(0.0, fields).detach().view(2, 4, 4)
    start = 1e-2 / (1 + math.exp(2))
    grid = fields.view(2, 4, 4)
    for c, i, j in np.ndindex(2, 4, 4):
        around = grid[c, i - 1, j] + grid[c, (i + 1) % 4, j] + grid[c, i, j - 1] + grid[c, i, (j + 1) % 4]
        assert float(found[c, i, j]) == pytest.approx(start * 4 * float(around - 4 * grid[c, i, j]), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("norm", ["absolute", "relative"])
@pytest.mark.parametrize(("physics", "dof"), [("pendulum", 2), ("diffusion", 32)])
def test_the_norm_of_the_residual(norm: str, physics: str, dof: int) -> None:
    model = make(dof, physics=physics, norm=norm)
    state = random(3, model.state_size)
    residual = model.residual(state).detach().numpy()
    points = 16 if physics == "diffusion" else 1
    for one, f, x in zip(model.squared_norm(state).detach(), residual, state.numpy(), strict=True):
        total = 0.0
        for point in range(points):
            square = (f[point::points] ** 2).sum()
            total += square / (np.linalg.norm(x[point::points]) + 1e-5) ** 2 if norm == "relative" else square
        assert float(one) == pytest.approx(total / points, rel=1e-10)


def some_pieces(length: int = 3) -> Samples:
    system = systems.build("damped_pendulum")
    times = np.linspace(0.0, 4.0, 9)
    return pieces(
        system.trajectories(times, system.integrate(system.sample(4, 0), times)).windows(length), "velocity", F64
    )


def test_the_objective_is_algorithm_one() -> None:
    """The norm over the states of the data plus lambda times the mean square error; lambda grows by that error; shards add up."""
    samples, model = some_pieces(), make(1)
    objective = MotionObjective(ObjectiveOptions(match="rollout", method="rk4", fit_growth=7.0))
    every = torch.arange(len(samples))
    counts = objective.counts(samples, every)
    trainee = Trainee(model, 3.0)
    loss, _ = objective(trainee, samples, counts)
    with torch.no_grad():
        rollout = model.rollout(samples.states[:, 0], samples.times, method="rk4").transpose(0, 1)
        fit_error = float((rollout - samples.states)[:, 1:].square().mean())
        norm = float(model.residual(samples.states).square().sum(-1).mean())
    assert float(loss.detach()) == pytest.approx(norm + 3.0 * fit_error, rel=1e-10)
    assert float(trainee.fit_weight) == pytest.approx(3.0 + 7.0 * fit_error, rel=1e-10)
    loss.backward()
    gradient = model.physics.raw["frequency"].grad
    assert gradient is not None
    assert float(gradient.abs()) > 1e-3
    shares = [objective(Trainee(model, 3.0), samples.batch(part), counts)[0] for part in (every[:5], every[5:])]
    assert float(sum(share.detach() for share in shares)) == pytest.approx(float(loss.detach()), rel=1e-10)
    trainee = Trainee(model, 3.0).eval()
    assert float(objective(trainee, samples, counts)[0].detach()) == pytest.approx(fit_error, rel=1e-10)
    assert float(trainee.fit_weight) == 3.0


def test_physics_alone_are_fitted_as_any_model() -> None:
    samples, trainee = some_pieces(), Trainee(make(1, residual=False), 5.0)
    objective = MotionObjective(ObjectiveOptions(match="rollout", method="rk4"))
    counts = objective.counts(samples, torch.arange(len(samples)))
    loss = float(objective(trainee, samples, counts)[0].detach())
    assert loss == pytest.approx(float(objective(trainee.eval(), samples, counts)[0].detach()))
    assert float(trainee.fit_weight) == 5.0


@pytest.mark.parametrize("norm", ["absolute", "relative"])
def test_training_finds_the_least_norm_and_not_the_true_parameter(norm: str, tmp_path: Path) -> None:
    """Friction is not orthogonal to gravity on decaying orbits: the best omega^2 is a projection, 5% below the true one.

    At each point w |F_a|^2 + lambda |R - F_a|^2 / 2 with R = F - F_p is least at F_a = lambda R / (lambda + 2 w), which leaves
    w lambda / (lambda + 2 w) |R|^2 to omega.
    """
    system = systems.build("damped_pendulum")
    data = system.generate("aphynity", 0).split({"train": 25, "test": 25})["train"]
    q, v = data.q.ravel(), data.state("qv")[..., 1].ravel()
    omega2, friction = system.parameters["frequency"] ** 2, system.parameters["friction"]
    weight = 1 / (np.hypot(q, v) + 1e-5) ** 2 if norm == "relative" else np.ones_like(q)
    weight = weight / (1 + 2 * weight)
    force = omega2 * np.sin(q) + friction * v
    projected = (weight * force * np.sin(q)).sum() / (weight * np.sin(q) ** 2).sum()
    assert 0.04 < 1 - projected / omega2 < 0.07
    model = build("aphynity", 1, width=16, skip=True, norm=norm, seed=1)
    objective = MotionObjective(ObjectiveOptions(fit_growth=0.0))
    samples = single_states(data, "velocity", torch.float32)
    options = TrainingOptions(
        epochs=800, batch_size=1000, evaluation_batch_size=1000, learning_rate=2e-2, ema_decay=0.0, validate_every=800
    )
    fit(Trainee(model, 1.0), objective, samples, samples, options, tmp_path)
    if not isinstance(model, APHYNITY):
        raise TypeError("expected APHYNITY")
    assert model.physics_parameters()["frequency"] ** 2 == pytest.approx(projected, rel=0.01)


def test_a_training_of_fields_by_its_recipe(tmp_path: Path) -> None:
    recipe = parse_options(
        SurrogateRecipe,
        {
            "data": {"system": "reaction_diffusion", "parameters": {"size": 4}, "trajectories": 4},
            "model": {"name": "aphynity", "physics": "diffusion", "width": 4},
            "objective": {"match": "rollout", "method": "rk4", "window": 3, "fit_weight": 1e4},
            "training": {"epochs": 3, "batch_size": 20, "validate_every": 3},
        },
        "test",
    )
    report = train_surrogate(recipe, tmp_path / "run", echo=lambda text: None)
    found, truth = report.metrics["physics"], report.parts.train.info["parameters"]
    errors = [abs(found["parameters"][name] / truth[name] - 1) for name in "ab"]
    assert found["error"] == pytest.approx(np.mean(errors))
    again = load(tmp_path / "run" / "model.safetensors")
    test = report.parts.test
    assert test is not None
    frames = again.rollout(torch.from_numpy(test.q[:, 0]).float(), torch.from_numpy(test.times), method="rk4").detach()
    mse = float((frames.transpose(0, 1).double() - torch.from_numpy(test.q)).square().mean())
    assert report.metrics["test"]["mse"]["mean"] == pytest.approx(mse, rel=1e-4)
    assert report.metrics["test"]["log10_mse"] == pytest.approx(math.log10(mse), rel=1e-4)


@pytest.mark.parametrize(
    ("dof", "options", "message"),
    [
        (9, {"physics": "diffusion"}, r"2 fields on a square grid have 2 n\^2 values; found 9"),
        (18, {"physics": "diffusion", "kernel": 4}, "odd"),
        (18, {"physics": "diffusion", "kernel": 9}, "kernel must not be larger"),
        (1, {"physics": "diffusio"}, "physics"),
    ],
)
def test_unusable_options(dof: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("aphynity", dof, **options)
