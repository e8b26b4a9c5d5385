"""How well predicted films agree with true ones, and the simplest predictions to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simkit.errors import DataError
from simkit.surrogates.images.model import HamiltonianGenerativeNetwork
from simkit.surrogates.images.sequences import ImageSequences


@dataclass(frozen=True)
class FilmErrors:
    """Mean squared errors per pixel value (from 0 to 1) over all films, by frame, [T] float64 each.

    Attributes:
        model: of the model's prediction.
        last_frame: of the last frame that the encoder sees, as it stands still.
        mean_image: of the mean of the training frames.
        energies: the learned Hamiltonian along each rollout, [S, T].
    """

    model: Tensor
    last_frame: Tensor
    mean_image: Tensor
    energies: Tensor

    def energy_variation(self) -> float:
        """Return how much the learned energy varies along a rollout, as a fraction of how much it varies from film to film.

        Both are standard deviations; the first is the root of the mean variance.
        """
        along = self.energies.var(dim=1, correction=0).mean().sqrt()
        return float(along / self.energies[:, 0].std(correction=0))


@torch.no_grad()
def film_errors(
    model: HamiltonianGenerativeNetwork,
    films: ImageSequences,
    mean_image: Tensor,
    *,
    timestep: float | None = None,
    batch_size: int = 64,
) -> FilmErrors:
    """Return the errors of rollouts from the first frames of each film to its end.

    Args:
        mean_image: [C, H, W], of `mean_image`, on the films' device.
        timestep: as for `HamiltonianGenerativeNetwork.rollout`.

    Raises:
        DataError: if there are no films.
    """
    if not len(films):
        raise DataError("there are no films to evaluate")
    seen = model.options.context
    totals = torch.zeros(3, len(films.times), dtype=torch.float64, device=films.pixels.device)
    energies = []
    for indices in films.batches(batch_size):
        images = films.batch(indices).images
        predicted, states = model.predict(images, films.times, timestep=timestep)
        for total, guess in zip(totals, (predicted, images[:, seen - 1 : seen], mean_image), strict=True):
            total += (images - guess).square().double().mean((2, 3, 4)).sum(0)
        energies.append(model.energy(states).double())
    means = (totals / len(films)).cpu()
    return FilmErrors(means[0], means[1], means[2], torch.cat(energies).cpu())


def mean_image(films: ImageSequences) -> Tensor:
    """Return the mean of all frames, [C, H, W], from 0 to 1."""
    return (films.pixels.sum((0, 1), dtype=torch.float64) / (255 * films.pixels[:, :, 0, 0, 0].numel())).float()


def centroids(images: Tensor) -> Tensor:
    """Return the centers of brightness of images [..., C, H, W]: (column, row) [..., 2] in pixels, from the center of the image.

    An image that is all black has its center.
    """
    light = images.sum(-3)
    weights = light / light.sum((-2, -1), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
    rows, columns = (torch.arange(n, dtype=images.dtype, device=images.device) - (n - 1) / 2 for n in images.shape[-2:])
    return torch.stack([(weights.sum(-2) * columns).sum(-1), (weights.sum(-1) * rows).sum(-1)], dim=-1)
