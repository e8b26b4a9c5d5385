"""From a simulator and an observation to a posterior with its checks and pictures: the whole of `simkit infer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simkit.errors import ConfigError, OutputError
from simkit.files import ensure_output_dir, write_text
from simkit.inference import files
from simkit.inference.calibration import Calibration, calibrate
from simkit.inference.infer import Inference, infer
from simkit.inference.neural import ExactPosterior
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array
from simkit.inference.recipe import InferenceRecipe
from simkit.inference.simulations import Simulations
from simkit.inference.simulator import Simulator
from simkit.inference.simulators import available, describe
from simkit.inference.summary import Summary, summarise
from simkit.workflows.inference_output import REPORT, write_checks, write_report, write_samples
from simkit.workflows.text import table

POSTERIOR, RECIPE, WORK = "posterior.safetensors", "recipe.yaml", "work"
Echo = Callable[[str], None]


@dataclass(frozen=True)
class InferenceReport:
    """What an inference leaves.

    Attributes:
        folder: where everything is.
        posterior: of the parameters.
        samples: of it given the observation, [S, D]; None without one.
        summary: the same as a table; calibration: what the checks say.
    """

    folder: Path
    posterior: Posterior
    samples: Array | None
    summary: Summary | None
    calibration: Calibration


def run_inference(
    recipe: InferenceRecipe,
    simulator: Simulator,
    out: str | Path,
    observation: Array | None = None,
    *,
    posterior: str | Path | None = None,
    resume: bool = False,
    echo: Echo = print,
) -> InferenceReport:
    """Infer parameters as the recipe says, check the posterior, and write everything into ``out``.

    Args:
        observation: [K]; an amortised method gives a posterior without one.
        posterior: file of an amortised posterior that was inferred before: nothing is learned anew.

    Raises:
        OutputError: if ``out`` cannot be written, or holds an inference that is not to be resumed.
        ConfigError, DataError: if recipe, observation or posterior file do not fit.
        KeyboardInterrupt: if interrupted; what was done is saved in ``out``.
    """
    folder = ensure_output_dir(out)
    if not resume and any((folder / name).exists() for name in (POSTERIOR, REPORT, WORK)):
        raise OutputError(f"{folder} already holds an inference; add --resume to continue it, or choose another folder")
    write_text(folder / RECIPE, recipe.to_yaml())
    echo(describe_problem(simulator))
    done = (
        _reuse(posterior, simulator, observation) if posterior else _infer(recipe, simulator, observation, folder, echo)
    )
    found = done.posterior
    if not isinstance(found, ExactPosterior):
        files.save(found, folder / POSTERIOR)
    samples = None if observation is None else found.sample(recipe.samples, observation, seed=recipe.seed)
    c = recipe.calibration
    calibration = calibrate(
        found,
        simulator,
        count=c.count,
        samples=c.samples,
        predictive=c.predictive,
        seconds=c.seconds,
        level=c.level,
        seed=recipe.seed,
        workers=recipe.workers,
        observation=observation,
        given=samples,
    )
    summary = None if samples is None else summarise(samples, simulator.prior)
    if summary is not None:
        echo(table(summary.HEADER, summary.rows()))
    for line in calibration.verdicts():
        echo(f"- {line}")
    write_report(folder, simulator, done, calibration, summary)
    write_checks(folder, calibration)
    if samples is not None and observation is not None:
        write_samples(folder, simulator, done, calibration, samples, observation, recipe.seed)
    echo(f"wrote {folder}")
    return InferenceReport(folder, found, samples, summary, calibration)


def describe_problem(simulator: Simulator) -> str:
    """Return one line on parameters and observables."""
    parameters = ", ".join(
        f"{n} ({u})" if u else n for n, u in zip(simulator.prior.names, simulator.prior.units, strict=True)
    )
    seen = ", ".join(f"{o.name} {list(o.shape)}" if o.shape else o.name for o in simulator.observables)
    return f"{simulator.name}: parameters {parameters}; observables {seen}"


def list_simulators() -> str:
    """Return the ready simulators, one to a line."""
    width = max(map(len, available()))
    return "\n".join(f"{name.ljust(width)}  {describe(name)}" for name in available())


def _reuse(path: str | Path, simulator: Simulator, observation: Array | None) -> Inference:
    posterior = files.load(path)
    if posterior.prior.describe() != simulator.prior.describe() or posterior.observables != simulator.observables:
        raise ConfigError(
            f"{path} was inferred for other parameters or observables than those of {simulator.name}; use the recipe beside it"
        )
    if observation is not None:
        posterior.resolve(observation)
    return Inference(posterior, Simulations.none(simulator))


def _infer(
    recipe: InferenceRecipe, simulator: Simulator, observation: Array | None, folder: Path, echo: Echo
) -> Inference:
    stages: set[str] = set()

    def progress(stage: str, done: int, wanted: int) -> None:
        if stage not in stages:
            stages.add(stage)
            echo(f"{stage}: {wanted}" if wanted > 1 else stage)

    done = infer(
        simulator,
        observation,
        method=recipe.method,
        budget=recipe.budget,
        seed=recipe.seed,
        options=recipe.options,
        out=folder / WORK,
        workers=recipe.workers,
        progress=progress,
    )
    failed = done.simulations.failures
    if failed:
        echo(
            f"{failed} of {len(done.simulations)} simulations failed; their parameters are kept, and the method accounts for them"
        )
    if done.stopped:
        echo(f"stopped after {len(done.simulations)} simulations: {done.stopped}")
    return done
