"""What active learning is judged by, and what it leaves: errors, calibration, models, report and pictures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from simkit import plotting
from simkit.datasets import load as load_dataset
from simkit.datasets.npz_file import read_npz
from simkit.datasets.store import Store
from simkit.files import atomic_path, write_json
from simkit.inference import active_plots
from simkit.inference.active import Exploration
from simkit.inference.committee import Committee
from simkit.potential import Potential
from simkit.training.evaluation import error_metrics, predict
from simkit.workflows.active_recipe import ActiveRecipe
from simkit.workflows.active_round import Round
from simkit.workflows.train import MODEL

REPORT = "report.json"


@dataclass(frozen=True)
class ActiveReport:
    """How a run of active learning ended.

    Attributes:
        folder: where everything is. reason: why it ended.
        rounds: what is known of each, see `simkit.workflows.active_round.Round`.
        members: files of the last committee. model: of its member with the lowest force error on the labelled frames.
    """

    folder: Path
    reason: str
    rounds: list[dict[str, Any]]
    members: list[Path]
    model: Path


def force_errors(committee: Committee, store: Store) -> dict[str, Any]:
    """Return the errors of the committee's mean on labelled frames (see `error_metrics`), and of each member's forces."""
    near = store.with_neighbors(committee.cutoff)
    whole = cast(Potential, committee)  # it answers to all that is asked of a potential there
    predicted = predict(whole, near, ("energy", "forces", "disagreement"))
    disagreement = predicted.pop("disagreement")
    alone = [
        error_metrics(near, predict(cast(Potential, member), near, ("forces",)))["forces_mae"]
        for member in committee.members
    ]
    return {**error_metrics(near, predicted), "members": alone, "disagreement": float(disagreement.mean())}


def calibrate(committee: Committee, store: Store, path: Path) -> dict[str, float]:
    """Compare disagreement and true error of every atom of labelled frames; both are written to a file.

    Returns:
        forces_mae (eV/angstrom, over components); ratio: RMS error over RMS disagreement, 1 for a committee that knows how wrong it is;
        rank_correlation: Spearman's, of the atoms.
    """
    from scipy.stats import spearmanr

    predicted = predict(cast(Potential, committee), store.with_neighbors(committee.cutoff), ("forces", "disagreement"))
    difference = (predicted["forces"] - store.labels["forces"].double()).numpy()
    error, disagreement = np.linalg.norm(difference, axis=1), predicted["disagreement"].numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, disagreement=disagreement, error=error)
    varied = np.ptp(error) > 0 and np.ptp(disagreement) > 0
    return {
        "forces_mae": float(np.abs(difference).mean()),
        "ratio": float(np.sqrt((error**2).mean() / (disagreement**2).mean())),
        "rank_correlation": float(spearmanr(disagreement, error).statistic) if varied else 0.0,
    }


def visited(runs: Sequence[Exploration]) -> dict[str, Any]:
    """Return how much the committee disagreed in the frames that it visited, eV/angstrom, and which trajectories ended early."""
    scores = np.concatenate([run.scores() for run in runs])
    known = {"mean": 0.0, "quantile_95": 0.0, "largest": 0.0}
    if len(scores):
        known = {
            "mean": float(scores.mean()),
            "quantile_95": float(np.quantile(scores, 0.95)),
            "largest": float(scores.max()),
        }
    ended = [{"trajectory": k, "reason": run.ended} for k, run in enumerate(runs) if run.ended]
    return {"frames": len(scores), **known, "ended": ended}


def finish(rounds: Sequence[Round], folder: Path, reason: str, recipe: ActiveRecipe) -> ActiveReport:
    """Copy the last members, choose one of them to stand alone, and write the report and the pictures."""
    last = rounds[-1].members(recipe.members)
    members = [folder / f"member-{k}.safetensors" for k in range(recipe.members)]
    for source, target in zip(last, members, strict=True):
        _copy(source, target)
    paths = [str(one.data) for one in rounds if one.data.exists()]
    store = load_dataset("frames", paths=paths, dipole="none", isolated_atoms="keep")
    alone = force_errors(Committee.load(last), store)["members"]
    _copy(last[int(np.argmin(alone))], folder / MODEL)
    facts = [{"round": one.number, "frames": one.labelled(rounds), **one.facts} for one in rounds]
    content = {
        "ended": reason,
        "method": recipe.method,
        "strategy": recipe.selection.strategy,
        "frames": rounds[-1].labelled(rounds),
        "calculations": sum(one.facts["labels"]["calculations"] for one in rounds),
        "units": {"errors": "eV, eV/angstrom", "disagreement": "eV/angstrom", "seconds": "s"},
        "rounds": facts,
    }
    write_json(folder / REPORT, content)
    draw(rounds, folder, recipe)
    return ActiveReport(folder, reason, facts, members, folder / MODEL)


def draw(rounds: Sequence[Round], folder: Path, recipe: ActiveRecipe) -> None:
    """Draw learning.png, disagreement.png and, if new frames were labelled, calibration.png."""

    def column(step: str, name: str) -> list[float]:
        return [float(one.facts.get(step, {}).get(name, np.nan)) for one in rounds]

    # The new frames of a round were predicted by the committee before it, trained on fewer.
    predicted = [*column("calibration", "forces_mae")[1:], float("nan")]
    axes = active_plots.learning_course(
        [one.labelled(rounds) for one in rounds],
        {"test frames": column("errors", "forces_mae"), "frames chosen next": predicted},
        {"95 % of frames below": column("exploration", "quantile_95"), "mean": column("exploration", "mean")},
    )
    plotting.save(axes[0], folder / "learning.png")
    scores = {}
    for one in rounds:
        if one.has("exploration"):
            runs = [Exploration.load(path) for path in one.trajectories(recipe.dynamics.trajectories)]
            scores[f"round {one.number}"] = np.concatenate([run.scores() for run in runs])
    plotting.save(active_plots.disagreement_histograms(scores, recipe.dynamics.upper), folder / "disagreement.png")
    known = [read_npz(one.calibration) for one in rounds if one.calibration.exists()]
    if known:
        pair = [np.concatenate([arrays[name] for arrays in known]) for name in ("disagreement", "error")]
        plotting.save(active_plots.disagreement_calibration(*pair), folder / "calibration.png")


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
