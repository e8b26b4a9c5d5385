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
from simkit.inference.neural import DensityAt, NeuralPosterior
from simkit.inference.population import PopulationPosterior
from simkit.inference.posterior import Posterior
from simkit.inference.priors import prior_from
from simkit.inference.region import Region
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

    Where truncated proposals confined it to a region, the networks of earlier rounds, of which that is made, are in the file as well.

    Raises:
        ModelFileError: if the posterior belongs to a simulator's own likelihood (hmc), which no file can hold, or if its region is not
            made of posteriors.
        OutputError: if the file cannot be written.
    """
    if isinstance(posterior, NeuralPosterior):
        parts, own = _ensemble(posterior, "")
        own |= {"estimator": posterior.members[0].name, "amortised": posterior.amortised}
        tensors: dict[str, Tensor] = {}
        if posterior.region is not None:
            rounds, own["rounds"] = _rounds(posterior.region), []
            for i, earlier in enumerate(rounds):
                more, entry = _ensemble(earlier, f"round{i}_")
                parts |= more
                own["rounds"].append(entry)
            thresholds = torch.tensor(posterior.region.thresholds, dtype=torch.float64)
            tensors = {"starts": posterior.region.starts, "thresholds": thresholds}
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


def _ensemble(posterior: NeuralPosterior, prefix: str) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The networks of a posterior, by names that begin with ``prefix``, and what is needed to rebuild them."""
    members = posterior.members
    parts: dict[str, nn.Module] = {f"{prefix}member{i}": member for i, member in enumerate(members)}
    if posterior.success is not None:
        parts[f"{prefix}success"] = posterior.success
    return parts, {
        "network": members[0].options.model_dump(),
        "success": posterior.success is not None,
        "seeds": [member.seed for member in members],
        "varying": [member.features.varying.tolist() for member in members],
    }


def _rounds(region: Region) -> list[NeuralPosterior]:
    """The posteriors of the rounds that made a region."""
    densities = [density for density in region.densities if isinstance(density, DensityAt)]
    if len(densities) != len(region.densities):
        raise ModelFileError(
            "a region that is not made of posteriors cannot be saved; save the samples, or infer again"
        )
    return [density.posterior for density in densities]


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

        def ensemble(entry: Mapping[str, Any], prefix: str) -> NeuralPosterior:
            members = [parts.parts[f"{prefix}member{i}"] for i in range(len(entry["seeds"]))]
            success = dict(parts.parts.items()).get(f"{prefix}success")
            return NeuralPosterior(
                header["method"],
                prior,
                observables,
                [m for m in members if isinstance(m, Estimator)],
                reference=reference,
                amortised=header["amortised"],
                success=success if isinstance(success, SuccessModel) else None,
            )

        posterior = ensemble(header, "")
        if rounds := [ensemble(entry, f"round{i}_") for i, entry in enumerate(header.get("rounds", []))]:
            densities = [DensityAt(earlier, torch.from_numpy(earlier.resolve(None))) for earlier in rounds]
            posterior.region = Region(densities, parts.tensor("thresholds").tolist(), parts.tensor("starts"))
        return posterior
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
        entries = {"": header} | {f"round{i}_": entry for i, entry in enumerate(header.get("rounds", []))}
        for prefix, entry in entries.items():
            options = NetworkOptions(**entry["network"])
            for i, (seed, varying) in enumerate(zip(entry["seeds"], entry["varying"], strict=True)):
                member = ESTIMATORS[header["estimator"]](prior.dim, observables, options, seed, prior.bounded)
                member.features.varying.copy_(torch.tensor(varying))
                member.build()
                parts[f"{prefix}member{i}"] = member
            if entry["success"]:
                parts[f"{prefix}success"] = SuccessModel(prior.dim)
    elif header["method"] == RejectionPosterior.method:
        parts["features"] = Features(observables)
    dtypes = {"seen": torch.float32}
    tensors = {n: torch.zeros(s, dtype=dtypes.get(n, torch.float64)) for n, s in header["shapes"].items()}
    return _Parts(parts, tensors)
