"""Bernoulli GLM: spikes of a neuron that filters a known stimulus."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simkit.inference.priors import Array, NormalPrior
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.compiled import run
from simkit.inference.simulators.draws import uniforms

_STEPS, _FILTER, _SEED = 100, 9, 42
_BLOCK = 4


def _spikes(theta: Any, k0: Any, k1: Any, constants: Any, out: Any) -> None:  # pragma: no cover - compiled
    """The constants are the design matrix, row by row."""
    raw = out.size == _STEPS
    out[:] = 0.0
    for block in range(_STEPS // _BLOCK):
        u = uniforms(block, k0, k1)
        for i in range(_BLOCK):
            step = _BLOCK * block + i
            row = constants[step * theta.size : (step + 1) * theta.size]
            drive = 0.0
            for j in range(theta.size):
                drive += row[j] * theta[j]
            if u[i] < 1.0 / (1.0 + math.exp(-drive)):
                if raw:
                    out[step] = 1.0
                else:
                    for j in range(theta.size):
                        out[j] += row[j]


class BernoulliGLM(Simulator):
    """Bernoulli GLM: spikes in 100 bins of a neuron with an offset and a filter of nine bins under white noise (sbibm).

    A bin has a spike with probability 1/(1 + exp(-psi_t)), psi_t = offset + sum over k of filter_k stimulus_(t - k + 1). The prior is
    normal, of variance 2 for the offset, and favours smooth filters. Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.5 and T.6;
    the stimulus is drawn as in the benchmark's code.

    Args:
        summary: "sufficient" for the number of spikes and the stimulus before them, summed over spikes, which hold all that spikes say of
            the parameters; "raw" for the spikes.
    """

    name = "bernoulli_glm"

    def __init__(self, summary: Literal["sufficient", "raw"] = "sufficient") -> None:
        names = ["offset", *(f"filter_{k}" for k in range(1, _FILTER + 1))]
        self.prior = NormalPrior(np.zeros(_FILTER + 1), _prior_covariance(), names)
        self.raw = summary == "raw"
        if self.raw:
            axis = tuple(float(t) for t in range(_STEPS))
            self.observables = (Observable("spikes", (_STEPS,), kind="series", axis=axis, axis_label="bin"),)
        else:
            self.observables = (Observable("spike_count"), Observable("triggered_sum", (_FILTER,)))

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return run(_spikes, theta, seeds, self.size, design_matrix().ravel())

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        design = torch.from_numpy(design_matrix()).to(theta)
        sums = x.to(theta) @ design if self.raw else x.to(theta)
        return theta @ sums - torch.nn.functional.softplus(theta @ design.T).sum(-1)


@functools.cache
def design_matrix() -> Array:
    """Return the matrix [100, 10] that parameters are multiplied by: ones, and the stimulus up to eight bins before."""
    stimulus = np.random.RandomState(_SEED).randn(_STEPS).astype(np.float32)  # the benchmark kept single precision
    design = np.zeros((_STEPS, _FILTER + 1))
    design[:, 0] = 1.0
    for lag in range(_FILTER):
        design[lag:, 1 + lag] = stimulus[: _STEPS - lag]
    return design


def _prior_covariance() -> Array:
    """Return the covariance [10, 10]: 2, and (F^T F)^-1 with second differences and a weight that grows along the filter in F."""
    differences = np.eye(_FILTER) - np.eye(_FILTER, k=-1)
    weighted = differences @ differences + np.diag(np.sqrt(np.arange(_FILTER) / _FILTER))
    covariance = np.zeros((_FILTER + 1, _FILTER + 1))
    covariance[0, 0] = 2.0
    inverse = np.linalg.inv(weighted)
    covariance[1:, 1:] = inverse @ inverse.T
    return covariance
