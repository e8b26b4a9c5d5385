"""Compile the network of a potential and try it out; in a process of its own, see `simkit.workflows.compile_network`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms

from simkit.errors import SimkitError
from simkit.fast.compiled import CompiledNetwork
from simkit.fast.trace import trace
from simkit.files import atomic_path
from simkit.graph import AtomGraph
from simkit.potential import Potential

OPTIONS = {"cpp.dynamic_threads": True, "cpp.enable_floating_point_contract_flag": "fast"}
"""Of inductor: as many threads as there are in each call, and multiplications fused with additions."""
TRIED = (3, 4, 9, 33, 120)
"""Atoms of the structures that a compiled network is tried on before anything may use it."""


def build(potential: Potential, artefact: Path, present: tuple[int, ...]) -> None:
    """Write the compiled network of a potential, atomically, if it holds.

    Args:
        potential: its weights must not require gradients. present: the species to compile for, see `simkit.fast.trace.trace`.

    Raises:
        SimkitError: if it disagrees with the network itself. Other errors are the compiler's.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler

    get_cpp_compiler()  # without one, that is said at once
    program = trace(potential, present)
    with atomic_path(artefact) as temporary:
        aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=OPTIONS)
        try_out(potential, temporary, present)


def try_out(potential: Potential, artefact: Path, present: tuple[int, ...]) -> None:
    """Compare a compiled network with the potential in float64 on structures of several sizes.

    Raises:
        SimkitError: if they disagree.
    """
    fast = potential.fast()
    if fast.compilation is None:
        raise SimkitError(fast.reason)
    fast.compilation.networks[present] = CompiledNetwork(potential, artefact, present)
    for count in TRIED:
        found = fast.compare(AtomGraph.from_ase(_structure(potential, count, present), potential.cutoff))
        if not found.agrees:
            raise SimkitError(f"the compiled network is wrong for {count} atoms: {found}")


def _structure(potential: Potential, count: int, present: tuple[int, ...]) -> Atoms:
    """A cluster of atoms of all species, a few of which see each other."""
    rng = np.random.default_rng(count)
    side = int(np.ceil(count ** (1 / 3)))
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:count]
    positions = potential.cutoff / 2.5 * (sites + rng.uniform(-0.2, 0.2, (count, 3)))
    species = np.resize(present or range(len(potential.elements)), count)
    return Atoms(np.array(potential.elements)[species], positions)
