"""`Compilation`: the compiled networks of a potential, which are made when asked for and found ever after."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simkit.errors import SimkitError
from simkit.fast.artefact import artefact_path, find_artefact
from simkit.fast.compiled import CompiledNetwork
from simkit.fast.trace import needs_species
from simkit.files import cache_dir

if TYPE_CHECKING:
    from simkit.potential import Potential

Species = tuple[int, ...]


class CompilationError(SimkitError):
    """A network could not be compiled."""


class Compilation:
    """The compiled networks of a potential, one for each set of species that needs its own.

    Whether there is one is looked up once for each such set: in the middle of a simulation nothing changes, because the rounding of a
    compiled network is another one.

    Args:
        potential: whose weights and options are read when a network is made or compiled.
    """

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.by_species = needs_species(potential)
        self.networks: dict[Species, CompiledNetwork] = {}
        self._sought: set[Species] = set()
        self._last: tuple[Tensor, Species] | None = None

    def network(self, species: Tensor) -> CompiledNetwork | None:
        """Return the network for these species, [N] int64, if there is one.

        Raises:
            CompilationError: if it cannot be loaded.
        """
        present = self._present(species)
        if (known := self._known(present)) is not None or present in self._sought:
            return known
        self._sought.add(present)
        found = find_artefact(self.potential, present)
        return None if found is None else self._load(*found)

    def compile(self, species: Tensor) -> None:
        """Compile for these species now, unless that was done before, and wait.

        Raises:
            CompilationError: if it fails.
        """
        present = self._present(species)
        if self._known(present) is not None:
            return
        found = find_artefact(self.potential, present)
        if found is None:
            found = artefact_path(self.potential, present), present
            _compile(self.potential, *found)
        self._load(*found)

    def _load(self, path: Path, present: Species) -> CompiledNetwork:
        try:
            self.networks[present] = CompiledNetwork(self.potential, path, present)
        except (RuntimeError, OSError, AttributeError) as error:
            # It is damaged, or PyTorch loads such files in another way by now.
            path.unlink(missing_ok=True)
            raise CompilationError(f"the compiled network {path} cannot be loaded: {error}") from error
        return self.networks[present]

    def _known(self, present: Species) -> CompiledNetwork | None:
        """A network for these species, or for more."""
        if present in self.networks:
            return self.networks[present]
        return next((network for species, network in self.networks.items() if {*species} >= {*present}), None)

    def _present(self, species: Tensor) -> Species:
        """The species that there are, where that matters; kept for the same tensor."""
        if not self.by_species:
            return ()
        if self._last is None or self._last[0] is not species:
            self._last = species, tuple(torch.unique(species).tolist())
        return self._last[1]

    def __getstate__(self) -> dict[str, object]:
        """Copies look for what is compiled by themselves."""
        return {"potential": self.potential}

    def __setstate__(self, state: dict[str, Potential]) -> None:
        """Begin anew."""
        self.__init__(state["potential"])  # type: ignore[misc]


def _compile(potential: Potential, path: Path, present: Species) -> None:
    """Compile in a process of its own, see `simkit.workflows.compile_network`."""
    with tempfile.TemporaryDirectory(prefix="simkit-compile-") as folder:
        model = Path(folder) / "model.safetensors"
        # -P: a folder of the same name beside the user's script is not this package.
        command = [sys.executable, "-P", "-W", "ignore", "-m", "simkit.workflows.compile_network"]
        command += [str(model), str(potential.dtype).removeprefix("torch."), str(path), *map(str, present)]
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(cache_dir() / "inductor"), **os.environ, "OMP_NUM_THREADS": "1"}
        try:
            potential.save(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", check=False
            )
        except (OSError, SimkitError) as error:
            raise CompilationError(f"no network can be compiled: {error}") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise CompilationError(
            f"the network of this {potential.architecture} could not be compiled: {lines[-1] if lines else 'it said nothing'} "
            f"(status {done.returncode})"
        )
