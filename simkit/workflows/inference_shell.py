"""`simkit infer` as it is called from a shell: files in, one folder out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from simkit.inference.observations import read_observation
from simkit.inference.recipe import build_simulator, read_inference_recipe
from simkit.workflows.inference import InferenceReport, run_inference


def infer_from_shell(
    recipe: Path,
    settings: Sequence[str],
    out: Path,
    observe: Path | None,
    posterior: Path | None,
    *,
    resume: bool,
    echo: Callable[[str], None],
) -> InferenceReport:
    """Read recipe and observation, and infer.

    Raises:
        SimkitError: as `run_inference`, and if a file is missing or unusable.
    """
    plan = read_inference_recipe(recipe, settings)
    simulator = build_simulator(plan.simulator, recipe.parent)
    observation = None if observe is None else read_observation(observe, simulator)
    return run_inference(plan, simulator, out, observation, posterior=posterior, resume=resume, echo=echo)
