"""Dynamics from pixels: a small Hamiltonian Generative Network on rendered systems, on one CPU thread.

python benchmarks/surrogates_images.py [--systems spring pendulum] [--films 1000] [--epochs 40] [--test 64] [--seed 0] [--dof 6]
    [--quick] [--device cpu] [--out images.json] [--pictures FOLDER]

Films of 30 frames at intervals of 0.125 and 32 x 32 pixels in colour, without noise, as in Toth et al. (2020), who train on 50000 of
them. The encoder sees the first five frames, and the latent state has as many coordinates as the system, or `--dof`. Errors are mean
squared errors per pixel value, times 10^4 as in the paper: of the frames of training films and of new ones, and of the 60 frames that
follow, which no training film has. The baselines are the last frame that the encoder sees and the mean image of the training films.
`energy varies` is the standard deviation of the learned Hamiltonian along a rollout over that between films; `energy rank` is the rank
correlation of the learned energy of the new films with the true one; `disc off by` is the distance of the predicted disc's center from
the true one, in pixels, for systems of one body. Each epoch's error is that of other films, which also choose the weights that are kept.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from simkit import plotting
from simkit.surrogates import systems
from simkit.surrogates.images import files, pictures
from simkit.surrogates.images.evaluation import FilmErrors, centroids, film_errors, mean_image
from simkit.surrogates.images.model import HamiltonianGenerativeNetwork, build
from simkit.surrogates.images.objective import Constrained, GecoObjective
from simkit.surrogates.images.rendering import SCENES, render
from simkit.surrogates.images.sequences import ImageSequences, image_protocol
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions

TRAINED, SHOWN, SHORT = 30, 90, 10  # frames of training films, of test films, and of the first epochs


def train(
    model: HamiltonianGenerativeNetwork,
    films: ImageSequences,
    valid: ImageSequences,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Train first on the start of the films, whose motion is easier to find, then on all of them."""
    constrained, objective = Constrained(model, arguments.seed), GecoObjective(tolerance=0.02, stride=3)
    began, cpu = time.perf_counter(), time.process_time()
    steps = 0
    for share, frames in ((0.1, SHORT), (0.9, TRAINED)):
        options = TrainingOptions(
            epochs=max(1, round(share * arguments.epochs)),
            batch_size=16,
            learning_rate=2e-3,
            warmup_steps=20,
            ema_decay=0.99,
            schedule="cosine" if frames == TRAINED else "constant",
            checkpoint_minutes=60,
            seed=arguments.seed,
            device=arguments.device,
        )
        with tempfile.TemporaryDirectory() as folder:
            parts = films.frames(frames), valid.frames(frames)
            result = fit(constrained, objective, *parts, options, folder, on_epoch=report)
            steps += int(result.rows[-1]["step"])
    return {
        "steps": steps,
        "cpu_minutes": (time.process_time() - cpu) / 60,
        "minutes": (time.perf_counter() - began) / 60,
        "multiplier": float(constrained.multiplier().detach()),
    }


def report(row: dict[str, float]) -> None:
    print(f"epoch {row['epoch']:.0f}: {1e4 * row['valid_loss']:.2f} after {row['seconds']:.0f} s", flush=True)


def scores(errors: FilmErrors, trained: FilmErrors) -> dict[str, float]:
    """Mean squared errors times 10^4, by part of the films."""
    found = {"training films": float(trained.model.mean())}
    for name, values in (("model", errors.model), ("last frame", errors.last_frame), ("mean image", errors.mean_image)):
        found[f"{name}, frames 1-30"] = float(values[:TRAINED].mean())
        found[f"{name}, frames 31-90"] = float(values[TRAINED:].mean())
    return {name: 1e4 * value for name, value in found.items()}


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate on one system."""
    system = systems.build(name)
    plan = image_protocol(arguments.films, arguments.test, frames=TRAINED)
    films, valid = (render(part) for part in system.generate(plan, arguments.seed).split(plan.parts).values())
    plan = image_protocol(arguments.test, 1, frames=SHOWN)
    truth = system.generate(plan, arguments.seed + 1000).split(plan.parts)["train"]
    test = render(truth)
    info = {"system": name, "films": arguments.films, "seed": arguments.seed}
    dof = arguments.dof or system.dof
    model = build(seed=arguments.seed, info=info, dof=dof)
    result: dict[str, Any] = {"system": name, "dof": dof, "parameters": sum(p.numel() for p in model.parameters())}
    result |= train(model, films, valid, arguments)
    model = model.cpu().eval()
    center = mean_image(films)
    few = ImageSequences(films.pixels[: arguments.test], films.times)
    errors = film_errors(model, test, center)
    result |= scores(errors, film_errors(model, few, center))
    result["energy varies"] = errors.energy_variation()
    fine = film_errors(model, test, center, timestep=0.125 / 4)
    result["energy varies, quarter steps"] = fine.energy_variation()
    true_energy = system.energy(torch.from_numpy(truth.state("qp")[:, 0])).numpy()
    result["energy rank"] = float(abs(spearmanr(errors.energies[:, 0].numpy(), true_energy).statistic))
    images = test.batch(torch.arange(len(test))).images
    predicted, _ = model.predict(images, test.times)
    if len(SCENES[name].colours) == 1:
        off = (centroids(predicted) - centroids(images)).norm(dim=-1)
        result["disc off by, frames 1-30"] = float(off[:, :TRAINED].mean())
        result["disc off by, frames 31-90"] = float(off[:, TRAINED:].mean())
    if arguments.pictures:
        draw(arguments.pictures, name, model, images, predicted, test.times, errors)
    return result


def draw(
    folder: Path,
    name: str,
    model: HamiltonianGenerativeNetwork,
    images: torch.Tensor,
    predicted: torch.Tensor,
    times: torch.Tensor,
    errors: FilmErrors,
) -> None:
    """Write the model and its pictures; the film shown is the one of median error, none was chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    files.save(model, folder / f"{name}.safetensors")
    end = float(times[TRAINED - 1])
    by_film = (images - predicted).square().mean((1, 2, 3, 4))
    shown = int(by_film.argsort()[len(by_film) // 2])
    both = {"true": images[shown], "predicted": predicted[shown]}
    plotting.save(pictures.film_strip(both, times, trained=end), folder / f"{name}_frames.png")
    course = pictures.error_course(times, errors.model, errors.last_frame, errors.mean_image, trained=end)
    plotting.save(course, folder / f"{name}_errors.png")
    plotting.save(pictures.energy_course(times, errors.energies, trained=end), folder / f"{name}_energy.png")
    pictures.write_film(folder / f"{name}.gif", both, times)
    new = {str(k + 1): film for k, film in enumerate(model.sample(4, times))}
    plotting.save(pictures.film_strip(new, times, trained=end), folder / f"{name}_samples.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", default=["spring", "pendulum"], choices=sorted(SCENES))
    parser.add_argument("--films", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--test", type=int, default=64)
    parser.add_argument("--dof", type=int, help="length of the latent q")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.films, arguments.epochs, arguments.test = 64, 3, 8
    torch.set_num_threads(1)
    results = []
    table = Table("", title="Hamiltonian Generative Network; errors are mean squares per pixel value, times 10^4")
    for name in arguments.systems:
        results.append(measure(name, arguments))
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        table.add_column(name, justify="right")
    for quantity in dict.fromkeys(key for result in results for key in result if key != "system"):
        row = [result.get(quantity) for result in results]
        table.add_row(quantity, *("" if value is None else f"{value:.4g}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    main()
