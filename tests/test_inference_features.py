"""What estimators see of outputs: standardised, whole numbers spread, heavy tails on a logarithmic scale, long ones summarised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from simkit.errors import DataError
from simkit.inference.features import ASINH, LOG, PLAIN, SUMMARIES, Features, Summaries, _quartiles
from simkit.inference.simulator import Observable

RNG = np.random.default_rng(0)
COUNT = 4000
NORMAL = 3.0 + 0.1 * RNG.standard_normal(COUNT)
POSITIVE = np.exp(3 * RNG.standard_normal(COUNT))
CAUCHY = RNG.standard_cauchy(COUNT)
POISSON = RNG.poisson(3.0, COUNT).astype(float)
CONSTANT = np.full(COUNT, 7.0)
RARE = (RNG.random(COUNT) < 0.02) * RNG.poisson(100.0, COUNT).astype(float)
OUTPUTS = np.stack([NORMAL, POSITIVE, CAUCHY, POISSON, CONSTANT, RARE], 1)
KINDS = [PLAIN, LOG, ASINH, PLAIN, PLAIN, ASINH]


def adapted(x: np.ndarray, *observables: Observable) -> Features:
    features = Features(observables or (Observable("x", (x.shape[1],)),))
    features.adapt(x)
    return features


def test_scales() -> None:
    features = adapted(OUTPUTS)
    assert features.scale_kind.tolist() == KINDS
    assert features.whole.tolist() == [False, False, False, True, False, True]
    assert features.varying.tolist() == [True, True, True, True, False, True]
    seen = features(torch.from_numpy(OUTPUTS))
    assert seen.dtype == torch.float32
    varying = [0, 1, 2, 3, 5]
    assert seen[:, varying].mean(0).abs().max() < 1e-4
    assert (seen[:, varying].std(0) - 1).abs().max() < 1e-4
    assert bool((seen[:, 4] == 0).all())
    assert seen.abs().max() < 20, "no output may be so far out that it drowns the others"
    expected = (np.log(POSITIVE) - np.log(POSITIVE).mean()) / np.log(POSITIVE).std(ddof=1)
    np.testing.assert_allclose(seen[:, 1].numpy(), expected, atol=1e-5)


def test_maps_are_monotone() -> None:
    features = adapted(OUTPUTS)
    order = torch.from_numpy(np.sort(OUTPUTS, 0))
    seen = features(order).double()
    assert bool((seen.diff(dim=0) >= 0).all())
    far = features(torch.tensor([[-1e12] * 6, [1e12] * 6], dtype=torch.float64))
    assert bool(far.isfinite().all())


def test_whole_numbers_are_spread_evenly() -> None:
    features = adapted(OUTPUTS)
    x = torch.from_numpy(OUTPUTS)
    spread = features(x, torch.Generator().manual_seed(1)).double()
    assert torch.equal(spread[:, :3], features(x)[:, :3].double())
    # Back to the number: uniform between it and the next.
    back = spread[:, 3] * features.scale[3] + features.center[3] - x[:, 3]
    assert scipy.stats.kstest(back.numpy(), "uniform").pvalue > 1e-4
    middle = features(x)[:, 3].double() * features.scale[3] + features.center[3] - x[:, 3]
    torch.testing.assert_close(middle, torch.full_like(middle, 0.5), atol=1e-5, rtol=0)
    assert torch.equal(spread, features(x, torch.Generator().manual_seed(1)).double())


def test_members_of_a_set_share_their_scales() -> None:
    members = RNG.standard_normal((500, 30, 2)) * [1.0, 50.0] + [0.0, 4.0]
    x = np.concatenate([members.reshape(500, 60), RNG.standard_normal((500, 1))], 1)
    features = adapted(x, Observable("positions", (30, 2), kind="set"), Observable("energy"))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    seen = features(torch.from_numpy(x))[:, :60].reshape(500, 30, 2)
    mixed = np.concatenate([members[:, order.numpy()].reshape(500, 60), x[:, 60:]], 1)
    assert torch.equal(features(torch.from_numpy(mixed))[:, :60].reshape(500, 30, 2), seen[:, order])
    np.testing.assert_allclose(features.center[60:].numpy(), x[:, 60:].mean(0))
    np.testing.assert_allclose(features.scale[:2].numpy(), members.reshape(-1, 2).std(0, ddof=1))


def test_constant_outputs_are_refused() -> None:
    with pytest.raises(DataError, match="all simulations gave the same outputs"):
        adapted(np.ones((50, 3)))


def test_quartiles_of_many_outputs() -> None:
    values = torch.arange(9999, dtype=torch.float64).unsqueeze(1).expand(-1, 2000)
    found = _quartiles(values)  # 20 million numbers, more than `torch.quantile` takes
    np.testing.assert_allclose(found[:, 0].numpy(), 9998 * np.array([0.25, 0.5, 0.75]), atol=2)
    assert found.shape == (3, 2000)


LONG = (
    Observable("series", (40, 2), kind="series"),
    Observable("set", (25, 3), kind="set"),
    Observable("short", (5,)),
    Observable("vector", (50,)),
    Observable("brief series", (8, 6), kind="series"),
)


def test_summaries() -> None:
    torch.manual_seed(0)
    networks = Summaries(LONG).eval()
    size = sum(o.size for o in LONG)
    assert networks.size == 4 * SUMMARIES + 5
    features = torch.randn(7, 2, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = networks(features)
        assert found.shape == (7, 2, networks.size)
        # Short outputs are passed on as they are, behind the summaries of the series and the set.
        assert torch.equal(found[..., 2 * SUMMARIES : 2 * SUMMARIES + 5], features[..., 155:160])
        torch.testing.assert_close(networks(features[3]), found[3])

        def reordered(first: int, shape: tuple[int, int]) -> torch.Tensor:
            changed = features.clone()
            part = slice(first, first + math.prod(shape))
            changed[..., part] = features[..., part].reshape(7, 2, *shape).flip(2).reshape(7, 2, -1)
            return networks(changed)

        torch.testing.assert_close(reordered(80, (25, 3)), found, atol=1e-6, rtol=0)
        assert (reordered(0, (40, 2)) - found).abs().max() > 1e-3, "the order of a series matters"


def test_every_value_of_a_series_is_seen() -> None:
    torch.manual_seed(0)
    networks = Summaries(LONG[:1]).eval()
    features = torch.randn(1, 80, generator=torch.Generator().manual_seed(1), requires_grad=True)
    networks(features).square().sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert int((features.grad.abs() > 0).sum()) > 70  # pooling keeps the largest of neighbours
