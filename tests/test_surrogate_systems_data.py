"""`Trajectories`, their files, and the loaders of data from elsewhere."""

import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from scipy.signal import savgol_filter

from simkit.errors import ConfigError, DataError, OutputError
from simkit.surrogates.loaders import (
    estimate_derivative,
    load_csv,
    load_npz,
    load_real_pendulum,
    real_pendulum_split,
    with_derivatives,
)
from simkit.surrogates.systems import build
from simkit.surrogates.trajectories import Trajectories, concatenate


@pytest.fixture(scope="module")
def data() -> Trajectories:
    system = build("driven_pendulum")
    return system.generate(replace(system.protocol(), parts=MappingProxyType({"train": 4, "test": 3})))


def assert_equal(one: Trajectories, other: Trajectories) -> None:
    assert one.arrays().keys() == other.arrays().keys()
    for name, value in one.arrays().items():
        np.testing.assert_array_equal(value, other.arrays()[name])


def test_save_and_load(data: Trajectories, tmp_path: Path) -> None:
    data.save(tmp_path / "a.npz")
    again = Trajectories.load(tmp_path / "a.npz")
    assert_equal(again, data)
    assert again.info["parameters"] == build("driven_pendulum").parameters
    assert_equal(load_npz(tmp_path / "a.npz"), data)


def test_damage_is_found(data: Trajectories, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    data.save(path)
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored.files}
    content["q"][0, 0, 0] += 1e-9
    np.savez(path, **content)
    with pytest.raises(DataError, match="is damaged"):
        Trajectories.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read"):
        Trajectories.load(path)
    with pytest.raises(DataError, match="cannot read"):
        Trajectories.load(tmp_path / "missing.npz")
    np.savez(path, q=np.zeros(3))
    with pytest.raises(DataError, match="found 'no format'"):
        Trajectories.load(path)
    with pytest.raises(OutputError):
        data.save(tmp_path / "missing" / "a.npz")
    with pytest.raises(DataError, match="plain values"):
        replace(data, info={"array": np.zeros(2)}).save(path)


def test_states_and_derivatives(data: Trajectories) -> None:
    assert (len(data), data.dof) == (7, 1)
    assert data.v is not None
    np.testing.assert_array_equal(data.state("qv"), np.concatenate([data.q, data.v], axis=-1))
    assert data.derivative("qp").shape == (7, 300, 2)
    with pytest.raises(DataError, match="have no p"):
        Trajectories(data.times, data.q, v=data.v).state("qp")
    with pytest.raises(DataError, match="have no dq"):
        Trajectories(data.times, data.q, v=data.v).derivative("qv")
    with pytest.raises(DataError, match='"qp" or "qv"'):
        data.state("pq")


def test_split(data: Trajectories) -> None:
    parts = data.split({"train": 4, "test": 2})
    np.testing.assert_array_equal(parts["test"].q, data.q[4:6])
    np.testing.assert_array_equal(parts["train"].controls, data.controls[:4])  # type: ignore[index]
    shuffled = data.split({"train": 4, "test": 3}, seed=1)
    assert_equal(shuffled["test"], data.split({"train": 4, "test": 3}, seed=1)["test"])
    together = np.concatenate([part.q for part in shuffled.values()])
    assert not np.array_equal(together, data.q)
    np.testing.assert_array_equal(np.sort(together[:, 0, 0]), np.sort(data.q[:, 0, 0]))
    with pytest.raises(DataError, match="7 together"):
        data.split({"train": 7, "test": 1})
    with pytest.raises(DataError, match="at least one"):
        data.split({"train": 7, "test": 0})


def test_windows(data: Trajectories) -> None:
    pieces = data.windows(7)
    assert pieces.q.shape == (7 * 42, 7, 1)
    np.testing.assert_array_equal(pieces.q[45], data.q[1, 21:28])
    np.testing.assert_array_equal(pieces.times[45], data.times[21:28])
    chosen = data.random_windows(7, seed=3)
    assert_equal(chosen, data.random_windows(7, seed=3))
    for i in range(7):
        start = int(np.flatnonzero(data.times == chosen.times[i, 0])[0])
        assert start % 7 == 0
        np.testing.assert_array_equal(chosen.q[i], data.q[i, start : start + 7])
    assert len(set(chosen.times[:, 0].tolist())) > 1
    np.testing.assert_array_equal(pieces.windows(2).times[:3], pieces.times[0, :6].reshape(3, 2))
    with pytest.raises(DataError, match="1 to 300 points"):
        data.windows(301)


