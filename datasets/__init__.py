"""Data sets: flat stores, splits and one file per source. `load` opens any of them by name."""

if __name__ != "simkit.datasets":
    raise ImportError(
        f"this folder is the package simkit.datasets, but it was imported as {__name__!r}: the root of simkit's "
        "repository is on sys.path and hides the package that you meant (Hugging Face's `datasets`, perhaps). Run from "
        "another folder, or `pytest` instead of `python -m pytest`; for simkit's data sets write `import simkit.datasets`"
    )

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from simkit.errors import ConfigError

if TYPE_CHECKING:
    from simkit.datasets.store import Store

_SOURCES = {name: f"load_{name}" for name in ("qm9", "rmd17", "frames", "deepmd", "embedded")}


def available() -> list[str]:
    """Return the names that `load` knows."""
    return list(_SOURCES)


def load(name: str, **options: Any) -> "Store":
    """Open a data set by name.

    Args:
        name: "qm9", "rmd17", "frames", "deepmd" or "embedded".
        options: the arguments of that source's function, such as ``molecule="ethanol"``: see
            `simkit.datasets.qm9.load_qm9`, `simkit.datasets.rmd17.load_rmd17`, `simkit.datasets.frames.load_frames`,
            `simkit.datasets.deepmd.load_deepmd` and `simkit.datasets.embedded.load_embedded`.

    Raises:
        ConfigError: if the name or an option is unknown, or a required option is missing.
        DataError: if the data cannot be read or downloaded.
    """
    from simkit.config import nearest

    if name not in _SOURCES:
        raise ConfigError(f"unknown data set {name!r}{nearest(name, available())}")
    function = getattr(importlib.import_module(f"simkit.datasets.{name}"), _SOURCES[name])
    parameters = inspect.signature(function).parameters
    for option in options:
        if option not in parameters:
            raise ConfigError(f"unknown option {option!r} for the data set {name!r}{nearest(option, parameters)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in options]
    if missing:
        raise ConfigError(f"the data set {name!r} needs the option {missing[0]!r}")
    store: Store = function(**options)
    return store
