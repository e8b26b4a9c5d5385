"""Estimators of the likelihood up to a function of the output: a normalizing flow (nle) and a classifier (nre)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from simkit.inference.estimator import ROWS, Estimator, build_flow
from simkit.inference.features import Summaries

SPLINE_OUTPUTS = 4


class LikelihoodEstimator(Estimator):
    """An estimator of the likelihood up to a function of x."""

    @abstractmethod
    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """Return log p(x given z) + c(x), [M, N], for z [M, N, D] and outputs [M, K]; differentiable in z."""


class LikelihoodFlow(LikelihoodEstimator):
    """NLE: a normalizing flow over the outputs that vary, given parameters."""

    name = "nle"
    needs_densities = True
    flow: Any

    def make_network(self) -> None:
        # Splines cost time for every output, and the likelihood of many outputs is often nearly normal.
        size = int(self.features.varying.sum())
        self.flow = build_flow("nsf" if size <= SPLINE_OUTPUTS else "maf", size, self.dim, self.options, nn.Identity())

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        return -self.flow.log_prob(features[:, self.features.varying].unsqueeze(0), u).squeeze(0)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        features = self.features(x)
        u = self.whiten(z, self.expected(features)).reshape(-1, self.dim)
        seen = features[:, self.features.varying].repeat_interleave(z.shape[1], 0)
        parts = [
            self.flow.log_prob(b.unsqueeze(0), a).squeeze(0)
            for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)
        ]
        return torch.cat(parts).double().reshape(z.shape[:2])


class RatioClassifier(LikelihoodEstimator):
    """NRE: a residual network that tells the parameters of an output from those of others (contrastive, several atoms)."""

    name = "nre"
    classifier: Any

    def make_network(self) -> None:
        from sbi.neural_nets.net_builders.classifier import build_resnet_classifier

        self.summaries = Summaries(self.observables)
        self.classifier = build_resnet_classifier(
            torch.zeros(2, self.dim),
            torch.zeros(2, self.summaries.size),
            z_score_x="none",
            z_score_y="none",
            hidden_features=self.options.hidden,
            num_blocks=self.options.transforms,
        )

    def _logits(self, u: Tensor, summaries: Tensor) -> Tensor:
        logits: Tensor = self.classifier.unnormalized_log_ratio(u, summaries)
        return logits

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        size = len(u)
        atoms = min(self.options.atoms, size)
        generator = self.generator() if self.training else torch.Generator().manual_seed(self.seed)
        # Atoms are other rows of the batch, without repetition: cyclic shifts by distinct random distances.
        shifts = 1 + torch.randperm(size - 1, generator=generator)[: atoms - 1]
        others = (torch.arange(size).unsqueeze(1) + shifts) % size
        candidates = torch.cat([u.unsqueeze(1), u[others]], 1)
        summaries = self.summaries(features).unsqueeze(1).expand(-1, atoms, -1)
        logits = self._logits(candidates.flatten(0, 1), summaries.flatten(0, 1)).reshape(size, atoms)
        return logits.logsumexp(1) - logits[:, 0]

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        features = self.features(x)
        u = self.whiten(z, self.expected(features)).reshape(-1, self.dim)
        seen = self.summaries(features).repeat_interleave(z.shape[1], 0)
        parts = [self._logits(a, b) for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)]
        return torch.cat(parts).double().reshape(z.shape[:2])
