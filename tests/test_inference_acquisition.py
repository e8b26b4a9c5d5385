"""Which parameters are simulated next, what they cost, and when rounds end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from exact_estimators import ONE, GaussianDirect, GaussianRatio, MixtureLikelihood

from simkit.errors import ConfigError, DataError
from simkit.inference.acquisition import CostModel, Proposer, StoppingOptions, StoppingRule
from simkit.inference.neural import NeuralPosterior
from simkit.inference.priors import IndependentPrior, Normal
from simkit.inference.region import Region
from simkit.inference.simulations import Simulations

OBSERVED = torch.zeros(1, dtype=torch.float64)


def prior(dim: int) -> IndependentPrior:
    """Standard normal parameters, so that theta is z."""
    return IndependentPrior({f"p{i}": Normal(0, 1) for i in range(dim)})


def posterior(*members: GaussianDirect | GaussianRatio | MixtureLikelihood) -> NeuralPosterior:
    return NeuralPosterior("snle", prior(members[0].dim), ONE, members, amortised=False, reference=OBSERVED.numpy())


def simulations(dim: int, log_seconds: float = 0.0, count: int = 2000) -> Simulations:
    """Simulations from the prior whose time is exp(``log_seconds`` z_0)."""
    z = np.random.default_rng(1).standard_normal((count, dim))
    return Simulations(z, np.zeros((count, 1)), np.exp(log_seconds * z[:, 0]))


def test_ensembles_of_likelihoods_and_ratios() -> None:
    z = np.linspace(-2, 2, 9)[:, None]
    prior_part = -0.5 * z[:, 0] ** 2
    squares = [-0.5 * (z[:, 0] - center) ** 2 for center in (-1.0, 1.0)]
    likelihoods = posterior(*(MixtureLikelihood([[c]], [1.0], 1.0) for c in (-1.0, 1.0))).log_prob(z)
    expected = np.logaddexp(*squares) + prior_part
    np.testing.assert_allclose(likelihoods - likelihoods[0], expected - expected[0], atol=1e-12)
    # Ratios have constants of their own, which must not decide between the networks.
    ratios = posterior(GaussianRatio([-1.0], 0.0), GaussianRatio([1.0], 30.0)).log_prob(z)
    expected = np.mean(squares, axis=0) + prior_part
    np.testing.assert_allclose(ratios - ratios[0], expected - expected[0], atol=1e-12)


def test_cost_model_recovers_a_known_cost() -> None:
    rng = np.random.default_rng(5)
    z = torch.from_numpy(rng.standard_normal((4000, 2)))

    def exact(z: torch.Tensor) -> torch.Tensor:
        return torch.exp(-3 + 0.8 * z[:, 0] - 0.5 * z[:, 1] + 0.2 * z[:, 1].square())

    model = CostModel(z, exact(z).numpy() * np.exp(0.3 * rng.standard_normal(4000)))
    at = torch.from_numpy(rng.standard_normal((200, 2)))
    # Five coefficients of error 0.3/sqrt(4000) each, times at most about 9 for the square of a far point; and the ridge's 0.1%.
    assert (model.seconds(at) / exact(at)).log().abs().max() < 5 * 0.3 / math.sqrt(4000) * 9


def test_cost_model_does_not_extrapolate() -> None:
    z = torch.linspace(-1, 1, 101, dtype=torch.float64).unsqueeze(1)
    model = CostModel(z, np.exp(2 * z[:, 0].numpy()))
    found = model.seconds(torch.tensor([[-1e3], [0.0], [1e3]], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), [math.exp(-2), 1.0, math.exp(2)], rtol=0.01)


def test_posterior_proposals_follow_the_posterior() -> None:
    found = Proposer("posterior", 1e-3, OBSERVED).propose(
        posterior(MixtureLikelihood([[1.0, -1.0]], [1.0], 0.5)), simulations(2), 1000, 3
    )
    assert found.shape == (1000, 2)
    exact = torch.tensor([0.8, -0.8], dtype=torch.float64)  # 1 / (1 + 0.5^2) of the center
    sd = math.sqrt(0.2)
    assert ((found.mean(0) - exact).abs() < 5 * sd / math.sqrt(500)).all()
    assert ((found.std(0) / sd - 1).abs() < 5 / math.sqrt(1000)).all()


def test_truncated_proposals_are_the_prior_within_the_region() -> None:
    proposer = Proposer("truncated", 0.01, OBSERVED)
    current = posterior(GaussianDirect([0.4], 0.3))
    first = proposer.propose(current, simulations(1), 3000, 1)
    assert proposer.region is not None
    inside = 0.4 + 0.3 * torch.tensor([-2.4, 2.4], dtype=torch.float64)
    assert bool(proposer.region.contains(inside.unsqueeze(1)).all())
    # The quantile of 2000 draws at 1% is uncertain: between 2.3 and 2.9 deviations instead of 2.576.
    reach = float((first - 0.4).abs().max()) / 0.3
    assert 2.3 < reach < 2.9
    low, high = 0.4 - 0.3 * reach, 0.4 + 0.3 * reach
    share = torch.special.ndtr(first[:, 0]) - torch.special.ndtr(torch.tensor(low, dtype=torch.float64))
    share = share / (torch.special.ndtr(torch.tensor(high)) - torch.special.ndtr(torch.tensor(low)))
    assert abs(float(share.mean()) - 0.5) < 5 / math.sqrt(12 * 3000)
    assert abs(float(share.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / 3000)
    # The next round's region lies within this one's, wherever the next posterior thinks it lies.
    second = proposer.propose(posterior(GaussianDirect([0.9], 0.3)), simulations(1), 500, 2)
    assert float(second.max()) <= high + 1e-3
    assert float(second.min()) > 0.9 - 0.3 * 2.9


def test_posterior_of_a_region_is_confined_to_it() -> None:
    starts = torch.tensor([[0.5]], dtype=torch.float64)
    region = Region([lambda z: z[:, 0]], [0.2], starts)
    members = [GaussianDirect([0.0], 1.0)]
    inside = NeuralPosterior("snpe", prior(1), ONE, members, amortised=False, reference=OBSERVED.numpy(), region=region)
    z = inside.sample(3000, seed=1)[:, 0]
    assert scipy.stats.kstest(z, scipy.stats.truncnorm(0.2, math.inf).cdf).pvalue > 1e-4
    many = inside.sample_many(np.zeros((3, 1)), 200, seed=1)
    assert many.shape == (3, 200, 1)
    assert (many > 0.2).all()
    missed = NeuralPosterior(
        "snpe", prior(1), ONE, [GaussianDirect([-9.0], 1.0)], amortised=False, reference=OBSERVED.numpy(), region=region
    )
    assert np.isnan(missed.sample_many(np.zeros((2, 1)), 50, seed=1)).all()
    with pytest.raises(DataError, match="lies outside the region"):
        missed.sample(50, seed=1)


def test_disagreement_picks_where_members_differ() -> None:
    centers = ([[-1.0], [0.85]], [[-1.0], [1.15]])
    current = posterior(*(MixtureLikelihood(c, [1.0, 1.0], 0.15, constant=100.0 * i) for i, c in enumerate(centers)))
    found = Proposer("disagreement", 1e-3, OBSERVED).propose(current, simulations(1), 200, 4)[:, 0]
    plain = Proposer("posterior", 1e-3, OBSERVED).propose(current, simulations(1), 2000, 4)[:, 0]
    assert abs(float((plain > 0).double().mean()) - 0.5) < 0.1
    # At -1 the members agree but for the 1% by which their evidences differ.
    assert float((found > 0).double().mean()) > 0.9
    # Between their modes they cross: there they agree, to both sides they do not.
    assert float(((found - 1.0).abs() < 0.02).double().mean()) < 0.05
    assert len(torch.unique(found)) == 200


def test_disagreement_is_divided_by_the_cost() -> None:
    centers = ([[-1.15], [0.85]], [[-0.85], [1.15]])
    current = posterior(*(MixtureLikelihood(c, [1.0, 1.0], 0.15) for c in centers))
    proposer = Proposer("disagreement", 1e-3, OBSERVED)
    even = proposer.propose(current, simulations(1), 400, 4)[:, 0]
    dear = proposer.propose(current, simulations(1, log_seconds=1.0), 400, 4)[:, 0]
    assert abs(float((even > 0).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(400)
    # At 1 simulations take e^2 times as long as at -1.
    expected = 1 / (1 + math.exp(2))
    assert abs(float((dear > 0).double().mean()) - expected) < 5 * math.sqrt(expected * (1 - expected) / 400)


def test_one_network_cannot_disagree() -> None:
    with pytest.raises(ConfigError, match="need an ensemble"):
        Proposer("disagreement", 1e-3, OBSERVED).propose(posterior(GaussianDirect([0.0], 1.0)), simulations(1), 5, 0)


def test_stopping_by_width() -> None:
    rule = StoppingRule(StoppingOptions(width=0.3), OBSERVED)
    assert rule.reason(posterior(GaussianDirect([0.0, 1.0], 0.32)), 1.0) == ""
    assert "less than 0.3 of their prior" in rule.reason(posterior(GaussianDirect([0.0, 1.0], 0.28)), 1.0)


def test_stopping_by_change() -> None:
    rule = StoppingRule(StoppingOptions(change=0.2), OBSERVED)
    steps = [([0.0, 0.0], 0.5), ([0.2, 0.0], 0.5), ([0.2, 0.0], 0.3), ([0.22, 0.01], 0.29)]
    found = [rule.reason(posterior(GaussianDirect(mean, sd)), 1.0) for mean, sd in steps]
    assert found[:3] == ["", "", ""]
    assert "no mean and no log deviation by 0.2" in found[3]


def test_stopping_by_time_and_never() -> None:
    current = posterior(GaussianDirect([0.0], 0.01))
    rule = StoppingRule(StoppingOptions(seconds=10), OBSERVED)
    assert rule.reason(current, 9.9) == ""
    assert rule.reason(current, 10.1) == "simulating took 10 s of the 10 s allowed"
    assert StoppingRule(StoppingOptions(), OBSERVED).reason(current, 1e9) == ""
