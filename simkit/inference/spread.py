"""Cholesky factors of the spread of samples, which exist even where all samples lie in a plane or on a point."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_factor(samples: Tensor, *, ridge: float = 0.0, floor: float) -> Tensor:
    """Return the Cholesky factor [..., D, D] of the covariance of samples [..., N, D]; see `raised_factor`."""
    away = samples - samples.mean(-2, keepdim=True)
    return raised_factor(away.mT @ away / max(1, away.shape[-2] - 1), ridge=ridge, floor=floor)


def raised_factor(covariance: Tensor, *, ridge: float = 0.0, floor: float) -> Tensor:
    """Return the Cholesky factor [..., D, D] of a covariance.

    Args:
        ridge, floor: what is added to each variance, in parts of itself and as it is.
    """
    raised = ridge * covariance.diagonal(dim1=-2, dim2=-1) + floor
    return torch.linalg.cholesky(covariance + torch.diag_embed(raised))
