"""Learned models of motion as compiled code, for rollouts of many trajectories.

>>> import numpy as np
>>> from simkit.surrogates.models import build
>>> fast = compile_model(build("hnn", 2, angles=(0,)))
>>> fast.rollout(np.zeros((1000, 4), np.float32), np.linspace(0, 10, 101), method="rk4").shape
(101, 1000, 4)
"""

from __future__ import annotations

from simkit.surrogates.compiled.model import CompiledModel, compile_model

__all__ = ["CompiledModel", "compile_model"]
