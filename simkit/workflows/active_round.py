"""Where the files of a round of active learning are, and what is known of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simkit.files import write_json


class Round:
    """One round: its folder, and the facts in ``round.json``, each written when the step is complete that it is about.

    Attributes:
        number: from 0. folder: of the round.
        facts: ``labels``, ``calibration``, ``training``, ``errors``, ``exploration``, as far as they are done.
    """

    def __init__(self, out: Path, number: int) -> None:
        self.out, self.number = out, number
        self.folder = out / f"round-{number:02d}"
        path = self.folder / "round.json"
        self.facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def selected(self) -> Path:
        """The frames that are to be labelled."""
        return self.folder / "selected.xyz"

    @property
    def labels(self) -> Path:
        """Those of them that could be, with their labels."""
        return self.folder / "labels.xyz"

    @property
    def failures(self) -> Path:
        """Those that could not be, see `simkit.labeling.label.label_structures`."""
        return self.folder / "labels.xyz.failures.json"

    @property
    def data(self) -> Path:
        """Those of the labelled frames that are trained on; there is no file where there are none."""
        return self.folder / "data.xyz"

    @property
    def calibration(self) -> Path:
        """Disagreement and true error of the new frames, before they were trained on."""
        return self.folder / "calibration.npz"

    def members(self, count: int) -> list[Path]:
        """The model files of the members."""
        return [self.folder / "members" / str(k) / "model.safetensors" for k in range(count)]

    def trajectories(self, count: int) -> list[Path]:
        """The files of what was explored."""
        return [self.folder / "md" / f"trajectory-{k}.npz" for k in range(count)]

    def next(self) -> Round:
        """The round after this one."""
        return Round(self.out, self.number + 1)

    def has(self, name: str) -> bool:
        """Whether a step is complete."""
        return name in self.facts

    def note(self, **facts: Any) -> None:
        """Write down that steps are complete."""
        self.facts |= facts
        write_json(self.folder / "round.json", self.facts)

    def labelled(self, rounds: Sequence[Round]) -> int:
        """How many frames up to this round are trained on."""
        return sum(one.facts["labels"]["labelled"] for one in rounds[: self.number + 1])
