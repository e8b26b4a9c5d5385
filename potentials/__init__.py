"""The registered architectures: list them, build one with random weights, load one from a file."""

from __future__ import annotations

if __name__ != "simkit.potentials":
    raise ImportError(
        f"this folder is the package simkit.potentials, but it was imported as {__name__!r}: the root of simkit's repository is "
        "on sys.path; run from another folder, or `pytest` instead of `python -m pytest`, and write `import simkit.potentials`"
    )

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from simkit.config import find_registered, parse_options
from simkit.errors import ConfigError
from simkit.files import read_model_header, rebuild_model

if TYPE_CHECKING:
    from simkit.config import Options
    from simkit.potential import Potential, Representation

__all__ = ["architecture", "available", "build", "from_header", "load", "read_header"]

# Registered name -> (module, class); the options class of X is XOptions in the same module.
_REGISTRY: dict[str, tuple[str, str]] = {
    "ani": ("simkit.potentials.ani", "ANI"),
    "dimenet++": ("simkit.potentials.dimenet", "DimeNetPlusPlus"),
    "egnn": ("simkit.potentials.egnn", "EGNN"),
    "lennard_jones": ("simkit.potentials.lennard_jones", "LennardJones"),
    "mace": ("simkit.potentials.mace", "MACE"),
    "morse": ("simkit.potentials.morse", "Morse"),
    "mpnn": ("simkit.potentials.mpnn", "MPNN"),
    "nequip": ("simkit.potentials.nequip", "NequIP"),
    "painn": ("simkit.potentials.painn", "PaiNN"),
    "physnet": ("simkit.potentials.physnet", "PhysNet"),
    "schnet": ("simkit.potentials.schnet", "SchNet"),
    "se3_transformer": ("simkit.potentials.se3_transformer", "SE3Transformer"),
    "tfn": ("simkit.potentials.tfn", "TensorFieldNetwork"),
}


def available() -> list[str]:
    """Return the names of the registered architectures."""
    return sorted(_REGISTRY)


def architecture(name: str) -> tuple[type[Representation], type[Options]]:
    """Return the class of a registered architecture and that of its options.

    Raises:
        ConfigError: if the name is unknown.
    """
    return find_registered(name, _REGISTRY, "architecture")


def build(
    name: str,
    *,
    cutoff: float = 5.0,
    elements: Sequence[int],
    outputs: Sequence[str] = ("energy",),
    pooling: str = "mean",
    anchored: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    info: Mapping[str, Any] | None = None,
    **options: Any,
) -> Potential:
    """Build a potential with random weights.

    Args:
        name: one of `available`.
        cutoff: neighbor cutoff, angstrom.
        elements: atomic numbers that the model is to know.
        outputs: what to make heads for: "energy", "dipole" (which also gives charges and mu), "polarizability" (also alpha), or any
            property of `simkit.properties.KINDS`: mu, alpha, homo, lumo, gap, r2, zpve, U0, U, H, G, Cv, charges, ...
        pooling: of homo, lumo and gap: "mean" of the atoms, or "set2set".
        anchored: make the energy of an isolated atom exactly its reference energy.
        dtype: of the weights, "float32" or "float64".
        seed: of the random weights; the global random state is left alone.
        info: free-form description kept in the model file (level of theory, hash of the training data, ...).
        options: the architecture's own options, validated against its options class (such as `PaiNNOptions`).

    Raises:
        ConfigError: if a name or value is unknown or out of range.
    """
    import torch

    from simkit.potential import Potential

    representation_class, options_class = architecture(name)
    numbers = list(elements)
    if not numbers or not all(isinstance(z, Integral) and 1 <= z <= 118 for z in numbers):
        raise ConfigError(f"elements must be atomic numbers from 1 to 118, at least one; found {numbers}")
    numbers = sorted({int(z) for z in numbers})
    if not outputs or isinstance(outputs, str):
        raise ConfigError(f'outputs must be a list such as ["energy"], with at least one name; found {outputs!r}')
    if not isinstance(cutoff, Real) or not 0 < cutoff < float("inf"):
        raise ConfigError(f"the cutoff must be a positive number of angstrom, found {cutoff!r}")
    if dtype not in ("float32", "float64"):
        raise ConfigError(f"dtype must be float32 or float64, found {dtype!r}")
    parsed = parse_options(options_class, options, f"options of {name}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of the GPUs
        representation = representation_class.for_elements(parsed, float(cutoff), numbers)
        potential = Potential(
            representation,
            architecture=name,
            options=parsed.model_dump(),
            cutoff=cutoff,
            elements=numbers,
            outputs=outputs,
            pooling=pooling,
            anchored=anchored,
            info=info,
        )
    return potential.cast(getattr(torch, dtype))


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a model file, without the weights.

    Raises:
        ModelFileError: if the file is missing, truncated, pickled, of another format or of a newer version.
    """
    from simkit.potential import FORMAT, FORMAT_VERSION

    return read_model_header(path, FORMAT, FORMAT_VERSION, "potential")


def from_header(header: Mapping[str, Any], *, elements: Sequence[int] | None = None, seed: int = 0) -> Potential:
    """Build the potential that a header describes, with random weights.

    Args:
        header: see `Potential.header`.
        elements: atomic numbers, instead of the header's.
        seed: of the random weights.

    Raises:
        KeyError: if the header lacks something.
        ConfigError: if it holds an unknown name or value.
    """
    older = architecture(header["architecture"])[1].IN_OLDER_FILES
    return build(
        header["architecture"],
        cutoff=header["cutoff"],
        elements=header["elements"] if elements is None else elements,
        outputs=header["outputs"],
        pooling=header.get("pooling", "mean"),
        anchored=header["anchored"],
        dtype=header["dtype"],
        seed=seed,
        info=header["info"],
        **(dict(older) | header["options"]),
    )


def load(path: str | os.PathLike[str], device: str = "cpu") -> Potential:
    """Load a potential from a file written by `Potential.save`. Nothing in the file is executed.

    Raises:
        ModelFileError: if the file is not a valid model (see `read_header`) or its weights do not fit its header.
    """
    return rebuild_model(path, read_header(path), from_header, device)
