"""Posteriors as files: the same draws and densities after loading, and nothing else is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_posterior import MAP, NOISE, LinearSimulator
from safetensors.torch import load_file, save_file

from simkit.errors import ModelFileError, OutputError
from simkit.files import read_model_header, write_model
from simkit.inference.approximate import RejectionPosterior
from simkit.inference.direct import DirectEstimator
from simkit.inference.estimator import NetworkOptions
from simkit.inference.estimators import ESTIMATORS
from simkit.inference.files import FORMAT, FORMAT_VERSION, load, save
from simkit.inference.infer import infer
from simkit.inference.neural import DensityAt, ExactPosterior, NeuralPosterior
from simkit.inference.population import PopulationPosterior
from simkit.inference.posterior import Posterior
from simkit.inference.priors import IndependentPrior, LogUniform, NormalPrior, Prior, Uniform
from simkit.inference.region import Region, highest_density
from simkit.inference.simulations import simulate
from simkit.inference.simulator import Observable
from simkit.inference.simulators.gaussians import GaussianLinear
from simkit.inference.success import learn_success

PRIORS: dict[str, Prior] = {
    "npe": IndependentPrior({"a": Uniform(1, 2), "b": LogUniform(0.1, 10)}, {"a": "K"}),
    "fmpe": NormalPrior([1.0, 2.0], [[1.0, 0.3], [0.3, 2.0]], ("a", "b"), ("K", "")),
    "nle": IndependentPrior({"a": Uniform(1, 2), "b": LogUniform(0.1, 10)}),
    "nre": IndependentPrior({"a": Uniform(1, 2), "b": LogUniform(0.1, 10)}),
}
OBSERVABLES = (
    Observable("counts", (2,)),
    Observable("signal", (48,), "mV", "series", tuple(np.linspace(0, 1, 48).tolist()), "time (ps)"),
    Observable("members", (25, 2), kind="set"),
)
SMALL = NetworkOptions(hidden=12, transforms=2)


@functools.cache
def neural(name: str) -> NeuralPosterior:
    """Two networks as they are before training, which files do not care about; regression and width are made up."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((200, 2)) @ [[0.3, 0.1], [0.0, 0.5]]
    observables = OBSERVABLES if name != "nle" else (*OBSERVABLES[:1], Observable("constant"), Observable("c"))
    size = sum(o.size for o in observables)
    x = z @ rng.standard_normal((2, size)) + 0.1 * rng.standard_normal((200, size))
    x[:, 0] = rng.poisson(3.0, 200)
    x[:, 1] = np.exp(4 * x[:, 1])
    if name == "nle":
        x[:, 2] = 5.0
    members = []
    for seed in (11, 12):
        member = ESTIMATORS[name](2, observables, SMALL, seed)
        member.adapt(z, x, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for weights in member.parameters():
                weights += 0.05 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed))
        if isinstance(member, DirectEstimator):
            member.slopes.copy_(0.01 * torch.from_numpy(rng.standard_normal(member.slopes.shape)))
            member.width.fill_(0.1 * seed)
        members.append(member.eval())
    success = learn_success(z, z[:, 0] > 0, 1) if name in ("nle", "nre") else None
    return NeuralPosterior(
        name, PRIORS[name], observables, members, reference=x[7], amortised=name != "nre", success=success
    )


@functools.cache
def approximate(method: str) -> Posterior:
    observed = np.array([0.5, -1.0]) @ MAP.T + NOISE
    return infer(LinearSimulator(), observed, method=method, budget=400).posterior


