"""What a molecular dynamics run is, apart from its structure and its model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from simkit.config import Options


class MDOptions(Options):
    """Options of `run_md`.

    Attributes:
        ensemble: "nve" (velocity Verlet) or "nvt" (Langevin).
        temperature: K; of the starting velocities, and of the thermostat. None keeps the structure's velocities ("nve" only).
        timestep: fs.
        friction: of the thermostat, 1/fs.
        seed: of starting velocities and thermostat.
        interval: steps between two rows of ``thermo.csv`` and frames of the trajectory.
    """

    ensemble: Literal["nve", "nvt"] = "nve"
    temperature: float | None = Field(300.0, gt=0, allow_inf_nan=False)
    timestep: float = Field(0.5, gt=0, allow_inf_nan=False)
    friction: float = Field(0.01, gt=0, allow_inf_nan=False)
    seed: int = Field(0, ge=0)
    interval: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _thermostat_has_a_target(self) -> Self:
        if self.ensemble == "nvt" and self.temperature is None:
            raise ValueError("the ensemble nvt needs a temperature")
        return self
