"""`calibrate`: checks a posterior on simulated observations and on the real one, within a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from simkit.errors import ConfigError, DataError
from simkit.inference.calibration.outliers import OutlierTest, needed_simulations, outlier_test
from simkit.inference.calibration.predictive import PredictiveCheck
from simkit.inference.calibration.ranks import RankTest, rank_tests
from simkit.inference.calibration.report import Calibration
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array
from simkit.inference.simulations import Progress, Simulations, run_block
from simkit.inference.simulator import Simulator, simulation_seeds

LARGEST_BLOCK, GROWTH = 256, 4
PREDICTIVE_SHARE, SIMULATION_SHARE = 0.25, 0.5
"""Of the time, for simulations of the predictive check, and of what is left then, for simulated observations; at most."""
LABEL = 0x63616C69
"""Sets the random numbers used here apart from those of training simulations and samplers that start from the same seed."""


def calibrate(
    posterior: Posterior,
    simulator: Simulator,
    *,
    count: int = 500,
    samples: int = 200,
    predictive: int = 200,
    seconds: float = 120.0,
    level: float = 0.05,
    seed: int = 0,
    observation: Array | None = None,
    given: Array | None = None,
    tests: Simulations | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Check a posterior.

    Parameters are drawn by `Posterior.draw_parameters`, simulated, and ranked among samples of the posterior given what came out.
    Failed simulations are counted and left out. The work is done in blocks that grow, the first of each kind a single one, and none is
    begun that the time would not suffice for by the pace of those before. The result depends on the machine's pace only if the time
    is up.

    Args:
        count: simulated observations.
        samples: of the posterior given each.
        predictive: simulations with parameters from the posterior given the observation.
        seconds: to stop after.
        level: probability of a false alarm: of all rank tests together, of the predictive check, and of the observation under the prior.
        observation: [K]; the one that the posterior was made for where not given. Without one, what needs it is left out.
        given: samples of the posterior given the observation, [S, D]. Where S is ``predictive`` or more, some are simulated instead of
            drawing others.
        tests: simulations to use instead of new ones. They must not have been trained on, and their parameters be from
            `Posterior.draw_parameters`.
        workers: processes for a simulator that is not vectorised.
        progress: called with the number of simulations and posteriors that are done, and how many are wanted.

    Raises:
        ConfigError: if a number is not positive, or the level not between 0 and 1.
        DataError: if posterior, simulator, observation and tests do not belong together.
    """
    numbers = {"count": count, "samples": samples, "predictive": predictive, "seconds": seconds}
    for name, value in numbers.items():
        if not value > 0:
            raise ConfigError(f"{name} must be positive; found {value}")
    if not 0 < level < 1:
        raise ConfigError(f"the level must lie between 0 and 1; found {level}")
    started = time.perf_counter()
    job = _Job(posterior, simulator, observation, level, seed, workers)
    check = job.predict(predictive, given, started, seconds)
    wanted = count if tests is None else min(count, len(tests))
    end = started + seconds
    if tests is None:
        now = time.perf_counter()
        until = now + SIMULATION_SHARE * (end - now) if posterior.checkable else end
        done = job.simulate(wanted, until, progress)
    else:
        job.fits(tests)
        done = tests.select(slice(wanted))
    good = done.select(done.valid)
    drawn = job.draw(good.x, samples, end, progress, wanted) if posterior.checkable else np.empty((0, samples, 1))
    usable = np.asarray(np.isfinite(drawn).all(axis=(1, 2)))
    return Calibration(
        method=posterior.method,
        names=posterior.prior.names,
        units=posterior.prior.units,
        level=level,
        wanted=wanted,
        simulated=len(done),
        failures=done.failures,
        drawn=len(drawn),
        used=int(usable.sum()),
        checkable=posterior.checkable,
        confined=posterior.checkable and not posterior.amortised,
        theta=good.theta,
        x=good.x,
        ranks=job.rank(good.select(slice(len(drawn))), drawn, usable),
        predictive=check,
        prior_test=job.compare(good.x),
        seconds=time.perf_counter() - started,
    )


