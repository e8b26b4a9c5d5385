"""`infer`: from a simulator and an observation to a posterior, in one call."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field

from simkit.config import Options, nearest
from simkit.errors import ConfigError, DataError
from simkit.inference.acquisition import Proposer, StoppingOptions, StoppingRule
from simkit.inference.approximate import RejectionPosterior
from simkit.inference.learning import LearningOptions, count_members, train_members
from simkit.inference.neural import ExactPosterior, NeuralPosterior
from simkit.inference.population import PopulationOptions, population_monte_carlo
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array
from simkit.inference.region import Region
from simkit.inference.simulations import Simulations, simulate
from simkit.inference.simulator import Simulator
from simkit.inference.success import learn_success


class Method(NamedTuple):
    """What a name stands for: the estimator ("" for none), whether it simulates in rounds, and a line of help."""

    estimator: str
    sequential: bool
    summary: str


METHODS = {
    "npe": Method("npe", False, "neural posterior estimation: amortised, fast to draw from; the default"),
    "fmpe": Method("fmpe", False, "flow matching posterior estimation: amortised; for many parameters"),
    "nle": Method("nle", False, "neural likelihood estimation: amortised; few, informative outputs"),
    "nre": Method("nre", False, "neural ratio estimation: amortised; long outputs"),
    "snpe": Method("npe", True, "npe in rounds, of truncated proposals: for one observation"),
    "sfmpe": Method("fmpe", True, "fmpe in rounds, of truncated proposals: for one observation"),
    "snle": Method(
        "nle", True, "nle in rounds, of posterior proposals: for one observation; often the fewest simulations"
    ),
    "snre": Method("nre", True, "nre in rounds, of posterior proposals: for one observation"),
    "rejection_abc": Method(
        "", False, "rejection with regression: amortised; nothing is trained, but it needs many simulations"
    ),
    "smc_abc": Method("", True, "sequential Monte Carlo ABC: for one observation; nothing is trained"),
    "hmc": Method(
        "", False, "Hamiltonian Monte Carlo, where the simulator has a differentiable likelihood: exact, no simulations"
    ),
}
AMORTISED = tuple(name for name, method in METHODS.items() if not method.sequential)


class InferenceOptions(Options):
    """How `infer` works."""

    learning: LearningOptions = Field(default_factory=LearningOptions)
    rounds: int = Field(5, ge=2, description="of a sequential method; each has the same share of the budget")
    proposal: Literal["auto", "truncated", "posterior", "disagreement"] = Field(
        "auto", description="truncated for snpe and sfmpe, posterior for the other sequential methods, where not given"
    )
    epsilon: float = Field(1e-3, gt=0, lt=0.5, description="share of the posterior that a truncated proposal may lose")
    stopping: StoppingOptions = Field(default_factory=StoppingOptions)
    keep: float = Field(0.01, gt=0, le=1, description="share of the simulations that rejection keeps")
    particles: int | None = Field(None, ge=50, description="of SMC ABC; a twentieth of the budget where not given")


@dataclass(frozen=True)
class RoundReport:
    """A round: simulations, failures and seconds of simulating so far; seconds of learning, epochs and best loss of each network."""

    simulations: int
    failures: int
    simulating: float
    learning: float
    epochs: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()


@dataclass(frozen=True)
class Inference:
    """What `infer` gives.

    Attributes:
        posterior: of the parameters.
        simulations: all that were run, failures included.
        rounds: what was done.
        stopped: why no further rounds were run; "" if the budget was used.
    """

    posterior: Posterior
    simulations: Simulations
    rounds: list[RoundReport] = field(default_factory=list)
    stopped: str = ""


def infer(
    simulator: Simulator,
    observation: ArrayLike | None = None,
    *,
    method: str = "npe",
    budget: int = 1000,
    seed: int = 0,
    options: InferenceOptions | None = None,
    simulations: Simulations | None = None,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_round: Callable[[NeuralPosterior, RoundReport], None] | None = None,
) -> Inference:
    """Infer a simulator's parameters.

    Args:
        observation: [K] values; sequential methods need it, the others give a posterior for any observation.
        method: one of `METHODS`.
        budget: simulations in all.
        simulations: some that were drawn from the prior before; they count towards the budget.
        out: folder for simulations and networks; what was cut off in it is taken up again.
        workers: processes for a simulator that is not vectorised.
        progress: called with a stage's name, the number done and the number wanted.
        on_round: called with the posterior after each round of learning, to look at it or to save it.

    Raises:
        ConfigError: if method, budget or options make no sense.
        DataError: if the observation does not fit, or too many simulations failed.
        MissingDependencyError: if sbi is not installed and needed.
    """
    plan = METHODS.get(method)
    if plan is None:
        raise ConfigError(f"unknown method {method!r}{nearest(method, METHODS)}")
    x_o = None if observation is None else simulator.observation(observation)
    if plan.sequential and x_o is None:
        raise ConfigError(f"{method} simulates for one observation: give it, or use one of {', '.join(AMORTISED)}")
    if budget < 1:
        raise ConfigError(f"the budget must be at least one simulation; found {budget}")
    if seed < 0:
        raise ConfigError(f"the seed must not be negative; found {seed}")
    run = _Run(
        simulator,
        x_o,
        method,
        budget,
        seed,
        options or InferenceOptions(),
        None if out is None else Path(out),
        workers,
        progress,
        on_round,
    )
    if method == "hmc":
        return Inference(ExactPosterior(simulator, x_o), simulations or run.done)
    if simulations is not None:
        run.start_from(simulations)
    if method == "rejection_abc":
        run.simulate_prior(budget - len(run.done))
        return run.finished(RejectionPosterior.from_simulations(simulator, run.done, keep=run.options.keep))
    if method == "smc_abc":
        return run.population()
    return run.sequential() if plan.sequential else run.amortised()


class _Run:
    """One call of `infer`."""

    def __init__(
        self,
        simulator: Simulator,
        x_o: Array | None,
        method: str,
        budget: int,
        seed: int,
        options: InferenceOptions,
        out: Path | None,
        workers: int | None,
        progress: Callable[[str, int, int], None] | None,
        on_round: Callable[[NeuralPosterior, RoundReport], None] | None,
    ) -> None:
        self.simulator, self.x_o, self.method, self.budget, self.seed = simulator, x_o, method, budget, seed
        self.options, self.out, self.workers = options, out, workers
        self.progress, self.on_round = progress, on_round
        self.done = Simulations.none(simulator)
        self.rounds: list[RoundReport] = []
        self.batches = 0

    def start_from(self, simulations: Simulations) -> None:
        """Take simulations that were run before."""
        theta = self.simulator.prior.check(simulations.theta)
        if simulations.x.shape != (len(theta), self.simulator.size):
            raise DataError(
                f"earlier simulations should hold [{len(theta)}, {self.simulator.size}] outputs; found {simulations.x.shape}"
            )
        self.done, self.batches = simulations, 1
        # They may have been drawn with the very same seed, and none of them must be run again.
        self.seed = int(np.random.SeedSequence((self.seed, len(theta))).generate_state(1)[0])

    def simulate(self, parameters: Array | int) -> Simulations:
        """Run one more batch, with a seed and a folder of its own, and remember it."""
        stage = "simulations" if self.batches == 0 else f"simulations {self.batches + 1}"
        report = None if self.progress is None else lambda done, wanted: self.progress(stage, done, wanted)  # type: ignore[misc]
        done = simulate(
            self.simulator,
            parameters,
            seed=self.seed + 1_000_003 * self.batches,
            store=None if self.out is None else self.out / f"simulations-{self.batches}",
            workers=self.workers,
            progress=report,
        )
        self.batches += 1
        self.done = self.done.join(done)
        return done

    def simulate_prior(self, count: int) -> None:
        """Run ``count`` simulations of the prior, if it is any."""
        if count > 0:
            self.simulate(count)

    def finished(self, posterior: Posterior, stopped: str = "") -> Inference:
        """Return the result."""
        if posterior.amortised:
            posterior.reference = self.x_o
        return Inference(posterior, self.done, self.rounds, stopped)

    def learn(self, region: Region | None = None) -> NeuralPosterior:
        """Train an ensemble on all simulations so far, the last of them confined to a region."""
        started = time.monotonic()
        plan, prior = METHODS[self.method], self.simulator.prior
        z = prior.to_normal(torch.from_numpy(self.done.theta)).numpy()
        valid = self.done.valid & np.isfinite(z).all(1)
        folder = None if self.out is None else self.out / f"networks-{len(self.rounds)}"
        if self.progress is not None:
            self.progress(f"learning from {int(valid.sum())} simulations", 0, 1)
        members, results = train_members(
            plan.estimator,
            z[valid],
            self.done.x[valid],
            self.simulator.observables,
            self.options.learning,
            seed=self.seed,
            bounded=prior.bounded,
            folder=folder,
        )
        success = None
        if plan.estimator in ("nle", "nre") and self.done.failures:
            known = np.isfinite(z).all(1)
            success = learn_success(z[known], valid[known], self.seed)
        posterior = NeuralPosterior(
            self.method,
            prior,
            self.simulator.observables,
            members,
            reference=self.x_o,
            amortised=not plan.sequential,
            success=success,
            region=region,
        )
        learning = time.monotonic() - started
        losses = tuple(min(float(row["valid_loss"]) for row in result.rows) for result in results)
        epochs = tuple(result.epochs for result in results)
        self.rounds.append(
            RoundReport(len(self.done), self.done.failures, float(self.done.seconds.sum()), learning, epochs, losses)
        )
        if self.on_round is not None:
            self.on_round(posterior, self.rounds[-1])
        return posterior

    def amortised(self) -> Inference:
        """Simulate from the prior once, and learn."""
        self.simulate_prior(self.budget - len(self.done))
        return self.finished(self.learn())

    def population(self) -> Inference:
        """SMC ABC."""
        if self.x_o is None:
            raise ConfigError("smc_abc needs an observation")
        particles = self.options.particles or max(100, self.budget // 20)
        if self.budget < 3 * particles:
            raise ConfigError(
                f"SMC ABC of {particles} particles needs a budget of at least {3 * particles}; found {self.budget}"
            )
        posterior = population_monte_carlo(
            self.simulator, self.simulate, self.x_o, self.budget, PopulationOptions(particles), self.seed, self.done
        )
        return self.finished(posterior)

    def sequential(self) -> Inference:
        """Simulate and learn in rounds, each where the last one's posterior says."""
        if self.x_o is None:
            raise ConfigError(f"{self.method} needs an observation")
        direct = METHODS[self.method].estimator in ("npe", "fmpe")
        kind = self.options.proposal
        kind = ("truncated" if direct else "posterior") if kind == "auto" else kind
        if direct and kind != "truncated":
            raise ConfigError(
                f"{self.method} learns the posterior itself, and only truncated proposals leave that right; "
                "use proposal: truncated, or snle or snre"
            )
        if kind == "disagreement" and count_members(METHODS[self.method].estimator, self.options.learning) < 2:
            raise ConfigError("proposals by disagreement need an ensemble: set learning.members to 2 or more")
        proposer = Proposer(kind, self.options.epsilon, torch.from_numpy(self.x_o))
        rule = StoppingRule(self.options.stopping, torch.from_numpy(self.x_o))
        share = math.ceil(self.budget / self.options.rounds)
        if len(self.done) < share:
            self.simulate_prior(min(share, self.budget) - len(self.done))
        while True:
            posterior = self.learn(proposer.region)
            left = self.budget - len(self.done)
            stopped = rule.reason(posterior, self.rounds[-1].simulating) if left > 0 else ""
            if stopped or left <= 0:
                return self.finished(posterior, stopped)
            z = proposer.propose(posterior, self.done, min(share, left), self.seed + len(self.rounds))
            self.simulate(self.simulator.prior.from_normal(z).numpy())
