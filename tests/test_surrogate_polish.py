"""L-BFGS on all samples at once."""

import numpy as np
import pytest
import torch

from simkit.errors import SimkitError
from simkit.surrogates import systems
from simkit.surrogates.models import build
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.polish import polish
from simkit.surrogates.samples import Samples, pieces

F64 = torch.float64


def swinging() -> Samples:
    system = systems.build("damped_pendulum")
    times = np.linspace(0.0, 10.0, 41)
    return pieces(system.trajectories(times, system.integrate(system.sample(4, 0), times)).segments(2), "velocity", F64)


def test_the_parameters_of_complete_physics_are_found() -> None:
    samples = swinging()
    model = build("aphynity", 1, dtype="float64", physics="damped-pendulum", residual=False)
    objective = MotionObjective(ObjectiveOptions(match="rollout", method="rk4", timestep=0.05))
    last = polish(Trainee(model), objective, samples, 30)
    truth = systems.build("damped_pendulum").parameters
    parameters = {name: float(value.detach()) for name, value in model.physics.parameters_by_name().items()}  # type: ignore[union-attr, operator]
    assert parameters == {name: pytest.approx(truth[name], rel=1e-5) for name in truth}
    assert last < 1e-12


def test_the_weight_of_the_fit_and_the_noise_are_left_out() -> None:
    samples, model = swinging(), build("aphynity", 1, dtype="float64", width=4)
    objective = MotionObjective(ObjectiveOptions(match="rollout", method="rk4", fit_growth=10.0, noise=0.1))
    trainee = Trainee(model, 50.0)
    counts = objective.counts(samples, torch.arange(len(samples)))
    clean = MotionObjective(ObjectiveOptions(match="rollout", method="rk4"))
    before = 50.0 * float(clean(trainee.eval(), samples, counts)[0].detach())  # the residual starts as zero
    after = polish(trainee, objective, samples, 60)
    assert float(trainee.fit_weight) == 50.0
    assert int(trainee.draws) == 0
    assert not trainee.training
    rest = 50.0 * float(clean(trainee, samples, counts)[0].detach())
    norm = float(model.squared_norm(samples.states).detach().mean())  # type: ignore[union-attr, operator]
    assert after == pytest.approx(
        norm + rest, rel=0.2
    )  # the line search ends with its best point, not always with its last
    assert norm + rest < 0.5 * before


def test_an_objective_that_is_not_finite_is_refused() -> None:
    samples, model = swinging(), build("aphynity", 1, dtype="float64", residual=False)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(SimkitError, match="no longer finite"):
        polish(Trainee(model), MotionObjective(ObjectiveOptions(match="rollout", method="rk4")), samples, 3)
