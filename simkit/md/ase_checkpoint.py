"""The checkpoint of a run: one file that holds everything needed to go on as if the run had never stopped."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError, OutputError
from simkit.files import atomic_path


@dataclass(frozen=True)
class Checkpoint:
    """State after ``step`` steps.

    Attributes:
        identity: name -> value of all that must be the same when the run goes on.
        step: steps done; frames: rows and frames written; directions: degrees of freedom that carry the temperature.
        generator: state of the random number generator.
        positions: [N, 3] angstrom; momenta: [N, 3] in ASE's unit.
    """

    identity: dict[str, Any]
    step: int
    frames: int
    directions: int
    generator: dict[str, Any]
    positions: NDArray[np.float64]
    momenta: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write the file, atomically.

        Raises:
            OutputError: if it cannot be written.
        """
        fields = ("identity", "step", "frames", "directions", "generator")
        state = json.dumps({name: getattr(self, name) for name in fields})
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, positions=self.positions, momenta=self.momenta, state=np.array(state))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read the file. Nothing in it is executed.

        Raises:
            DataError: if it is not a checkpoint.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                state = json.loads(str(file["state"]))
                return cls(positions=file["positions"], momenta=file["momenta"], **state)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{path} is not a checkpoint of a run ({error}); start the run again in a new folder"
            ) from None

    def check(self, identity: dict[str, Any], folder: Path) -> None:
        """Refuse to go on with another structure, model or setting.

        Raises:
            OutputError: naming everything that differs.
        """
        names = {**self.identity, **identity}
        changed = [name for name in names if self.identity.get(name) != identity.get(name)]
        if changed:
            parts = []
            for name in changed:
                hashed = name in ("structure", "model")
                parts.append(
                    f"another {name}" if hashed else f"{name} {identity.get(name)} instead of {self.identity.get(name)}"
                )
            raise OutputError(
                f"the run in {folder} cannot be continued with {', '.join(parts)}; use what it was started with, or a new folder"
            )
