"""Active learning of a potential: a committee explores, the frames it disagrees on are labelled, training goes on: `simkit active`.

The folder of a run holds ``round-00``, ``round-01``, ... Each has ``selected.xyz`` (what to label; the round before chose it),
``labels.xyz`` (their labels), ``data.xyz`` (those that are trained on), ``members`` (trained on the data of all rounds so far), ``md``
(what the committee explored) and ``round.json``. Every file is written whole or not at all, and what is there is not done again: a run
that was killed goes on where it was.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from ase import Atoms
from numpy.typing import NDArray

from simkit.config import parse_options
from simkit.datasets import load as load_dataset
from simkit.datasets.splits import Splits, indices_split
from simkit.datasets.store import Store
from simkit.errors import DataError, LabelError, OutputError
from simkit.files import ensure_output_dir, write_text
from simkit.inference.active import Exploration, explore
from simkit.inference.committee import Committee, CommitteeForces
from simkit.inference.frame_descriptor import describe_frames
from simkit.inference.frame_selection import select_frames
from simkit.labeling.label import label_structures
from simkit.labeling.methods import check_method
from simkit.labeling.partfile import part_path
from simkit.training.checkpoint import CHECKPOINT
from simkit.training.finetune import inherited
from simkit.training.recipe import Recipe
from simkit.workflows.active_first import drawn_frames, first_frames
from simkit.workflows.active_recipe import ActiveRecipe, read_active_recipe
from simkit.workflows.active_report import REPORT, ActiveReport, calibrate, finish, force_errors, visited
from simkit.workflows.active_round import Round
from simkit.workflows.prepare import SPLIT
from simkit.workflows.structures import read_structures, write_structures
from simkit.workflows.text import silent
from simkit.workflows.train import train_potential

RECIPE = "recipe.yaml"

Echo = Callable[[str], None]


def active_learning(recipe: ActiveRecipe, out: str | Path, *, resume: bool = False, echo: Echo = print) -> ActiveReport:
    """Run the loop until a rule of ``recipe.stop`` ends it, and write models, report and pictures into ``out``.

    A run that was interrupted or killed goes on with ``resume=True``; on a CPU its models are the same, bit for bit, as if it had never
    stopped. A run that has ended goes on with a later ``stop``.

    Args:
        echo: takes what is to be told, a few lines for each round.

    Raises:
        OutputError: if ``out`` cannot be written, holds a run (without ``resume``), or one of another recipe (with it).
        ConfigError, DataError, LabelError, MissingDependencyError: if recipe or data are unusable.
        KeyboardInterrupt: if interrupted; what was done is saved.
    """
    folder = ensure_output_dir(out)
    _check(folder, recipe, resume)
    loop = _Loop(recipe, folder, echo)
    write_text(folder / RECIPE, recipe.to_yaml())
    reason = loop.run()
    echo(f"ended: {reason}")
    return finish(loop.rounds, folder, reason, recipe)


def run_active(path: Path, settings: Sequence[str], out: Path, *, resume: bool, echo: Echo) -> ActiveReport:
    """Run a recipe as the shell asks for it; tell where everything is and what to type next."""
    report = active_learning(read_active_recipe(path, settings), out, resume=resume, echo=echo)
    model = shlex.quote(str(report.model))
    echo(
        f"\nmodel:   {report.model}, the best member\nmembers: {', '.join(str(path) for path in report.members)}\n"
        f"report:  {report.folder / REPORT}, with learning.png, disagreement.png and calibration.png\n"
        f"\nWhat to type next:\n  simkit info {model}\n  simkit md {model} STRUCTURE --temperature 300 --out md"
    )
    return report


def _check(folder: Path, recipe: ActiveRecipe, resume: bool) -> None:
    """Refuse to mix two runs; only the rules for stopping may change."""
    path = folder / RECIPE
    if path.exists() and not resume:
        raise OutputError(
            f"{folder} already holds a run of active learning; add --resume to continue it, or choose another folder"
        )
    if path.exists():
        before, now = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(recipe.to_yaml())
        free = ("stop", "jobs")
        changed = [key for key in {**before, **now} if key not in free and before.get(key) != now.get(key)]
        if changed:
            raise OutputError(
                f"the run in {folder} has another {', '.join(changed)}; resume with its own recipe, or choose another folder"
            )


class _Loop:
    """The rounds of a run, one after the other."""

    def __init__(self, recipe: ActiveRecipe, folder: Path, echo: Echo) -> None:
        self.recipe, self.folder, self.echo = recipe, folder, echo
        # What can be seen to be wrong is, before anything is computed.
        self.first = first_frames(recipe, check_method(recipe.method))
        self.rounds: list[Round] = []
        self.test: Store | None = None
        if recipe.test is not None:
            self.test = load_dataset(recipe.test.name, **recipe.test.options)
            if missing := [name for name in ("energy", "forces") if name not in self.test.labels]:
                raise DataError(
                    f"test: expected frames labelled with energy and forces, {self.test.name} lacks {', '.join(missing)}"
                )

    def run(self) -> str:
        """Do what is not done yet; return why the loop ended."""
        while True:
            now = Round(self.folder, len(self.rounds))
            committee = None
            self.rounds.append(now)
            ensure_output_dir(now.folder)
            if not now.has("labels"):
                self.label(now)
            if not now.has("training"):
                self.train(now)
            if not now.has("errors") and self.test is not None:
                committee = Committee.load(now.members(self.recipe.members))
                now.note(errors=force_errors(committee, self.test))
            self.tell(now)
            if reason := self.spent():
                return reason
            if not now.has("exploration"):
                self.explore(now, committee or Committee.load(now.members(self.recipe.members)))
            if reason := self.settled():
                return reason
            if not now.next().selected.exists() and (reason := self.select(now)):
                return reason

    # -------------------------------------------------------------------------------------------------------- labels

    def label(self, now: Round) -> None:
        """Make the labels of a round, and compare them with what the committee that chose the frames had predicted."""
        recipe = self.recipe
        if now.number == 0 and recipe.initial.data is not None:
            if not now.data.exists():
                write_structures(now.data, self.first)
            now.note(labels={"calculations": 0, "labelled": len(read_structures(now.data)), "failures": []})
            return
        if not now.selected.exists():
            write_structures(now.selected, drawn_frames(recipe))
        frames = read_structures(now.selected)
        # A part file beside the labels: killed when all were there, but not everything about them.
        if not now.labels.exists() or part_path(now.labels).exists():
            label_structures(
                frames,
                recipe.method,
                now.labels,
                charge=recipe.charge,
                multiplicity=recipe.multiplicity,
                jobs=recipe.jobs,
                overwrite=True,
                on_error="keep-going",
            )
        failures = json.loads(now.failures.read_text(encoding="utf-8")) if now.failures.exists() else []
        kept, failures = self.usable(read_structures(now.labels), len(frames), failures)
        for failure in failures:
            self.echo(f"warning: frame {failure['frame']} of {now.selected} is left out: {failure['reason']}")
        if kept:
            write_structures(now.data, kept)
        elif now.number == 0:
            raise LabelError(f"no training can begin: all {len(frames)} first frames are left out")
        if now.number and kept:
            before = Committee.load(self.rounds[now.number - 1].members(recipe.members))
            now.note(calibration=calibrate(before, load_dataset("frames", **self.source([now])), now.calibration))
        now.note(labels={"calculations": len(frames), "labelled": len(kept), "failures": failures})

    def usable(
        self, labelled: list[Atoms], count: int, failures: list[dict[str, Any]]
    ) -> tuple[list[Atoms], list[dict[str, Any]]]:
        """Leave out frames with a force that no training should look at; return the others, and all that are missing of ``count``."""
        limit = self.recipe.selection.largest_force
        places = [k for k in range(count) if k not in {failure["frame"] for failure in failures}]
        kept, missing = [], list(failures)
        for k, atoms in zip(places, labelled, strict=True):
            force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
            if force <= limit:
                kept.append(atoms)
            else:
                missing.append({"frame": k, "reason": f"a force of {force:.3g} eV/angstrom, more than {limit:g}"})
        return kept, missing

    def source(self, rounds: Sequence[Round]) -> dict[str, Any]:
        """Options of the frames that rounds have labelled."""
        paths = [str(one.data) for one in rounds if one.data.exists()]
        return {"paths": paths, "dipole": "none", "isolated_atoms": "keep"}

    # ------------------------------------------------------------------------------------------------------ training

    def train(self, now: Round) -> None:
        """Train all members on the data of all rounds so far."""
        seconds, frames = 0.0, 0
        for k, path in enumerate(now.members(self.recipe.members)):
            if not path.exists():
                folder = ensure_output_dir(path.parent)
                self.split(k).save(folder / SPLIT)
                trained = train_potential(inherited(self.member(now, k)), folder, resume=True, echo=silent)
                trained.potential.info["training_seconds"] = trained.result.seconds
                trained.potential.save(path)
            (path.parent / CHECKPOINT).unlink(missing_ok=True)
        for member in Committee.load(now.members(self.recipe.members)).members:
            info = cast(Any, member).info
            seconds, frames = seconds + float(info["training_seconds"]), int(info["training_structures"])
        now.note(training={"seconds": seconds, "structures": frames})

    def split(self, k: int) -> Splits:
        """What member ``k`` validates on: some of each round, which stay out of its training for good, as it goes on from its weights."""
        held: list[NDArray[np.int64]] = []
        size = 0
        for one in self.rounds:
            count = one.facts["labels"]["labelled"]
            order = np.random.default_rng(self.recipe.seed_for(5, k, one.number)).permutation(count)
            held.append(size + order[: round(self.recipe.valid * count)])
            size += count
        valid = np.concatenate(held)
        return indices_split(size, np.setdiff1d(np.arange(size), valid), valid)

    def member(self, now: Round, k: int) -> Recipe:
        """The training of member ``k`` of a round: other weights at the start, order of batches and validation frames for each."""
        recipe = self.recipe
        seed = recipe.seed_for(1, k) % 2**31
        training = recipe.training.model_dump() | {"seed": seed}
        if now.number:
            given = recipe.update.model_dump(include={"epochs", "learning_rate"}, exclude_none=True)
            training |= given
        values: dict[str, Any] = {
            "data": {"name": "frames", **self.source(self.rounds)},
            "split": {"method": "file", "file": str(now.members(recipe.members)[k].with_name(SPLIT))},
            "loss": {name: term.model_dump() for name, term in recipe.loss.items()},
            "training": training,
        }
        if now.number and recipe.update.start == "warm":
            before = self.rounds[now.number - 1].members(recipe.members)[k]
            values |= {"start": {"model": str(before)}, "model": {"seed": seed}}
        else:
            values["model"] = recipe.model.model_dump() | {"seed": seed}
        return parse_options(Recipe, values, f"training of member {k}")

    # --------------------------------------------------------------------------------------------------- exploration

    def explore(self, now: Round, committee: Committee) -> None:
        """Run the trajectories of a round that are not there yet."""
        recipe, options = self.recipe, self.recipe.dynamics
        starts = read_structures(self.rounds[0].data)
        rng = np.random.default_rng(recipe.seed_for(2, now.number))
        chosen = rng.choice(len(starts), options.trajectories, replace=options.trajectories > len(starts))
        forces = CommitteeForces(committee, recipe.training.device, str(committee.dtype).removeprefix("torch."))
        for k, path in enumerate(now.trajectories(options.trajectories)):
            if path.exists():
                continue
            ensure_output_dir(path.parent)
            seed = recipe.seed_for(3, now.number, k)
            temperature = options.temperatures[k % len(options.temperatures)]
            start = starts[chosen[k]]
            start.calc = None
            explore(
                forces,
                start,
                options.make_ensemble(temperature, seed),
                steps=options.steps,
                interval=options.interval,
                temperature=temperature,
                seed=seed,
                upper=options.upper,
                watch_bonds=options.watch_bonds,
            ).save(path)
        now.note(exploration=visited(self.explored(now)))

    def explored(self, now: Round) -> list[Exploration]:
        """What was explored in a round."""
        return [Exploration.load(path) for path in now.trajectories(self.recipe.dynamics.trajectories)]

    def select(self, now: Round) -> str:
        """Write the frames that the next round labels; if there are none, say why."""
        recipe = self.recipe
        frames, scores = [], []
        for k, run in enumerate(self.explored(now)):
            for t in range(len(run.steps)):
                frames.append(run.frame(t))
                frames[-1].info.update(round=now.number, trajectory=k)
            scores.append(run.scores())
        known = [atoms for one in self.rounds if one.data.exists() for atoms in read_structures(one.data)]
        elements = sorted({z for atoms in (*known, *frames) for z in atoms.numbers.tolist()})
        chosen = select_frames(
            np.concatenate(scores),
            describe_frames(frames, elements, recipe.model.cutoff),
            self.affordable(),
            strategy=recipe.selection.strategy,
            quantile=recipe.selection.quantile,
            lower=recipe.selection.lower,
            known=describe_frames(known, elements, recipe.model.cutoff),
            seed=recipe.seed_for(4, now.number),
        )
        if len(chosen) == 0:
            return "no frame was visited that is worth a label"
        ensure_output_dir(now.next().folder)
        write_structures(now.next().selected, [frames[k] for k in chosen])
        return ""

    # ---------------------------------------------------------------------------------------------------------- ends

    def affordable(self) -> int:
        """How many frames may be labelled next."""
        limit, frames = self.recipe.stop.calculations, self.recipe.selection.frames
        return frames if limit is None else min(frames, limit - self.calculations())

    def calculations(self) -> int:
        """How many labels were computed or tried so far."""
        return sum(one.facts["labels"]["calculations"] for one in self.rounds)

    def spent(self) -> str:
        """Say which limit is used up, if one is."""
        stop = self.recipe.stop
        if len(self.rounds) > stop.rounds:
            return f"{stop.rounds} rounds are done"
        if stop.calculations is not None and self.calculations() >= stop.calculations:
            return f"{self.calculations()} calculations are done, of {stop.calculations} that may be spent"
        return ""

    def settled(self) -> str:
        """Say that the committee agrees everywhere it goes, if it does."""
        stop = self.recipe.stop
        last = [one.facts["exploration"] for one in self.rounds[-stop.patience :]]
        if stop.tolerance is None or len(last) < stop.patience:
            return ""
        calm = all(e["frames"] and e["quantile_95"] < stop.tolerance and not e["ended"] for e in last)
        return (
            f"the disagreement stayed below {stop.tolerance:g} eV/angstrom for {stop.patience} rounds" if calm else ""
        )

    def tell(self, now: Round) -> None:
        """Say where a round stands."""
        parts = [f"{now.labelled(self.rounds)} frames labelled"]
        if failures := now.facts["labels"]["failures"]:
            parts.append(f"{len(failures)} left out")
        if errors := now.facts.get("errors"):
            parts.append(f"force error (test) {1000 * errors['forces_mae']:.1f} meV/angstrom")
        if calibration := now.facts.get("calibration"):
            parts.append(f"error before training on the new frames {1000 * calibration['forces_mae']:.1f} meV/angstrom")
        self.echo(f"round {now.number}: {', '.join(parts)}")
