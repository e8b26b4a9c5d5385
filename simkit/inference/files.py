"""Posteriors as files: one safetensors file whose header holds what is needed to rebuild the networks. No pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from simkit.errors import ModelFileError
from simkit.files import read_model_header, rebuild_model, write_model
from simkit.inference.approximate import RejectionPosterior
from simkit.inference.estimator import Estimator, NetworkOptions
from simkit.inference.estimators import ESTIMATORS
from simkit.inference.features import Features
from simkit.inference.neural import NeuralPosterior
from simkit.inference.population import PopulationPosterior
from simkit.inference.posterior import Posterior
from simkit.inference.priors import prior_from
from simkit.inference.simulator import Observable
from simkit.inference.success import SuccessModel

FORMAT = "simkit-posterior"
FORMAT_VERSION = 1


class _Parts(nn.Module):
    """All tensors of a posterior, as one module."""

    def __init__(self, parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        for name, value in tensors.items():
            self.register_buffer(f"tensor_{name}", value)

    def tensor(self, name: str) -> Tensor:
        """Return one of the tensors."""
        value: Tensor = getattr(self, f"tensor_{name}")
        return value


def save(posterior: Posterior, path: str | os.PathLike[str]) -> None:
    """Write a posterior as one safetensors file, atomically; read it with `load`.

    The region of truncated proposals is not kept, since it is made of the networks of all rounds: a posterior that was loaded is not
    confined to it.

    Raises:
        ModelFileError: if the posterior belongs to a simulator's own likelihood (hmc), which no file can hold.
        OutputError: if the file cannot be written.
    """
    if isinstance(posterior, NeuralPosterior):
        parts: dict[str, nn.Module] = {f"member{i}": m for i, m in enumerate(posterior.members)}
        if posterior.success is not None:
            parts["success"] = posterior.success
        tensors: dict[str, Tensor] = {}
        first = posterior.members[0]
        own = {"estimator": first.name, "network": first.options.model_dump(), "amortised": posterior.amortised}
        own["success"] = posterior.success is not None
        own |= {
            "seeds": [m.seed for m in posterior.members],
            "varying": [m.features.varying.tolist() for m in posterior.members],
        }
    elif isinstance(posterior, RejectionPosterior):
        parts, tensors = {"features": posterior.features}, {"z": posterior.z, "seen": posterior.seen}
        own = {"kept": posterior.kept, "adjust": posterior.adjust}
    elif isinstance(posterior, PopulationPosterior):
        parts, tensors = {}, {"z": posterior.z, "weights": posterior.weights}
        own = {"distance": posterior.distance}
    else:
        raise ModelFileError(
            f"a posterior of {posterior.method} is computed from its simulator and cannot be saved; save its samples, or infer again"
        )
    header = {"format": FORMAT, "version": FORMAT_VERSION, "method": posterior.method, **own}
    header |= {"prior": posterior.prior.describe(), "observables": [vars(o) for o in posterior.observables]}
    header["reference"] = None if posterior.reference is None else posterior.reference.tolist()
    header["shapes"] = {name: list(value.shape) for name, value in tensors.items()}
    write_model(path, _Parts(parts, tensors).state_dict(), header)


def load(path: str | os.PathLike[str]) -> Posterior:
    """Load a posterior that `save` wrote. Nothing in the file is executed.

    Raises:
        ModelFileError: if the file is not a valid posterior.
        MissingDependencyError: if it needs sbi, and that is not installed.
    """
    header = read_model_header(path, FORMAT, FORMAT_VERSION, "posterior")
    parts = rebuild_model(path, header, _build, "cpu")
    try:
        return _assemble(header, parts)
    except KeyError as error:
        raise ModelFileError(f"{path} does not hold a consistent posterior: its header lacks {error}") from error


def _assemble(header: Mapping[str, Any], parts: _Parts) -> Posterior:
    observables = _observables(header)
    prior = prior_from(header["prior"])
    reference = None if header["reference"] is None else torch.tensor(header["reference"], dtype=torch.float64).numpy()
    if "estimator" in header:
        members = [parts.parts[f"member{i}"] for i in range(len(header["seeds"]))]
        success = dict(parts.parts.items()).get("success")
        return NeuralPosterior(
            header["method"],
            prior,
            observables,
            [m for m in members if isinstance(m, Estimator)],
            reference=reference,
            amortised=header["amortised"],
            success=success if isinstance(success, SuccessModel) else None,
        )
    if header["method"] == PopulationPosterior.method:
        return PopulationPosterior(
            prior, observables, reference, parts.tensor("z"), parts.tensor("weights"), header["distance"]
        )
    features = parts.parts["features"]
    if not isinstance(features, Features):
        raise KeyError("features")
    found = RejectionPosterior(
        prior, observables, features, parts.tensor("z"), parts.tensor("seen"), header["kept"], adjust=header["adjust"]
    )
    found.reference = reference
    return found


def _observables(header: Mapping[str, Any]) -> tuple[Observable, ...]:
    entries = [{**o, "shape": tuple(o["shape"]), "axis": tuple(o["axis"])} for o in header["observables"]]
    return tuple(Observable(**entry) for entry in entries)


def _build(header: Mapping[str, Any]) -> _Parts:
    observables, prior = _observables(header), prior_from(header["prior"])
    parts: dict[str, nn.Module] = {}
    if "estimator" in header:
        options = NetworkOptions(**header["network"])
        for i, (seed, varying) in enumerate(zip(header["seeds"], header["varying"], strict=True)):
            member = ESTIMATORS[header["estimator"]](prior.dim, observables, options, seed, prior.bounded)
            member.features.varying.copy_(torch.tensor(varying))
            member.build()
            parts[f"member{i}"] = member
        if header["success"]:
            parts["success"] = SuccessModel(prior.dim)
    elif header["method"] == RejectionPosterior.method:
        parts["features"] = Features(observables)
    dtypes = {"seen": torch.float32}
    tensors = {n: torch.zeros(s, dtype=dtypes.get(n, torch.float64)) for n, s in header["shapes"].items()}
    return _Parts(parts, tensors)