class _Job:
    """What the parts of a calibration have in common."""

    def __init__(
        self,
        posterior: Posterior,
        simulator: Simulator,
        observation: Array | None,
        level: float,
        seed: int,
        workers: int | None,
    ) -> None:
        if posterior.prior.names != simulator.prior.names or posterior.observables != simulator.observables:
            raise DataError(
                f"the posterior of {', '.join(posterior.prior.names)} given {', '.join(o.name for o in posterior.observables)} does not "
                f"belong to the simulator {simulator.name}; pass the simulator that it was inferred with"
            )
        self.posterior, self.simulator, self.level, self.workers = posterior, simulator, level, workers
        self.observed = posterior.reference if observation is None else posterior.resolve(observation)
        self.seeds = np.random.SeedSequence((seed, LABEL)).generate_state(7).tolist()

    def fits(self, tests: Simulations) -> None:
        """Check that simulations are of this simulator."""
        if tests.theta.shape[1] != self.posterior.prior.dim or tests.x.shape[1] != self.simulator.size:
            raise DataError(
                f"expected tests with {self.posterior.prior.dim} parameters and {self.simulator.size} outputs; found "
                f"{tests.theta.shape[1]} and {tests.x.shape[1]}"
            )

    def compare(self, x: Array) -> OutlierTest | None:
        """Return where the observation lies among outputs; None without one, or with too few of them for a p-value of the level."""
        if self.observed is None or len(x) < needed_simulations(self.level):
            return None
        labels = self.simulator.labels()
        return outlier_test(x, self.observed, self.simulator.observables, labels, seed=self.seeds[0])

    def predict(self, count: int, given: Array | None, started: float, seconds: float) -> PredictiveCheck | None:
        """Simulate with parameters from the posterior given the observation; these are drawn whatever time it takes."""
        if self.observed is None:
            return None
        if given is None or len(given) < count:
            theta = self.posterior.sample(count, self.observed, seed=self.seeds[1])
        else:  # at random, because neighbours in a population may be relatives
            theta = np.random.default_rng(self.seeds[1]).choice(given, count, replace=False)
        log_prior = self.posterior.prior.log_prob(torch.from_numpy(theta)).numpy()
        possible = np.isfinite(log_prior) & np.isfinite(theta).all(axis=1)
        deadline = min(started + seconds, time.perf_counter() + PREDICTIVE_SHARE * seconds)
        done = self._run(theta[possible], self.seeds[2], deadline, None, 0)
        good = done.select(done.valid)
        outside = int((~possible).sum())
        return PredictiveCheck(self.observed, good.theta, good.x, done.failures, outside, self.compare(good.x))

    def simulate(self, count: int, deadline: float, progress: Progress | None) -> Simulations:
        """Return simulated observations; their parameters are the prior's where the posterior cannot be checked on others."""
        draw = self.posterior.draw_parameters if self.posterior.checkable else self.posterior.prior.sample
        wanted = 2 * count if self.posterior.checkable else count
        return self._run(draw(count, self.seeds[3]), self.seeds[4], deadline, progress, wanted)

    def draw(self, x: Array, samples: int, deadline: float, progress: Progress | None, count: int) -> Array:
        """Return samples [V, samples, D] of the posterior given the first V outputs, as many as there is time for."""
        drawn = [np.empty((0, samples, self.posterior.prior.dim))]
        for rows in _blocks(len(x), deadline):
            drawn.append(self.posterior.sample_many(x[rows], samples, seed=self.seeds[5] + rows.start))
            if progress is not None:
                progress(count + rows.stop, 2 * count)
        return np.concatenate(drawn)

    def rank(self, good: Simulations, drawn: Array, usable: NDArray[np.bool_]) -> tuple[RankTest, ...]:
        """Rank the parameters of successful simulations among the samples drawn for them, where these are usable."""
        if not usable.any():
            return ()
        kept = good.select(usable)
        prior, observables = self.posterior.prior, self.simulator.observables
        tests = rank_tests(kept.theta, drawn[usable], kept.x, prior, observables, level=self.level, seed=self.seeds[6])
        return tuple(tests)

    def _run(self, theta: Array, seed: int, deadline: float, progress: Progress | None, wanted: int) -> Simulations:
        """Simulate as many of the parameters as there is time for."""
        done = Simulations.none(self.simulator)
        for rows in _blocks(len(theta), deadline):
            seeds = simulation_seeds(seed, rows.start, rows.stop - rows.start)
            done = done.join(run_block(self.simulator, theta[rows], seeds, self.workers))
            if progress is not None:
                progress(len(done), wanted)
        return done


def _blocks(count: int, deadline: float) -> Iterator[slice]:
    """Yield blocks of growing size, as long as the time suffices for one more.

    A block is taken to need a + b n, by the last two; or the last one's time for each of its n if that says nothing, as when compilation
    made the one before it slow.
    """
    first, size, before = 0, 1, (0, 0.0)
    fixed = each = 0.0
    while first < count:
        started = time.perf_counter()
        left = deadline - started - fixed
        affordable = left / each if each else math.inf
        if left <= 0 or affordable < 1:
            return
        rows = slice(first, int(min(first + min(size, affordable), count)))
        yield rows
        last = (rows.stop - first, time.perf_counter() - started)
        each, fixed = last[1] / last[0], 0.0
        if before[0] and last[0] > before[0] and last[1] > before[1]:
            each = (last[1] - before[1]) / (last[0] - before[0])
            fixed = max(0.0, last[1] - each * last[0])
        first, size, before = rows.stop, min(GROWTH * size, LARGEST_BLOCK), last
