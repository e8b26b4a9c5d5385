"""Evaluations of models that are known systems with slightly wrong parameters: against closed forms, loops and other coordinates."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from known_motion import Hamiltonian, Potential, hamiltonian_model, lagrangian_model
from torch import Tensor, nn

from simkit.errors import ConfigError, DataError
from simkit.surrogates import models
from simkit.surrogates.comparison import collected, comparison_table
from simkit.surrogates.evaluation import evaluate
from simkit.surrogates.free_rollouts import free_rollouts
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.systems import Protocol, build
from simkit.surrogates.trajectories import Trajectories

TIGHT: dict[str, Any] = {"method": "dopri8", "rtol": 1e-10, "atol": 1e-11}


def drawn(system: str, count: int, duration: float, points: int, noise: float = 0.0, **parameters: Any) -> Trajectories:
    return build(system, parameters).generate(Protocol("test", {"test": count}, duration, points, noise), 1)


def test_a_spring_that_is_too_stiff() -> None:
    """p^2 + k q^2/2 with k = 2.1 in place of 2: both motions are circles of known frequency, and the figures follow in loops."""
    data = drawn("spring", 3, 6.0, 31)
    found = evaluate(
        hamiltonian_model(build("spring", {"stiffness": 2.1})), data, build("spring"), lyapunov=0.5, **TIGHT
    )
    rollouts, figures = found.rollouts, found.figures
    assert rollouts is not None
    logs, squares, energies, last, reached = [], [], [], [], []
    for s in range(3):
        q, p = data.q[s, 0, 0], data.p[s, 0, 0]  # type: ignore[index]
        square, energy, end = 0.0, 0.0, math.inf
        for k, t in enumerate(data.times.tolist()):
            true = np.array([q * math.cos(2 * t) + p * math.sin(2 * t), p * math.cos(2 * t) - q * math.sin(2 * t)])
            w = math.sqrt(2 * 2.1)
            mine = np.array(
                [q * math.cos(w * t) + 2 * p / w * math.sin(w * t), p * math.cos(w * t) - q * w / 2 * math.sin(w * t)]
            )
            np.testing.assert_allclose(rollouts.found[s, k], mine, atol=1e-8)
            relative = np.linalg.norm(mine - true) / (np.linalg.norm(mine) + np.linalg.norm(true))
            logs += [math.log(relative + 1e-8)] if k else []
            end = min(end, t if relative > 0.1 else math.inf)
            square += float((mine - true) @ (mine - true)) / 2 / 31
            energy += (float(mine @ mine) - float(true @ true)) ** 2 / 31
        squares.append(square)
        energies.append(energy)
        reached.append(end)
        last.append(abs(mine @ mine - true @ true) / np.square(data.q).max())
    assert figures["relative_error"]["geometric_mean"] == pytest.approx(math.exp(np.mean(logs)), rel=1e-6)
    assert figures["mse"]["mean"] == pytest.approx(np.mean(squares), rel=1e-6)
    assert figures["log10_mse"] == pytest.approx(math.log10(np.mean(squares)), abs=1e-6)
    assert figures["energy_mse"]["max"] == pytest.approx(max(energies), rel=1e-6)
    assert figures["final_energy_error"]["median"] == pytest.approx(np.median(last), rel=1e-5)
    assert figures["derivative_mse"] == pytest.approx(np.square(0.1 * data.q).mean() / 2, rel=1e-9)
    assert figures["divergence_time"]["median"] == pytest.approx(np.median(reached))
    assert figures["divergence_time"]["median_in_lyapunov_times"] == pytest.approx(np.median(reached) / 2)
    assert figures["divergence_time"]["diverged"] == 3
    assert figures["blown_up"] == 0


def test_the_truth_itself_has_no_error() -> None:
    data = drawn("henon_heiles", 3, 5.0, 11)
    figures = evaluate(hamiltonian_model(build("henon_heiles")), data, build("henon_heiles"), **TIGHT).figures
    assert figures["relative_error"]["max"] < 3e-8  # of which 1e-8 are the floor
    assert max(figures["energy_mse"]["max"], figures["derivative_mse"], figures["mse"]["max"]) < 1e-15
    assert figures["divergence_time"] == {
        "mean": None, "median": None, "min": None, "max": None, "threshold": 0.1, "diverged": 0
    }  # fmt: skip


def constrained(name: str, system: Any) -> DynamicsModel:
    """The constrained network that has learned a chain of two links perfectly."""
    model: Any = models.build(name, 4, dtype="float64", links=[(-1, 0), (0, 1)], lengths=system.lengths.tolist())
    model.potential = Potential(system)
    with torch.no_grad():
        model.raw_masses.copy_(torch.from_numpy(np.log(np.expm1(system.masses))))
    return model  # type: ignore[no-any-return]


def test_all_coordinates_find_the_same_errors() -> None:
    """A double pendulum with the wrong gravity, learned in angles with momenta or velocities, and in Cartesian coordinates with both."""
    true, wrong = build("double_pendulum"), build("double_pendulum", {"gravity": 9.5})
    plan = Protocol("test", {"test": 3}, 1.0, 11, initial="slow")
    angles, cartesian = true.generate(plan, 4), true.generate(plan, 4, coordinates="cartesian")
    options: dict[str, Any] = {"method": "dopri8", "rtol": 1e-9, "atol": 1e-10}
    found = [
        evaluate(model, data, true, **options).figures
        for model, data in (
            (hamiltonian_model(wrong), angles),
            (lagrangian_model(wrong), angles),
            (constrained("chnn", wrong), cartesian),
            (constrained("clnn", wrong), cartesian),
        )
    ]
    assert 1e-3 < found[0]["relative_error"]["geometric_mean"] < 0.1
    for other in found[1:]:
        for name in ("relative_error", "energy_mse", "energy_drift", "final_energy_error"):
            assert other[name] == pytest.approx(found[0][name], rel=1e-5)
        assert other["energy_scale"] == pytest.approx(3 * 9.8)  # both masses upright, from the pivot
    again = evaluate(constrained("clnn", wrong), cartesian, true, times=angles.times, **options).figures
    assert again["relative_error"] == pytest.approx(found[3]["relative_error"], rel=1e-6)


def test_turns_do_not_count() -> None:
    """A pendulum that goes round: the same motion counted from another turn has no error."""
    system = build("pendulum")
    data = system.trajectories(np.linspace(0, 3, 16), system.integrate(np.array([[0.3, 5.0]]), np.linspace(0, 3, 16)))
    assert data.q.max() > 4 * math.pi
    shifted = replace(data, q=np.concatenate([data.q[:, :1], data.q[:, 1:] - 6 * math.pi], axis=1))
    figures = evaluate(hamiltonian_model(system), shifted, system, **TIGHT).figures
    assert figures["relative_error"]["max"] < 3e-8
    assert figures["mse"]["max"] < 1e-15
    assert evaluate(hamiltonian_model(system), shifted, **TIGHT).figures["mse"]["max"] > 100


class Unbounded(nn.Module):
    """p^2/2 + q^2/2 - q^4/4: bound within |q| < 1, in finite time at infinity outside."""

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return (p.square() / 2 + q.square() / 2 - q.pow(4) / 4).sum(-1)


@pytest.mark.parametrize("method", ["implicit-midpoint", "rk4", "dopri5"])
def test_blown_up_rollouts_are_counted(method: str) -> None:
    """With and without an exception, alone and among others, which go on as they would by themselves."""
    model: Any = models.build("hnn", 1, dtype="float64")
    model.hamiltonian = Unbounded()
    system = build("spring")
    times = np.linspace(0, 3, 16)
    start = np.array([[0.2, 0.0], [1.5, 1.0], [0.4, 0.1], [2.0, 1.0]])
    data = system.trajectories(times, system.integrate(start, times))
    loose = {"rtol": 1e-3, "atol": 1e-3}
    found = evaluate(model, data, system, method=method, **loose)
    figures, rollouts = found.figures, found.rollouts
    assert rollouts is not None
    assert rollouts.blown_up.tolist() == [False, True, False, True]
    assert figures["blown_up"] == 2
    assert (figures["mse"]["mean"], figures["mse"]["max"], figures["log10_mse"]) == (None, None, None)
    assert figures["mse"]["min"] > 0
    assert figures["energy_mse"]["max"] is None
    assert figures["divergence_time"]["min"] <= 1.0
    json.dumps(figures, allow_nan=False)
    assert np.isfinite(rollouts.found[1, :2]).all()  # as far as it went
    assert (rollouts.relative[1, -5:] == 1).all()
    alone = free_rollouts(model, start[:1], times, method=method, **loose)
    np.testing.assert_allclose(rollouts.found[0], alone[0], atol=1e-2 if method == "dopri5" else 1e-12)


def test_the_truth_of_noisy_data_and_other_times() -> None:
    """Is the system's from the same first states, whatever the later points of the data are."""
    system = build("spring")
    noisy = drawn("spring", 4, 3.0, 30, noise=0.1)
    exact = evaluate(hamiltonian_model(system), noisy, system, **TIGHT).figures
    assert exact["relative_error"]["max"] < 3e-8
    assert evaluate(hamiltonian_model(system), noisy, **TIGHT).figures["mse"]["mean"] > 5e-3
    longer = evaluate(hamiltonian_model(system), noisy, system, times=np.linspace(0, 20, 100), **TIGHT)
    assert longer.figures["duration"] == 20
    assert longer.figures["relative_error"]["max"] < 1e-7
    with pytest.raises(DataError, match="needs a known system"):
        evaluate(hamiltonian_model(system), noisy, times=np.linspace(0, 20, 100))


