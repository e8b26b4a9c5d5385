"""What surrogates are trained on and towards: against the trajectories, written-out errors, and known energies."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simkit.config import parse_options
from simkit.errors import ConfigError, DataError
from simkit.surrogates import systems
from simkit.surrogates.models import build
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.preparation import build_model, make_samples, open_data
from simkit.surrogates.recipe import SurrogateRecipe
from simkit.surrogates.samples import Samples, pieces, single_states
from simkit.surrogates.trajectories import Trajectories
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions

F64 = torch.float64


class SpringEnergy(nn.Module):
    """p^2 + q^2: the spring with its default parameters."""

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return (q.square() + p.square()).sum(-1)


def spring(count: int = 4, points: int = 9) -> Trajectories:
    system = systems.build("spring")
    times = np.linspace(0.0, 1.6, points)
    return system.trajectories(times, system.integrate(system.sample(count, 0), times))


def exact() -> Trainee:
    model = build("hnn", 1, dtype="float64", width=4, layers=1)
    model.hamiltonian = SpringEnergy()
    return Trainee(model)


def recipe(**sections: object) -> SurrogateRecipe:
    return parse_options(SurrogateRecipe, sections, "test")


def test_single_states_are_the_states_with_their_derivatives() -> None:
    data = spring()
    samples = single_states(data, "canonical", F64)
    assert samples.states.shape == (36, 1, 2)
    assert torch.equal(samples.states[10, 0], torch.from_numpy(data.state("qp")[1, 1]))
    assert samples.derivatives is not None
    assert torch.equal(samples.derivatives[10, 0], torch.from_numpy(data.derivative("qp")[1, 1]))
    batch = samples.batch(torch.tensor([10, 3]))
    assert len(batch) == 2
    assert torch.equal(batch.states[1], samples.states[3])
    assert [len(part) for part in samples.batches(20)] == [20, 16]


def test_pieces_begin_at_time_zero_and_need_one_spacing() -> None:
    data = spring().windows(3)
    samples = pieces(data, "velocity", F64)
    assert samples.states.shape == (12, 3, 2)
    assert samples.times.tolist() == pytest.approx([0.0, 0.2, 0.4])
    assert torch.equal(samples.states[1], torch.from_numpy(spring().state("qv")[0, 3:6]))
    times = data.times.copy()
    times[0, 2] += 0.05
    with pytest.raises(DataError, match="same spacing"):
        pieces(Trajectories(times=times, q=data.q, v=data.v), "velocity", F64)
    with pytest.raises(DataError, match="two points"):
        pieces(spring(points=9).between(0, 1), "velocity", F64)


@pytest.mark.parametrize("kind", ["mse", "mae"])
def test_matching_derivatives_is_the_mean_error(kind: str) -> None:
    samples = single_states(spring(), "canonical", F64)
    model = build("neural-ode", 1, dtype="float64", width=8, layers=1)
    objective = MotionObjective(ObjectiveOptions(kind=kind))  # type: ignore[arg-type]
    every = torch.arange(len(samples))
    with torch.no_grad():
        loss, sums = objective(Trainee(model), samples, objective.counts(samples, every))
    assert samples.derivatives is not None
    error = (model.derivative(0.0, samples.states[:, 0]) - samples.derivatives[:, 0]).detach().numpy()
    expected = np.mean(error**2) if kind == "mse" else np.mean(np.abs(error))
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert float(sums["derivative"]) == pytest.approx(np.abs(error).sum(), rel=1e-12)
    counts = objective.counts(samples, every)
    with torch.no_grad():
        shares = [objective(Trainee(model), samples.batch(part), counts)[0] for part in (every[::2], every[1::2])]
    assert float(shares[0] + shares[1]) == pytest.approx(float(loss), rel=1e-12)


def test_the_true_energy_has_no_error_left() -> None:
    data = spring()
    derivative = MotionObjective(ObjectiveOptions())
    samples = single_states(data, "canonical", F64)
    assert float(derivative(exact(), samples, derivative.counts(samples, torch.arange(36)))[0].detach()) < 1e-20
    rollout = MotionObjective(ObjectiveOptions(match="rollout", window=9, method="rk4", timestep=0.01))
    whole = pieces(data, "canonical", F64)
    loss = rollout(exact(), whole, rollout.counts(whole, torch.arange(4)))[0]
    assert float(loss.detach()) < 1e-16  # (2 * 0.01)^4 is the order of RK4's own error


def test_rollouts_are_compared_from_the_second_point_on() -> None:
    whole = pieces(spring(), "canonical", F64)
    model = build("neural-ode", 1, dtype="float64", width=8, layers=1)
    objective = MotionObjective(ObjectiveOptions(match="rollout", method="rk4"))
    counts = objective.counts(whole, torch.arange(4))
    assert counts == {"state": 4 * 8 * 2}
    with torch.no_grad():
        loss = objective(Trainee(model), whole, counts)[0]
        found = model.rollout(whole.states[:, 0], whole.times, method="rk4").transpose(0, 1)
    assert float(loss) == pytest.approx(float((found - whole.states)[:, 1:].square().mean()), rel=1e-12)


def test_noise_is_a_function_of_seed_and_step_and_for_training_alone() -> None:
    samples = single_states(spring(), "canonical", F64)
    trainee = exact()
    first, second = (trainee.disturbed(samples.states, 0.1, seed=3) for _ in range(2))
    assert 0.08 < float((first - samples.states).std()) < 0.12
    assert not torch.equal(first, second)
    trainee.draws.zero_()
    assert torch.equal(trainee.disturbed(samples.states, 0.1, seed=3), first)
    assert torch.equal(trainee.eval().disturbed(samples.states, 0.1, seed=3), samples.states)


def test_parts_of_a_protocol() -> None:
    parts = open_data(recipe(data={"system": "chain_pendulum", "parameters": {"links": 1}}).data)
    assert (len(parts.train), len(parts.valid or ()), len(parts.test or ())) == (800, 100, 100)
    assert parts.system is not None
    assert parts.system.name == "chain_pendulum"


def test_data_without_the_noise_of_their_protocol() -> None:
    clean = open_data(recipe(data={"system": "spring", "protocol_noise": False}).data).train
    energy = clean.q**2 + np.asarray(clean.p) ** 2
    assert np.ptp(energy, axis=1).max() < 1e-9
    noisy = open_data(recipe(data={"system": "spring"}).data).train
    assert 0.09 < (noisy.q - clean.q).std() < 0.11


def test_only_the_training_data_are_spoilt() -> None:
    plain = open_data(recipe(data={"system": "spring"}).data)
    spoilt = open_data(
        recipe(data={"system": "spring", "trajectories": 5, "every": 3, "noise": 0.1, "derivatives": "estimated"}).data
    )
    assert spoilt.train.q.shape == (5, 10, 1)
    error = spoilt.train.q - plain.train.q[:5, ::3]
    assert 0.05 < error.std() / plain.train.q.std() < 0.15
    assert spoilt.train.dq is not None
    assert np.abs(spoilt.train.dq - np.asarray(plain.train.dq)[:5, ::3]).max() > 0.01
    assert spoilt.test is not None
    assert plain.test is not None
    assert np.array_equal(spoilt.test.q, plain.test.q)


def test_files_are_split_by_trajectory_or_in_time(tmp_path: Path) -> None:
    spring(10).save(tmp_path / "many.npz")
    parts = open_data(recipe(data={"files": [str(tmp_path / "many.npz")]}).data)
    assert (len(parts.train), len(parts.valid or ()), len(parts.test or ())) == (7, 1, 2)
    spring(1, points=20).save(tmp_path / "one.npz")
    parts = open_data(recipe(data={"files": [str(tmp_path / "one.npz")]}).data)
    assert parts.valid is not None
    assert parts.test is not None
    assert [part.q.shape[1] for part in (parts.train, parts.valid, parts.test)] == [14, 2, 4]
    assert parts.test.times[..., 0] > parts.valid.times[..., -1] > parts.train.times[..., -1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "expected one of system, files"),
        ({"system": "spring", "files": ["x.npz"]}, "expected one of system, files"),
        ({"files": ["x.npz"], "protocol": "hnn"}, "belong to a system"),
    ],
)
def test_a_recipe_names_one_source(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(data=data)


def test_unusable_data() -> None:
    with pytest.raises(ConfigError, match="there are 25 to train on"):
        open_data(recipe(data={"system": "spring", "trajectories": 26}).data)
    with pytest.raises(DataError, match="no training part"):
        open_data(recipe(data={"system": "double_pendulum", "protocol": "lnn-figure"}).data)
    with pytest.raises(DataError, match=r"read from \.csv and \.npz"):
        open_data(recipe(data={"files": ["x.dat"]}).data)
    with pytest.raises(ConfigError, match="belong to match: rollout"):
        recipe(data={"system": "spring"}, objective={"method": "rk4"})
    with pytest.raises(ConfigError, match="float32 or float64"):
        recipe(data={"system": "spring"}, training={"precision": "bf16-mixed"})


def test_models_are_told_what_the_data_are() -> None:
    chain = {"system": "chain_pendulum", "parameters": {"links": 3}, "protocol": "finzi"}
    plain = recipe(data=chain, model={"width": 8})
    parts = open_data(plain.data)
    assert build_model(plain, parts).options.angles == (0, 1, 2)  # type: ignore[attr-defined]
    cartesian = recipe(data={**chain, "coordinates": "cartesian"}, model={"name": "chnn", "width": 8})
    model = build_model(cartesian, open_data(cartesian.data))
    assert model.options.links == ((-1, 0), (0, 1), (1, 2))  # type: ignore[attr-defined]
    embedding = parts.system and parts.system.embedding()
    assert embedding is not None
    assert embedding.rods is not None
    assert model.options.lengths == embedding.rods.lengths  # type: ignore[attr-defined]
    driven = recipe(data={"system": "driven_pendulum"}, model={"name": "symoden", "width": 8})
    assert build_model(driven, open_data(driven.data)).controls == 1


def test_a_hamiltonian_network_learns_a_spring(tmp_path: Path) -> None:
    plain = recipe(
        data={"system": "spring"},
        model={"width": 32},
        training={"epochs": 150, "batch_size": 100, "learning_rate": 0.01, "device": "cpu"},
    )
    clean, model = spring(25, 30), build_model(plain, open_data(plain.data))
    samples = make_samples(clean, model, plain.objective)
    fit(Trainee(model), MotionObjective(plain.objective), samples, None, plain.training, tmp_path)
    test = single_states(spring(8, 30), "canonical", torch.float32)
    assert test.derivatives is not None
    with torch.no_grad():
        error = (model.derivative(0.0, test.states) - test.derivatives).square().mean()
    assert float(error) < 1e-4  # derivatives are of the order of one


def test_noise_continues_after_an_interruption(tmp_path: Path) -> None:
    options = ObjectiveOptions(noise=0.05)
    samples = single_states(spring(), "canonical", torch.float32)

    def train(folder: Path, *, stop: int | None = None, resume: bool = False) -> dict[str, Tensor]:
        model = Trainee(build("hnn", 1, width=8, layers=1))
        training = TrainingOptions(epochs=6, batch_size=10, device="cpu", checkpoint_minutes=0)

        def watch(row: object) -> None:
            if isinstance(row, dict) and row["epoch"] == stop:
                raise RuntimeError("power cut")

        fit(model, MotionObjective(options), samples, None, training, folder, resume=resume, on_epoch=watch)
        return {name: value.clone() for name, value in model.state_dict().items()}

    whole = train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "parts", stop=3)
    resumed = train(tmp_path / "parts", resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert isinstance(samples, Samples)
