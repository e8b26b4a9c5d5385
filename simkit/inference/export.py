"""Posteriors as netCDF files that ArviZ opens (`arviz.from_netcdf`): its groups, with chain and draw as the first dimensions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from simkit import __version__
from simkit.errors import DataError, MissingDependencyError
from simkit.files import atomic_path
from simkit.inference.priors import Array, Prior
from simkit.inference.simulator import Observable

SAMPLE = ("chain", "draw")


def write_netcdf(
    path: str | os.PathLike[str],
    samples: ArrayLike,
    prior: Prior,
    observables: Sequence[Observable],
    *,
    observation: ArrayLike | None = None,
    predictive: ArrayLike | None = None,
    prior_samples: ArrayLike | None = None,
    prior_predictive: ArrayLike | None = None,
    statistics: Mapping[str, ArrayLike] | None = None,
    attributes: Mapping[str, str | float] | None = None,
) -> None:
    """Write a posterior in ArviZ's InferenceData schema, atomically. Units are attributes of the variables.

    Args:
        path: of the file, usually with the suffix .nc.
        samples: of the posterior, [draws, D] or [chains, draws, D].
        prior: names and units of the parameters.
        observables: names, units and axes of what is observed.
        observation: [K], group observed_data.
        predictive: outputs simulated with parameters from the posterior, [draws, K] or [chains, draws, K]; the draws need not be those of
            the samples.
        prior_samples: [draws, D] or [chains, draws, D], group prior.
        prior_predictive: outputs simulated with parameters from the prior, likewise.
        statistics: name -> [draws] or [chains, draws], group sample_stats, such as the log density as "lp".
        attributes: of the group posterior, such as the method.

    Raises:
        DataError: if a shape does not fit.
        MissingDependencyError: without h5netcdf.
        OutputError: if the file cannot be written.
    """
    try:
        import h5netcdf
    except ImportError as error:
        raise MissingDependencyError("netCDF files need h5netcdf: pip install 'simkit[inference]'") from error
    parts: dict[str, Array] = {}
    for name, values, size in (
        ("posterior", samples, prior.dim),
        ("prior", prior_samples, prior.dim),
        ("posterior_predictive", predictive, sum(o.size for o in observables)),
        ("prior_predictive", prior_predictive, sum(o.size for o in observables)),
        ("observed_data", observation, sum(o.size for o in observables)),
    ):
        if values is not None:
            parts[name] = _checked(name, values, size)
    made = datetime.now(UTC).isoformat()
    with atomic_path(path) as temporary, h5netcdf.File(temporary, "w") as file:
        for name, values in parts.items():
            group = file.create_group(name)
            group.attrs.update(
                {"created_at": made, "inference_library": "simkit", "inference_library_version": __version__}
            )
            if name in ("posterior", "prior"):
                _index(group, values)
                for k, (parameter, unit) in enumerate(zip(prior.names, prior.units, strict=True)):
                    _variable(group, parameter, SAMPLE, values[:, :, k], unit)
            else:
                _outputs(group, values, observables)
        file["posterior"].attrs.update(dict(attributes or {}))
        if statistics:
            _statistics(file.create_group("sample_stats"), statistics)


def _checked(name: str, values: ArrayLike, size: int) -> Array:
    """Return values as [chains, draws, size], or [size] where they are the observation's."""
    array = np.asarray(values, dtype=np.float64)
    if name == "observed_data" and array.shape == (size,):
        return array
    array = array[None] if array.ndim == 2 else array
    if name == "observed_data" or array.ndim != 3 or array.shape[2] != size or array.size == 0:
        wanted = f"[{size}]" if name == "observed_data" else f"[draws, {size}] or [chains, draws, {size}]"
        raise DataError(f"{name} should be an array {wanted}; found shape {np.shape(values)}")
    return array


def _statistics(group: Any, statistics: Mapping[str, ArrayLike]) -> None:
    arrays = {name: np.atleast_2d(np.asarray(values, dtype=np.float64)) for name, values in statistics.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise DataError(f"statistics should all be [draws] or all [chains, draws]; found {sorted(map(str, shapes))}")
    for k, (name, array) in enumerate(arrays.items()):
        if k == 0:
            _index(group, array)
        _variable(group, name, SAMPLE, array)


def _index(group: Any, values: Array) -> None:
    """Make the dimensions chain and draw, numbered from 0, for values [chains, draws, ...]."""
    for name, size in zip(SAMPLE, values.shape, strict=False):
        group.dimensions[name] = size
        group.create_variable(name, (name,), data=np.arange(size))


def _outputs(group: Any, values: Array, observables: Sequence[Observable]) -> None:
    leading = SAMPLE if values.ndim == 3 else ()
    if leading:
        _index(group, values)
    ends = np.cumsum([o.size for o in observables])[:-1]
    for o, part in zip(observables, np.split(values, ends, axis=-1), strict=True):
        dimensions = tuple(f"{_plain(o.name)}_dim_{k}" for k in range(len(o.shape)))
        for k, (dimension, size) in enumerate(zip(dimensions, o.shape, strict=True)):
            group.dimensions[dimension] = size
            axis = np.array(o.axis) if k == 0 and o.axis else np.arange(size)
            coordinate = group.create_variable(dimension, (dimension,), data=axis)
            if k == 0 and o.axis_label:
                coordinate.attrs["long_name"] = o.axis_label
        _variable(group, o.name, (*leading, *dimensions), part.reshape((*part.shape[:-1], *o.shape)), o.unit)


def _variable(group: Any, name: str, dimensions: Sequence[str], values: Array, unit: str = "") -> None:
    variable = group.create_variable(_plain(name), tuple(dimensions), data=values)
    variable.attrs["units"] = unit or "1"
    if _plain(name) != name:
        variable.attrs["long_name"] = name


def _plain(name: str) -> str:
    """A name without the slash, which separates groups in netCDF."""
    return name.replace("/", "_per_")