def test_noise(data: Trajectories) -> None:
    assert data.p is not None
    noisy = data.add_noise(0.1, seed=0)
    assert_equal(noisy, data.add_noise(0.1, seed=0))
    assert noisy.p is not None
    for difference in (noisy.q - data.q, noisy.p - data.p):
        assert abs(difference.std() - 0.1) < 5 * 0.1 / np.sqrt(2 * 2100)
        assert abs(difference.mean()) < 5 * 0.1 / np.sqrt(2100)
    assert abs(np.corrcoef((noisy.q - data.q).ravel(), (noisy.p - data.p).ravel())[0, 1]) < 5 / np.sqrt(2100)
    np.testing.assert_array_equal(noisy.dq, data.dq)
    assert noisy.info["noise"] == {"level": 0.1, "seed": 0, "relative": False}
    relative = (data.add_noise(0.05, seed=0, relative=True).q - data.q).std()
    assert relative == pytest.approx(0.05 * data.q.std(), rel=5 / np.sqrt(2 * 2100))
    with pytest.raises(DataError, match="level of noise"):
        data.add_noise(-1, seed=0)


def test_concatenate(data: Trajectories) -> None:
    both = concatenate([data.take(slice(0, 2)), data.take([5])])
    np.testing.assert_array_equal(both.q, data.q[[0, 1, 5]])
    assert both.times.shape == (3, 300)
    with pytest.raises(DataError, match="the same arrays"):
        concatenate([data, data.between(0, 5)])
    with pytest.raises(DataError, match="found none"):
        concatenate([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((7, 300))}, "q must be"),
        ({"times": np.zeros(300)}, "must increase"),
        ({"times": np.arange(5.0)}, "times must be"),
        ({"p": np.zeros((7, 300, 2))}, "p must have the shape"),
        ({"controls": np.zeros((7, 5, 2))}, "controls must be"),
        ({"dq": np.full((7, 300, 1), np.nan)}, "not finite"),
    ],
)
def test_bad_arrays_are_refused(data: Trajectories, change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(data, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_are_those_of_savitzky_and_golay(order: int) -> None:
    times = np.arange(40) * 0.1
    values = np.random.default_rng(0).standard_normal((2, 40, 3))
    found = estimate_derivative(times, values, window=9, degree=4, order=order)
    expected = savgol_filter(values, 9, 4, deriv=order, delta=0.1, axis=1, mode="interp")
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_derivatives_of_a_polynomial_with_gaps_are_exact() -> None:
    times = np.sort(np.random.default_rng(1).uniform(0, 5, (2, 30)), axis=1)
    found = estimate_derivative(times, (times**3 - 2 * times)[..., None], window=7, degree=3)
    np.testing.assert_allclose(found[..., 0], 3 * times**2 - 2, rtol=1e-7, atol=1e-7)
    with pytest.raises(ConfigError, match="odd window"):
        estimate_derivative(times, times[..., None], window=6)
    with pytest.raises(ConfigError, match="odd window"):
        estimate_derivative(times, times[..., None], window=31)


def test_missing_derivatives_are_estimated() -> None:
    times = np.linspace(0, 6, 201)
    q = np.sin(times)[None, :, None]
    bare = with_derivatives(Trajectories(times, q), window=9, degree=5)
    for value, expected in ((bare.dq, np.cos(times)), (bare.v, np.cos(times)), (bare.dv, -np.sin(times))):
        assert value is not None
        np.testing.assert_allclose(value[0, :, 0], expected, atol=2e-6)
    assert bare.p is None
    known = with_derivatives(Trajectories(times, q, p=2 * np.cos(times)[None, :, None]), window=9, degree=5)
    assert known.v is None
    np.testing.assert_allclose(known.dp[0, :, 0], -2 * np.sin(times), atol=2e-6)  # type: ignore[index]
    measured = with_derivatives(Trajectories(times, q, v=np.ones_like(q)))
    np.testing.assert_array_equal(measured.dq, measured.v)


def test_csv(tmp_path: Path, data: Trajectories) -> None:
    assert data.p is not None
    assert data.controls is not None
    path = tmp_path / "a.csv"
    rows = ["# measured", "trajectory, t, p1, q1, u"]
    for point in range(20):  # trajectories interleaved, columns in an order of their own
        for s in (1, 0):
            values = (s, data.times[point], data.p[s, point, 0], data.q[s, point, 0], data.controls[s, point, 0])
            rows.append(", ".join(repr(float(value)) for value in values))
    path.write_text("\n".join(rows), encoding="utf-8")
    found = load_csv(path)
    np.testing.assert_array_equal(found.q, data.q[:2, :20])
    np.testing.assert_array_equal(found.p, data.p[:2, :20])
    np.testing.assert_array_equal(found.controls, data.controls[:2, :20])
    np.testing.assert_array_equal(found.dq, estimate_derivative(data.times[:20], data.q[:2, :20]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,q\n", "a line of column names"),
        ("t,x\n0,1\n", "column 'x' is unknown"),
        ("t,p\n0,1\n", "must have the columns t and q"),
        ("t,q,q\n0,1,1\n", "must differ"),
        ("t,q\n0,1\n1\n", "must have 2 values"),
        ("t,q\n0,one\n", "must be a number"),
        ("trajectory,t,q\n0,0,1\n0,1,1\n1,0,1\n", "equal numbers of rows"),
        ("t,q\n1,1\n0,2\n", "must increase"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_csv(path)


def test_npz_of_other_origin(tmp_path: Path) -> None:
    times = np.linspace(0, 2, 50)
    np.savez(tmp_path / "a.npz", t=times, q=np.sin(times), qdot=np.cos(times))
    found = load_npz(tmp_path / "a.npz")
    assert found.q.shape == (1, 50, 1)
    np.testing.assert_array_equal(found.v[0, :, 0], np.cos(times))  # type: ignore[index]
    np.savez(tmp_path / "b.npz", t=times, q=np.stack([times, times**2], axis=1), p=np.ones((50, 2)))
    assert load_npz(tmp_path / "b.npz").q.shape == (1, 50, 2)
    np.savez(tmp_path / "c.npz", t=np.tile(times, (3, 1)), q=np.zeros((3, 50, 2)))
    assert load_npz(tmp_path / "c.npz").q.shape == (3, 50, 2)
    np.savez(tmp_path / "d.npz", t=times, x=times)
    with pytest.raises(DataError, match="must hold t, q"):
        load_npz(tmp_path / "d.npz")
    with pytest.raises(DataError, match="cannot read"):
        load_npz(tmp_path / "missing.npz")


def test_pendulum_file(tmp_path: Path) -> None:
    path = tmp_path / "pendulum.txt"
    path.write_text("%o v \n 0 1.0 0.5 0.1\n 0 1.5 0.6 0.0\n 0 2.5 0.4 -0.3\n", encoding="utf-8")
    found = load_real_pendulum(path)
    np.testing.assert_allclose(found.state("qp")[0], [[0.5, 0.1], [0.6, 0.0]])
    np.testing.assert_allclose(found.derivative("qp")[0], [[0.2, -0.2], [-0.2, -0.3]])
    path.write_text("%o v \n 0 1.0 0.5\n", encoding="utf-8")
    with pytest.raises(DataError, match="four columns"):
        load_real_pendulum(path)
    with pytest.raises(DataError, match="cannot read"):
        load_real_pendulum(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match="derivatives must be"):
        load_real_pendulum(path, derivatives="backward")  # type: ignore[arg-type]


@pytest.mark.data
@pytest.mark.skipif("SIMKIT_DATA_DIR" not in os.environ, reason="needs SIMKIT_DATA_DIR")
def test_real_pendulum() -> None:
    """556 points; about 17 swings in 95 s (Schmidt and Lipson 2009); energy with the constant of Greydanus et al. decays slowly."""
    path = Path(os.environ["SIMKIT_DATA_DIR"]) / "pendulum" / "real_pend_h_1.txt"
    found = load_real_pendulum(path)
    parts = real_pendulum_split(found)
    assert found.q.shape == (1, 555, 1)
    assert [part.q.shape[1] for part in parts.values()] == [444, 110]
    np.testing.assert_array_equal(parts["test"].q[0], found.q[0, 444:554])
    smooth = load_real_pendulum(path, derivatives="polynomial")
    assert smooth.q.shape == (1, 556, 1)
    # The measured velocity is the derivative of the measured angle.
    assert np.corrcoef(smooth.dq[0, :, 0], smooth.v[0, :, 0])[0, 1] > 0.999  # type: ignore[index]
    crossings = np.flatnonzero(np.diff(np.sign(found.q[0, :, 0])) > 0)
    assert 16 <= len(crossings) <= 18
    energy = found.p[0, :, 0] ** 2 + 2.4 * (1 - np.cos(found.q[0, :, 0]))  # type: ignore[index]
    early, late = energy[:100].mean(), energy[-100:].mean()
    assert 0.2 * early < late < early
