"""The typed options of the training loop and of the loss."""

from typing import Literal

from pydantic import Field, model_validator

from simkit.config import Options


class LossTerm(Options):
    """One label's part in the loss.

    Errors are in simkit's units (eV, eV/angstrom, ...) or, if ``standardised``, in units of the label's spread in the training data
    (`simkit.training.references.label_spread`), so that terms of different labels compare. The term is ``weight`` times the mean over all
    components (of structures, or of atoms) of the squared, absolute or Huber error.
    """

    weight: float = Field(1.0, ge=0)
    kind: Literal["mse", "mae", "huber"] = "mse"
    delta: float = Field(
        0.01, gt=0, description="where Huber turns from quadratic to linear, in the unit of the errors"
    )
    per_atom: bool = Field(False, description="divide the error of each structure by its number of atoms")
    standardised: bool = Field(False, description="divide errors by the spread of the label in the training data")


class TrainingOptions(Options):
    """Options of `simkit.training.fit`."""

    epochs: int = Field(300, ge=1)
    batch_size: int = Field(10, ge=1, description="structures per optimiser step, over all processes together")
    evaluation_batch_size: int = Field(100, ge=1)
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    minimum_learning_rate: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(100, ge=0)
    plateau_patience: int = Field(50, ge=1, description="epochs without improvement before the learning rate falls")
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    clip_norm: float | None = Field(10.0, gt=0, description="bound on the norm of the gradient")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of the averaged weights; 0 switches averaging off")
    early_stopping: int | None = Field(None, ge=1, description="epochs without improvement before training ends")
    max_minutes: float | None = Field(None, gt=0, description="end after the epoch in which this time is reached")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    checkpoint_minutes: float = Field(2.0, ge=0, description="at most this long is lost when the process is killed")
    precision: Literal["float32", "float64", "tf32", "bf16-mixed"] = "float32"
    device: str = Field("auto", description='"auto", "cpu", "cuda" or "cuda:1"')
    seed: int = Field(0, ge=0, description="of the order of the batches")
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TrainingOptions":
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate {self.minimum_learning_rate} is above learning_rate {self.learning_rate}"
            )
        return self
