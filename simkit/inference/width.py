"""The width of learned posteriors, from simulations that were not trained on.

Networks that saw few simulations are too sure of what they say of others. A flow turns noise into parameters: drawing that noise with
the spread that held-out parameters have in it corrects this on average, as the temperature of a classifier does (C. Guo, G. Pleiss, Y.
Sun, K. Q. Weinberger, ICML 2017).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from simkit.inference.direct import DirectEstimator
from simkit.inference.estimator import ROWS

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the held-out simulations that are to lie in the regions that should hold as many; beyond, outliers would decide."""
PRIOR_WEIGHT = 10
"""Held-out values that a width of one counts for."""
FACTORS = tuple(np.geomspace(0.5, 1.2, 60))
"""Common factors that are tried on the widths of an ensemble's members: the mixture is wider than they are."""


@torch.no_grad()
def choose_widths(members: Sequence[DirectEstimator], u: Sequence[Tensor], features: Sequence[Tensor]) -> None:
    """Set the widths of an ensemble: first that of each member, then by a factor those of all, where their mixture is likeliest.

    Args:
        members: trained, on the same simulations.
        u: for each member whitened parameters [N, D] of the same held-out simulations. ``features``: likewise, [N, K].
    """
    squares, logs = [], []
    for member, targets, seen in zip(members, u, features, strict=True):
        parts = [member.noise(a.unsqueeze(1), b) for a, b in zip(targets.split(ROWS), seen.split(ROWS), strict=True)]
        noise, stretch = (torch.cat(values).squeeze(1) for values in zip(*parts, strict=True))
        square = noise.square().sum(-1)
        found = np.quantile(square.numpy(), LEVELS) / chi2.ppf(LEVELS, member.dim)
        # Few simulations tell the width badly, and one that is too small does more harm than one that is too large.
        weight = square.numel() * member.dim / (square.numel() * member.dim + PRIOR_WEIGHT)
        member.width.fill_(float(np.exp(0.5 * weight * np.log(found).mean())))
        squares.append(square / member.width**2)
        logs.append(stretch - member.dim * member.width.log() - member.log_volume)
    if len(members) == 1:
        return
    distance, log_scale = torch.stack(squares), torch.stack(logs)
    scores = [
        (log_scale - 0.5 * distance / factor**2 - members[0].dim * np.log(factor)).logsumexp(0).mean()
        for factor in FACTORS
    ]
    factor = FACTORS[int(torch.stack(scores).argmax())]
    for member in members:
        member.width.mul_(factor)
