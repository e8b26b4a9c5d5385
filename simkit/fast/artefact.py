"""Where a compiled network is kept: a file named by a hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from simkit.fast.trace import weights_of
from simkit.files import cache_dir

if TYPE_CHECKING:
    from simkit.potential import Potential


def artefact_path(potential: Potential, present: tuple[int, ...]) -> Path:
    """Return the file of a network that was compiled for these species, in the cache folder; it need not be there.

    Weights are inputs of compiled networks, so that models that differ in nothing else share a file.
    """
    from simkit import __version__

    content = {
        "architecture": potential.architecture,
        "options": potential.options,
        "cutoff": potential.cutoff,
        "elements": potential.elements,
        "dtype": str(potential.dtype),
        "weights": [list(weight.shape) for weight in weights_of(potential)],
        "constants": _constants(potential),
        "sources": _sources(potential),
        "versions": [__version__, torch.__version__, platform.python_version()],
        "device": [potential.device.type, platform.machine(), _processor()],
    }
    name = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return cache_dir() / "compiled" / ("-".join([potential.architecture, name, *map(str, present)]) + ".pt2")


def find_artefact(potential: Potential, present: tuple[int, ...]) -> tuple[Path, tuple[int, ...]] | None:
    """Return the file of a network that was compiled for these species, or for as few more as there are, and for which; None without."""
    path = artefact_path(potential, present)
    if path.exists() or not present:
        return (path, present) if path.exists() else None
    start = artefact_path(potential, ()).stem + "-"
    found = []
    for other in path.parent.glob(f"{start}*.pt2"):
        species = tuple(int(k) for k in other.stem.removeprefix(start).split("-"))
        if {*species} >= {*present}:
            found.append((len(species), other, species))
    return min(found)[1:] if found else None


def _constants(potential: Potential) -> str:
    """A hash of everything in the network that is neither a weight nor a number in its options."""
    digest = hashlib.sha256()
    for part in (potential.representation, potential.heads["energy"]):
        for name, value in part.named_buffers():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sources(potential: Potential) -> str:
    """A hash of the code of the network, which may be changed without a new version."""
    modules = [*potential.representation.modules(), *potential.heads["energy"].modules()]
    names = {type(module).__module__ for module in modules} | {weights_of.__module__}
    digest = hashlib.sha256()
    for name in sorted(name for name in names if name.partition(".")[0] != "torch"):
        if file := getattr(sys.modules[name], "__file__", None):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()


@cache
def _processor() -> str:
    """What code for this processor may make use of."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + torch.backends.cpu.get_cpu_capability()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()