def same_header(a: Posterior, b: Posterior) -> None:
    assert type(a) is type(b)
    assert (a.method, a.amortised, a.normalised, a.observables) == (b.method, b.amortised, b.normalised, b.observables)
    assert a.prior.describe() == b.prior.describe()
    assert a.describe() == b.describe()
    assert a.reference is not None
    np.testing.assert_array_equal(a.reference, b.reference)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_neural_posteriors(name: str, tmp_path: Path) -> None:
    posterior, path = neural(name), tmp_path / "posterior.safetensors"
    save(posterior, path)
    before = torch.random.get_rng_state()
    found = load(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    same_header(posterior, found)
    assert isinstance(found, NeuralPosterior)
    assert (found.success is None) == (name in ("npe", "fmpe"))
    theta = posterior.prior.sample(20, 1)
    np.testing.assert_array_equal(found.log_prob(theta), posterior.log_prob(theta))
    assert np.isfinite(found.log_prob(theta)).all()
    if posterior.direct:  # others are drawn from their densities
        np.testing.assert_array_equal(found.sample(60, seed=4), posterior.sample(60, seed=4))
    for a, b, seed in zip(found.members, posterior.members, (11, 12), strict=True):
        if isinstance(a, DirectEstimator) and isinstance(b, DirectEstimator):
            assert float(a.width) == pytest.approx(0.1 * seed)
            assert torch.equal(a.slopes, b.slopes)
            assert bool((a.slopes != 0).all())


def truncated(*regions: Callable[[torch.Tensor], torch.Tensor]) -> NeuralPosterior:
    """A posterior confined to where these densities are above their medians over its own samples."""
    whole = neural("npe")
    z = whole.sample_z(torch.from_numpy(whole.resolve(None)).unsqueeze(0), 400, 1)[0]
    region = Region(regions, [highest_density(density, z, 0.5) for density in regions], z)
    own = (whole.prior, whole.observables, whole.members[:1])
    return NeuralPosterior("snpe", *own, reference=whole.reference, amortised=False, region=region)


def test_the_region_of_truncated_proposals(tmp_path: Path) -> None:
    x = torch.from_numpy(neural("npe").resolve(None))
    second = NeuralPosterior("snpe", PRIORS["npe"], OBSERVABLES, neural("npe").members[1:], reference=x.numpy())
    posterior, path = truncated(DensityAt(neural("npe"), x), DensityAt(second, x)), tmp_path / "posterior.safetensors"
    save(posterior, path)
    found = load(path)
    same_header(posterior, found)
    assert isinstance(found, NeuralPosterior)
    assert posterior.region is not None
    assert found.region is not None
    assert found.region.thresholds == posterior.region.thresholds
    z = second.sample_z(x.unsqueeze(0), 500, 3)[0]
    inside = posterior.region.contains(z)
    assert 50 < int(inside.sum()) < 450
    assert torch.equal(found.region.contains(z), inside)
    np.testing.assert_array_equal(found.sample(60, seed=4), posterior.sample(60, seed=4))
    np.testing.assert_array_equal(found.draw_parameters(60, 4), posterior.draw_parameters(60, 4))


def test_a_region_of_other_densities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a region that is not made of posteriors cannot be saved"):
        save(truncated(lambda z: z[:, 0]), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_draws_by_a_loaded_likelihood(tmp_path: Path) -> None:
    save(neural("nre"), tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(found.sample(60, seed=4), neural("nre").sample(60, seed=4))


@pytest.mark.parametrize("method", ["rejection_abc", "smc_abc"])
def test_approximate_posteriors(method: str, tmp_path: Path) -> None:
    posterior, path = approximate(method), tmp_path / "posterior.safetensors"
    save(posterior, path)
    found = load(path)
    same_header(posterior, found)
    np.testing.assert_allclose(found.sample(100, seed=4), posterior.sample(100, seed=4), rtol=1e-12)
    for kind, names in ((RejectionPosterior, ("z", "seen", "kept", "adjust")), (PopulationPosterior, ("distance",))):
        if isinstance(found, kind):
            for name in names:
                assert torch.equal(torch.as_tensor(getattr(found, name)), torch.as_tensor(getattr(posterior, name)))


def test_loaded_posterior_takes_other_observations(tmp_path: Path) -> None:
    save(approximate("rejection_abc"), tmp_path / "a.safetensors")
    other = simulate(LinearSimulator(), 1, seed=9).x[0]
    found = load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(
        found.sample(10, other, seed=1), approximate("rejection_abc").sample(10, other, seed=1)
    )


def test_exact_posterior_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a posterior of hmc is computed from its simulator and cannot be saved"):
        save(ExactPosterior(GaussianLinear(2)), tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save(approximate("smc_abc"), tmp_path / "none" / "a.safetensors")


def changed(path: Path, **entries: Any) -> None:
    """Write a posterior whose header has other entries, or lacks those that are None."""
    save(neural("npe"), path)
    header = read_model_header(path, FORMAT, FORMAT_VERSION, "posterior") | entries
    write_model(path, load_file(path), {name: value for name, value in header.items() if value is not None})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": FORMAT_VERSION + 1}, "install a newer simkit"),
        ({"format": "simkit-potential"}, "has format simkit-potential"),
        ({"prior": None}, "header lacks 'prior'"),
        ({"amortised": None}, "header lacks 'amortised'"),
        ({"estimator": "gpt"}, "header lacks 'gpt'"),
        ({"prior": {"a": {"normal": [0, 1]}}}, "does not hold a consistent model"),
        ({"prior": {"a": {"normal": [0, float("inf")]}}}, "improper"),
        ({"network": {"hidden": 13}}, "does not hold a consistent model"),
        ({"network": {"units": 12}}, "does not hold a consistent model"),
    ],
)
def test_inconsistent_headers_are_refused(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    changed(path, **entries)
    with pytest.raises(ModelFileError, match=message):
        load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ModelFileError, match="no model file"):
        load(path)
    save(neural("npe"), path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ModelFileError, match="may be truncated"):
        load(path)
    path.write_bytes(content[:40])
    with pytest.raises(ModelFileError, match="may be truncated"):
        load(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="does not read pickles"):
        load(path)
    save_file({"weights": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="not one of a simkit posterior"):
        load(path)
