"""`LocalKernels`: a density made of normal kernels, each shaped by the samples around it.

Samples of a posterior that is curved or falls into parts have a covariance that says little of any place: kernels of that shape would
fill what lies between. S. Filippi, C. P. Barnes, J. Cornebise & M. P. H. Stumpf, Stat. Appl. Genet. Mol. Biol. 12, 87 (2013), give each
kernel the covariance of its nearest neighbours. To smooth samples, kernels of a share h^2 of that covariance are drawn towards the local
mean by sqrt(1 - h^2), which leaves the covariance as it was: M. West, J. R. Statist. Soc. B 55, 409 (1993), there with one for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simkit.inference.priors import LOG_2PI
from simkit.inference.spread import raised_factor

PAIRS = 2_000_000
"""Pairs of points that are held at once, to bound memory."""
RIDGE, TINY = 1e-4, 1e-12
"""What is added to a variance, in parts of itself and as it is: neighbours may lie on a line."""
SHARES, BANDWIDTHS = (0.05, 0.2, 1.0), (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Shares of the samples that are neighbours, and bandwidths h, among which is chosen."""
FOLDS, MOST = 5, 1000
"""Parts that are predicted from the others, and samples that are taken for that choice."""


@dataclass(frozen=True)
class LocalKernels:
    """The mixture sum_i w_i N(c_i, L_i L_i^T).

    Attributes:
        centers: c_i, [N, D] float64.
        factors: L_i, lower triangular, [N, D, D].
        weights: w_i, [N], of sum one.
    """

    centers: Tensor
    factors: Tensor
    weights: Tensor

    def log_density(self, z: Tensor) -> Tensor:
        """Return the log density, [M], of points [M, D]."""
        count, dim = self.centers.shape
        inverse = torch.linalg.inv(self.factors)
        scale = self.weights.log() - self.factors.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * dim * LOG_2PI
        parts = []
        for rows in z.split(max(1, PAIRS // (count * dim))):
            away = torch.einsum("ijk,mik->mij", inverse, rows.unsqueeze(1) - self.centers)
            parts.append(torch.logsumexp(scale - 0.5 * away.square().sum(-1), 1))
        return torch.cat(parts)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return points, [count, D]."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.centers.shape[1], generator=generator, dtype=self.centers.dtype)
        return self.centers[rows] + torch.einsum("mij,mj->mi", self.factors[rows], noise)


def local_moments(z: Tensor, weights: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the weighted mean [N, D] of each sample's neighbours, itself among them, and their covariance's Cholesky factor [N, D, D].

    Args:
        z: [N, D]; ``weights``: [N].
        share: of the samples that are neighbours: the nearest, in units of the deviations of all. No fewer than 2 D + 2.
    """
    count, dim = z.shape
    neighbours = min(count, max(2 * dim + 2, math.ceil(share * count)))
    scaled = z / z.std(0).clamp(min=TINY)
    means, covariances = [], []
    for rows in scaled.split(max(1, PAIRS // (neighbours * dim))):
        near = torch.cdist(rows, scaled).topk(neighbours, largest=False).indices
        part = weights[near] / weights[near].sum(1, keepdim=True)
        mean = torch.einsum("mk,mkd->md", part, z[near])
        away = z[near] - mean.unsqueeze(1)
        means.append(mean)
        covariances.append(torch.einsum("mk,mkd,mke->mde", part, away, away))
    return torch.cat(means), raised_factor(torch.cat(covariances), ridge=RIDGE, floor=TINY)


def fit_kernels(z: Tensor, weights: Tensor, *, shrink: bool) -> LocalKernels:
    """Return kernels for samples [N, D] of weights [N]; how many neighbours and what bandwidth, cross-validation tells.

    The mean log density of a fifth of the samples, given the others, is to be largest (J. D. F. Habbema et al., COMPSTAT 1974): of
    proposals this is the nearest to the samples by Kullback-Leibler divergence, the criterion of Filippi et al.

    Args:
        shrink: whether centers are drawn to the local means, to smooth the samples; proposals should rather be too wide.
    """
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:MOST]
    fold = torch.arange(len(order)) % FOLDS
    scores = torch.zeros(len(SHARES), len(BANDWIDTHS), dtype=torch.float64)
    for k in range(FOLDS):
        known, asked = order[fold != k], order[fold == k]
        own = weights[known] / weights[known].sum()
        for i, share in enumerate(SHARES):
            moments = local_moments(z[known], own, share)
            for j, bandwidth in enumerate(BANDWIDTHS):
                kernels = _kernels(z[known], own, moments, bandwidth, shrink)
                scores[i, j] += weights[asked] @ kernels.log_density(z[asked])
    best = int(scores.argmax())
    share, bandwidth = SHARES[best // len(BANDWIDTHS)], BANDWIDTHS[best % len(BANDWIDTHS)]
    return _kernels(z, weights, local_moments(z, weights, share), bandwidth, shrink)


def _kernels(
    z: Tensor, weights: Tensor, moments: tuple[Tensor, Tensor], bandwidth: float, shrink: bool
) -> LocalKernels:
    mean, factors = moments
    centers = mean + math.sqrt(1 - bandwidth**2) * (z - mean) if shrink else z
    return LocalKernels(centers, bandwidth * factors, weights)