def test_driven_motion_with_its_inputs() -> None:
    """A pendulum under a constant torque, known exactly: with inputs from the data, and from the system at other times."""
    system = build("driven_pendulum", {"friction": 0.0, "amplitude": 0.7, "drive": 0.0})
    data = system.generate(Protocol("test", {"test": 2}, 4.0, 21), 0)
    model: Any = models.build("symoden", 1, dtype="float64", friction="none", controls=1, control_matrix="constant")
    model.hamiltonian = Hamiltonian(system)
    with torch.no_grad():
        for parameter in model.port.parameters():
            parameter.fill_(1.0)
    for times in (None, np.linspace(0, 6, 13)):
        figures = evaluate(model, data, system, times=times, **TIGHT).figures
        assert figures["relative_error"]["max"] < 1e-7
        assert figures["energy_drift"]["max"] < 1e-7
    assert figures["derivative_mse"] < 1e-20
    without = evaluate(hamiltonian_model(system), data, system, **TIGHT).figures  # a model that knows of no input
    assert without["derivative_mse"] == pytest.approx(0.7**2 / 2)


def test_single_states_have_derivatives_only() -> None:
    system = build("double_pendulum")
    data = system.generate(Protocol("test", {"test": 5}, 0.0, 1, initial="states"), 0)
    found = evaluate(lagrangian_model(system), data, system)
    assert found.rollouts is None
    assert found.figures["derivative_mse"] < 1e-18
    assert set(found.figures) == {"trajectories", "derivative_mse"}
    bare = replace(data, dq=None)
    assert evaluate(lagrangian_model(system), bare, system).figures["derivative_mse"] is None


