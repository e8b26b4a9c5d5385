"""Running simulators: blocks, failures, saved simulations that survive a crash, refusals, and streams of random numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exact_posterior import MAP, NOISE, PRIOR, LinearSimulator, normal_parameters

from simkit.errors import ConfigError, DataError, OutputError
from simkit.inference.priors import Array, IndependentPrior, Normal, Uniform
from simkit.inference.simulations import Simulations, run_block, simulate
from simkit.inference.simulator import FunctionSimulator, Observable, Seeds, Simulator, simulation_seeds

TESTS = Path(__file__).parent


class Counting(LinearSimulator):
    """A linear simulator that notes the lengths of its calls; an interruption comes in the call that is numbered."""

    def __init__(self, failing: float = 0.1, interrupted: int = -1) -> None:
        super().__init__(failing)
        self.calls: list[int] = []
        self.interrupted = interrupted

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        self.calls.append(len(theta))
        if len(self.calls) == self.interrupted:
            raise KeyboardInterrupt
        return super().simulate(theta, seeds)


def rows(block: Path) -> int:
    """Simulations in a saved block."""
    with np.load(block) as arrays:
        return len(arrays["x"])


def same(a: Simulations, b: Simulations) -> None:
    """Fail unless parameters and outputs are equal bit for bit, failures included."""
    np.testing.assert_array_equal(a.theta, b.theta)
    np.testing.assert_array_equal(a.x, b.x)
    assert a.seconds.shape == b.seconds.shape == (len(a),)


def test_parameters_and_outputs() -> None:
    done = simulate(LinearSimulator(), 4000, seed=3)
    np.testing.assert_array_equal(done.theta, PRIOR.sample(4000, 3))
    noise = (done.x - normal_parameters(done.theta) @ MAP.T) / NOISE
    assert np.abs(noise.mean(0)).max() < 5 / math.sqrt(4000)
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 5 / math.sqrt(4000)
    assert np.abs(noise.std(0) - 1).max() < 5 / math.sqrt(8000)
    assert done.valid.all()
    assert (done.seconds > 0).all()


def test_cutting_does_not_matter(tmp_path: Path) -> None:
    simulator = LinearSimulator(failing=0.2)
    whole = simulate(simulator, 500, seed=7)
    same(simulate(simulator, 500, seed=7, store=tmp_path), whole)
    seeds = simulation_seeds(7, 0, 500)
    pieces = [run_block(simulator, whole.theta[i : i + 77], seeds[i : i + 77]) for i in range(0, 500, 77)]
    joined = pieces[0]
    for piece in pieces[1:]:
        joined = joined.join(piece)
    same(joined, whole)
    same(simulate(simulator, 137, seed=7), whole.select(slice(137)))
    same(simulate(simulator, whole.theta, seed=7), whole)


def test_failures_are_kept() -> None:
    done = simulate(LinearSimulator(failing=0.3), 3000, seed=1)
    assert len(done) == 3000
    assert abs(done.failures / 3000 - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 3000)
    assert done.failures == int(np.isnan(done.x).any(1).sum())
    kept = done.select(done.valid)
    assert (kept.failures, len(kept)) == (0, 3000 - done.failures)


def test_infinite_outputs_are_failures() -> None:
    x = np.array([[1.0, 2.0], [math.inf, 1.0], [1.0, math.nan]])
    assert Simulations(np.zeros((3, 1)), x, np.ones(3)).valid.tolist() == [True, False, False]


def test_killed_in_the_middle(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    environment = os.environ | {"PYTHONPATH": str(TESTS / "shared")}
    command = [sys.executable, str(TESTS / "simulate_worker.py"), str(folder), "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        reported = 0
        for line in process.stdout:
            reported = int(line)
            if reported >= 300:
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 300 <= reported < 10_000
    saved = sum(rows(path) for path in folder.glob("block-*.npz"))
    assert saved >= reported, "what was reported as done must have been saved"
    simulator, seen = Counting(), []
    resumed = simulate(simulator, 10_000, seed=5, store=folder, progress=lambda done, wanted: seen.append(done))
    assert seen[0] == saved
    assert sum(simulator.calls) == 10_000 - saved
    same(resumed, simulate(LinearSimulator(failing=0.1), 10_000, seed=5))


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simulate(Counting(interrupted=4), 2000, seed=2, store=tmp_path)
    simulator = Counting()
    resumed = simulate(simulator, 2000, seed=2, store=tmp_path)
    assert sum(simulator.calls) == 2000 - 16 - 64 - 256
    same(resumed, simulate(LinearSimulator(failing=0.1), 2000, seed=2))
    again = Counting()
    same(simulate(again, 2000, seed=2, store=tmp_path), resumed)
    assert again.calls == []


def test_fewer_and_more_of_the_same(tmp_path: Path) -> None:
    whole = simulate(LinearSimulator(failing=0.1), 900, seed=2)
    for count, new in ((300, 300), (100, 0), (900, 600), (450, 0)):
        simulator = Counting()
        same(simulate(simulator, count, seed=2, store=tmp_path), whole.select(slice(count)))
        assert sum(simulator.calls) == new


def test_lost_block_is_run_again(tmp_path: Path) -> None:
    whole = simulate(LinearSimulator(failing=0.1), 600, seed=2, store=tmp_path)
    blocks = sorted(tmp_path.glob("block-*.npz"))
    assert len(blocks) >= 4
    lost = rows(blocks[1])
    blocks[1].unlink()
    simulator = Counting()
    same(simulate(simulator, 600, seed=2, store=tmp_path), whole)
    assert sum(simulator.calls) == lost


@pytest.mark.parametrize("damage", ["empty", "truncated", "other", "flipped"])
def test_damaged_block_is_refused(tmp_path: Path, damage: str) -> None:
    simulate(LinearSimulator(), 400, seed=2, store=tmp_path)
    block = sorted(tmp_path.glob("block-*.npz"))[1]
    content = block.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    block.write_bytes({"empty": b"", "truncated": content[:-50], "other": b"text", "flipped": flipped}[damage])
    with pytest.raises(DataError, match=f"{block.name} is damaged .*remove it"):
        simulate(LinearSimulator(), 400, seed=2, store=tmp_path)


def test_damaged_description_is_refused(tmp_path: Path) -> None:
    simulate(LinearSimulator(), 20, store=tmp_path)
    (tmp_path / "simulations.json").write_text('{"format": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"simulations\.json is damaged"):
        simulate(LinearSimulator(), 20, store=tmp_path)


def test_other_simulations_are_refused(tmp_path: Path) -> None:
    class Other(LinearSimulator):
        def settings(self) -> dict[str, float]:
            return {"temperature": 300.0}

    simulate(LinearSimulator(), 50, seed=2, store=tmp_path)
    with pytest.raises(OutputError, match=r"\(seed differ\)"):
        simulate(LinearSimulator(), 50, seed=3, store=tmp_path)
    with pytest.raises(OutputError, match=r"\(identity differ\)"):
        simulate(Other(), 50, seed=2, store=tmp_path)
    with pytest.raises(OutputError, match="other parameters"):
        simulate(LinearSimulator(), PRIOR.sample(50, 9), seed=2, store=tmp_path)
    assert json.loads((tmp_path / "simulations.json").read_text())["seed"] == 2


def test_unusable_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be positive; found 0"):
        simulate(LinearSimulator(), 0)
    with pytest.raises(DataError, match="outside the prior"):
        simulate(LinearSimulator(), np.array([[-1.0, 0.0]]))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        simulate(LinearSimulator(), 5, store=tmp_path / "file")

    class Short(LinearSimulator):
        def simulate(self, theta: Array, seeds: Seeds) -> Array:
            return super().simulate(theta, seeds)[:, :3]

    with pytest.raises(DataError, match=r"should return \[5, 4\] values; it returned \(5, 3\)"):
        simulate(Short(), 5)


def walker() -> Simulator:
    """A random walk of three steps, whose function lies in no module; it blows up where the step is large."""

    def walk(parameters: Array, rng: np.random.Generator) -> Array:
        if parameters[0] > 1.5:
            raise FloatingPointError
        return np.cumsum(parameters[0] * rng.standard_normal(3))

    prior = IndependentPrior({"step": Uniform(0, 2)})
    return FunctionSimulator(walk, prior, [Observable("position", (3,), kind="series")])


def test_function_simulator() -> None:
    done = simulate(walker(), 60, seed=4, workers=1)
    np.testing.assert_array_equal(done.valid, done.theta[:, 0] <= 1.5)
    for i in (0, 1, 59):
        rng = np.random.default_rng(int(simulation_seeds(4, 0, 60)[i]))
        if done.valid[i]:
            np.testing.assert_array_equal(done.x[i], np.cumsum(done.theta[i, 0] * rng.standard_normal(3)))


def test_process_pool_gives_the_same(tmp_path: Path) -> None:
    alone = simulate(walker(), 60, seed=4, workers=1)
    same(simulate(walker(), 60, seed=4, workers=2, store=tmp_path), alone)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda p, rng: [1.0, 2.0], "should return 3 values; it returned 2"),
        (lambda p, rng: {"a": 1.0}, "should return b"),
        (lambda p, rng: {"a": [1.0, 2.0], "b": 1.0}, "should return a, b"),
    ],
)
def test_function_of_the_wrong_shape(returned: object, message: str) -> None:
    observables = [Observable("a"), Observable("b", (2,))]
    simulator = FunctionSimulator(returned, IndependentPrior({"p": Normal(0, 1)}), observables, "mine")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        simulate(simulator, 2, workers=1)


def test_function_of_named_arrays() -> None:
    simulator = FunctionSimulator(
        lambda p, rng: {"b": np.array([p[0], 2.0]), "a": 5.0},
        IndependentPrior({"p": Normal(0, 1)}),
        [Observable("a"), Observable("b", (2,))],
    )
    done = simulate(simulator, 3, workers=1)
    np.testing.assert_array_equal(done.x, np.stack([np.full(3, 5.0), done.theta[:, 0], np.full(3, 2.0)], 1))


def test_identity_follows_source_and_settings() -> None:
    prior, out = IndependentPrior({"p": Normal(0, 1)}), [Observable("a")]
    one = FunctionSimulator(lambda p, rng: p[0], prior, out, "f")
    two = FunctionSimulator(lambda p, rng: p[0] + 1, prior, out, "f")
    three = FunctionSimulator(one.function, prior, out, "f", {"temperature": 300})
    assert len({one.identity(), two.identity(), three.identity()}) == 3
    assert one.identity() == FunctionSimulator(one.function, prior, out, "f").identity()


def test_seeds_are_never_shared() -> None:
    seeds = np.concatenate([simulation_seeds(seed, 0, 20_000) for seed in (0, 1, 2, 1_000_003, 2**40)])
    assert len(np.unique(seeds)) == len(seeds) == 100_000
    np.testing.assert_array_equal(simulation_seeds(0, 137, 50), seeds[137:187])
    assert seeds.dtype == np.uint64
    # Bits of neighbours are as good as independent: each of the 64 is set half the time.
    bits = np.unpackbits(seeds[:20_000].view(np.uint8)).reshape(-1, 64)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)
    flips = (bits[1:] ^ bits[:-1]).mean(0)
    assert np.abs(flips - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)


def test_observation() -> None:
    simulator = LinearSimulator()
    vector = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(simulator.observation({"signal": [2, 3, 4], "energy": 1}), vector)
    np.testing.assert_array_equal(simulator.observation(vector[None]), vector)
    assert simulator.labels() == ["energy", "signal[0]", "signal[1]", "signal[2]"]
    parts = simulator.split(np.tile(vector, (5, 2, 1)))
    assert {name: part.shape for name, part in parts.items()} == {"energy": (5, 2), "signal": (5, 2, 3)}
    np.testing.assert_array_equal(parts["signal"][0, 0], vector[1:])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], r"has 4 values; found an array of shape \(2,\)"),
        ([1.0, 2.0, math.nan, 4.0], r"1 values that are not finite.*signal\[1\] = nan"),
        ({"energy": 1.0}, "gives energy, signal; the observation has energy"),
        ({"energy": 1.0, "signal": [1, 2]}, r"signal: expected \(3,\), found \(2,\)"),
        ({"energy": math.inf, "signal": [1, 2, 3]}, "energy = inf"),
    ],
)
def test_unusable_observations_are_refused(values: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LinearSimulator().observation(values)  # type: ignore[arg-type]
