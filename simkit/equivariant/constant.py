"""Constants that no change of dtype degrades."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ExactConstant(nn.Module):
    """A constant such as a Clebsch-Gordan coefficient, ``value``, in the dtype and on the device of the model.

    A plain buffer that was float32 once stays rounded to float32 for ever; this one is made from the float64 original again. It is
    not part of the saved weights.

    Args:
        exact: float64, any shape.
    """

    value: Tensor

    def __init__(self, exact: Tensor) -> None:
        super().__init__()
        self._exact = exact.to("cpu", torch.float64)
        self.register_buffer("value", self._exact.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.value = self._exact.to(self.value)
        return self

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.value