def test_what_cannot_be_evaluated() -> None:
    data, system = drawn("spring", 2, 1.0, 5), build("spring")
    model = hamiltonian_model(system)
    for wrong in ({"method": "verlet"}, {"timestep": -0.1}, {"method": "rattle"}):
        with pytest.raises(ConfigError):
            evaluate(model, data, system, **wrong)
    with pytest.raises(DataError, match="times must be"):
        evaluate(model, data, system, times=np.array([1.0, 0.5]))
    uneven = replace(data, times=np.stack([data.times, 2 * data.times]))
    with pytest.raises(DataError, match="resample"):
        evaluate(model, uneven, system)
    with pytest.raises(DataError, match="no v"):
        evaluate(lagrangian_model(system), replace(data, v=None), system)
    with pytest.raises(DataError, match="found spring"):
        evaluate(model, replace(data, info={"coordinates": "cartesian"}), system)


def test_the_table_over_seeds() -> None:
    runs = {
        "hnn": [{"mse": {"mean": value}, "blown_up": 0} for value in (3e-3, 1e-3, 2e-3)],
        "neural-ode": [
            {"mse": {"mean": value}, "blown_up": count} for value, count in ((0.5, 0), (None, 2), (0.25, 0))
        ],
        "unknown": [{"mse": {"mean": None}, "blown_up": 1}],
    }
    assert collected(runs, "mse.mean")["neural-ode"] == [0.5, None, 0.25]
    assert comparison_table(runs, {"MSE": "mse.mean", "blown up": "blown_up"}).splitlines() == [
        "| model | seeds | MSE | blown up |",
        "| --- | --- | --- | --- |",
        "| hnn | 3 | 0.002 (0.001 to 0.003) | 0 (0 to 0) |",
        "| neural-ode | 3 | 0.5 (0.25 to inf) | 0 (0 to 2) |",
        "| unknown | 1 | – | 1 |",
    ]
    with pytest.raises(DataError, match=r"mse\.median"):
        collected(runs, "mse.median")
